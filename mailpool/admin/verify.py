"""“Verify connection” and “Send test message”, as pages of their own."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.options import IS_POPUP_VAR
from django.http import HttpRequest
from django.http.response import HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext, pgettext
from django.utils.translation import gettext_lazy as _

from mailpool import verification
from mailpool.admin.acting import as_user
from mailpool.admin.pages import OwnPages, about_a_row, admin_url
from mailpool.models import Credential, MailServer
from mailpool.moments import moment
from mailpool.validators import validate_from_address

TEST_PERMISSION = "mailpool.verify_credential"


class RecipientForm(forms.Form):
    """To whom a test goes."""

    recipient = forms.CharField(
        label=_("Recipient"),
        validators=[validate_from_address],
        help_text=_("A mailbox that you can look into."),
        widget=forms.TextInput(attrs={"class": "vTextField", "autocomplete": "email"}),
    )


class TestForm(RecipientForm):
    """To whom, and as whom where the account has no address of its own."""

    sender = forms.CharField(
        label=_("From"),
        validators=[validate_from_address],
        help_text=_(
            "The account has neither a default From nor a full address among its senders, and its "
            "username is no mail address. As whom is this message to be sent?"
        ),
        widget=forms.TextInput(attrs={"class": "vTextField"}),
    )

    def __init__(self, *args: Any, credential: Credential, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if verification.sender_of_test(credential):
            del self.fields["sender"]


class OptionalRecipientForm(RecipientForm):
    """The same where the account's own address will do."""

    recipient = forms.CharField(
        label=_("Recipient"),
        required=False,
        validators=[validate_from_address],
        help_text=_("Offered to the server; nothing is sent. Empty: the account's own address."),
        widget=forms.TextInput(attrs={"class": "vTextField", "autocomplete": "email"}),
    )


