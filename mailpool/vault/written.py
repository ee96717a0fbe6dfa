"""``Written``: a secret that is in the database as long as nobody rolls back."""

from __future__ import annotations

from typing import Any, Self

from django.db import connections, transaction

from mailpool.secret import Secret


class Written:
    """A secret, or another fact, that was written in the transaction that is open on *using*.

    Once that is committed the secret is forgotten. After a rollback, of a savepoint as well,
    ``is_undone`` is true: the instance that it was set on has to write it again.

    This goes by what Django does with ``on_commit()``. So a savepoint that was made by hand, and
    not by ``atomic()``, is not noticed; and a commit after which somebody else's function fails
    passes for a rollback, as Django then leaves out those that come later.
    """

    def __init__(self, secret: Secret, using: str) -> None:
        self.secret = secret
        self._connection: Any = connections[using]
        # At once where there is no transaction. It can't fail, so it need not be robust.
        transaction.on_commit(self._settle, using=using)

    def _settle(self) -> None:
        self.secret, self._connection = Secret(), None

    @property
    def is_undone(self) -> bool:
        # Django drops what waits for a commit with the savepoint or transaction that it is of.
        return self._connection is not None and not any(
            getattr(function, "__self__", None) is self
            for _, function, *_ in self._connection.run_on_commit
        )

    # A copy shares what became of it. In a pickle, which others read, there is nothing of it: what
    # the instance holds apart from it is as it was written. Unless that was undone: then it is as
    # if it had never been written, and a secret refuses.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        return (str, (self.secret or "",)) if self.is_undone else (type(None), ())
