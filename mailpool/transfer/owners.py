"""Tenants and mail servers of a file, compared with those of the database."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from mailpool import conf, relocation
from mailpool.models import MailServer
from mailpool.server_presets import SERVER_PRESETS
from mailpool.transfer.columns import SERVER, TENANT, owns_tenants
from mailpool.transfer.items import Draft, Item, Said, batches
from mailpool.transfer.problems import shown


def plan_tenants(draft: Draft) -> None:
    model = apps.get_model(conf.tenant_model())
    slug_field = conf.get("TENANT_SLUG_FIELD")
    for batch in batches(draft.said[TENANT].items()):
        rows = model._default_manager.filter(**{f"{slug_field}__in": [slug for slug, _ in batch]})
        found = {str(getattr(row, slug_field)): row for row in rows}
        for slug, said in batch:
            row = found.get(slug)
            is_new = row is None
            item = Item(
                TENANT,
                _("tenant %(name)s") % {"name": slug},
                said,
                row or model(**{slug_field: slug}),
                is_new,
            )
            draft.items[TENANT][slug] = item
            if not owns_tenants():
                if is_new:
                    draft.complain(item, "tenant", _no_tenant(slug))
                continue
            if is_new:
                item.row.name = slug  # until the file says otherwise
            item.take_fields()
            if item.differs:
                _validate(draft, item)


def _no_tenant(slug: str) -> str:
    text = _("There is no tenant %(slug)s. Yours are made by your project, not by an import.")
    return text % {"slug": shown(slug)}


def plan_servers(draft: Draft) -> None:
    for batch in batches(draft.said[SERVER].items()):
        rows = MailServer.objects.filter(name__in=[name for name, _ in batch])
        found = {row.name: row for row in rows.select_related("tenant")}
        for name, said in batch:
            draft.items[SERVER][name] = _server(draft, name, said, found.get(name))


def _server(draft: Draft, name: str, said: Said, row: MailServer | None) -> Item:
    is_new = row is None
    item = Item(
        SERVER,
        _("mail server %(name)s") % {"name": name},
        said,
        row or MailServer(name=name),
        is_new,
    )
    owner = said.cells.get("server_tenant")
    if owner:
        item.needs = (draft.items[TENANT][owner],)
    _apply_preset(item)
    if is_new:
        if owner:
            item.row.tenant = draft.items[TENANT][owner].row
            item.note("server_tenant", owner, None)
        if not said.cells.get("host"):
            text = _(
                "There is no mail server of this name. Correct it, or write the host of a new one "
                "(and port and security), or choose a provider in the column preset."
            )
            draft.complain(item, "server", text)
            return item
    elif owner and item.row.tenant_id != draft.items[TENANT][owner].row.pk:
        text = _("The server is not this tenant's, and an import does not change whose it is.")
        draft.complain(item, "server_tenant", text)
    if not is_new and _redirects(item):
        draft.complain(item, "host", _redirected(item.row))
        return item
    item.take_fields()
    if item.differs:
        _validate(draft, item)
    return item


def _apply_preset(item: Item) -> None:
    """The provider's address, unless the file has one; its figures for a new server only.

    The address of an existing one as well: whoever writes "gmail" into a row has its password
    presented to Gmail, or gets an error.
    """
    cells = item.said.cells
    if "preset" not in cells:
        return
    for name, value in SERVER_PRESETS[cells["preset"]].initial().items():
        if value and (item.is_new or name in relocation.ADDRESS) and name not in cells:
            cells[name] = value
            item.said.where.setdefault(name, item.said.line_of("preset"))


def _redirects(item: Item) -> bool:
    """Whether secrets that are stored for the server's address would go to another one."""
    cells, row = item.said.cells, item.row
    moves = any(name in cells and cells[name] != getattr(row, name) for name in relocation.ADDRESS)
    return moves and relocation.at_stake(row).secrets > 0


def _redirected(row: MailServer) -> str:
    text = _(
        "Passwords are stored for this server at %(host)s:%(port)d (%(security)s), and an import "
        "never presents them anywhere else. Somebody who may use “Change host, port or security” "
        "in the admin has to decide that; or give the new address a server name of its own."
    )
    return text % {"host": row.host, "port": row.port, "security": row.security}


def _validate(draft: Draft, item: Item) -> None:
    """What ``full_clean()`` does. That names are unique, is known; what the table's constraints say
    of a single row, its fields' validators have said."""
    row: Any = item.row
    for check in (lambda: row.clean_fields(exclude={"tenant"}), row.clean):
        try:
            check()
        except ValidationError as error:
            draft.complain_of(item, error)
            return
