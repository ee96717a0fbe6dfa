"""The dashboard above mailpool's section of the admin: who sees what of it, as plots and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.utils.formats import number_format
from django.utils.text import Truncator
from django.utils.translation import gettext

from mailpool import conf
from mailpool.admin.cached import cached
from mailpool.admin.pages import admin_url
from mailpool.attention import Attention, attention
from mailpool.dashboard import HOUR, SPANS, Group, Sessions, Span, Traffic, sessions, traffic
from mailpool.models import Credential, MailServer

DEFAULT_SPAN = "24h"


@dataclass(frozen=True, slots=True)
class Series:
    """One line or one set of bars, and where its records are."""

    name: str
    values: tuple[float | None, ...]
    url: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """Figures over time: what is drawn, said and put into a table."""

    key: str
    title: str
    summary: str
    bars: bool
    unit: str
    labels: Sequence[str]
    series: tuple[Series, ...]

    @property
    def rows(self) -> list[tuple[str, list[str]]]:
        """For the table: each step with its figures."""
        columns = [each.values for each in self.series]
        return [
            (label, [self._text(value) for value in values])
            for label, *values in zip(self.labels, *columns, strict=True)
        ]

    def _text(self, value: float | None) -> str:
        return "\N{EN DASH}" if value is None else f"{_number(value)}{self.unit}"

    def as_json(self) -> dict[str, Any]:
        series = [{"name": each.name, "values": each.values} for each in self.series]
        return {
            "bars": self.bars,
            "unit": self.unit,
            "labels": list(self.labels),
            "time": gettext("Time"),
            "series": series,
        }


def context(request: HttpRequest) -> dict[str, Any]:
    """What the template shows to this user. What they may not view is not even computed."""
    may = Permissions(request)
    page: dict[str, Any] = {
        "may": may,
        "records_off": conf.records_level() == conf.RECORDS_OFF,
        "records_url": _url(request, "deliveryrecord_changelist"),
    }
    if may.records:
        page |= _traffic(request)
        page |= _start(request, page["traffic"])
    if may.credentials:
        found = cached(f"attention:{may.records:d}", lambda: attention(with_records=may.records))
        page |= _attention(request, found)
    if may.connections:
        page |= _sessions(request, sessions(), may.credentials)
    return page


class Permissions:
    """Whether the user may view these."""

    def __init__(self, request: HttpRequest) -> None:
        has = request.user.has_perm
        self.records = has("mailpool.view_deliveryrecord")
        self.credentials = has("mailpool.view_credential")
        self.connections = has("mailpool.view_connections")
        self.add_servers = has("mailpool.add_mailserver")
        self.add_credentials = has("mailpool.add_credential")

    @property
    def anything(self) -> bool:
        return self.records or self.credentials or self.connections


def _traffic(request: HttpRequest) -> dict[str, Any]:
    """The chosen span's figures, or those of the longest one that is not too much."""
    given = request.GET.get("span") or DEFAULT_SPAN
    chosen = SPANS.get(given, SPANS[DEFAULT_SPAN])
    span, found = chosen, _counted(chosen)
    for shorter in reversed(list(SPANS.values())):
        if found is None and shorter.length < chosen.length:
            span, found = shorter, _counted(shorter)
    plots = _plots(request, found) if found and found.total.messages else []
    return {
        "traffic": found,
        "span": span,
        "unknown_span": "" if given in SPANS else Truncator(given).chars(40),
        "sums_up": chosen.step >= HOUR,
        "too_much": "" if span is chosen and found else chosen.label,
        "spans": [(each, each is span) for each in SPANS.values()],
        "plots": plots,
        "figures": {plot.key: plot.as_json() for plot in plots},
    }


def _counted(span: Span) -> Traffic | None:
    # That there is too much to count is worth remembering as well.
    (found,) = cached(f"traffic:{span.key}", lambda: (traffic(span),))
    return found


