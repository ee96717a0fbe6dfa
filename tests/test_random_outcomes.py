"""Random mishaps: what mailpool reports of each message agrees with what the server has seen.

``RANDOM_MESSAGES`` and ``RANDOM_SEED`` in the environment make it longer, or another one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from random import Random
from smtplib import SMTPException

import pytest

from mailpool.exceptions import DeliveryUnknown
from mailpool.smtp import Attempt, Envelope, SessionParams, SessionPool, Transmitter
from mailpool.smtp.wire import NotSMTP, TimedOut
from tests.scripted import EXTENSIONS, Conversation, ScriptedServer

MESSAGES = int(os.environ.get("RANDOM_MESSAGES", "2400"))
SEED = int(os.environ.get("RANDOM_SEED", "20240229"))
ROUND = 400  # messages, after which the books are compared

STEPS = {"MAIL": "x.1.0", "RCPT": "x.1.5", "DATA": "x.0.0", "BDAT": "x.0.0", "end of data": "x.6.0"}


class Mischief(ScriptedServer):
    """Does something bad at some steps, by chance."""

    def __init__(self, random: Random, **kwargs):
        super().__init__(**kwargs)
        self.random = random
        # Connections with a reply too many, and with one too few → bodies at the first such time.
        self.in_excess: dict[int, int] = {}
        self.in_want: dict[int, int] = {}

    @property
    def muddled(self) -> set[int]:
        """Messages after which the one makes up for the other: no client can tell."""
        both = self.in_excess.keys() & self.in_want.keys()
        since = {each: min(self.in_excess[each], self.in_want[each]) - 1 for each in both}
        return self._messages_since(since)

    @property
    def told_too_little(self) -> set[int]:
        return self._messages_since(dict.fromkeys(self.in_want, 0))

    def _messages_since(self, since):
        return {
            number_of(body)
            for index, (connection, body) in enumerate(self.bodies)
            if connection in since and index >= since[connection]
        }

    def _one_too_many(self, talk):
        self.in_excess.setdefault(talk.number, len(self.bodies))
        talk.write(b"250 2.1.0 one too many\r\n")

    def _perhaps_silently(self, talk):
        silently = self.random.random() < 0.1
        if silently:
            self.in_want.setdefault(talk.number, len(self.bodies))
        talk.behave(silently=silently)

    def choose(self, talk, count):
        if talk.step not in STEPS or self.random.random() > 0.04:
            return [Conversation.behave]
        enhanced = STEPS[talk.step]
        refuse = [
            lambda talk, code=code: talk.refuse(f"{code} {enhanced.replace('x', str(code)[0])} no")
            for code in (421, 450, 451, 550, 554)
        ]
        return self.random.choice(
            [
                [Conversation.close],
                [Conversation.reset],
                [Conversation.behave, Conversation.close],
                [Conversation.behave, Conversation.reset],
                [refuse[0], Conversation.close],
                [lambda talk: talk.refuse("451 4.4.2 timed out"), Conversation.close],
                *([each] for each in refuse[1:]),
                [refuse[3], Conversation.close],
                [lambda talk: talk.write(b"garbage\r\n")],
                [lambda talk: talk.write(b"250-half a reply\r\n"), Conversation.close],
                [Conversation.behave, self._one_too_many],
                [lambda talk: self.random.random() < 0.1 and talk.freeze(), Conversation.behave],
                [self._perhaps_silently],
            ]
        )


def number_of(body: bytes) -> int:
    return int(re.search(rb"Number (\d+)\.", body)[1])


@pytest.mark.parametrize("single_flight", [False, True], ids=["DATA", "single flight"])
@pytest.mark.parametrize("pipelining", [False, True], ids=["one at a time", "pipelined"])
def test_reports_agree_with_the_servers_books(pipelining, single_flight):
    if single_flight and not pipelining:
        return  # is the same as without
    random = Random(SEED)
    outcomes: Counter[str] = Counter()
    for start in range(0, MESSAGES // 3, ROUND):
        outcomes += play(random, start, pipelining, single_flight)
    print(dict(outcomes))
    assert outcomes["sent"] > outcomes.total() / 2
    assert outcomes["unknown"]
    assert outcomes["can't be told"] < outcomes.total() / 50
    assert outcomes["muddled"] < outcomes.total() / 100
    assert outcomes["failed"]


def play(random, start, pipelining, single_flight):
    extensions = [each for each in EXTENSIONS if pipelining or each != "PIPELINING"]
    attempts = {}
    with Mischief(random, extensions=extensions) as server:
        pool = SessionPool(timeout=10)
        number = start
        while number < start + ROUND:
            groups = {}
            for credential in random.sample("abcd", random.randint(1, 4)):
                params = SessionParams(
                    credential_id=credential,
                    host="127.0.0.1",
                    port=server.port,
                    security="plain",
                    username=credential,
                    password="secret",
                    timeout=0.3,
                    final_timeout=0.3,
                    max_messages=30,
                    single_flight=single_flight,
                )
                group = groups[params] = []
                for _ in range(random.choice([1, 1, 2, 10, 25])):
                    recipients = tuple(f"r{n}@example.com" for n in range(random.randint(1, 3)))
                    content = b"Number %d.\r\n" % number + b"x" * random.choice([0, 100, 50_000])
                    attempt = Attempt(Envelope("a@example.com", recipients, content))
                    attempts[number] = attempt
                    group.append(attempt)
                    number += 1
            transmitter = Transmitter(pool)
            transmitter.transmit(groups, width=4, keep_order=random.random() < 0.5)
            transmitter.release()
            assert pool.stats().busy == 0
        pool.close()
    accepted = Counter(map(number_of, server.accepted))
    answered = {number_of(body) for body in server.answered}
    muddled, told_too_little = server.muddled, server.told_too_little
    outcomes: Counter[str] = Counter()
    for number, attempt in attempts.items():
        assert attempt.is_settled, "lost in silence"
        assert accepted[number] <= 1, "sent twice"
        if number in muddled:
            outcomes["muddled"] += 1
        elif attempt.receipt:
            assert accepted[number] == 1, f"reported as sent, never arrived: {attempt}"
            outcomes["sent"] += 1
        elif isinstance(attempt.error, DeliveryUnknown):
            # In single flight the replies before it may be what is missing, or can't be read;
            # and where replies are one too many, nobody can tell which is which.
            cause = attempt.error.__cause__
            unclear = single_flight and (
                number in told_too_little or isinstance(cause, NotSMTP | TimedOut)
            )
            if "can't be told" in str(attempt.error):
                outcomes["can't be told"] += 1
            else:
                assert unclear or number not in answered, f"unknown, though answered: {attempt}"
            outcomes["unknown"] += 1
        else:
            assert isinstance(attempt.error, SMTPException)
            assert accepted[number] == 0, f"arrived, though reported as failed: {attempt}"
            outcomes["failed"] += 1
    return outcomes
