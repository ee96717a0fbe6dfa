"""The columns of a file: which record each belongs to, and how its cells are read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from typing import Any, cast

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext as _

from mailpool import conf
from mailpool.models import Credential, MailServer
from mailpool.secret import Secret
from mailpool.text import is_unicode
from mailpool.transfer.problems import shown
from mailpool.validators import validate_name

# What a row is about; without the column it is an account.
TENANT, SERVER, ACCOUNT = RECORDS = ("tenant", "server", "account")

# The site itself, where a tenant's slug would stand. Never an empty cell: an account whose tenant
# was forgotten would send the mail that has no tenant.
SITE = "(site)"

# Secrets of an account, in clear text in these columns, or sealed for the receiving site.
SECRETS = ("password", "client_key")
SEALED = {f"sealed_{name}": name for name in SECRETS}

_YES, _NO = {"yes", "true", "on", "1"}, {"no", "false", "off", "0"}

# An address, of which a quoted part may have blanks. With a limit, for quotes without an end would
# be looked for again and again.
_ADDRESS = re.compile(r'(?:"(?:\\.|[^"\\]){0,64}"|[^\s,;"])+')


@dataclass(frozen=True)
class Column:
    """A column, and the field that it is about; some have none of that name and are read apart."""

    name: str
    record: str
    field: str = ""

    @cached_property
    def model_field(self) -> Any:
        return _model(self.record)._meta.get_field(self.field) if self.field else None

    def parse(self, cell: Any) -> Any:
        """The value that *cell* stands for. ``ValueError`` says what to write instead."""
        if self.name in SECRETS:
            if not isinstance(cell, str):
                raise ValueError(_("Write it as text, in quotes."))
            if "\0" in cell or any("\ud800" <= char <= "\udfff" for char in cell):
                raise ValueError(_("It has a character that no password can have."))
            return Secret(cell)
        if self.name == "senders":
            return _addresses(cell)
        field = self.model_field
        if isinstance(field, models.BooleanField):
            return _switch(cell)
        if isinstance(field, models.IntegerField):
            return _number(cell)
        if isinstance(cell, (bool, float, list, dict)):
            raise ValueError(_("Write it as text."))
        text = str(cell).strip()
        if self.is_block:
            # No database stores half a character, and PostgreSQL no NUL.
            if "\0" in text or not is_unicode(text):
                raise ValueError(_("It has a character that no text can have."))
        else:
            try:
                validate_name(text)
            except ValidationError as error:
                raise ValueError(error.message) from None
        choices = [value for value, _label in _choices(field)]
        if text and choices and text not in choices:
            known = ", ".join(str(value) for value in choices if value)
            raise ValueError(
                _("%(text)s is not known. Write one of: %(known)s.")
                % {"text": f"“{shown(text)}”", "known": known}
            )
        return text

    @property
    def takes(self) -> str:
        """What a cell may say, in a word or two; English, as all that commands print."""
        field = self.model_field
        if self.name == "senders":
            return "addresses, with blanks between them"
        if isinstance(field, models.BooleanField):
            return "yes or no"
        if isinstance(field, models.IntegerField):
            return "a whole number"
        choices = RECORDS if self.name == "record" else [v for v, _label in _choices(field) if v]
        return ", ".join(map(str, choices)) or "text"

    @property
    def is_block(self) -> bool:
        """Whether it holds several lines, as certificates do."""
        return type(self.model_field) is models.TextField

    def value_of(self, row: models.Model) -> Any:
        """What the field of *row* holds, as a cell of JSON."""
        return getattr(row, self.model_field.attname)

    def show(self, value: Any) -> str:
        """*value* for people, as the audit has it. Never asked of a secret."""
        if value in (None, ""):
            return "(empty)"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if self.is_block:
            return f"SHA-256 {sha256(str(value).encode()).hexdigest()[:16]}"
        return str(value)


def _choices(field: Any) -> list[tuple[Any, Any]]:
    return list(getattr(field, "choices", None) or ())


def _model(record: str) -> type[models.Model]:
    if record == TENANT:
        return cast("type[models.Model]", apps.get_model(conf.tenant_model()))
    return MailServer if record == SERVER else Credential


def owns_tenants() -> bool:
    """Whether tenants are mailpool's own. Those of a project are its own business: they are
    referred to, and neither made nor changed."""
    return conf.tenant_model().lower() == conf.DEFAULT_TENANT_MODEL.lower()


_SERVER_FIELDS = (
    "host", "port", "security", "timeout", "connect_timeout", "data_timeout", "final_timeout",
    "ca_certificate", "maintain_connection", "max_connections", "idle_timeout", "max_lifetime",
    "max_messages", "single_flight",
)  # fmt: skip
_ACCOUNT_FIELDS = (
    "kind", "client_certificate", "mechanism", "default_from", "sender_policy", "bounce_address",
    "priority",
)  # fmt: skip

_OF_TENANT = (Column("tenant_name", TENANT, "name"), Column("tenant_active", TENANT, "is_active"))
_REST = (
    Column("server", SERVER),
    Column("preset", SERVER),
    Column("server_tenant", SERVER),
    *(Column(name, SERVER, name) for name in _SERVER_FIELDS),
    Column("server_active", SERVER, "is_active"),
    Column("username", ACCOUNT),
    *(Column(name, ACCOUNT) for name in (*SECRETS, *SEALED)),
    Column("oauth_client", ACCOUNT),
    *(Column(name, ACCOUNT, name) for name in _ACCOUNT_FIELDS),
    Column("active", ACCOUNT, "is_active"),
    Column("senders", ACCOUNT),
)


def columns() -> Mapping[str, Column]:
    """All columns by name, in the order in which they are written."""
    return _columns(owns_tenants())


def fields_of(record: str) -> tuple[Column, ...]:
    """The columns of *record* that are fields of its model."""
    return _fields_of(record, owns_tenants())


# Asked for each cell of a file, of which there are millions.


@cache
def _columns(own_tenants: bool) -> Mapping[str, Column]:
    own = _OF_TENANT if own_tenants else ()
    first = (Column("record", ""), Column("tenant", TENANT))
    return {column.name: column for column in (*first, *own, *_REST)}


@cache
def _fields_of(record: str, own_tenants: bool) -> tuple[Column, ...]:
    known = _columns(own_tenants).values()
    return tuple(column for column in known if column.record == record and column.field)


def _switch(cell: Any) -> bool:
    if isinstance(cell, bool):
        return cell
    text = str(cell).strip().lower()
    if text in _YES | _NO:
        return text in _YES
    raise ValueError(_("Write yes or no."))


def _number(cell: Any) -> int | None:
    text = str(cell).strip()
    if isinstance(cell, bool) or not re.fullmatch(r"[0-9]{0,9}", text):
        raise ValueError(_("Write a whole number."))
    return int(text) if text else None


def _addresses(cell: Any) -> list[str]:
    if isinstance(cell, list):
        if all(isinstance(address, str) for address in cell):
            return [address.strip() for address in cell]
    elif isinstance(cell, str):
        found = _ADDRESS.findall(cell)
        if not re.sub(r"[\s,;]", "", _ADDRESS.sub("", cell)):
            return list(found)
    raise ValueError(_("Write addresses with blanks between them."))
