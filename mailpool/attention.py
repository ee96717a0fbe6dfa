"""Which credentials somebody should look at, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, F, OuterRef, Subquery, Sum
from django.utils import timezone
from django.utils.translation import gettext

from mailpool import certificates
from mailpool.exceptions import SecretError
from mailpool.models import Credential, DeliveryRecord, MailServer
from mailpool.models.records import Outcome
from mailpool.server_presets import SERVER_PRESETS

# Credentials that are looked through, and those that are shown, while somebody waits for a page.
EXAMINED_AT_MOST = 1000
SHOWN_AT_MOST = 20

DAY = timedelta(days=1)

# A single failure may be the recipient's fault.
FAILURES = 2
# What providers take of one login, in recipients a day; and the part from which on that is near.
LIMITS = {
    preset.host: preset.recipients_per_day.value
    for preset in SERVER_PRESETS.values()
    if preset.recipients_per_day is not None
}
NEAR = 0.8


@dataclass(frozen=True, slots=True)
class Problem:
    """One credential, with what is wrong in two words and in a sentence."""

    credential_id: str
    account: str
    tenant: str
    server: str
    short: str
    reason: str
    tenant_id: str = ""
    in_records: bool = False
    """Whether delivery records tell more."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The credentials with a problem."""

    problems: tuple[Problem, ...]
    more: int
    """Further ones with a problem."""

    unexamined: bool
    """Whether there are more credentials than were looked through."""


def trouble(credential: Credential) -> tuple[str, str]:
    """What is wrong with what is stored, in two words and in a sentence; empty if nothing is."""
    if credential.is_oauth and (found := _oauth_trouble(credential)):
        return found
    if credential.uses_password and not credential.has_password:
        return gettext("no password"), gettext("No password is stored.")
    if credential.client_certificate and not credential.has_client_key:
        text = gettext("No private key of the client certificate is stored.")
        return gettext("no private key"), text
    try:
        credential.password, credential.client_key  # noqa: B018
    except SecretError as error:
        return gettext("does not decrypt"), str(error)
    if credential.client_certificate and (
        expiry := certificates.attention(credential.client_certificate)
    ):
        return gettext("certificate"), expiry
    return "", ""


def _oauth_trouble(credential: Credential) -> tuple[str, str] | None:
    if credential.needs_attention:
        return gettext("connect again"), credential.needs_attention
    if not credential.is_connected:
        text = gettext("The account is not connected. Choose “Connect account”.")
        if credential.is_by_application:
            text = gettext("The application has no access. Save the account to give it.")
        return gettext("not connected"), text
    try:
        client = credential.oauth_client
        credential.permission, client.client_secret, client.private_key  # type: ignore[union-attr]  # noqa: B018
    except SecretError as error:
        return gettext("does not decrypt"), str(error)
    return None


def attention(*, with_records: bool) -> Attention:
    """What active credentials need: one query, and three more *with_records*."""
    rows = list(_active().order_by("-needs_attention_since", "pk")[: EXAMINED_AT_MOST + 1])
    found = [_problem(row, *trouble(row)) for row in rows[:EXAMINED_AT_MOST]]
    problems = [each for each in found if each.reason]
    if with_records:
        problems += _by_records()
    return Attention(
        tuple(problems[:SHOWN_AT_MOST]),
        max(0, len(problems) - SHOWN_AT_MOST),
        len(rows) > EXAMINED_AT_MOST,
    )


def _active() -> Any:
    active = Credential.objects.filter(is_active=True, server__is_active=True)
    return active.select_related("server", "tenant", "oauth_client")


def _problem(row: Credential, short: str, reason: str, in_records: bool = False) -> Problem:
    tenant = gettext("(site)") if row.tenant is None else str(row.tenant)
    named = row.login_name, tenant, row.server.name
    tenant_id = "" if row.tenant_id is None else str(row.tenant_id)
    return Problem(str(row.pk), *named, short, reason, tenant_id, in_records)


def _by_records() -> Iterable[Problem]:
    """What the records of a day tell of credentials."""
    failed, taken = _failures(), _recipients()
    if not failed and not taken:
        return
    # By the index of servers: there is none of credentials.
    own = _a_day().filter(server=OuterRef("server"), credential=OuterRef("pk")).order_by("-pk")
    rows = _active().annotate(latest=Subquery(own.values("outcome")[:1]))
    failing = gettext("The latest message failed; %(count)d failed within 24 hours.")
    near = gettext("%(count)d recipients within 24 hours, and %(host)s takes %(limit)d a day.")
    for row in rows.filter(pk__in={*failed, *taken}):
        if row.pk in failed and row.latest not in (Outcome.SENT, None):
            text = failing % {"count": failed[row.pk]}
            yield _problem(row, gettext("failing"), text, True)
        host, count = row.server.host, taken.get(row.pk, 0)
        if host in LIMITS and count >= NEAR * LIMITS[host]:
            text = near % {"count": count, "host": host, "limit": LIMITS[host]}
            yield _problem(row, gettext("near the limit"), text, True)


def _failures() -> dict[Any, int]:
    """How many messages failed, of those credentials where it were the most."""
    counts = (
        _a_day()
        .exclude(outcome=Outcome.SENT)
        .filter(credential__isnull=False)
        .values_list("credential")
        .annotate(count=Count("pk"))
        .filter(count__gte=FAILURES)
    )
    return dict(counts.order_by("-count")[: 5 * SHOWN_AT_MOST])


def _recipients() -> dict[Any, int]:
    """How many recipients' mail was taken, of those credentials that a limit may be near for."""
    counts = (
        _a_day()
        .exclude(outcome=Outcome.FAILED)
        .filter(server__in=MailServer.objects.filter(host__in=LIMITS))
        .values_list("credential")
        .annotate(count=Sum(F("recipients") - F("refused")))
        .filter(count__gte=NEAR * min(LIMITS.values()))
    )
    return dict(counts.order_by("-count")[: 5 * SHOWN_AT_MOST])


def _a_day() -> Any:
    return DeliveryRecord.objects.since(timezone.now() - DAY).order_by()
