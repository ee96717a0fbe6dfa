"""Pages where tenants enter, verify and revoke mail accounts of their own, outside of the admin.

A product says whose request it is, and includes the pages::

    class ShopPages(TenantCredentialMixin):
        def get_tenant(self, request):
            return request.user.shop

    urlpatterns = [path("mail/", include(credential_urls(ShopPages)))]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, router, transaction
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.generic import CreateView, DetailView, ListView, UpdateView

from mailpool import attempts, audit, conf, ownership, selfservice, txt_records
from mailpool.exceptions import InvalidMessage, OwnershipError, TooManyAttempts
from mailpool.forms import TenantCredentialForm, TenantSenderForm
from mailpool.models import Credential, MailServer, Sender
from mailpool.secrecy import hide_submitted
from mailpool.verification import no_address, sender_of_test


@dataclass(frozen=True, slots=True)
class Account:
    """A credential as its tenant sees it; for the templates."""

    credential: Credential
    state: selfservice.State
    place: str
    """Where it is: the tenant's own host, or the name of a server of the operator's."""

    urls: Mapping[str, str]
    """The pages about it: ``detail``, ``update``, ``verify``, ``revoke``, ``test``,
    ``sender_add``."""


@dataclass(frozen=True, slots=True)
class OwnSender:
    """A sender as its tenant sees it, where ownership has to be proven; for the templates."""

    sender: Sender
    state: ownership.State
    takes_code: bool
    record: tuple[str, str] | None
    """Name and value of the TXT record that proves it; ``None`` where DNS is not looked at."""

    urls: Mapping[str, str]
    """What is posted about it: ``code``, ``enter``, ``dns``, ``remove``."""


class TenantCredentialMixin(View):
    """For each of the pages below: they show and touch the credentials of one tenant alone.

    Which credentials those are: the ones at servers of the tenant's own, and at the operator's
    *servers* that are offered. Any other key is a 404, whether there is such a credential or not.
    """

    model = Credential
    servers: QuerySet[MailServer] | None = None
    """Servers of the operator's to choose from, instead of naming a host."""

    server_defaults: Mapping[str, Any] = {}
    """Fields of new servers that the form does not have, such as ``timeout``."""

    require_verification = True
    """Whether what was saved is inactive until it is verified."""

    verify_seconds = selfservice.VERIFY_SECONDS
    reach_seconds = selfservice.REACH_SECONDS

    def get_tenant(self, request: HttpRequest) -> Any:
        """The tenant whose member the signed-in user is, an instance; ``None``: nobody's."""
        raise NotImplementedError("Write get_tenant(request), which returns a tenant or None.")

    def get_servers(self) -> QuerySet[MailServer] | None:
        return None if self.servers is None else self.servers.all()

    def get_test_recipient(self, request: HttpRequest) -> str:
        """Where test messages go, such as ``request.user.email``; empty: there are none."""
        return ""

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        hide_submitted(request)

    @method_decorator([csrf_protect, never_cache])
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        self.tenant = self._admitted(request)
        with audit.acting(getattr(request, "user", None), "tenant's pages"):
            return super().dispatch(request, *args, **kwargs)

    def _admitted(self, request: HttpRequest) -> Any:
        tenant = self.get_tenant(request)
        if tenant is None:
            raise Http404
        # A query for the credentials of what has no key would find the site's own.
        if not isinstance(tenant, apps.get_model(conf.tenant_model())) or tenant.pk is None:
            raise TypeError(f"get_tenant() returned {type(tenant).__name__}, not a stored tenant.")
        if not getattr(tenant, "is_active", True):
            raise PermissionDenied
        return tenant

    def get_queryset(self) -> QuerySet[Any]:
        offered = Q(server__tenant=self.tenant)
        servers = self.get_servers()
        if servers is not None:
            offered |= Q(server__in=servers.values("pk"), server__tenant=None)
        rows = Credential.objects.filter(offered, tenant=self.tenant)
        return rows.select_related("server", "tenant")

    def get_form_kwargs(self) -> dict[str, Any]:
        return {
            **super().get_form_kwargs(),  # type: ignore[misc]
            "tenant": self.tenant,
            "servers": self.get_servers(),
            "server_defaults": self.server_defaults,
            "require_verification": self.require_verification,
        }

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(  # type: ignore[misc,no-any-return]
            **{
                "tenant": self.tenant,
                "list_url": self.url("list"),
                "create_url": self.url("create"),
                "test_recipient": self.get_test_recipient(self.request),
                **kwargs,
            }
        )

    def url(self, page: str, credential: Credential | None = None, **more: Any) -> str:
        """The address of a *page* from ``credential_urls()``, wherever it was included."""
        match = self.request.resolver_match
        namespace = match.namespace if match else ""
        own = ("pk", "sender_pk")
        kwargs = {name: value for name, value in self.kwargs.items() if name not in own} | more
        if credential is not None:
            kwargs["pk"] = credential.pk
        name = f"mailpool_credential_{page}"
        return reverse(f"{namespace}:{name}" if namespace else name, kwargs=kwargs)

    def account(self, credential: Credential) -> Account:
        server = credential.server
        pages = ("detail", "update", "verify", "revoke", "test", "sender_add")
        return Account(
            credential,
            selfservice.state(credential),
            server.name if server.tenant_id is None else f"{server.host}:{server.port}",
            {page: self.url(page, credential) for page in pages},
        )


