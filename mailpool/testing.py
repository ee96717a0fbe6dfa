"""For your project's tests: which tenant and credential would a message have used?

Django replaces every mailer by one in memory while tests run, so nothing is routed there.
``capture()`` routes for real and sends nothing::

    with mailpool.testing.capture() as outbox:
        send_mail(...)
    assert outbox[0].tenant == acme

pytest users have the same as the fixture ``mailpool_outbox``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.test.utils import _TestState, override_settings

from mailpool import backends, conf
from mailpool.delivery import Job, Terms
from mailpool.exceptions import CredentialNeedsAttention
from mailpool.models import Credential, MailServer
from mailpool.oauth import tokens
from mailpool.secret import Secret
from mailpool.smtp import Envelope, Receipt, Transmitter

__all__ = ["CapturedMessage", "EmailBackend", "Outbox", "capture"]

_BACKEND = "mailpool.testing.EmailBackend"


@dataclass(frozen=True)
class CapturedMessage:
    """One message as it would have been sent."""

    message: EmailMessage
    credential: Credential
    envelope: Envelope
    """Sender, recipients and bytes, as the server would have got them."""

    @property
    def tenant(self) -> Any:
        """The tenant whose credential it is; ``None`` for the site's own."""
        return self.credential.tenant

    @property
    def server(self) -> MailServer:
        return self.credential.server

    @property
    def username(self) -> str:
        return self.credential.username


class Outbox(list[CapturedMessage]):
    """What was captured, in the order of sending."""

    def of(self, tenant: Any) -> list[CapturedMessage]:
        """The messages of *tenant*: an instance, its slug, or ``None`` for the site's own."""
        if isinstance(tenant, str):
            field = conf.get("TENANT_SLUG_FIELD")
            return [
                captured for captured in self if getattr(captured.tenant, field, None) == tenant
            ]
        return [captured for captured in self if captured.tenant == tenant]


# Of the process, like the settings that ``capture()`` overrides: also for what threads send.
_outboxes: list[Outbox] = []


def _keep(jobs: Sequence[Job], transmitter: Transmitter, terms: Terms) -> None:
    outbox = _outboxes[-1]
    for job in jobs:
        if job.is_waiting and job.credential and (attempt := job.render()):
            outbox.append(CapturedMessage(job.message, job.credential, attempt.envelope))
            attempt.receipt = Receipt("captured", False, 250, "2.0.0 captured, not sent")


class EmailBackend(backends.EmailBackend):
    """mailpool's backend without a network: messages end in the outbox of ``capture()``."""

    transmit = staticmethod(_keep)


@contextmanager
def capture() -> Iterator[Outbox]:
    """Send all mail inside the block into a list, after it was routed and rendered for real.

    Errors are real as well: a message without a route raises ``NoRoute``. Credentials come from
    the test's database and their secrets are decrypted, so an encryption key has to be set. No
    OAuth 2 provider is asked: an account that is connected counts as logged in.
    """
    outbox = Outbox()
    _outboxes.append(outbox)
    try:
        with override_settings(**_settings()):
            tokens.access_token = _token
            yield outbox
    finally:
        _outboxes.pop()
        if not _outboxes:  # blocks may end in another order than they began
            tokens.access_token = _access_token


_access_token = tokens.access_token


def _token(credential: Credential, *, refused: str = "", deadline: float | None = None) -> Secret:
    if credential.needs_attention or not credential.is_connected:
        raise CredentialNeedsAttention(credential.needs_attention or "It is not connected.")
    return Secret("captured")


def _settings() -> dict[str, Any]:
    """The project's mail settings with this module's backend in the place of mailpool's."""
    if not hasattr(settings, "MAILERS"):
        return {"EMAIL_BACKEND": _BACKEND}
    # Under test Django has replaced MAILERS, OPTIONS included, and keeps the project's own here.
    saved = getattr(_TestState, "saved_data", None)
    mailers = getattr(saved, "mailers", settings.MAILERS)
    return {
        "MAILERS": {
            alias: {**config, "BACKEND": _BACKEND} if _is_ours(config) else config
            for alias, config in mailers.items()
        }
    }


def _is_ours(config: dict[str, Any]) -> bool:
    return str(config.get("BACKEND", "")).startswith("mailpool.")
