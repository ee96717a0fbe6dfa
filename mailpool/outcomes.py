"""What became of a message: made of what the wire says, and logged."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from smtplib import (
    SMTPDataError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
)
from typing import Any, Literal

from django.core.mail import EmailMessage

from mailpool import conf
from mailpool.events import event
from mailpool.exceptions import DeliveryUnknown
from mailpool.smtp import Attempt
from mailpool.text import one_line

logger = logging.getLogger("mailpool")

Status = Literal["sent", "refused", "failed", "unknown"]


@dataclass(slots=True)
class MailpoolResult:
    """What became of one message; ``message.mailpool_result`` after sending.

    ``sent``: a server took it over, *code* and *reply* are its words. ``refused``: a server said
    no. ``failed``: it was never handed over. ``unknown``: the connection was lost after it may
    have been; it is not sent again.
    """

    status: Status
    credential_id: str | None = None
    session_id: str | None = None
    reused: bool = False
    code: int | None = None
    reply: str = ""
    enhanced: str = ""
    """The enhanced status code of a message that was sent, such as ``2.0.0``."""

    queue_id: str = ""
    """The server's own name for it, by which its log can be searched."""

    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Recipients that the server refused: address → (code, reply)."""

    error: Exception | None = None

    server: str = ""
    """The name of the mail server, ``(tenants)`` for one of a tenant's own; empty where there was
    no route."""

    tenant: str = ""
    """The tenant's slug; empty for the site's own account, and where it is not known."""

    seconds: float | None = None
    """What connecting and sending took; ``None`` where no server took the message."""


def make_result(attempt: Attempt | None, error: Exception | None) -> MailpoolResult:
    """What *attempt* came to; *error* is why there was nothing to transmit."""
    result = MailpoolResult("failed")
    if attempt:
        result.session_id, result.reused = attempt.session_id, attempt.reused
        result.seconds = attempt.seconds
        if receipt := attempt.receipt:
            result.status, result.code, result.reply = "sent", receipt.code, receipt.reply
            result.enhanced, result.queue_id = receipt.enhanced, receipt.queue_id
            result.refused = _readable(receipt.refused)
            return result
        error = attempt.error
        if error is None and attempt.handed_over:
            error = DeliveryUnknown("Interrupted before the server's answer; it is not sent again.")
    if error is None:
        error = InterruptedError("The batch was interrupted before this message was sent.")
    result.error = error
    if isinstance(error, DeliveryUnknown):
        result.status = "unknown"
    elif isinstance(error, SMTPRecipientsRefused):
        result.status, result.refused = "refused", _readable(error.recipients)
        result.code, result.reply = next(iter(result.refused.values()), (None, ""))
    elif isinstance(error, SMTPResponseException):
        result.code, result.reply = error.smtp_code, one_line(error.smtp_error)
        # A login or a greeting that is refused says nothing of the message.
        if isinstance(error, (SMTPSenderRefused, SMTPDataError)):
            result.status = "refused"
    return result


def _readable(refused: Any) -> dict[str, tuple[int, str]]:
    return {address: (code, one_line(reply)) for address, (code, reply) in refused.items()}


def log_result(message: EmailMessage, result: MailpoolResult) -> None:
    """One record of the message: debug where it was sent, a warning where it was not."""
    fields: dict[str, Any] = {
        "status": result.status,
        "tenant": result.tenant,
        "server": result.server,
        "credential": result.credential_id,
        "session": result.session_id,
        "reused": result.reused,
        "seconds": result.seconds,
        "code": result.code,
        "enhanced": result.enhanced,
        "queue_id": result.queue_id,
        "refused": len(result.refused),
    }
    if conf.get("LOG_ADDRESSES"):
        with suppress(Exception):  # of a message that is no good, there may be none
            fields |= {"from": str(message.from_email), "recipients": message.recipients()}
    if result.status == "sent":
        logger.debug(
            "Sent a message with credential %s on session %s: %s",
            result.credential_id,
            result.session_id,
            result.reply,
            extra=event("mailpool.sent", **fields),
        )
    else:
        logger.warning(
            "A message was not sent (%s, credential %s): %s: %s",
            result.status,
            result.credential_id,
            type(result.error).__name__,
            one_line(str(result.error)),
            extra=event("mailpool.not_sent", error=result.error, **fields),
        )
