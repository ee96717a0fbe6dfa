"""Django's e-mail backend contract around ``delivery``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from django.core import mail
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from mailpool import delivery
from mailpool.conf import is_seconds
from mailpool.context import TenantRef, is_nothing
from mailpool.exceptions import BatchError
from mailpool.outcomes import MailpoolResult
from mailpool.routing import Router
from mailpool.smtp import Transmitter

# What Django's own helpers pass to every backend, for its SMTP backend: send_mail() hands these
# down even where nobody gave any.
_DJANGO_LOGIN = ("username", "password")


class EmailBackend(BaseEmailBackend):
    """Sends each message as its tenant, over kept-open connections.

    *tenant*, an instance or a slug, is for all messages of this backend that do not name one
    themselves. With *fail_silently*, failures are not raised; they are logged, and stand in
    ``message.mailpool_result`` as always.

    *deadline* (seconds) bounds each call of ``send_messages()``, and *keep_order* tells whether the
    messages of one credential leave in their order; ``None``: as ``MAILPOOL`` has them.

    ``with connection:`` (or ``open()`` and ``close()``) keeps the sessions that it uses for the
    block. An object may be used by several threads; inside a block they take turns.
    """

    # How resolved messages leave; ``mailpool.testing`` has one that keeps them.
    transmit: delivery.Transmit = staticmethod(delivery.transmit_jobs)

    def __init__(
        self,
        fail_silently: bool = False,
        *,
        tenant: TenantRef | None = None,
        deadline: float | None = None,
        keep_order: bool | None = None,
        **kwargs: Any,
    ) -> None:
        for option in _DJANGO_LOGIN:
            if kwargs.get(option, "") is None:
                del kwargs[option]
        if kwargs.get("alias") is None or "_ignore_unknown_kwargs" in kwargs:
            # Not from MAILERS, so Django would ignore what nobody knows. A login that somebody
            # passes is not to be ignored: the message would go out on another account.
            self._reject_unknown(kwargs)
        super().__init__(**kwargs)
        self.fail_silently = fail_silently
        if tenant is not None and is_nothing(tenant):
            self._invalid("The 'tenant' option must be a tenant or its slug, not empty.")
        self.tenant = tenant
        if deadline is not None and not (is_seconds(deadline) and deadline > 0):
            self._invalid("The 'deadline' option must be a number of seconds above 0.")
        self.deadline = deadline
        if keep_order not in (None, True, False):
            self._invalid("The 'keep_order' option must be True or False.")
        self.keep_order = keep_order
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._transmitter: Transmitter | None = None
        self._lock = threading.RLock()

    def _leave_parent_behind(self) -> None:
        """In a forked child: the block was the parent's, and the lock a thread's of the parent."""
        if self._pid != os.getpid():
            self._begin()

    def open(self) -> bool:
        """Begin a block: sessions are kept until ``close()``. ``False`` if it is open already.

        Nothing is connected yet: which account it will be, only a message can tell.
        """
        self._leave_parent_behind()
        with self._lock:
            if self._transmitter is not None:
                return False
            self._transmitter = Transmitter(delivery.get_pool(), is_block=True)
            return True

    def close(self) -> None:
        """End the block: its sessions go back to the pool, or are closed where none are kept."""
        self._leave_parent_behind()
        with self._lock:
            transmitter, self._transmitter = self._transmitter, None
            if transmitter is not None:
                transmitter.release()

    def __del__(self) -> None:
        # Something was raised before close(): Django's own backend loses its connection then, and
        # here it would stay lent for ever.
        transmitter = getattr(self, "_transmitter", None)
        if transmitter is not None:
            transmitter.leave()

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Send all *email_messages*; the number of those that a server took over.

        Every one is tried. One failure is raised as itself, several as ``BatchError``, after the
        last message and unless *fail_silently*.
        """
        self._leave_parent_behind()
        messages = list(email_messages or ())
        if self._transmitter is None:
            results = self._deliver(messages, None)
        else:
            with self._lock:
                results = self._deliver(messages, self._transmitter)
        if not self.fail_silently:
            _raise_failures(messages, results)
        return sum(result.status == "sent" for result in results)

    def _deliver(
        self, messages: Sequence[EmailMessage], transmitter: Transmitter | None
    ) -> list[MailpoolResult]:
        route = Router(self.tenant).resolve
        return delivery.deliver(
            messages,
            route,
            transmit=self.transmit,
            block=transmitter,
            deadline=self.deadline,
            keep_order=self.keep_order,
        )

    def _reject_unknown(self, kwargs: dict[str, Any]) -> None:
        unknown = [name for name in kwargs if name not in ("alias", "_ignore_unknown_kwargs")]
        if unknown:
            raise TypeError(
                f"mailpool's EmailBackend does not know {', '.join(map(repr, unknown))}. Logins "
                "are kept as credentials; choose one with tenant=…"
            )

    def _invalid(self, text: str) -> None:
        alias = getattr(self, "alias", None)
        if alias is not None and hasattr(mail, "InvalidMailer"):
            raise mail.InvalidMailer(text, alias=alias)
        raise ValueError(text)


def _raise_failures(messages: Iterable[EmailMessage], results: Iterable[MailpoolResult]) -> None:
    failures = [
        (message, result.error)
        for message, result in zip(messages, results, strict=True)
        if result.error is not None
    ]
    if len(failures) == 1:
        raise failures[0][1]
    if failures:
        raise BatchError(failures)