class CredentialListView(TenantCredentialMixin, ListView):  # type: ignore[type-arg,misc]
    """All accounts of the tenant."""

    http_method_names = ["get", "head"]

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        accounts = [self.account(credential) for credential in context["object_list"]]
        return {**context, "accounts": accounts}


class CredentialDetailView(TenantCredentialMixin, DetailView):  # type: ignore[type-arg]
    """One account, and what can be done with it."""

    http_method_names = ["get", "head"]

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(account=self.account(self.object), **kwargs)
        if conf.verifies_senders():
            context["senders"] = [self.sender(each) for each in self.object.senders.all()]
            context.setdefault("sender_form", TenantSenderForm(credential=self.object))
        return context

    def sender(self, sender: Sender) -> OwnSender:
        sender.credential = self.object  # instead of a query each
        pages = ("code", "enter", "dns", "remove")
        return OwnSender(
            sender,
            ownership.state(sender),
            ownership.takes_code(sender),
            ownership.dns_record(sender) if txt_records.is_installed() else None,
            {page: self.url(f"sender_{page}", self.object, sender_pk=sender.pk) for page in pages},
        )


class _Saving(TenantCredentialMixin):
    """What entering and changing share."""

    form_class = TenantCredentialForm
    template_name = "mailpool/credential_form.html"
    http_method_names = ["get", "head", "post"]

    def form_valid(self, form: TenantCredentialForm) -> HttpResponseBase:
        try:
            attempts.count(self.tenant)
            credential = form.save()
        except TooManyAttempts as error:
            form.add_error(None, str(error))
            return _limited(self.form_invalid(form), error)
        except IntegrityError:  # somebody entered the same at the same moment
            form.add_error(None, _("This account is entered already."))
            return self.form_invalid(form)
        return HttpResponseRedirect(self.url("detail", credential))

    def form_invalid(self, form: TenantCredentialForm) -> HttpResponse:
        return super().form_invalid(form)  # type: ignore[misc,no-any-return]


class CredentialCreateView(_Saving, CreateView):  # type: ignore[type-arg,misc]
    """A further account."""


class CredentialUpdateView(_Saving, UpdateView):  # type: ignore[type-arg,misc]
    """An account's server, login and default From. The password is never shown.

    404 for an OAuth 2 login: which account the permission is for, operators say in the admin.
    """

    def get_queryset(self) -> QuerySet[Any]:
        return super().get_queryset().filter(kind=Credential.Kind.PASSWORD)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        # As it is stored: the form has written into the object what was submitted.
        stored = self.get_queryset().get(pk=self.object.pk)
        return super().get_context_data(account=self.account(stored), **kwargs)


class _Acting(CredentialDetailView):
    """What is done on POST and shown on the account's page."""

    http_method_names = ["post"]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        # Where ATOMIC_REQUESTS is on: no transaction stays open while a server is waited for.
        return transaction.non_atomic_requests(super().as_view(**initkwargs))

    def act(self, credential: Credential) -> dict[str, Any]:
        """Do it, and return what the page is to show of it."""
        raise NotImplementedError

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        self.object = self.get_object()
        try:
            attempts.count(self.tenant)
            shown = self.act(self.object)
        except TooManyAttempts as error:
            context = self.get_context_data(object=self.object, error=str(error))
            return _limited(self.render_to_response(context), error)
        return self.render_to_response(self.get_context_data(object=self.object, **shown))


class CredentialVerifyView(_Acting):
    """Verifies the account and, if all goes well, activates it."""

    def act(self, credential: Credential) -> dict[str, Any]:
        report = selfservice.verify(
            credential, seconds=self.verify_seconds, reach=self.reach_seconds
        )
        return {"report": report}


