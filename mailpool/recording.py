"""The record of each message: a row in the database, written when the connection is back.

A row that can't be written is reported and otherwise without consequence: the mail has gone its
way, and what the caller is told does not depend on it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from smtplib import SMTPRecipientsRefused
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connections,
    router,
    transaction,
)
from django.db.models import Max
from django.utils import timezone

from mailpool import audit, conf, signals, summaries
from mailpool.events import event, tell
from mailpool.models import Credential, DeliveryRecipient, DeliveryRecord
from mailpool.models.records import EPOCH, DeliveryRecordQuerySet, first_key, make_key
from mailpool.outcomes import MailpoolResult
from mailpool.prepared import PreparedInsert, prepare_insert
from mailpool.routing import slug_of
from mailpool.smtp import Attempt

logger = logging.getLogger("mailpool.records")

# Rows in one statement: more of them are hardly faster, and take longer to be tried again.
ROWS = 100

REPLY_LENGTH = 2000  # characters that are kept of what servers say
MOST_MS = 2**31 - 1

_MESSAGE_ID = re.compile(rb"(?i)(?:\A|\r\n)message-id:\s*(<[^>\r\n]*>)")
_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?=\s|$)")
_ADDRESS = re.compile(r"[^\s<>()\[\]\"',;:]+@[^\s<>()\[\]\"',;:]+")


@dataclass(slots=True)
class Trace:
    """What is kept of a message until its row is written, when its bytes are gone."""

    ended: int
    """Microseconds since 1970."""

    sender: str = ""
    recipients: tuple[str, ...] = ()
    size: int = 0
    message_id: str = ""
    tls: str = ""
    retried: bool = False
    # Milliseconds.
    waiting: int = 0
    connecting: int = 0
    sending: int = 0


@dataclass(slots=True)
class Entry:
    """All that a row is made from."""

    message: EmailMessage
    credential: Credential | None
    owner: Any
    """The tenant, where it is known and there is no credential."""

    trace: Trace
    result: MailpoolResult


def trace(attempt: Attempt | None) -> Trace | None:
    """What is to be kept of *attempt* (``None``: there was nothing to transmit), if anything is."""
    if conf.records_level() == conf.RECORDS_OFF:
        return None
    now, mono = time.time_ns() // 1000, time.monotonic()
    if attempt is None:
        return Trace(now)
    ended = mono if attempt.ended is None else attempt.ended
    began = ended if attempt.began is None else attempt.began
    connecting = attempt.connecting
    envelope = attempt.envelope
    return Trace(
        ended=now - int((mono - ended) * 1_000_000),
        sender=envelope.sender,
        recipients=envelope.recipients,
        size=envelope.size,
        message_id=_message_id(envelope.content),
        tls=attempt.tls,
        retried=attempt.stale is not None,
        waiting=_ms(began - attempt.made - connecting),
        connecting=_ms(connecting),
        sending=_ms(ended - began),
    )


def _ms(seconds: float) -> int:
    return min(MOST_MS, max(0, round(seconds * 1000)))


def _message_id(content: bytes) -> str:
    match = _MESSAGE_ID.search(content, 0, max(0, content.find(b"\r\n\r\n")))
    return match[1].decode("ascii", "replace") if match else ""


def write(entries: Sequence[Entry]) -> None:
    """Write a row for each of *entries*, in as few statements as may be. Never raises.

    Within a transaction of the caller's they stand or fall with it, but never break it.
    """
    missing = _Missing()
    for first in range(0, len(entries), ROWS):
        part = entries[first : first + ROWS]
        try:
            _write(part, missing)
        except Exception as error:
            missing.records += len(part)
            missing.error = error
    if missing.error is not None:
        _report(missing, missing.error)


@dataclass(slots=True)
class _Missing:
    """What could not be written, and why."""

    records: int = 0
    recipients: int = 0
    """Further ones, of records that were written."""

    error: Exception | None = None


def _report(missing: _Missing, error: Exception) -> None:
    more = ""
    if missing.recipients:
        more = f" and {missing.recipients} further recipients of others"
    tell(
        lambda: logger.error(
            "%d delivery records%s could not be written (%s): %s. The mail is not affected.",
            missing.records,
            more,
            type(error).__name__,
            str(error).partition("\n")[0],  # what PostgreSQL says below that shows the row
            extra=event(
                "mailpool.records_not_written",
                records=missing.records,
                recipients=missing.recipients,
                error=error,
            ),
        )
    )
    tell(
        lambda: signals.records_failed.send_robust(
            sender=DeliveryRecord,
            count=missing.records,
            recipients=missing.recipients,
            error=error,
        )
    )


def _write(entries: Sequence[Entry], missing: _Missing) -> None:
    """Write them, but for what *missing* tells of. What it raises, no record was written for."""
    using = router.db_for_write(DeliveryRecord)
    rows, others = _Rows(using).of(entries)
    try:
        _insert(using, DeliveryRecord, rows)
    except (DataError, IntegrityError):
        if len(entries) == 1:
            raise
        # One of them is to blame; it shall not take the others along.
        for entry in entries:
            try:
                _write([entry], missing)
            except Exception as error:
                missing.records += 1
                missing.error = error
        return
    if others:
        try:
            _insert(using, DeliveryRecipient, others)
        except Exception as error:
            missing.recipients += len(others)
            missing.error = error


def _insert(using: str, model: Any, rows: list[list[Any]]) -> None:
    connection = connections[using]
    statement = _statement(using, model)
    if connection.in_atomic_block or not connection.get_autocommit():
        # A savepoint, so that an error does not break the caller's transaction.
        try:
            with transaction.atomic(using=using):
                statement.execute(rows)
        except (OperationalError, InterfaceError):
            if connection.needs_rollback and not connection.is_usable():
                # Not even the savepoint could be rolled back, for the line is cut. Django would
                # end the caller's transaction as rolled back, without a word; so it fails.
                connection.needs_rollback = False
            raise
        return
    try:
        statement.execute(rows, alone=True)
    except (OperationalError, InterfaceError):
        # Sending may take longer than a database lets a connection be idle. The key is in the
        # row, so that it can't be written a second time. One that is sound stays as it is: the
        # caller may be reading from it.
        if connection.connection is not None and connection.is_usable():
            raise
        connection.close()
        with suppress(IntegrityError):  # it was written after all
            statement.execute(rows, alone=True)


_statements: dict[tuple[str, Any], PreparedInsert] = {}


def _statement(using: str, model: Any) -> PreparedInsert:
    if (using, model) not in _statements:
        _statements[using, model] = prepare_insert(using, model)
    return _statements[using, model]


class _Rows:
    """Entries as rows, in the order of the model's columns."""

    def __init__(self, using: str) -> None:
        self._connection = connections[using]
        self._level = conf.records_level()
        self._accounts: dict[Any, tuple[Any, ...]] = {}

    def of(self, entries: Iterable[Entry]) -> tuple[list[list[Any]], list[list[Any]]]:
        """Their rows, and those of recipients after the first one."""
        rows: list[list[Any]] = []
        others: list[list[Any]] = []
        for entry in entries:
            row = self._row(entry)
            rows.append(row)
            if self._level >= conf.RECORDS_ADDRESSES:
                others += [
                    [row[0], _text(address, 320).lower()] for address in _recipients(entry)[1:]
                ]
        return rows, others

    def _row(self, entry: Entry) -> list[Any]:
        trace, result, level = entry.trace, entry.result, self._level
        recipients = _recipients(entry)
        sender = trace.sender or _address(entry.message.from_email)
        reply = self._reply(entry, sender)
        enhanced = result.enhanced
        if not enhanced and (match := _ENHANCED.match(result.reply)):
            enhanced = match[0]
        message_id = trace.message_id or str(entry.message.extra_headers.get("Message-ID", ""))
        has_addresses = level >= conf.RECORDS_ADDRESSES and recipients
        return [
            make_key(trace.ended),
            self._when(trace.ended),
            result.status,
            *self._account(entry),
            _text(message_id, 255),
            _text(sender, 320),
            len(recipients),
            len(result.refused),
            _text(recipients[0], 320).lower() if has_addresses else None,
            _text(str(entry.message.subject), 255) if level >= conf.RECORDS_SUBJECTS else "",
            trace.size,
            result.code,
            enhanced,
            reply,
            _text(result.queue_id, 100) or None,
            result.session_id or "",
            result.reused,
            trace.retried,
            trace.tls[:10],
            trace.waiting,
            trace.connecting,
            trace.sending,
            type(result.error).__name__[:100] if result.error is not None else "",
        ]

    def _when(self, microseconds: int) -> Any:
        when = EPOCH + timedelta(microseconds=microseconds)
        if not settings.USE_TZ:
            when = timezone.make_naive(when, timezone.get_default_timezone())
        return self._connection.ops.adapt_datetimefield_value(when)

    def _account(self, entry: Entry) -> tuple[Any, ...]:
        """Keys and names, as the columns have them; once for all messages of a batch."""
        credential, owner = entry.credential, entry.owner
        if credential is None:
            if owner is None:
                return (None, None, None, "", "", "")
            return (self._key("tenant", owner.pk), None, None, _text(slug_of(owner), 200), "", "")
        if credential.pk not in self._accounts:
            self._accounts[credential.pk] = (
                self._key("tenant", credential.tenant_id),
                self._key("credential", credential.pk),
                self._key("server", credential.server_id),
                _text(audit.name_of(credential, "tenant"), 200),
                _text(audit.name_of(credential, "server"), 100),
                _text(credential.username, 255),
            )
        return self._accounts[credential.pk]

    def _key(self, name: str, key: Any) -> Any:
        field: Any = DeliveryRecord._meta.get_field(name)
        return field.get_db_prep_save(key, self._connection)

    def _reply(self, entry: Entry, sender: str) -> str:
        """What the server said, also of the recipients that it refused, or what went wrong."""
        result = entry.result
        text = result.reply or (str(result.error) if result.error is not None else "")
        if result.refused and not isinstance(result.error, SMTPRecipientsRefused):
            said = [f"{who}: {code} {why}" for who, (code, why) in result.refused.items()]
            text = "\n".join([text, *said])
        if self._level < conf.RECORDS_ADDRESSES and "@" in text:
            # Servers like to repeat whom they don't know.
            text = _ADDRESS.sub(lambda found: found[0] if found[0] == sender else "(address)", text)
        return _text(text, REPLY_LENGTH)


