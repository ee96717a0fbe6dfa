"""Delivery records: what became of each message. To be looked at, and changed by nobody.

Nothing here counts the table or pages by offset: a list is read from one index, from a key on.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import connections, models
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool.admin.cached import cached
from mailpool.admin.pages import admin_url
from mailpool.admin.plain import PlainAnswers, PlainFilter
from mailpool.models import Credential, DeliveryRecord, MailServer
from mailpool.models.records import Outcome, first_key, keys_of
from mailpool.moments import moment

# The key of the last row of the page before.
BEFORE = "before"

# So many tenants or servers are offered to choose from. Further ones are found by their own page.
OFFERED = 50

# Other attempts of the same message that are shown.
ATTEMPTS = 20


def records_url(site: str | None, row: Any) -> str:
    """The list of the records of a tenant, credential or server."""
    if isinstance(row, Credential):
        of = {"tenant": row.tenant_id or SITE, "credential": row.pk}
    else:
        of = {"server" if isinstance(row, MailServer) else "tenant": row.pk}
    return admin_url(site, "mailpool_deliveryrecord_changelist", **of)


class RecordsLink(admin.ModelAdmin):  # type: ignore[type-arg]
    """From the page of a tenant, credential or server to what was sent."""

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        row = kwargs.get("obj")
        if row is not None and request.user.has_perm("mailpool.view_deliveryrecord"):
            context["records_url"] = records_url(self.admin_site.name, row)
        return super().render_change_form(request, context, *args, **kwargs)


# Filters. Each leaves a condition that an index on it and the key answers.

SITE = "site"


class RelationFilter(PlainFilter):
    """One tenant, server or credential; offers what there is, if that is not too much."""

    offers = True
    beside = ""
    """The filter whose choice leaves only those that have accounts with it: for another one all
    rows would have to be read, to find none."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        chosen = self.value()
        found = self._offered(request)
        if self.parameter_name == "tenant":
            found.append((SITE, gettext("(site)")))
        if chosen and chosen not in dict(found):
            # Of this minute, or beside the other filter's choice without an account.
            found.append((chosen, self._name_of(chosen)))
        return found

    def _offered(self, request: HttpRequest) -> list[tuple[str, str]]:
        """Keys and names: not asked for with each page, since a list shall take five queries."""
        if not self.offers:
            return []
        other = self._chosen_beside(request)

        def read() -> list[tuple[str, str]]:
            rows = self._all()
            if other:
                of_other = {"tenant": None} if other == SITE else {self.beside: other}
                accounts = Credential.objects.filter(**of_other)
                rows = rows.filter(pk__in=accounts.values(str(self.parameter_name)))
            offered = ((str(row.pk), str(row)) for row in rows[:OFFERED])
            return sorted(offered, key=lambda each: each[1])

        return list(cached(f"offered:{self.parameter_name}:{other}", read))

    def _chosen_beside(self, request: HttpRequest) -> str:
        """In one spelling; empty where it can't be any."""
        given = request.GET.get(self.beside, "")
        if given in ("", SITE):
            return given
        key: Any = DeliveryRecord._meta.get_field(self.beside)
        try:
            return str(key.target_field.clean(given, None))
        except ValidationError:
            return ""

    def _all(self) -> QuerySet[Any]:
        field: Any = DeliveryRecord._meta.get_field(str(self.parameter_name))
        rows: QuerySet[Any] = field.related_model._base_manager.order_by("pk")
        return rows

    def _name_of(self, given: str) -> str:
        """For people; the key itself of what is gone, or was never there."""
        rows = self._all()
        try:
            key = rows.model._meta.pk.clean(given, None)
        except ValidationError:
            return given
        name = f"named:{self.parameter_name}:{key}"
        return cached(name, lambda: str(rows.filter(pk=key).first() or given))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if not chosen:
            return queryset
        if chosen == SITE:
            return queryset.filter(tenant__isnull=True)
        try:
            return queryset.filter(**{str(self.parameter_name): chosen})
        except (ValidationError, ValueError):
            return self.nothing(request, queryset)


class TenantFilter(RelationFilter):
    title, parameter_name, beside = _("tenant"), "tenant", "server"


class ServerFilter(RelationFilter):
    title, parameter_name, beside = _("mail server"), "server", "tenant"


class CredentialFilter(RelationFilter):
    """Only to be seen where a credential's page has led here."""

    title, parameter_name, offers = _("credential"), "credential", False

    def _all(self) -> QuerySet[Any]:
        return super()._all().select_related("server", "tenant")  # which it is named by