class CredentialTestView(_Acting):
    """Sends a test message to the address that the product names; 404 if it names none."""

    def act(self, credential: Credential) -> dict[str, Any]:
        recipient = self.get_test_recipient(self.request)
        if selfservice.state(credential) != "active":
            return {"error": _("Verify this account first.")}
        if not sender_of_test(credential):
            return {"error": no_address()}
        try:
            trial = selfservice.send_test(
                credential, recipient, seconds=self.verify_seconds, reach=self.reach_seconds
            )
        except InvalidMessage:
            return {"error": _("No test message can be sent to your address.")}
        return {"report": trial.report, "trial": trial}

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not self.get_test_recipient(request):
            raise Http404
        return super().post(request, *args, **kwargs)


class SenderAddView(_Acting):
    """A further sender of the account. It counts for nothing until its ownership is proven."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not conf.verifies_senders():  # who lists an address gets the mail routed by it
            raise Http404
        return super().post(request, *args, **kwargs)

    def act(self, credential: Credential) -> dict[str, Any]:
        form = TenantSenderForm(self.request.POST, credential=credential)
        if not form.is_valid():
            return {"sender_form": form}
        try:
            with transaction.atomic(using=router.db_for_write(Sender)):
                form.save()
        except IntegrityError:  # somebody entered the same at the same moment
            form.add_error("address", _("You have entered this sender already."))
            return {"sender_form": form}
        return {"done": _("Entered. Now show that it is yours.")}


class _SenderActing(SenderAddView):
    """What is done about one sender of the account; 404 for any other's."""

    def act(self, credential: Credential) -> dict[str, Any]:
        sender = credential.senders.filter(pk=self.kwargs["sender_pk"]).first()
        if sender is None:
            raise Http404
        try:
            return {"done": self.act_on(sender)}
        except OwnershipError as error:
            return {"error": str(error)}

    def act_on(self, sender: Sender) -> str:
        """Do it, and return what to say."""
        raise NotImplementedError


class SenderCodeView(_SenderActing):
    """Mails a code to the sender."""

    def act_on(self, sender: Sender) -> str:
        ownership.send_code(sender)
        return _("A code was sent to %(address)s.") % {"address": sender.address}


class SenderEnterView(_SenderActing):
    """Takes the code that was mailed."""

    def act_on(self, sender: Sender) -> str:
        ownership.enter_code(sender, self.request.POST.get("code", ""))
        return _("%(address)s is yours.") % {"address": sender.address}


class SenderDnsView(_SenderActing):
    """Looks for the record in DNS."""

    def act_on(self, sender: Sender) -> str:
        ownership.check_dns(sender)
        return _("%(address)s is yours.") % {"address": sender.address}


class SenderRemoveView(_SenderActing):
    """Removes the sender."""

    def act_on(self, sender: Sender) -> str:
        sender.delete()
        return _("%(address)s was removed.") % {"address": sender.address}


class CredentialRevokeView(TenantCredentialMixin, DetailView):  # type: ignore[type-arg]
    """Removes the password and deactivates the account. Never limited: it may be urgent."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        credential = self.get_object()
        selfservice.revoke(credential)
        return HttpResponseRedirect(self.url("detail", credential))


def _limited(response: HttpResponse, error: TooManyAttempts) -> HttpResponse:
    response.status_code = 429
    response.headers["Retry-After"] = str(error.seconds)
    return response


_PAGES: tuple[tuple[str, str, type[TenantCredentialMixin]], ...] = (
    ("", "list", CredentialListView),
    ("new/", "create", CredentialCreateView),
    ("<uuid:pk>/", "detail", CredentialDetailView),
    ("<uuid:pk>/edit/", "update", CredentialUpdateView),
    ("<uuid:pk>/verify/", "verify", CredentialVerifyView),
    ("<uuid:pk>/test/", "test", CredentialTestView),
    ("<uuid:pk>/revoke/", "revoke", CredentialRevokeView),
    ("<uuid:pk>/senders/", "sender_add", SenderAddView),
    ("<uuid:pk>/senders/<uuid:sender_pk>/code/", "sender_code", SenderCodeView),
    ("<uuid:pk>/senders/<uuid:sender_pk>/enter/", "sender_enter", SenderEnterView),
    ("<uuid:pk>/senders/<uuid:sender_pk>/dns/", "sender_dns", SenderDnsView),
    ("<uuid:pk>/senders/<uuid:sender_pk>/remove/", "sender_remove", SenderRemoveView),
)


def credential_urls(mixin: type[TenantCredentialMixin]) -> list[URLPattern]:
    """All pages as *mixin* has them, for ``include()``; named ``mailpool_credential_list`` etc."""

    def page(view: type[TenantCredentialMixin]) -> Any:
        own: Any = type(view.__name__, (mixin, view), {})
        return own.as_view()

    return [path(route, page(view), name=f"mailpool_credential_{n}") for route, n, view in _PAGES]