def _recipients(entry: Entry) -> Sequence[str]:
    if entry.trace.recipients:
        return entry.trace.recipients
    try:
        return [_address(each) for each in entry.message.recipients()]
    except Exception:  # it may be why the message failed
        return ()


def _address(text: Any) -> str:
    """The address in what was given for one and never became part of an envelope."""
    found = _ADDRESS.search(str(text))
    return found[0] if found else str(text)


def _text(text: str, length: int) -> str:
    """What every database takes: no NUL, no half of a character."""
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}"
            for char in text
        )
    return text[:length]


# Retention

BATCH = 5000  # rows that are removed in one transaction


def older_than(before: datetime) -> DeliveryRecordQuerySet:
    """What ``prune`` would remove."""
    using = router.db_for_write(DeliveryRecord)
    return DeliveryRecord.objects.using(using).before(before).order_by()


def prune(
    before: datetime,
    *,
    progress: Callable[[int], None] = lambda removed: None,
    batch: int = BATCH,
) -> int:
    """Remove the records from before that time, and summaries of them; how many records there were.

    Each range of keys is a transaction of its own, and stands when it is done. *progress* is
    called with the number so far.
    """
    rows, removed = older_than(before), 0
    others = DeliveryRecipient.objects.using(rows.db).order_by()
    while True:
        keys = rows.order_by("pk").values_list("pk", flat=True)
        # The last one of the next range, or of what is left.
        last = keys[batch - 1 : batch].first() or rows.aggregate(Max("pk"))["pk__max"]
        if last is None:
            break
        others.filter(record_id__lte=last)._raw_delete(rows.db)
        removed += rows.filter(pk__lte=last)._raw_delete(rows.db)
        progress(removed)
    # Last, so that no sum is made again of records that are about to go. The quarter in which
    # *before* is has still some; they are summed up again.
    summaries.remove(first_key(before))
    return removed
