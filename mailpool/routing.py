"""Which credential a message goes out with. Reads the database, opens nothing.

The first that applies names the tenant: ``message.tenant``, the backend's ``tenant`` option,
``use_tenant()``, the request's tenant, the From address. Mail without a tenant goes out with the
site's default credential. A tenant that is known but can't send is an error, never a reason to
look further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.db.models import F, Manager, Model, Q, QuerySet
from django.utils.translation import gettext as _

from mailpool import conf, marker
from mailpool.addresses import Mailbox
from mailpool.context import TenantRef, current_tenant
from mailpool.exceptions import (
    AmbiguousRoute,
    MailpoolError,
    NoRoute,
    SenderNotAllowed,
    ServerPaused,
)
from mailpool.identity import fit, header_from, identify
from mailpool.models import Credential, MailServer, Sender
from mailpool.models.scopes import proof_of
from mailpool.prepared import Prepared, prepare


@dataclass(frozen=True, slots=True)
class Accounts:
    """The credentials of a tenant, or of the site itself."""

    tenant: Any
    """``None`` for the site."""

    credentials: Sequence[Credential]

    @classmethod
    def of(cls, credentials: Sequence[Credential], tenant: Any = None) -> Accounts:
        return cls(credentials[0].tenant if credentials else tenant, credentials)


class Router:
    """Chooses credentials for the messages of one call.

    What it has read of a tenant it keeps, so that a batch asks the database once per tenant and
    not once per message: make a new one for each call. *tenant* is the backend's option.
    """

    def __init__(self, tenant: TenantRef | None = None) -> None:
        self._option = tenant
        self._by_tenant: dict[Any, Accounts] = {}

    def resolve(self, message: EmailMessage) -> Credential:
        """The credential of *message*.

        Raises a ``RouteError`` (``NoRoute``, ``AmbiguousRoute``, ``SenderNotAllowed``) where there
        is not exactly one, ``InvalidMessage`` for a From that can't be read. Where the tenant is
        known, it is on the error.
        """
        tenant = getattr(message, "tenant", None)
        for fallback in (self._option, current_tenant()):
            if tenant is None:
                tenant = fallback
        if tenant is not None:
            accounts = self._of_tenant(tenant)
            who = f"Tenant {describe(tenant)}"
        else:
            sender = header_from(message)
            owner, who = self._owner_of(sender)
            accounts = self._of_key(owner)
            if owner is None and not accounts.credentials:
                raise NoRoute(
                    f"The message names no tenant, no tenant has {sender.key} as a sender, and "
                    "there is no credential of the site itself. Name a tenant with message.tenant "
                    "or use_tenant(), or enter a credential without a tenant."
                )
        return _choose(accounts, who, message)

    def resolve_of_site(self, message: EmailMessage) -> Credential:
        """The site's own credential for *message*, whatever tenant it is sent for."""
        return _choose(self._of_key(None), "The site", message)

    # The tenant's accounts

    def _of_tenant(self, tenant: TenantRef) -> Accounts:
        model = _tenants().model
        # Always by key: an instance may be older than the last change, in a worker by days.
        if isinstance(tenant, model):
            if tenant.pk is None:
                raise NoRoute(f"Tenant {describe(tenant)} is not saved.")
            return self._named(tenant, "pk", tenant.pk)
        if isinstance(tenant, str):
            return self._named(tenant, conf.get("TENANT_SLUG_FIELD"), tenant)
        if isinstance(tenant, (UUID, int)) and not isinstance(tenant, bool):
            return self._named(tenant, "pk", tenant)
        raise NoRoute(
            f"{describe(tenant)} is not a tenant: pass a {model._meta.label} or its slug."
        )

    def _named(self, tenant: TenantRef, column: str, value: Any) -> Accounts:
        known = (type(tenant), value)
        if known not in self._by_tenant:
            try:
                found = self._read(column, value)
            except (ValidationError, ValueError, TypeError, OverflowError):
                found = []  # not even the form of a key
            if isinstance(tenant, str):
                # As it is written: some databases find "Acme" where "acme" is looked for.
                found = [each for each in found if slug_of(each.tenant) == tenant]
            owners: list[Any] = [None]
            if not found or (column != "pk" and not _is_unique(column)):
                owners = _tenants_with(column, value, tenant)
                if not owners:
                    raise NoRoute(
                        f"There is no tenant {describe(tenant)}: enter it, or correct the {column}."
                    )
                if len(owners) > 1:
                    raise AmbiguousRoute(
                        f"{describe(tenant)} is the {column} of several tenants. Pass the tenant "
                        "itself."
                    )
            self._by_tenant[known] = Accounts.of(found, owners[0])
        return self._by_tenant[known]

    def _of_key(self, owner: Any) -> Accounts:
        """The accounts of the tenant with the key *owner*, or with ``None`` the site's."""
        known = (None, owner)
        if known not in self._by_tenant:
            self._by_tenant[known] = Accounts.of(self._read("pk", owner))
        return self._by_tenant[known]

    def _read(self, column: str, value: Any) -> list[Credential]:
        """The accounts of the tenant with *value* in *column*; the site's, where it is ``None``."""
        # One query, with a row for each sender: what it costs is paid for every single message.
        rows = _prepared_rows(column, value)
        found: dict[Any, tuple[Credential, set[str]]] = {}
        for row in rows:
            _, senders = found.setdefault(row.pk, (row, set()))
            if row.sender_address is not None and row.counts(row.sender_address, row.sender_proof):
                senders.add(row.sender_address)
        for credential, senders in found.values():
            credential.sender_addresses = frozenset(senders)
        return [credential for credential, _ in found.values()]

    # The From address

    def _owner_of(self, sender: Mailbox) -> tuple[Any, str]:
        """Whose address it is: the exact one first, then its domain, else the site's.

        A tenant's that is not proven to be its own, where that is asked for, is nobody's.
        """
        matches = Sender.objects.filter(address__in=[sender.key, sender.domain_key]).values_list(
            "address", "credential__tenant_id", "proof"
        )
        asks = conf.verifies_senders()
        entries = [
            (address, owner)
            for address, owner, proof in matches
            if owner is None or not asks or proof == proof_of(str(owner), address)
        ]
        for address in (sender.key, sender.domain_key):
            owners = {owner for match, owner in entries if match == address}
            if len(owners) > 1:
                raise AmbiguousRoute(
                    f"{sender.key} belongs to {len(owners)} tenants. Say which one sends: with "
                    "message.tenant or use_tenant()."
                )
            if owners:
                owner = owners.pop()
                return owner, "The site" if owner is None else f"The owner of {address}"
        return None, "The site"