class Verification(OwnPages):
    """Adds the pages to a ``ModelAdmin``, behind a permission of their own."""

    verify_permission = ""
    can_send_test = False
    has_login = False

    def may_verify(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm(self.verify_permission))

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        urls = [path("<path:object_id>/verify/", view(self.verify_view), name=f"{name}_verify")]
        if self.can_send_test:
            test = view(self.send_test_view)
            urls.append(path("<path:object_id>/send-test/", test, name=f"{name}_send_test"))
        return [*urls, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        context["may_verify"] = self.may_verify(request)
        context["can_send_test"] = self.can_send_test
        context["verify_url"] = self.url_name("verify")
        context["send_test_url"] = self.url_name("send_test")
        return super().render_change_form(request, context, *args, **kwargs)

    @abstractmethod
    def verify(self, row: Any, recipient: str) -> verification.Report:
        """Verify *row*; *recipient* is empty unless the page's form asks for one."""

    def switched_off(self, row: Any) -> str:
        """Why nothing is sent with *row* even if all goes well; empty if it is."""
        if not row.is_active:
            return gettext("This server is inactive: nothing is sent over it.")
        if row.is_paused:
            text = gettext("This server is paused until %(until)s: nothing is sent over it.")
            return text % {"until": moment(row.paused_until)}
        return ""

    def verify_form(self, request: HttpRequest) -> forms.Form | None:
        """What the page asks for."""
        return None

    @as_user
    @about_a_row
    def verify_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """The steps of a verification, run on POST."""
        row = self.row(request, object_id, self.verify_permission)
        form = self.verify_form(request)
        report = None
        if request.method == "POST" and (form is None or form.is_valid()):
            report = self.verify(row, form.cleaned_data["recipient"] if form else "")
            failure = report.failure
            outcome = f"failed at {failure.key!r}" if failure else "ok"
            self.log_change(request, row, f"Verified the connection: {outcome}.")
        context = {
            "form": form,
            "report": report,
            "has_login": self.has_login,
            "switched_off": self.switched_off(row),
            "title": _("Verify connection"),
        }
        return self.page(request, row, "admin/mailpool/verify.html", context)

    @as_user
    @about_a_row
    def send_test_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """A real message to an address of one's choice, sent on POST."""
        row = self.row(request, object_id, self.verify_permission)
        initial = {"recipient": _address_of(request.user)}
        sent = request.POST if request.method == "POST" else None
        form = TestForm(sent, initial=initial, credential=row)
        result = None
        if form.is_valid():
            recipient = form.cleaned_data["recipient"]
            sender = form.cleaned_data.get("sender", "")
            result = verification.send_test_message(row, recipient, sender=sender)
            self.log_change(request, row, f"Sent a test message to {recipient}: {result.status}.")
        context = {
            "form": form,
            "result": result,
            "advice": verification.explain(result.error) if result and result.error else "",
            "said": verification.describe_error(result.error) if result and result.error else "",
            "outcome": _outcome_text(result.status) if result else "",
            "title": _("Send test message"),
        }
        return self.page(request, row, "admin/mailpool/send_test.html", context)


class ServerVerification(Verification):
    """Verification of a server, as far as that goes without a login."""

    verify_permission = "mailpool.verify_mailserver"

    def verify(self, row: Any, recipient: str) -> verification.Report:
        return verification.verify_server(row)


class CredentialVerification(Verification):
    """Verification of a credential, up to the recipient."""

    verify_permission = TEST_PERMISSION
    can_send_test = True
    has_login = True

    def switched_off(self, row: Any) -> str:
        return verification.switched_off(row)

    def verify_form(self, request: HttpRequest) -> forms.Form:
        return OptionalRecipientForm(request.POST if request.method == "POST" else None)

    def verify(self, row: Any, recipient: str) -> verification.Report:
        return verification.verify_credential(row, recipient=recipient or None)


class SaveAndTest(admin.ModelAdmin):  # type: ignore[type-arg]
    """“Save and test” where an account is entered, on its own page or on its server's or tenant's:
    saves, and goes on to “Send test message”."""

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        row = kwargs.get("obj")
        # Which of the accounts on a page that was there before would be meant?
        context["may_save_and_test"] = (
            (row is None or isinstance(row, Credential))
            and not context.get("is_popup")
            and self.has_change_permission(request, row)
            and request.user.has_perm(TEST_PERMISSION)
        )
        return super().render_change_form(request, context, *args, **kwargs)

    def response_add(self, request: HttpRequest, obj: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().response_add(request, obj, *args, **kwargs)
        return self._test_page(request, obj) or response

    def response_change(self, request: HttpRequest, obj: Any) -> Any:
        response = super().response_change(request, obj)
        return self._test_page(request, obj) or response

    def _test_page(self, request: HttpRequest, row: Any) -> HttpResponseRedirect | None:
        if "_test" not in request.POST or IS_POPUP_VAR in request.POST:
            return None
        credential = row if isinstance(row, Credential) else _account_of(row)
        if credential is None:
            text = gettext("There is no account to test yet. Add a credential.")
            self.message_user(request, text, messages.WARNING)
            return None
        url = admin_url(self.admin_site.name, "mailpool_credential_send_test", credential.pk)
        return HttpResponseRedirect(url) if url else None


def _account_of(row: Any) -> Credential | None:
    """The account of a server or tenant that is used first."""
    by = "server" if isinstance(row, MailServer) else "tenant"
    return Credential.objects.filter(**{by: row}).order_by("priority", "pk").first()


def _address_of(user: Any) -> str:
    """The user's own address, if the project's users have one."""
    return str(getattr(user, user.get_email_field_name(), None) or "")


def _outcome_text(status: str) -> str:
    return {
        "sent": gettext("Sent: the server took the message over."),
        "refused": gettext("Refused: the server did not take the message."),
        "failed": gettext("Failed: the message was not handed over."),
        "unknown": pgettext(
            "outcome", "Unknown: the connection was lost before the server confirmed."
        ),
    }[status]
