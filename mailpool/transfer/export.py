"""Rows of a file, out of the database. Never with a secret that is not sealed for somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from django.apps import apps
from django.db import models, router, transaction

from mailpool import audit, conf, marker
from mailpool.audit import Action, AuditEntry
from mailpool.exceptions import SecretError
from mailpool.models import Credential, MailServer
from mailpool.models.secret_fields import secret_field
from mailpool.transfer import sealing
from mailpool.transfer.accounts import context
from mailpool.transfer.columns import (
    ACCOUNT,
    SECRETS,
    SERVER,
    SITE,
    TENANT,
    fields_of,
    owns_tenants,
)
from mailpool.transfer.items import BATCH

Cells = dict[str, Any]


def export_rows(
    key: X25519PublicKey | None = None,
    *,
    unreadable: list[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Cells]:
    """A row for each tenant, mail server and account; with *key*, their secrets sealed for it.

    Recorded in the audit: as a whole, and each account whose secret goes out. Secrets that do not
    open are left out, and *unreadable* gets their places. ``WrongSite`` where the database is
    another site's.
    """
    marker.require_own()
    using = router.db_for_write(Credential)
    left_out: list[str] = [] if unreadable is None else unreadable
    with transaction.atomic(using=using):
        tenants = list(_tenants())
        servers = [_server(row) for row in MailServer.objects.select_related("tenant")]
        accounts, entries = [], []
        credentials = _credentials()
        total = credentials.count()
        for row in credentials.iterator(chunk_size=BATCH):
            cells = _account(row)
            if key is not None and _seal(row, key, cells, left_out):
                text = f"with its secrets, sealed for key {sealing.key_id(key)}"
                entries.append(audit.entry(Action.EXPORTED, row, text))
            accounts.append(cells)
            progress(len(accounts), total)
        text = f"{len(tenants)} tenants, {len(servers)} mail servers, {len(accounts)} credentials"
        secrets = f"with the secrets of {len(entries)}" if key else "without secrets"
        entries.insert(0, AuditEntry(action=Action.EXPORTED, details=f"{text}, {secrets}"))
        audit.write(entries, using)
    return [*tenants, *servers, *accounts]


def _tenants() -> Iterator[Cells]:
    slug = conf.get("TENANT_SLUG_FIELD")
    rows = apps.get_model(conf.tenant_model())._default_manager.order_by(slug)
    if not owns_tenants():
        return  # are named by the accounts, and are the project's to take along
    for row in rows.iterator(chunk_size=BATCH):
        yield {"record": TENANT, "tenant": str(getattr(row, slug)), **_fields(TENANT, row)}


def _server(row: MailServer) -> Cells:
    owner = {"server_tenant": audit.name_of(row, "tenant")} if row.tenant_id is not None else {}
    return {"record": SERVER, "server": row.name, **owner, **_fields(SERVER, row)}


def _credentials() -> models.QuerySet[Credential]:
    rows = Credential.objects.select_related("tenant", "server", "oauth_client")
    slug = conf.get("TENANT_SLUG_FIELD")
    ordered = rows.order_by(f"tenant__{slug}", "server__name", "username")
    return ordered.prefetch_related("senders")


def _account(row: Credential) -> Cells:
    cells = {
        "record": ACCOUNT,
        "tenant": SITE if row.tenant_id is None else audit.name_of(row, "tenant"),
        "server": row.server.name,
        "username": row.username,
        **_fields(ACCOUNT, row),
    }
    if row.oauth_client:
        cells["oauth_client"] = row.oauth_client.name
    if senders := [sender.address for sender in row.senders.all()]:
        cells["senders"] = senders
    return cells


def _fields(record: str, row: models.Model) -> Cells:
    """Its values, but those that are empty: an empty cell says nothing."""
    found = {column.name: column.value_of(row) for column in fields_of(record)}
    return {name: value for name, value in found.items() if value not in (None, "")}


def _seal(row: Credential, key: X25519PublicKey, cells: Cells, left_out: list[str]) -> bool:
    """Put the row's secrets into *cells*, sealed for *key*. Whether there was one."""
    found = False
    for name in SECRETS:
        field = secret_field(row, name)
        if not field.is_set(row):
            continue
        try:
            secret = field.open(row)
        except SecretError:
            left_out.append(field.place(row))
            continue
        bound = context(cells["tenant"], row.server, row.username, name)
        cells[f"sealed_{name}"] = sealing.seal(secret, key, bound)
        found = True
    return found
