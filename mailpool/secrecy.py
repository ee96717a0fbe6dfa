"""Passwords that are being submitted do not show up on error pages or in error mails."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any
from urllib.parse import quote, quote_plus

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter


class SubmittedSecretsFilter(SafeExceptionReporterFilter):
    """Hides submitted passwords with ``DEBUG`` on as well, wherever they stand in the report."""

    def get_post_parameters(self, request: HttpRequest | None) -> Any:
        if request is None:
            return {}
        hidden = request.POST.copy()
        for name in hidden:
            if _is_secret(name):
                hidden.setlist(name, [self.cleansed_substitute])
        return hidden

    def get_traceback_frame_variables(
        self, request: HttpRequest | None, tb_frame: FrameType
    ) -> Any:
        secrets = _submitted(request)
        return [
            (name, self.cleansed_substitute if _contains(value, secrets) else value)
            for name, value in super().get_traceback_frame_variables(request, tb_frame)
        ]


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in ("password", "secret", "client_key", "private_key"))


def _submitted(request: HttpRequest | None) -> list[str]:
    if request is None:
        return []
    return [
        part
        for name in request.POST
        if _is_secret(name)
        for value in request.POST.getlist(name)
        if isinstance(value, str) and value
        for part in (value, *_lines(value))
    ]


def _lines(key: str) -> list[str]:
    """The lines of a key in PEM form: it may be shown in part, or with other line ends."""
    lines = [line.strip() for line in key.replace("\\n", "\n").split("\n")]  # as JSON has them, too
    return [line for line in lines[:-1] if len(line) >= 16 and not line.startswith("-----")]


def _contains(value: Any, secrets: list[str]) -> bool:
    try:
        shown = repr(value)
    except Exception:
        return True  # what can't be shown does no harm hidden
    return any(spelling in shown for secret in secrets for spelling in _spellings(secret))


def _spellings(secret: str) -> set[str]:
    """How *secret* looks within the ``repr`` of texts and bytes, and in a form's body."""
    spellings = {secret, quote(secret, safe=""), quote_plus(secret)}
    for _ in range(2):  # what has been through repr may be in a text that goes through it again
        spellings |= {escaped for text in spellings for escaped in _escaped(text)}
    return spellings


def _escaped(text: str) -> Iterator[str]:
    # A quote in front keeps repr from choosing its quotes by what the secret has.
    data = text.encode("utf-8", "surrogatepass")
    for escaped in (repr('"' + text)[2:-1], repr(b'"' + data)[3:-1]):
        yield escaped
        yield escaped.replace("\\'", "'")


def hide_submitted(request: HttpRequest) -> None:
    """Keep what *request* submits off the pages and mails that report an error."""
    # Django's reporter looks for this attribute, and for the other one in error mails.
    request.exception_reporter_filter = SubmittedSecretsFilter()
    request.sensitive_post_parameters = "__ALL__"  # type: ignore[attr-defined]