# By database, column, whether it is for a tenant, and whether the site's marker is asked for.
_prepared: dict[tuple[str, str, bool, bool], Prepared | None] = {}


def _prepared_rows(column: str, value: Any) -> list[Any]:
    """What ``_query()`` finds, but its SQL is made once in the life of the process."""
    options = _tenants().model._meta
    field = None
    if value is not None:
        field = options.pk if column == "pk" else options.get_field(column)
    key = (Credential.objects.db, column, value is None, marker.own() is not None)
    if key not in _prepared:
        _prepared[key] = prepare(_query(column, value), field, value)
    statement = _prepared[key]
    return list(_query(column, value)) if statement is None else statement.rows(value)


def _query(column: str, value: Any) -> QuerySet[Credential]:
    of_tenant = Q(tenant__isnull=True) if value is None else Q(**{f"tenant__{column}": value})
    rows: QuerySet[Any] = (
        Credential.objects.filter(of_tenant)
        .select_related("server", "tenant", "oauth_client")
        .annotate(sender_address=F("senders__address"), sender_proof=F("senders__proof"))
        .order_by()
    )
    return rows if marker.own() is None else rows.annotate(site_marker=marker.COLUMN)


def is_usable(credential: Credential) -> bool:
    """Whether credential, server and tenant are all switched on."""
    tenant = credential.tenant
    return bool(
        credential.is_active
        and credential.server.is_active
        and (tenant is None or getattr(tenant, "is_active", True))
    )


