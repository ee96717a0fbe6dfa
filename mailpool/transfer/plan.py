"""What an import would do: the rows of a file compared with the database. Writes nothing.

The same validation as in the admin, but what looks for other rows is looked up for hundreds of rows
at once. Nothing here asks the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from django.utils.translation import gettext as _

from mailpool import marker
from mailpool.transfer.accounts import plan_accounts
from mailpool.transfer.columns import ACCOUNT, RECORDS, SECRETS, SERVER, TENANT
from mailpool.transfer.files import Row
from mailpool.transfer.items import Draft, Item
from mailpool.transfer.owners import plan_servers, plan_tenants
from mailpool.transfer.problems import Problem
from mailpool.vault import get_keyring


@dataclass
class Plan:
    """What is to be created and changed, and everything that is wrong with the file."""

    items: list[Item]  # that differ: tenants, then servers, then accounts
    problems: list[Problem]
    unchanged: int = 0
    held_up: int = 0  # right themselves, but their tenant or server is not

    @property
    def usable(self) -> list[Item]:
        return [item for item in self.items if not item.broken]

    def count(self, record: str, *, new: bool) -> int:
        """How many of *record* are to be created, or changed; without those that are wrong."""
        return sum(item.record == record and item.is_new == new for item in self.usable)


def make_plan(
    rows: Sequence[Row],
    problems: Sequence[Problem] = (),
    *,
    private_key: X25519PrivateKey | None = None,
    compares_secrets: bool = True,
    create_only: bool = False,
    update_only: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Compare *rows* with the database; *problems* are those that reading them has found.

    A secret that is stored already is no difference; without *compares_secrets* each one is, so
    that nobody finds out by a plan whether they guessed it.

    ``WrongSite`` where it is another site's. *progress* is called with the number of accounts that
    have been compared, and with how many there are.
    """
    marker.require_own()
    draft = Draft(private_key, compares_secrets, list(problems))
    draft.gather(rows)
    plan_tenants(draft)
    plan_servers(draft)
    plan_accounts(draft, progress)
    everything = [item for record in RECORDS for item in draft.items[record].values()]
    for item in everything:
        if item.differs and (update_only if item.is_new else create_only):
            draft.complain(item, _NAMED[item.record], _excluded(item))
    held_up = _settle(everything, draft.problems)
    different = [item for item in everything if item.differs]
    if any(set(item.fields) & set(SECRETS) for item in different):
        get_keyring().newest  # noqa: B018  (without a key nothing is begun)
    unchanged = len(everything) - len(different)
    return Plan(different, sorted(set(draft.problems)), unchanged, held_up)


_NAMED = {TENANT: "tenant", SERVER: "server", ACCOUNT: "username"}


def _excluded(item: Item) -> str:
    if item.is_new:
        return _("This would be new, and only what exists is to be changed (--update-only).")
    return _("This exists and would be changed, and only new ones are wanted (--create-only).")


def _settle(items: list[Item], problems: Sequence[Problem]) -> int:
    """Break what depends on what is wrong. How many accounts had nothing wrong themselves.

    A row of the file is taken as a whole or not at all; a tenant or server is made if one row that
    names it is right.
    """
    wrong = {problem.line for problem in problems}
    held_up = 0
    for item in items:
        if not item.said.lines - wrong:
            item.broken = True
        elif any(need.broken for need in item.needs):
            item.broken = True
            held_up += item.record == ACCOUNT
    return held_up
