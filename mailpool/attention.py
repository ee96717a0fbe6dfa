"""Which credentials somebody should look at, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
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
EXPIRES_SOON = timedelta(days=30)

# A single failure may be the recipient's fault.
FAILURES = 2
# The part of a provider's limit from which on it is near.
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


def trouble(
    credential: Credential, expires_within: timedelta = certificates.EXPIRES_SOON
) -> tuple[str, str]:
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
        expiry := certificates.attention(credential.client_certificate, expires_within)
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
    """What active credentials need: one query, and four more at most *with_records*."""
    rows = list(_active().order_by("-needs_attention_since", "pk")[: EXAMINED_AT_MOST + 1])
    found = [_problem(row, *trouble(row, EXPIRES_SOON)) for row in rows[:EXAMINED_AT_MOST]]
    problems = [each for each in found if each.reason]
    if with_records:
        problems += [*_failing(), *_near_limit()]
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


def _failing() -> Iterable[Problem]:
    """Those whose latest message failed, and not that one alone, within a day."""
    recent = DeliveryRecord.objects.since(_a_day_ago()).order_by()
    failed = (
        recent.exclude(outcome=Outcome.SENT)
        .filter(credential__isnull=False)
        .values_list("credential")
        .annotate(count=Count("pk"))
        .filter(count__gte=FAILURES)
        .order_by("-count")
    )
    counts = dict(failed[: 5 * SHOWN_AT_MOST])
    if not counts:
        return
    # By the index of servers: there is none of credentials.
    own = recent.filter(server=OuterRef("server"), credential=OuterRef("pk")).order_by("-pk")
    rows = _active().annotate(latest=Subquery(own.values("outcome")[:1]))
    text = gettext("The latest message failed; %(count)d failed within 24 hours.")
    for row in rows.filter(pk__in=counts).exclude(latest=Outcome.SENT):
        if row.latest is not None:
            yield _problem(row, gettext("failing"), text % {"count": counts[row.pk]}, True)


def _near_limit() -> Iterable[Problem]:
    """Those that have sent nearly as much as their provider lets them in a day."""
    limits = {
        preset.host: preset.recipients_per_day.value
        for preset in SERVER_PRESETS.values()
        if preset.host and preset.recipients_per_day
    }
    accepted = DeliveryRecord.objects.since(_a_day_ago()).exclude(outcome=Outcome.FAILED)
    counts = dict(
        accepted.order_by()
        .filter(server__in=MailServer.objects.filter(host__in=limits))
        .values_list("credential")
        .annotate(count=Sum(F("recipients") - F("refused")))
        .filter(count__gte=NEAR * min(limits.values()))
        .order_by("-count")[: 5 * SHOWN_AT_MOST]
    )
    if not counts:
        return
    text = gettext("%(count)d recipients within 24 hours, and %(host)s takes %(limit)d a day.")
    for row in _active().filter(pk__in=counts, server__host__in=limits):
        host, count = row.server.host, counts[row.pk]
        if count >= NEAR * limits[host]:
            numbers = {"count": count, "host": host, "limit": limits[host]}
            yield _problem(row, gettext("near the limit"), text % numbers, True)


def _a_day_ago() -> datetime:
    return timezone.now() - DAY