def require_own_server(credential: Credential) -> None:
    """Raise ``NoRoute`` where *credential*'s server is another tenant's.

    No form lets that happen; ``update()`` and SQL do. Another credential does not step in:
    somebody has to look.
    """
    if not credential.server.is_open_to(credential):
        raise NoRoute(
            _(
                "%(credential)s may not be used: its mail server belongs to another tenant. Choose "
                "a server of everybody's or of its own tenant."
            )
            % {"credential": credential}
        )


def require_running(server: MailServer) -> None:
    """Raise ``ServerPaused`` where *server* is being maintained.

    Another credential of the tenant, at another server, does not step in: whom mail comes from
    shall not depend on a pause.
    """
    if server.is_paused:
        raise ServerPaused(
            _(
                "The mail server “%(name)s” is being maintained until %(until)s, so nothing is "
                "sent over it. Send again then, or resume it on the Connections page."
            )
            % {"name": server.name, "until": server.paused_text}
        )


def describe(tenant: TenantRef) -> str:
    """A tenant for error messages: its slug where it has one."""
    return repr(slug_of(tenant) if isinstance(tenant, Model) else str(tenant))


def slug_of(tenant: Any) -> str:
    """What *tenant* is called; empty for ``None``."""
    return "" if tenant is None else str(getattr(tenant, conf.get("TENANT_SLUG_FIELD"), tenant))


def _is_unique(column: str) -> bool:
    return bool(getattr(_tenants().model._meta.get_field(column), "unique", False))


def _tenants_with(column: str, value: Any, tenant: TenantRef) -> list[Any]:
    try:
        found = list(_tenants().filter(**{column: value}))
    except (ValidationError, ValueError, TypeError):
        return []
    return [each for each in found if not isinstance(tenant, str) or slug_of(each) == tenant]


def _tenants() -> Manager[Any]:
    # Like every foreign key: also those that the model's own manager leaves out.
    field: Any = Credential._meta.get_field("tenant")
    manager: Manager[Any] = field.related_model._base_manager
    return manager


def _choose(accounts: Accounts, who: str, message: EmailMessage) -> Credential:
    """The one that fits *message* best among a tenant's credentials."""
    try:
        return _fitting(accounts.credentials, who, message)
    except MailpoolError as error:
        error.tenant = accounts.tenant
        raise


def _fitting(credentials: Sequence[Credential], who: str, message: EmailMessage) -> Credential:
    usable = [credential for credential in credentials if is_usable(credential)]
    if not usable:
        raise NoRoute(f"{who} has no usable credential: {_why_none(credentials)}.")
    ranked = []
    for credential in usable:
        rank = fit(message, credential)
        if rank is not None:
            ranked.append((rank, credential.priority, str(credential.pk), credential))
    if not ranked:
        # Its default From, where the message leaves the sender to the account.
        tried = {identify(message, each).header.key for each in usable}
        raise SenderNotAllowed(
            f"{who} may not send as {' or '.join(sorted(tried))}: it is not among the senders of "
            f"its credentials{_and_what_to_do(usable)}."
        )
    return min(ranked, key=lambda entry: entry[:3])[3]


def _and_what_to_do(credentials: Sequence[Credential]) -> str:
    asks = any(credential.needs_proof for credential in credentials)
    if not asks:
        return ". Enter it as a sender of one of them, or correct From"
    return (
        ", or its ownership is not proven (VERIFY_SENDERS). Enter it as a sender, and prove it on "
        "the tenant's own pages by an emailed code or by DNS; or let an operator confirm it in the "
        "admin, under Senders"
    )


def _why_none(credentials: Sequence[Credential]) -> str:
    if not credentials:
        return "it has none"
    for credential in credentials:
        if not getattr(credential.tenant, "is_active", True):
            return "the tenant is inactive"
        if credential.is_active and not credential.server.is_active:
            return f"the mail server “{credential.server.name}” is inactive"
    return "all of them are inactive"
