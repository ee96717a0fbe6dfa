"""Credentials: a page of their own, and inline on the pages of servers and tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool import conf
from mailpool.admin.acting import RecordedAdmin
from mailpool.admin.actions import set_field
from mailpool.admin.audit import TrailLink
from mailpool.admin.connect import ConnectPage
from mailpool.admin.moving import FIRST_THERE
from mailpool.admin.moving import PERMISSION as MOVE
from mailpool.admin.records import RecordsLink
from mailpool.admin.secrecy import SecretiveAdmin, SecretSubmissions
from mailpool.admin.transfer import TransferPage
from mailpool.admin.verify import CredentialVerification, SaveAndTest
from mailpool.attention import trouble
from mailpool.exceptions import SecretError
from mailpool.forms import AccountForm
from mailpool.models import Credential, MailServer, Sender
from mailpool.moments import moment
from mailpool.validators import normalize_sender
from mailpool.vault import get_keyring
from mailpool.vault.fields import SecretFormField, SecretTextarea

# More rows than this are not offered as a list to choose from, but found by typing.
LIST_AT_MOST = 50


def attention(credential: Credential) -> str:
    """Why what is stored can't be used, or not for long; empty if it can."""
    return trouble(credential)[1]


_APP_ONLY_IS_FOR = {"kind", "oauth_client", "tenant", "server", "username"}


class CredentialForm(AccountForm):
    """Takes secrets and never shows one: an empty input means that the stored one stays."""

    password = SecretFormField(label=_("Password"), required=False)

    # Whether whoever fills it in may give app-only access, and at which servers; the admin says so.
    may_use_application = False
    may_use_any_server = False

    class Meta:
        model = Credential
        fields = "__all__"
        widgets = {"client_key": SecretTextarea()}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "username" in self.fields:
            # Beside a password, browsers fill in the operator's own login.
            self.fields["username"].widget.attrs["autocomplete"] = "off"
        if "password" in self.fields:
            self.fields["password"].help_text = self._about_password()
        if "kind" in self.fields:
            self.fields["kind"].required = False  # left out: as it is
        if "client_key" in self.fields:
            self.fields["client_key"].help_text = self._about_key()

    def _about_password(self) -> str:
        when = self.instance.password_set_at
        if self.instance.is_oauth:
            return gettext("Only to log in with a password from now on.")
        if not self.instance.has_password:
            return gettext("Not set. It is stored encrypted and never shown again.")
        if when is None:
            return gettext("Set. Leave empty to keep it.")
        return gettext("Set on %(when)s. Leave empty to keep it.") % {"when": moment(when)}

    def clean_kind(self) -> str:
        return str(self.cleaned_data["kind"] or self.instance.kind)

    def _about_key(self) -> str:
        if not self.instance.has_client_key:
            return gettext(
                "Not set. PEM, without a passphrase. It is stored encrypted and never shown again."
            )
        return gettext("Set. Leave empty to keep it; it is removed together with the certificate.")

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        for name in ("password", "client_key"):
            if cleaned is not None and cleaned.get(name):
                try:
                    get_keyring().newest  # noqa: B018
                except SecretError as error:
                    self.add_error(name, str(error))
        if cleaned is not None:
            self._clean_certificate(cleaned)
            self._drop_secrets_of_no_use(cleaned)
        if cleaned is not None and not cleaned.get("password"):
            # Without a login there is nothing that a password could be for.
            if not cleaned.get("username") and "username" not in self.errors:
                self.instance.password = ""
            elif self._goes_elsewhere("password"):
                self.add_error(
                    "password",
                    _("Enter the password again: the stored one is for the account as it was."),
                )
        return cleaned

    def _clean_certificate(self, cleaned: dict[str, Any]) -> None:
        if cleaned.get("client_key"):
            return
        if "client_certificate" in self.fields and not cleaned.get("client_certificate"):
            if "client_certificate" not in self.errors:
                self.instance.client_key = ""
        elif self._goes_elsewhere("client_key"):
            here = "client_key" in self.fields
            self.add_error(
                "client_key" if here else None,
                _("Enter the private key again: the stored one is for the account as it was.")
                if here
                else _("Move it on its own page: the private key has to be entered again."),
            )

    def _drop_secrets_of_no_use(self, cleaned: dict[str, Any]) -> None:
        """What another kind of login was made with is not kept."""
        kind = cleaned.get("kind", self.instance.kind)
        if kind != Credential.Kind.PASSWORD and not cleaned.get("password"):
            self.instance.password = ""
        if "kind" in self.changed_data and self.instance.is_connected:
            self.instance.refresh_token = ""
        if Credential(kind=kind).is_by_application:
            self._check_app_only(cleaned)

    def _check_app_only(self, cleaned: dict[str, Any]) -> None:
        """Whoever may have such an account may send as any mailbox that the application may, and
        its server gets to see the tokens for that."""
        is_the_same = _APP_ONLY_IS_FOR.isdisjoint(self.changed_data) and self.instance.is_connected
        may_use_server = self.may_use_any_server or self._is_used_server(cleaned)
        may = self.may_use_application and may_use_server
        if is_the_same and not (may and self._is_stopped()):
            return
        if may:
            self.instance.allow_app_only()
        elif self.may_use_application:
            self.add_error("server" if "server" in self.fields else None, FIRST_THERE)
        else:
            self.add_error(
                None,
                _("App-only access is given by those who may change OAuth clients."),
            )

    def _is_used_server(self, cleaned: dict[str, Any]) -> bool:
        client, server = cleaned.get("oauth_client"), cleaned.get("server")
        return bool(client and server and client.is_used_at(server))

    def _is_stopped(self) -> bool:
        """Whether the provider, or a mark for something else, keeps it from sending; saving it is
        how it is tried again."""
        try:
            self.instance.permission  # noqa: B018
        except SecretError:
            return True
        return bool(self.instance.needs_attention)

    def _goes_elsewhere(self, secret: str) -> bool:
        """Whether it is to be another tenant's or for another server; secrets stay behind."""
        stored = getattr(self.instance, f"has_{secret}") and not self.instance._state.adding
        return stored and not {"server", "tenant"}.isdisjoint(self.changed_data)