def _plots(request: HttpRequest, found: Traffic) -> list[Plot]:
    """Each plot with its summary, which says what the plot shows."""
    steps, total = found.steps, found.total
    numbers = {"messages": _number(total.messages), "failures": _number(total.failures)}

    def plot(key: str, title: str, summary: str, *series: Series, **how: Any) -> Plot:
        look = {"bars": False, "unit": "", **how}
        return Plot(key, title, summary, labels=found.labels, series=series, **look)

    plots = [
        plot(
            "messages",
            gettext("Messages and failures"),
            gettext("%(messages)s messages, of which %(failures)s failed or were refused.")
            % numbers,
            Series(gettext("messages"), tuple(step.messages for step in steps)),
            Series(gettext("failures"), tuple(step.failures for step in steps)),
            bars=True,
        )
    ]
    if total.sent:
        plots += [
            plot(
                "speed",
                gettext("Sending time"),
                gettext("Half of the messages took at most %(p50)s ms, 95%% at most %(p95)s ms.")
                % {"p50": _number(total.p50), "p95": _number(total.p95)},
                Series("p50", tuple(step.p50 for step in steps)),
                Series("p95", tuple(step.p95 for step in steps)),
                unit="\N{NO-BREAK SPACE}ms",
            ),
            plot(
                "reuse",
                gettext("Reused connections"),
                gettext("%(part)s%% of the messages went out on a connection that was open.")
                % {"part": _number(100 * total.reused / total.sent)},
                Series(
                    gettext("reused"),
                    tuple(100 * each.reused / each.sent if each.sent else None for each in steps),
                ),
                unit="\N{NO-BREAK SPACE}%",
            ),
        ]
    for name, title, failed_title, groups in (
        ("server", gettext("Messages by server"), gettext("Failures by server"), found.servers),
        ("tenant", gettext("Messages by tenant"), gettext("Failures by tenant"), found.tenants),
    ):
        most = groups[0]
        plots.append(
            plot(
                name,
                title,
                gettext("Most are of %(name)s: %(count)s.")
                % {"name": most.name, "count": _number(most.messages)},
                *(
                    Series(each.name, each.steps, _group_url(request, name, each))
                    for each in groups
                ),
            )
        )
        failing = sorted((g for g in groups if g.failures), key=lambda g: -g.failures)
        if failing:
            plots.append(
                plot(
                    f"{name}-failures",
                    failed_title,
                    gettext("Most have failed with %(name)s: %(failures)s of %(messages)s.")
                    % {
                        "name": failing[0].name,
                        "failures": _number(failing[0].failures),
                        "messages": _number(failing[0].messages),
                    },
                    *(
                        Series(each.name, each.failed_steps, _group_url(request, name, each))
                        for each in failing
                    ),
                )
            )
    return plots


def _group_url(request: HttpRequest, name: str, group: Group) -> str:
    if group.key is None:
        return ""
    return _url(request, "deliveryrecord_changelist", **{name: group.key})


def _start(request: HttpRequest, found: Traffic | None) -> dict[str, Any]:
    """Where nothing was sent: what is missing for it."""
    if found is None or found.total.messages:
        return {}
    return {
        "has_server": MailServer.objects.exists(),
        "has_credential": Credential.objects.exists(),
        "add_server_url": _url(request, "mailserver_add"),
        "add_credential_url": _url(request, "credential_add"),
        "credentials_url": _url(request, "credential_changelist"),
    }


def _attention(request: HttpRequest, found: Attention) -> dict[str, Any]:
    rows = []
    for problem in found.problems:
        where = {"tenant": problem.tenant_id or "site", "credential": problem.credential_id}
        records = _url(request, "deliveryrecord_changelist", **where) if problem.in_records else ""
        page = _url(request, "credential_change", problem.credential_id)
        rows.append((problem, page, records))
    return {"attention": found, "problems": rows}


def _sessions(request: HttpRequest, found: Sessions, may_view_credentials: bool) -> dict[str, Any]:
    owners = {}
    if found.accounts:
        ids = [key for key, _count, _processes in found.accounts]
        rows = Credential.objects.select_related("server", "tenant").in_bulk(ids)
        owners = {str(pk): row for pk, row in rows.items()}
    accounts = []
    for key, count, processes in found.accounts:
        owner = owners.get(key)
        shown = owner if may_view_credentials else None
        name = str(shown) if shown else gettext("(hidden)") if owner else gettext("(deleted)")
        most = owner.server.max_connections * processes if owner else None
        url = _url(request, "credential_change", key) if shown else ""
        accounts.append((name, url, count, most))
    return {
        "sessions": found,
        "accounts": accounts,
        "connections_url": _url(request, "connections"),
    }


def _number(value: float | None) -> str:
    """Rounded, as the reader writes numbers."""
    return number_format(round(value or 0), use_l10n=True, force_grouping=True)


def _url(request: HttpRequest, page: str, *args: Any, **query: str) -> str:
    """A page of the admin; empty where this admin site does not have it."""
    return admin_url(getattr(request, "current_app", None), f"mailpool_{page}", *args, **query)
