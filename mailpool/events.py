"""Names and fields of log records, for formatters that write them for machines.

The names and fields are documented in ``docs/logging.md``, and stay as they are.
"""

from __future__ import annotations

from typing import Any

_PLAIN = (str, int, float, bool, type(None), list)


def event(name: str, /, **fields: Any) -> dict[str, Any]:
    """What a log call passes as ``extra``: ``event``, and each field as ``mailpool_<field>``.

    With that prefix, because some of the names are a log record's own. Of what is no plain value,
    such as a key, the text; of an exception its kind alone, for its text may quote a secret.
    """
    return {"event": name} | {f"mailpool_{key}": _plain(value) for key, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseException):
        return type(value).__name__
    return value if isinstance(value, _PLAIN) else str(value)
