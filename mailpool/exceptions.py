"""What can go wrong, by name.

SMTP failures are ``smtplib``'s own exceptions, so that code written for Django's
backend keeps working; the classes here are for what SMTP has no word for.
"""

from __future__ import annotations

import smtplib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

__all__ = [
    "AmbiguousRoute",
    "BatchError",
    "ClientCertificateError",
    "CredentialNeedsAttention",
    "DeliveryUnknown",
    "InvalidMessage",
    "MailpoolError",
    "NoRoute",
    "OAuthError",
    "OAuthUnavailable",
    "OwnershipError",
    "PoolTimeout",
    "RouteError",
    "SecretError",
    "SenderNotAllowed",
    "ServerNotAllowed",
    "ServerPaused",
    "TooManyAttempts",
    "WrongSite",
]


class MailpoolError(Exception):
    """Base of all errors that are mailpool's own."""

    tenant: Any = None
    """Whose mail it was, where that was known and none of its credentials could be chosen."""


class InvalidMessage(MailpoolError, ValueError):
    """The message itself cannot be sent (no recipients, an address that is none)."""


class RouteError(MailpoolError):
    """No credential could be chosen for a message. Nothing was sent."""


class NoRoute(RouteError):
    """The tenant is unknown, inactive or has no usable credential; or there is no default."""


class AmbiguousRoute(RouteError):
    """The From address belongs to more than one tenant."""


class SenderNotAllowed(RouteError):
    """The tenant's credentials list their senders, and this From address is not among them."""


class ServerNotAllowed(MailpoolError):
    """A tenant's server is where its connections may not go. Nothing was connected to."""


class ServerPaused(MailpoolError):
    """The mail server is being maintained, so nothing is sent over it. Later it is again."""


class OwnershipError(MailpoolError):
    """The ownership of a sender was not proven. The text is for its tenant."""


class PoolTimeout(MailpoolError):
    """No session became free before the deadline, or too many callers wait already."""


class SecretError(MailpoolError):
    """A stored secret cannot be encrypted or decrypted. The text never contains the secret."""


class OAuthError(MailpoolError):
    """There is no access token for an OAuth 2 login. Nothing was sent, nor is a password tried."""


class OAuthUnavailable(OAuthError):
    """The provider can't be reached, or gives no token right now. Later it may."""


class CredentialNeedsAttention(OAuthError):
    """The provider has withdrawn its permission: the account has to be connected again."""


class TooManyAttempts(MailpoolError):
    """A tenant has tried too often to save or to verify an account; *seconds* to wait."""

    def __init__(self, text: str, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(text)

    def __reduce__(self) -> tuple[type[TooManyAttempts], tuple[object, ...]]:
        return type(self), (str(self), self.seconds)


class WrongSite(MailpoolError):
    """The database is another site's, so its credentials are not used. Nothing was sent."""


class ClientCertificateError(MailpoolError, smtplib.SMTPException):
    """The server wants a client certificate or does not accept the one it got, or it can't be
    used. Nothing was sent."""


class DeliveryUnknown(MailpoolError, smtplib.SMTPException):
    """The connection was lost after the message may have been handed over.

    The server has it, or it has not: nobody can tell. mailpool never sends it again by
    itself. Look for the Message-ID in the account's Sent folder before you do.
    """


class BatchError(MailpoolError, smtplib.SMTPException):
    """Several messages of one batch failed; all others were sent.

    ``failures`` is a list of ``(message, exception)`` in the order of the batch.
    """

    def __init__(self, failures: Sequence[tuple[EmailMessage, Exception]]) -> None:
        self.failures = list(failures)
        reasons: dict[str, int] = {}
        for _, error in self.failures:
            reason = f"{type(error).__name__}: {error}"
            reasons[reason] = reasons.get(reason, 0) + 1
        shown = "; ".join(f"{count} with {reason}" for reason, count in list(reasons.items())[:3])
        more = f"; and {len(reasons) - 3} more kinds" if len(reasons) > 3 else ""
        super().__init__(f"{len(self.failures)} messages failed: {shown}{more}")

    def __reduce__(self) -> tuple[type[BatchError], tuple[object, ...]]:
        return type(self), (self.failures,)