class TimeFilter(PlainFilter):
    title, parameter_name = _("time"), "when"
    spans = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        offered: list[tuple[str, Any]] = [
            ("hour", _("Last hour")),
            ("day", _("Last 24 hours")),
            ("week", _("Last 7 days")),
        ]
        chosen = self.value()
        return offered if not chosen or chosen in self.spans else [*offered, (chosen, chosen)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if not chosen:
            return queryset
        if chosen in self.spans:
            return queryset.filter(pk__gte=first_key(timezone.now() - self.spans[chosen]))
        try:
            day = parse_date(chosen)
        except ValueError:
            day = None
        if day is None:
            return self.nothing(request, queryset)
        begin = datetime.combine(day, time.min)
        end = datetime.combine(day, time.max)
        return queryset.filter(pk__gte=first_key(begin), pk__lt=first_key(end))


class OutcomeFilter(PlainFilter):
    title, parameter_name = _("outcome"), "outcome__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(Outcome.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if not chosen:
            return queryset
        if chosen not in Outcome.values:
            return self.nothing(request, queryset)
        return queryset.filter(outcome=chosen)


class CodeFilter(PlainFilter):
    title, parameter_name = _("reply code"), "code"
    usual = ("421", "450", "451", "454", "535", "550", "552", "554")

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        offered: list[tuple[str, Any]] = [(code, code) for code in self.usual]
        chosen = self.value()
        return offered if not chosen or chosen in dict(offered) else [*offered, (chosen, chosen)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if not chosen:
            return queryset
        if not (chosen.isascii() and chosen.isdigit() and len(chosen) <= 3):
            return self.nothing(request, queryset)
        return queryset.filter(code=int(chosen))


class RecordList(ChangeList):
    """A page of the newest records, or of those before a key."""

    before: int | None = None
    older_url = newest_url = ""

    def get_filters(self, request: HttpRequest) -> Any:
        # Django takes any field in the address for a filter, which few of them have an index for.
        known = {getattr(each, "parameter_name", None) for each in self.list_filter}
        strange = [name for name in self.get_filters_params() if name not in known]
        for name in strange:
            del self.filter_params[name], self.params[name]
        if strange:
            names = ", ".join(f"“{Truncator(name).chars(40)}”" for name in strange[:3])
            text = gettext("There is no filter by %(names)s, so it was left out.")
            messages.warning(request, text % {"names": names})
        return super().get_filters(request)

    def get_filters_params(self, params: Any = None) -> Any:
        left = super().get_filters_params(params)
        left.pop(BEFORE, None)
        return left

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[Any]:
        return ["-pk"]  # no other one has an index with each filter

    def get_results(self, request: HttpRequest) -> None:
        rows = self.queryset
        if connections[rows.db].vendor == "mysql":
            # True of each row. Without it MariaDB and MySQL read all that two filters' indexes
            # have, to see what is in both.
            rows = rows.filter(pk__gt=0)
        given = request.GET.get(BEFORE, "")
        if given.isascii() and given.isdigit() and len(given) < 20 and int(given) < 2**63:
            rows = rows.filter(pk__lt=int(given))
            self.newest_url = self.get_query_string(remove=[BEFORE])
        elif given:
            messages.warning(
                request, gettext("The address of this page names no record, so it is the newest.")
            )
        found = list(rows[: self.list_per_page + 1])
        self.result_list = found[: self.list_per_page]
        if len(found) > len(self.result_list):
            self.older_url = self.get_query_string({BEFORE: self.result_list[-1].pk})
        # Nothing is counted; where the two are the same, the page shows no number.
        self.result_count = len(self.result_list)
        self.full_result_count = None if self.query else self.result_count
        self.show_full_result_count = self.show_admin_actions = False
        self.can_show_all = self.multi_page = False
        self.paginator = Paginator(self.result_list, self.list_per_page)


@admin.register(DeliveryRecord)
class DeliveryRecordAdmin(PlainAnswers, admin.ModelAdmin):  # type: ignore[type-arg]
    """Records, newest first."""

    change_list_template = "admin/mailpool/record_list.html"
    show_facets = admin.ShowFacets.NEVER  # each of them would be counted
    empty_text = _(
        "Nothing has been recorded yet. Send a message, such as a test message from a credential's "
        "page; if none appears here, see MAILPOOL['RECORDS'] in the settings."
    )
    # What became of it early, so that it is there on a phone.
    list_display = ("time", "result", "answer", "whose", "account", "whom", "took")
    list_filter = (
        TimeFilter,
        OutcomeFilter,
        CodeFilter,
        TenantFilter,
        ServerFilter,
        CredentialFilter,
    )
    list_per_page = 50
    sortable_by = ()
    actions = None
    search_fields = ("message_id",)  # see get_search_results()
    search_help_text = _(
        "A whole Message-ID, queue id, or (where addresses are recorded) recipient's address."
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RecordList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        all_of_them = DeliveryRecord.objects.using(queryset.db).order_by()
        bare = term.strip("<>")
        # Each part by its own index: joined by OR, the database may rather read everything.
        parts = [
            all_of_them.filter(message_id__in=[bare, f"<{bare}>"]).values("pk"),
            all_of_them.filter(queue_id=term).values("pk"),
            all_of_them.keys_to(bare),
        ]
        return queryset.filter(pk__in=keys_of(parts[0].union(*parts[1:], all=True))), False

    @admin.display(description=_("time"))
    def time(self, record: DeliveryRecord) -> str:
        return moment(record.when, seconds=True)

    @admin.display(description=_("outcome"))
    def result(self, record: DeliveryRecord) -> str:
        name = record.get_outcome_display()
        if record.outcome == Outcome.SENT:
            return f"{name} ({record.refused})" if record.refused else name
        return format_html('<span class="mailpool-failed">{}</span>', name)

    @admin.display(description=_("tenant"))
    def whose(self, record: DeliveryRecord) -> str:
        return record.tenant_name

    @admin.display(description=_("account"))
    def account(self, record: DeliveryRecord) -> str:
        return f"{record.username} @ {record.server_name}" if record.server_name else ""

    @admin.display(description=_("recipients"))
    def whom(self, record: DeliveryRecord) -> str:
        if record.recipient is None:
            return str(record.recipients)
        more = record.recipients - 1
        return f"{record.recipient} + {more}" if more > 0 else record.recipient

    @admin.display(description=_("answer"))
    def answer(self, record: DeliveryRecord) -> str:
        said = record.enhanced
        if record.outcome != Outcome.SENT and record.reply:
            # In the server's words, so that no record has to be opened to see why.
            said = Truncator(record.reply).chars(100)
        return " ".join(filter(None, (str(record.code or ""), said))) or record.error

    @admin.display(description=_("took"))
    def took(self, record: DeliveryRecord) -> str:
        return f"{record.waiting + record.connecting + record.sending} ms"

    # The page of one

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        record = self.get_object(request, unquote(object_id))
        if not self.has_view_permission(request, record):
            raise PermissionDenied
        if record is None:
            text = gettext("There is no such record. Perhaps it was removed by its age.")
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(reverse("admin:index", current_app=self.admin_site.name))
        request.current_app = self.admin_site.name
        attempts: Sequence[tuple[DeliveryRecord, str]] = ()
        if record.message_id:
            same = DeliveryRecord.objects.filter(message_id=record.message_id)
            attempts = [(each, moment(each.when, seconds=True)) for each in same[:ATTEMPTS]]
        return TemplateResponse(
            request,
            "admin/mailpool/record.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "original": record,
                "title": gettext("Delivery record"),
                "media": self.media,
                "change_url": "admin:mailpool_deliveryrecord_change",
                "record": record,
                "when": moment(record.when, seconds=True),
                "steps": _steps(record),
                "recipients": _recipients(record),
                "attempts": attempts if len(attempts) > 1 else (),
                "links": self._links(request, record),
                **(extra_context or {}),
            },
        )

    def _links(self, request: HttpRequest, record: DeliveryRecord) -> list[dict[str, str]]:
        """What it is about: each by its name then, with its page where there is one to be seen."""
        names = {
            "tenant": record.tenant_name or (gettext("(site)") if record.credential_id else ""),
            "credential": record.username,
            "server": record.server_name,
        }
        links = []
        for name, called in names.items():
            key = getattr(record, f"{name}_id")
            field = DeliveryRecord._meta.get_field(name)
            model: type[models.Model] = field.related_model  # type: ignore[assignment]
            page = ""
            opts = model._meta
            if (
                key is not None
                and self.admin_site.is_registered(model)
                and request.user.has_perm(f"{opts.app_label}.view_{opts.model_name}")
                and model._base_manager.filter(pk=key).exists()
            ):
                page = admin_url(
                    self.admin_site.name, f"{opts.app_label}_{opts.model_name}_change", key
                )
            title = str(field.verbose_name)  # type: ignore[union-attr]
            if called or key is not None:
                links.append({"title": title, "name": called or str(key), "url": page})
        return links


def _recipients(record: DeliveryRecord) -> list[str]:
    """Those that were recorded."""
    if record.recipient is None:
        return []
    others = record.others.order_by("pk").values_list("address", flat=True)
    return [record.recipient, *(others if record.recipients > 1 else ())]


def _steps(record: DeliveryRecord) -> list[dict[str, Any]]:
    """The message's way in time; each step with its part of the whole in percent."""
    total = max(1, record.waiting + record.connecting + record.sending)
    steps = (
        (gettext("Waiting for its turn and a connection"), record.waiting),
        (gettext("Connecting, securing, logging in"), record.connecting),
        (gettext("Sending, until the last answer"), record.sending),
    )
    return [
        {"title": title, "ms": spent, "percent": round(100 * spent / total)}
        for title, spent in steps
    ]