class SenderFormSet(forms.BaseInlineFormSet):  # type: ignore[type-arg]
    """Finds senders that are written in two ways, before the database does."""

    def add_fields(self, form: Any, index: Any) -> None:
        super().add_fields(form, index)
        # The head of a column is no label for screen readers.
        for name in form.fields.keys() & {"address", "DELETE"}:
            form.fields[name].widget.attrs["aria-label"] = form.fields[name].label

    def clean(self) -> None:
        super().clean()
        addresses: Counter[str] = Counter()
        for form in self.forms:
            data = getattr(form, "cleaned_data", {})
            if data.get("address") and not data.get("DELETE"):
                addresses[normalize_sender(data["address"])] += 1
        twice = [address for address, times in addresses.items() if times > 1]
        if twice:
            raise ValidationError(
                _("Entered more than once: %(addresses)s."),
                params={"addresses": ", ".join(twice)},
            )
        if any(form.errors for form in self.forms):
            return
        # Those that somebody else has added meanwhile, which these forms know nothing of.
        known = [form.instance.pk for form in self.forms if not form.instance._state.adding]
        others = Sender.objects.filter(credential=self.instance.pk).exclude(pk__in=known)
        if taken := others.filter(address__in=addresses).values_list("address", flat=True):
            raise ValidationError(
                _("Entered by somebody else meanwhile: %(addresses)s. Load this page again."),
                params={"addresses": ", ".join(taken)},
            )
        self.instance.check_senders(addresses)


def ownership_of(sender: Sender) -> str:
    """How it was proven that the tenant owns *sender*, for people."""
    if sender._state.adding:
        return ""
    if sender.credential.tenant_id is None:
        return gettext("The site's own: needs no proof")
    if not sender.is_proven:
        return gettext("Not proven: nothing is sent as it")
    way, when = sender.get_proven_by_display(), sender.proven_at
    return gettext("Proven by %(way)s, %(when)s") % {
        "way": way,
        "when": moment(when),
    }


