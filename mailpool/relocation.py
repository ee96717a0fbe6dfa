"""A mail server's new address, and with it all secrets that were entered for the old one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from django.db import models, router, transaction

from mailpool import audit, rotation
from mailpool.exceptions import SecretError
from mailpool.models import Credential, MailServer
from mailpool.vault import EncryptedTextField, Sealed

# What a secret is bound to of its server. To be in step with ``Credential.password``.
ADDRESS = ("host", "port", "security")


@dataclass(frozen=True)
class Stake:
    """Whose secrets a server's new address is going to be told."""

    secrets: int
    tenants: int
    of_the_site: bool = False


@dataclass
class Relocation:
    """What became of the secrets."""

    moved: int = 0
    left: list[str] = field(default_factory=list)  # places that did not open, or changed meanwhile


def at_stake(server: MailServer) -> Stake:
    """What is stored for *server*'s present address; nothing is decrypted."""
    nothing = {found.name: Sealed("") for found in _fields()}
    counts = (
        Credential.objects.filter(server=server)
        .exclude(**nothing)
        .aggregate(
            tenants=models.Count("tenant", distinct=True),
            of_the_site=models.Count("pk", filter=models.Q(tenant=None)),
            **{
                f"in_{name}": models.Count("pk", filter=~models.Q(**{name: empty}))
                for name, empty in nothing.items()
            },
        )
    )
    secrets = sum(counts[f"in_{name}"] for name in nothing)
    return Stake(secrets, counts["tenants"], bool(counts["of_the_site"]))


def relocate(server: MailServer, *, host: str, port: int, security: str) -> Relocation:
    """Give *server* another address, and make the secrets stored for the old one open for it.

    From then on they are presented to that host, so somebody has to have decided that. All or
    nothing. What does not open, or is entered anew at the same moment, stays as it is and
    does not open at the new address: it has to be entered again. Raises ``ValidationError`` for
    an address that the server can't have.
    """
    result = Relocation()
    with transaction.atomic(using=router.db_for_write(MailServer)):
        row = MailServer.objects.select_for_update().get(pk=server.pk)
        moved = copy.copy(row)
        moved.host, moved.port, moved.security = host, port, security
        moved.full_clean()
        for found in _fields():
            for batch in rotation.batches(_rows(found, row)):
                _seal_for(moved, found, batch, result)
        moved.save(update_fields=ADDRESS)
        for batch in rotation.batches(_credentials(row)):
            _record(row, moved, batch, result.left)
    for name in ADDRESS:
        setattr(server, name, getattr(moved, name))
    return result


def _seal_for(
    moved: MailServer, found: EncryptedTextField, batch: list[Any], result: Relocation
) -> None:
    swaps = []
    for row in batch:
        try:
            secret = found.open(row)
        except SecretError:
            result.left.append(found.place(row))
            continue
        row.server = moved
        swaps.append((row, found.seal(row, secret)))
    swapped = rotation.swap(found, swaps)
    result.moved += len(swapped)
    result.left += [found.place(row) for row, _ in swaps if row.pk not in swapped]


def _record(before: MailServer, after: MailServer, batch: list[Any], left: list[str]) -> None:
    text = f"from {_address(before)} to {_address(after)}"
    behind = f"{text}; the password did not open and stayed behind"
    stayed = set(left)
    entries = [
        audit.entry(
            audit.Action.MOVED,
            row,
            behind if stayed & {found.place(row) for found in _fields()} else text,
        )
        for row in batch
    ]
    audit.write(entries, router.db_for_write(Credential))


def _address(server: MailServer) -> str:
    return f"{server.host}:{server.port} ({server.security})"


def _credentials(server: MailServer) -> models.QuerySet[Credential]:
    rows = Credential.objects.filter(server=server).select_related("server", "tenant")
    return rows.order_by("pk")


def _fields() -> list[EncryptedTextField]:
    return [found for model, found in rotation.encrypted_fields() if model is Credential]


def _rows(found: EncryptedTextField, server: MailServer) -> models.QuerySet[Any]:
    return rotation.rows(Credential, found).filter(server=server)
