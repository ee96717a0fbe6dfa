"""Text and bytes that do not show themselves.

Tracebacks, debug pages and loggers print local variables with ``repr``. These two show nothing
there; whoever wants the content uses them as any other ``str`` and ``bytes``.
"""

from __future__ import annotations

from typing import Any, NoReturn, Self


class _Hidden:
    __slots__ = ()

    def __repr__(self) -> str:
        return "'(secret)'"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        # Pickles end up in queues and caches, where anybody reads them.
        raise TypeError("A secret cannot be pickled. Pass the credential's id and read it there.")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class Secret(_Hidden, str):
    """A ``str`` that hides in ``repr`` and can't be pickled."""

    __slots__ = ()


class SecretBytes(_Hidden, bytes):
    """The same for ``bytes``."""

    __slots__ = ()
