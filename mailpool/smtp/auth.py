"""AUTH (RFC 4954): which mechanism, and what is said in it."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Callable, Container, Iterator
from smtplib import SMTPServerDisconnected
from typing import TYPE_CHECKING

from mailpool.secret import Secret, SecretBytes
from mailpool.smtp.envelope import plainly
from mailpool.smtp.reply import Reply
from mailpool.smtp.wire import NotSMTP

if TYPE_CHECKING:
    from mailpool.smtp.params import SessionParams

# In order of preference. PLAIN costs one round trip; a password is only ever sent over TLS or to
# this very machine, which the session sees to before it comes here. What CRAM-MD5 hides from the
# server's log it costs in the server's store, which has to have the password in clear text.
PASSWORD_MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
EXTERNAL = "EXTERNAL"  # by the client certificate, RFC 4422
MECHANISMS = (*PASSWORD_MECHANISMS, EXTERNAL)
# The standard (RFC 7628) before what Google and Microsoft had until then.
BEARER_MECHANISMS = ("OAUTHBEARER", "XOAUTH2")

# What is said to the error that a bearer mechanism reports in a challenge, so that the server
# goes on to refuse: RFC 7628 has a byte for it, in base64, and XOAUTH2 an empty line.
_GO_ON = {"OAUTHBEARER": b"AQ==", "XOAUTH2": b""}

# RFC 5321 §4.5.3.1.4; RFC 4954 has what does not fit said in answer to a challenge, in a line of
# any length. Some servers refuse it otherwise, and access tokens are long.
_LONGEST_COMMAND = 512

# Bytes. A shorter secret is not looked for in what the server says: it may be a part of any word.
_SHORTEST_SECRET = 6

# A long token may be repeated only up to where a line of the server's ends; so many bytes of it
# are no coincidence.
_LONG = 16
_LONG_WORD = re.compile(rb"[\w.~+/=-]{%d,}" % _LONG)

Command = Callable[[bytes], Reply]
Hide = Callable[..., bytes]  # of a text and of what was said before it


def _base64(data: bytes) -> SecretBytes:
    return SecretBytes(base64.b64encode(data))


def _plain(username: str, password: str) -> Iterator[Callable[[bytes], bytes]]:
    yield lambda _: b"\0%b\0%b" % (username.encode(), password.encode())


def _login(username: str, password: str) -> Iterator[Callable[[bytes], bytes]]:
    yield lambda _: username.encode()
    yield lambda _: password.encode()


def _cram_md5(username: str, password: str) -> Iterator[Callable[[bytes], bytes]]:
    def answer(challenge: bytes) -> bytes:
        try:
            decoded = base64.b64decode(challenge, validate=True)
        except binascii.Error:
            raise NotSMTP("The server's challenge is not base64.") from None
        digest = hmac.new(password.encode(), decoded, "md5").hexdigest()
        return f"{username} {digest}".encode()

    yield answer


def _external(username: str, password: str) -> Iterator[Callable[[bytes], bytes]]:
    yield lambda _: username.encode()  # whom to act as; empty: whomever the certificate names


_ANSWERS = {"PLAIN": _plain, "LOGIN": _login, "CRAM-MD5": _cram_md5, EXTERNAL: _external}
_SPEAKS_FIRST = {"PLAIN", EXTERNAL}


def authenticate(command: Command, mechanism: str, params: SessionParams) -> Reply:
    """Go through *mechanism* with *command*, which sends a line and returns the reply.

    Returns the last reply: 235 is success, anything else is not. What the server says here may
    repeat what it was sent, so *command* has to hide that (``hiding()``).
    """
    try:
        if mechanism in BEARER_MECHANISMS:
            return _bearer(command, mechanism, params)
        return _exchange(command, mechanism, params.username, Secret(params.password))
    except NotSMTP:
        raise NotSMTP("The server answered AUTH with something that is not SMTP.") from None
    except SMTPServerDisconnected as error:
        raise SMTPServerDisconnected(*error.args) from None  # without the frames that read it


def _exchange(command: Command, mechanism: str, username: str, password: Secret) -> Reply:
    answers = _ANSWERS[mechanism](username, password)
    if mechanism in _SPEAKS_FIRST:
        return _at_once(command, mechanism, _base64(next(answers)(b"")))
    reply = command(b"AUTH " + mechanism.encode())
    for answer in answers:
        if reply.code != 334:
            break
        reply = command(_base64(answer(reply.lines[-1])))
    return reply


def _at_once(command: Command, mechanism: str, first: SecretBytes) -> Reply:
    """Say *first* along with AUTH, where it fits and the server does not overlook it."""
    # RFC 4954: "=" is a first response that is there and empty.
    line = SecretBytes(b"AUTH %b %b" % (mechanism.encode(), first or b"="))
    if len(line) + 2 > _LONGEST_COMMAND:
        reply = command(b"AUTH " + mechanism.encode())
        return command(first) if reply.code == 334 else reply
    reply = command(line)
    # A challenge with something in it is how a bearer mechanism reports an error.
    if reply.code == 334 and (mechanism in _SPEAKS_FIRST or not reply.lines[-1].strip()):
        reply = command(first)
    return reply


def _bearer(command: Command, mechanism: str, params: SessionParams) -> Reply:
    reply = _at_once(command, mechanism, _base64(_bearer_message(mechanism, params)))
    if reply.code != 334:
        return reply
    status = hiding(params)(_status(reply.lines[-1]))
    reply = command(_GO_ON[mechanism])
    if reply.code == 334:  # it neither refuses nor accepts; "*" ends any mechanism
        reply = command(b"*")
    if status and reply.code != 235:
        reply = Reply(reply.code, (*reply.lines, b"(status of the token: %b)" % status))
    return reply


def _bearer_message(mechanism: str, params: SessionParams) -> SecretBytes:
    token, user = params.access_token, params.username
    if mechanism == "XOAUTH2":
        return SecretBytes(f"user={user}\1auth=Bearer {token}\1\1".encode())
    user = user.replace("=", "=3D").replace(",", "=2C")
    where = f"host={params.host}\1port={params.port}"
    return SecretBytes(f"n,a={user},\1{where}\1auth=Bearer {token}\1\1".encode())


def _status(challenge: bytes) -> bytes:
    """What the error of a bearer mechanism, JSON in base64, calls it; empty if it can't be read."""
    try:
        found = json.loads(base64.b64decode(challenge, validate=True))
        text = str(found["status"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return b""
    return re.sub(rb"[^ -~]", b"?", text.encode("ascii", "replace"))[:100]


def hiding(params: SessionParams) -> Hide:
    """What takes the secret of *params* out of a text, in each form that it is sent in.

    For all that the server says on a connection: it may repeat a login at any time, from another
    connection as well. A long part of the secret is hidden like the whole of it.

    But not what stands in *said*, the messages and addresses that the server answers, nor in the
    username: servers repeat these, too, and whoever chose them would learn from what is hidden
    whether they guessed a secret, or the next character of one. It tells them nothing that they
    did not know. A password that is a part of the username would even be shown by its absence.
    """
    secret = SecretBytes((params.access_token or params.password).encode())
    if not secret:
        return lambda text, said=(): text
    if params.access_token:
        messages = [_bearer_message(mechanism, params) for mechanism in BEARER_MECHANISMS]
    else:
        messages = [SecretBytes(b"\0%b\0%b" % (params.username.encode(), secret))]
    encoded = [_base64(message) for message in (*messages, secret)]
    # Some leave out the padding. The longest first: one may be a part of another.
    forms = {secret, *encoded, *(SecretBytes(form.rstrip(b"=")) for form in encoded)}
    secrets = sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len)[::-1]
    all_of_them = SecretBytes(b"\n".join(secrets))
    username = plainly(params.username.encode())

    def hide(text: bytes, said: Container[bytes] = ()) -> bytes:
        def was_chosen(word: bytes) -> bool:
            return username.find(plainly(word)) >= 0 or word in said

        def hide_part(found: re.Match[bytes]) -> bytes:
            word: bytes = found[0]
            is_part = all_of_them.find(word) >= 0 and not was_chosen(word)
            return b"(hidden)" if is_part else word

        for secret in secrets:
            if text.find(secret) >= 0 and not was_chosen(secret):
                text = text.replace(secret, b"(hidden)")
        return text if len(text) < _LONG else _LONG_WORD.sub(hide_part, text)

    return hide
