"""Accounts of a file with their secrets and senders, compared with those of the database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Q
from django.utils.translation import gettext as _

from mailpool.exceptions import SecretError
from mailpool.models import Credential, MailServer, OAuthClient, Sender
from mailpool.models.secret_fields import secret_field
from mailpool.secret import Secret
from mailpool.transfer import sealing
from mailpool.transfer.columns import ACCOUNT, SECRETS, SERVER, SITE, TENANT
from mailpool.transfer.items import Draft, Item, Key, Said, batches
from mailpool.transfer.problems import shown
from mailpool.validators import normalize_sender

Owned = tuple[str, str]  # a tenant's scope, and an address


def plan_accounts(draft: Draft, progress: Callable[[int, int], None]) -> None:
    said = draft.said[ACCOUNT]
    clients = {client.name: client for client in OAuthClient.objects.all()}
    taken: dict[Owned, Any] = {}
    done = 0
    for batch in batches(said.items()):
        found = _existing(draft, [key for key, _ in batch])
        items = []
        for key, each in batch:
            item = _account(draft, key, each, found.get(_ids(draft, key)), clients)
            draft.items[ACCOUNT][key] = item
            items.append(item)
        taken |= _owners_of_senders(items)
        for item in items:
            _senders(draft, item, taken)
        done += len(batch)
        progress(done, len(said))


def context(tenant: str, server: MailServer, username: str, secret: str) -> tuple[str, ...]:
    """What a secret that travels is of and for."""
    address = (server.host, str(server.port), server.security)
    return (tenant, server.name, *address, username, secret)


def _ids(draft: Draft, key: Key) -> tuple[Any, Any, str]:
    tenant, server, username = key
    # A tenant that is not stored may have no key yet, and is not the site for that.
    owner = None if tenant == SITE else draft.items[TENANT][tenant].row.pk or tenant
    return owner, draft.items[SERVER][server].row.pk, username


def _existing(draft: Draft, keys: list[Key]) -> dict[tuple[Any, Any, str], Credential]:
    tenants = [draft.items[TENANT][key[0]] for key in keys if key[0] != SITE]
    whose = Q(tenant__in={item.row.pk for item in tenants if not item.is_new})
    if any(key[0] == SITE for key in keys):
        whose |= Q(tenant=None)
    rows = Credential.objects.filter(whose, username__in={key[2] for key in keys})
    # With what their secrets are bound to as it is stored, not as it is going to be.
    rows = rows.select_related("server", "tenant", "oauth_client").prefetch_related("senders")
    return {(row.tenant_id, row.server_id, row.username): row for row in rows}


def _account(
    draft: Draft, key: Key, said: Said, row: Credential | None, clients: dict[str, OAuthClient]
) -> Item:
    slug, name, username = key
    tenant = None if slug == SITE else draft.items[TENANT][slug]
    server = draft.items[SERVER][name]
    is_new = row is None
    row = row or Credential(
        tenant=tenant.row if tenant else None, server=server.row, username=username
    )
    title = _("account %(username)s of %(tenant)s at %(server)s") % {
        "username": username or _("(no login)"),
        "tenant": slug,
        "server": name,
    }
    needs = (server,) if tenant is None else (tenant, server)
    item = Item(ACCOUNT, title, said, row, is_new, needs)
    if not is_new:
        _keep_login(draft, item)
    elif (client := said.cells.get("oauth_client")) is not None:
        row.oauth_client = clients.get(client)
        item.note("oauth_client", client, None)
        if row.oauth_client is None:
            text = _("There is no OAuth client of this name. Add it in the admin first.")
            draft.complain(item, "oauth_client", text)
    item.take_fields()
    for secret in SECRETS:
        _secret(draft, item, secret, server.row, slug)
    row.server = server.row
    # Without what it needs the rest would only be said a second time, in other words.
    if item.differs and not any(need.broken for need in needs):
        _validate(draft, item)
    if is_new and row.is_by_application and not item.broken:
        row.allow_app_only()
    return item


def _keep_login(draft: Draft, item: Item) -> None:
    """How an existing account logs in is changed where somebody sees what that means for it."""
    row, cells = item.row, item.said.cells
    client = row.oauth_client.name if row.oauth_client else ""
    for column, present in (("kind", row.kind), ("oauth_client", client)):
        if cells.get(column, present) != present:
            text = _("It is %(present)s there, and an import does not change that. Use the admin.")
            draft.complain(item, column, text % {"present": present or "(empty)"})
    cells.pop("kind", None)


def _secret(draft: Draft, item: Item, name: str, server: MailServer, slug: str) -> None:
    cells, sealed_name = item.said.cells, f"sealed_{name}"
    given: Secret | None = cells.get(name)
    if sealed_name in cells:
        if given:
            text = _("The secret is there twice, here and in %(name)s. Empty one of the cells.")
            draft.complain(item, sealed_name, text % {"name": name})
            return
        if draft.private_key is None:
            text = _("This is sealed: give the private key that opens it (--private-key FILE).")
            draft.complain(item, sealed_name, text)
            return
        bound = context(slug, server, item.row.username, name)
        try:
            given = sealing.open_sealed(cells[sealed_name], draft.private_key, bound)
        except SecretError as error:
            draft.complain(item, sealed_name, str(error))
            return
    if not given:
        return
    field = secret_field(item.row, name)
    is_there = not item.is_new and field.is_set(item.row)
    if is_there and draft.compares_secrets:
        with suppress(SecretError):  # what does not open is replaced
            if field.open(item.row) == given:
                return
    setattr(item.row, name, given)
    replaced = "changed" if draft.compares_secrets else "replaced"
    item.note(name, replaced if is_there else "set", None, name)


def _validate(draft: Draft, item: Item) -> None:
    """What ``full_clean()`` does, but what looks for other rows: their keys are known."""
    row: Credential = item.row
    try:
        row.clean_fields(exclude={"tenant", "server", "oauth_client"})
    except ValidationError as error:
        draft.complain_of(item, error)
    try:
        row.clean_by_itself()
    except ValidationError as error:
        draft.complain_of(item, error)


def _owners_of_senders(items: list[Item]) -> dict[Owned, Any]:
    """Which credential has each address, as the database has it."""
    addresses = {address for item in items for address in _normalized(item)}
    found: dict[Owned, Any] = {}
    for batch in batches(addresses):
        rows = Sender.objects.filter(address__in=batch).values_list(
            "scope", "address", "credential_id"
        )
        found |= {(scope, address): owner for scope, address, owner in rows}
    return found


def _normalized(item: Item) -> list[str]:
    found = []
    for address in item.said.cells.get("senders", ()):
        try:
            found.append(normalize_sender(address))
        except ValidationError:
            continue
    return found


def _senders(draft: Draft, item: Item, taken: dict[Owned, Any]) -> None:
    row: Credential = item.row
    there = set() if item.is_new else {sender.address for sender in row.senders.all()}
    scope = row.get_scope()
    seen: set[str] = set()
    for text in item.said.cells.get("senders", ()):
        try:
            address = normalize_sender(text)
            sender = None
            if address not in there:
                sender = Sender(credential=row, address=address)
                sender.clean_fields(exclude={"credential"})
        except ValidationError as error:
            why = " ".join(dict.fromkeys(error.messages))
            draft.complain(item, "senders", f"{shown(text)}: {why}")
            continue
        owner = taken.setdefault((scope, address), row.pk)
        if owner != row.pk:
            text = _("Another account of this tenant has %(address)s. Remove it from one of them.")
            draft.complain(item, "senders", text % {"address": address})
        elif address in seen:
            text = _("%(address)s is there twice. Remove one.")
            draft.complain(item, "senders", text % {"address": address})
        elif sender is not None:
            item.senders.append(sender)
            item.note("senders", f"+ {address}", None)
        seen.add(address)
    if item.differs and not item.broken:
        try:
            row.check_senders(there | seen)
        except ValidationError as error:
            draft.complain(item, "senders", " ".join(error.messages))
