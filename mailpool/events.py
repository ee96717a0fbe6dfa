"""Names and fields of log records, for formatters that write them for machines.

The names and fields are documented in ``docs/logging.md``, and stay as they are.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

_PLAIN = (str, int, float, bool, type(None), list)


def event(name: str, /, **fields: Any) -> dict[str, Any]:
    """What a log call passes as ``extra``: ``event``, and each field as ``mailpool_<field>``.

    With that prefix, because some of the names are a log record's own. Of what is no plain value,
    such as a key, the text; of an exception its kind alone, for its text may quote a secret.
    """
    return {"event": name} | {f"mailpool_{key}": _plain(value) for key, value in fields.items()}


_is_telling: ContextVar[bool] = ContextVar("mailpool_is_telling", default=False)


def tell(log: Callable[[], object]) -> None:
    """Call *log*, which logs or signals what became of a message. Never raises.

    Not while something is told already: a handler that mails what it gets, such as Django's
    ``AdminEmailHandler``, sends with mailpool too, and would be told of its own mail for ever. Nor
    is what a handler raises a failure of the message; it is shown as ``logging`` shows its own.
    """
    if _is_telling.get():
        return
    token = _is_telling.set(True)
    try:
        log()
    except Exception:
        if logging.raiseExceptions and sys.stderr:
            with suppress(OSError, ValueError):  # nobody reads it, or it is closed
                traceback.print_exc()
    finally:
        _is_telling.reset(token)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseException):
        return type(value).__name__
    return value if isinstance(value, _PLAIN) else str(value)
