"""Logins that a server has refused, for the short while in which they are not tried again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from smtplib import SMTPAuthenticationError

from mailpool.smtp.params import SessionParams

CAPACITY = 10_000


class RefusedLogins:
    """Remembers refusals by the whole key, so that a changed password is tried at once.

    So is another access token, which is not in the key.

    *clock* is monotonic. Not thread-safe: the pool calls it under its lock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: OrderedDict[SessionParams, tuple[float, int, bytes, str]] = OrderedDict()

    def check(self, params: SessionParams) -> None:
        """Raise ``SMTPAuthenticationError`` if *params* was refused and its pause is not over."""
        refused = self._until.get(params)
        if refused is None:
            return
        until, code, message, token = refused
        if token != params.access_token:
            return
        if self._clock() >= until:
            del self._until[params]
            return
        wait = f" (Not tried again for {until - self._clock():.0f} more seconds.)"
        raise SMTPAuthenticationError(code, message + wait.encode())

    def note(self, params: SessionParams, error: BaseException, pause: float) -> None:
        """Remember *error* for *pause* seconds, if it is a final refusal of a login."""
        if not isinstance(error, SMTPAuthenticationError) or not 500 <= error.smtp_code < 600:
            return
        message = error.smtp_error
        text = message if isinstance(message, bytes) else message.encode()
        until = self._clock() + pause
        self._until[params] = (until, error.smtp_code, text, params.access_token)
        while len(self._until) > CAPACITY:
            self._until.popitem(last=False)

    def forget(self, credential_id: str | None = None) -> None:
        """Forget those of a credential, or all."""
        for params in list(self._until):
            if credential_id in (None, params.credential_id):
                del self._until[params]