class SenderInline(admin.TabularInline):  # type: ignore[type-arg]
    """The addresses that a credential may send as."""

    model = Sender
    formset = SenderFormSet
    extra = 0
    readonly_fields = ("ownership",)
    verbose_name_plural = _("senders: with any listed, this account sends as no other address")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("address", "ownership") if conf.verifies_senders() else ("address",)

    @admin.display(description=_("ownership"))
    def ownership(self, sender: Sender) -> str:
        return ownership_of(sender)


def _entered(credential: Credential) -> set[str]:
    """All of its senders, also those that are not proven yet."""
    return set(credential.senders.values_list("address", flat=True))


class AccountFormSet(forms.BaseInlineFormSet):  # type: ignore[type-arg]
    """Finds the same account twice among the rows of one form."""

    def clean(self) -> None:
        super().clean()
        seen: Counter[tuple[Any, ...]] = Counter()
        for form in self.forms:
            if not form.has_changed() and not form.instance.pk:
                continue
            data = getattr(form, "cleaned_data", {})
            if data and not data.get("DELETE"):
                credential = form.instance
                seen[(credential.get_scope(), credential.server_id, credential.username)] += 1
                if "default_from" in form.changed_data and not form.errors:
                    credential.check_senders(_entered(credential))
        twice = [username for (_, _, username), times in seen.items() if times > 1]
        if twice:
            raise ValidationError(
                _("The same account is entered more than once: %(accounts)s."),
                params={"accounts": ", ".join(sorted(twice))},
            )


def choose_by_typing(
    request: HttpRequest, site: admin.AdminSite, names: Sequence[str] = ("tenant", "server")
) -> tuple[str, ...]:
    """The relations with too many rows for a list to choose from."""
    tenants = Credential._meta.get_field("tenant").related_model
    many = []
    for name in names:
        model = tenants if name == "tenant" else MailServer
        page = site._registry.get(model)
        if (
            page is not None
            and page.get_search_fields(request)
            and page.has_view_permission(request)
            and model._base_manager.order_by()[LIST_AT_MOST : LIST_AT_MOST + 1].exists()
        ):
            many.append(name)
    return tuple(many)


class CredentialInline(admin.StackedInline):  # type: ignore[type-arg]
    """Credentials on the page of their server or tenant.

    Whoever may only add gets none: rows that exist would be shown with all their fields, and the
    password is no field to be shown.
    """

    model = Credential
    form = CredentialForm
    formset = AccountFormSet
    extra = 0
    show_change_link = True
    classes: Sequence[str] = ("collapse",)
    fields = (
        ("tenant", "server"),
        ("username", "password"),
        ("default_from", "priority", "is_active"),
    )

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        # Not the field that leads back to the page itself.
        own = "server" if self.parent_model._meta.label_lower == "mailpool.mailserver" else "tenant"
        rows = [tuple(name for name in row if name != own) for row in self.fields]
        if not self.has_change_permission(request, obj):
            rows = [tuple(name for name in row if name != "password") for row in rows]
        return [row for row in rows if row]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_add_permission(request, obj) and self.has_change_permission(request)

    def get_autocomplete_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return choose_by_typing(request, self.admin_site)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Credential]:
        return super().get_queryset(request).select_related("server", "tenant")


class FirstCredentialInline(CredentialInline):
    """The same where the server or tenant itself is added: one is open to be filled in."""

    extra = 1
    classes: Sequence[str] = ()


class TenantAdminMixin(RecordedAdmin, SecretSubmissions, SaveAndTest, RecordsLink):
    """For the admin of a project's own tenant model: its mail credentials, inline.

    ``class ShopAdmin(TenantAdminMixin, admin.ModelAdmin): ...``
    """

    change_form_template = "admin/mailpool/change_form.html"

    def get_inlines(self, request: HttpRequest, obj: Any) -> list[Any]:
        inlines: list[Any] = list(super().get_inlines(request, obj))
        return [*inlines, CredentialInline if obj else FirstCredentialInline]


@admin.register(Credential)
class CredentialAdmin(
    CredentialVerification,
    SaveAndTest,
    ConnectPage,
    TransferPage,
    TrailLink,
    RecordsLink,
    SecretiveAdmin,
):
    """A credential with its senders."""

    form = CredentialForm
    inlines = (SenderInline,)
    empty_text = _(
        "There is no credential yet. Add a mail server first, then a credential: the account that "
        "a tenant, or the site itself, sends with. Many at once come by “Import and export”."
    )
    # Problems early, so that they are there on a phone.
    list_display = ("account", "problem", "tenant", "server", "is_active", "priority")
    ordering = ("username", "pk")
    list_filter = ("is_active", "server")
    list_select_related = ("server", "tenant", "oauth_client")
    list_per_page = 50
    search_fields = ("username", "default_from", "senders__address", "server__name")
    search_help_text = _("Finds usernames, senders, servers and tenants.")
    readonly_fields = ("stored_password", "stored_key", "connection", "attention")
    actions = ("activate", "deactivate")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        may_change = (
            self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        )
        login = ["username", "kind", "password" if may_change else "stored_password"]
        login += ["oauth_client", *(["connection"] if obj and obj.is_oauth else [])]
        if obj and attention(obj):
            login.append("attention")
        key = "client_key" if may_change else "stored_key"
        return (
            (_("Account"), {"fields": ("tenant", "server", *login)}),
            (
                _("Client certificate and login mechanism"),
                {"classes": ("collapse",), "fields": ("client_certificate", key, "mechanism")},
            ),
            (
                _("Use"),
                {
                    "fields": (
                        "default_from",
                        "sender_policy",
                        "bounce_address",
                        "priority",
                        "is_active",
                    )
                },
            ),
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.readonly_fields

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        form: Any = super().get_form(request, *args, **kwargs)
        form.may_use_application = request.user.has_perm("mailpool.change_oauthclient")
        form.may_use_any_server = request.user.has_perm(MOVE)
        return form

    def get_autocomplete_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return choose_by_typing(request, self.admin_site)

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return (*super().get_search_fields(request), f"tenant__{conf.get('TENANT_SLUG_FIELD')}")

    @admin.display(description=_("username"), ordering="username")
    def account(self, credential: Credential) -> str:
        return credential.username or f"({credential.login_name})"

    @admin.display(description=_("password"))
    def stored_password(self, credential: Credential) -> str:
        """What somebody sees who may only look."""
        if not credential.has_password:
            return gettext("Not set")
        when = credential.password_set_at
        return gettext("Set on %(when)s") % {"when": moment(when)}

    @admin.display(description=_("connection"))
    def connection(self, credential: Credential) -> str:
        """Since when this site may send with the account."""
        if not credential.is_connected:
            return gettext("Not connected")
        if credential.is_by_application:
            return gettext("By the application itself: nobody has to connect the account.")
        when = credential.connected_at
        return gettext("Connected on %(when)s") % {"when": moment(when)}

    @admin.display(description=_("private key of the client certificate"))
    def stored_key(self, credential: Credential) -> str:
        return gettext("Set") if credential.has_client_key else gettext("Not set")

    @admin.display(description=_("needs attention"))
    def attention(self, credential: Credential) -> str:
        return attention(credential)

    @admin.display(description=_("problem"), empty_value="")
    def problem(self, credential: Credential) -> str:
        short, reason = trouble(credential)
        if not reason:
            return ""
        return format_html('<span title="{}">{}</span>', reason, short)

    @admin.action(description=_("Activate the selected credentials"), permissions=["change"])
    def activate(self, request: HttpRequest, queryset: QuerySet[Credential]) -> None:
        self._set_active(request, queryset, True)

    @admin.action(description=_("Deactivate the selected credentials"), permissions=["change"])
    def deactivate(self, request: HttpRequest, queryset: QuerySet[Credential]) -> None:
        self._set_active(request, queryset, False)

    def _set_active(
        self, request: HttpRequest, queryset: QuerySet[Credential], active: bool
    ) -> None:
        set_field(self, request, queryset, "is_active", active)
