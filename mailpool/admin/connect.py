"""“Connect account”: its owner allows this site to send, at the provider (RFC 6749, PKCE)."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, QueryDict
from django.http.response import HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool import audit
from mailpool.admin.acting import as_user
from mailpool.admin.pages import NoPage, OwnPages, about_a_row, admin_url
from mailpool.exceptions import MailpoolError, OAuthError, SecretError
from mailpool.models import Credential
from mailpool.oauth import provider
from mailpool.oauth.words import quotable
from mailpool.secret import Secret
from mailpool.vault import EncryptedTextField, Sealed, get_keyring

PERMISSION = "mailpool.change_credential"
CALLBACK = "mailpool_credential_connected"

# In the session: digest of the state → what was begun with it. A few at a time, and not for ever.
_SESSION_KEY = "mailpool_oauth"
_AT_MOST = 5
_SECONDS = 900


def redirect_uri(request: HttpRequest, site_name: str) -> str:
    """Where providers send people back to: the same for all credentials, known to the provider.

    Empty where the admin site has no credentials, and so nobody to send back.
    """
    url = admin_url(site_name, CALLBACK)
    return request.build_absolute_uri(url) if url else ""


class ConnectPage(OwnPages):
    """The pages, for the admin of credentials."""

    def may_connect(self, request: HttpRequest, credential: Model | None) -> bool:
        return (
            isinstance(credential, Credential)
            and credential.kind == Credential.Kind.AUTHORIZATION_CODE
            and credential.oauth_client is not None
            and self.has_change_permission(request, credential)
            and request.user.has_perm(PERMISSION)
        )

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        name = f"{self.opts.app_label}_{self.opts.model_name}_connect"
        return [
            path("connected/", view(self.connected_view), name=CALLBACK),
            path("<path:object_id>/connect/", view(self.connect_view), name=name),
            *super().get_urls(),
        ]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        context["may_connect"] = self.may_connect(request, kwargs.get("obj"))
        context["connect_url"] = self.url_name("connect")
        return super().render_change_form(request, context, *args, **kwargs)

    @about_a_row
    def connect_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Say what will happen, and on POST go to the provider."""
        credential = self._credential(request, object_id)
        if request.method == "POST":
            try:
                return self._go(request, credential)
            except MailpoolError as error:
                self.message_user(request, str(error), messages.ERROR)
        context = {
            "title": _("Connect account"),
            "redirect_uri": redirect_uri(request, self.admin_site.name),
        }
        return self.page(request, credential, "admin/mailpool/connect.html", context)

    @as_user
    @about_a_row
    def connected_view(self, request: HttpRequest) -> HttpResponseBase:
        """The provider sends people back to here, with a code or an error in the URL."""
        answer = _take_answer(request)
        begun = self._take_begun(request, answer)
        if begun is None:
            text = gettext(
                "This was not begun in this session, or too long ago. Choose “Connect account” "
                "again."
            )
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(self.url_to("changelist"))
        credential = self._credential(request, begun["credential"])
        try:
            _connect(credential, begun, answer)
        except MailpoolError as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            # Without the code in the URL, which is in nobody's history or log from here on.
            self.log_change(
                request, credential, f"Connected the account: {credential.oauth_client}."
            )
            text = gettext(
                "The account is connected. “Verify connection” shows whether it was the right one."
            )
            self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(self.url_to("change", credential.pk))

    def _credential(self, request: HttpRequest, object_id: str) -> Credential:
        credential: Credential = self.row(request, object_id, PERMISSION)
        if not self.has_change_permission(request, credential):
            raise PermissionDenied
        if not self.may_connect(request, credential):
            raise NoPage(object_id, gettext("This account is not one that is connected."))
        return credential

    def _go(self, request: HttpRequest, credential: Credential) -> HttpResponseRedirect:
        client = credential.oauth_client
        assert client is not None
        state, verifier = Secret(secrets.token_urlsafe(32)), Secret(secrets.token_urlsafe(48))
        back = redirect_uri(request, self.admin_site.name)
        url = provider.authorization_url(
            client, redirect_uri=back, state=state, verifier=verifier, username=credential.username
        )
        begun = dict(list(request.session.get(_SESSION_KEY, {}).items())[1 - _AT_MOST :])
        begun[_digest(state)] = {
            "credential": str(credential.pk),
            # Sessions are kept in tables, caches and cookies. It opens for what was begun alone.
            "verifier": get_keyring().seal(verifier, _place(credential), _asked_for(credential)),
            "redirect_uri": back,
            "at": time.time(),
        }
        request.session[_SESSION_KEY] = begun
        return HttpResponseRedirect(url)

    def _take_begun(self, request: HttpRequest, answer: dict[str, Secret]) -> dict[str, Any] | None:
        """What was begun in this session with the state that came back; each is good for once."""
        begun = dict(request.session.get(_SESSION_KEY, {}))
        found: dict[str, Any] | None = begun.pop(_digest(answer.get("state", "")), None)
        request.session[_SESSION_KEY] = begun
        return found if found and time.time() - found["at"] < _SECONDS else None


def _take_answer(request: HttpRequest) -> dict[str, Secret]:
    """What the provider sent along in the URL. From here on *request* shows none of it."""
    answer = {name: Secret(value) for name, value in request.GET.items()}
    if query := request.META.get("QUERY_STRING"):
        for name, value in request.META.items():  # some servers have the whole URL there, too
            if isinstance(value, str):
                request.META[name] = value.replace(f"?{query}", "")
        request.META["QUERY_STRING"] = ""
    request.GET = QueryDict()
    return answer


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()


def _place(credential: Credential) -> str:
    return f"mailpool.connect:{credential.pk}"


def _asked_for(credential: Credential) -> str:
    """What somebody is asked to give permission for: tenant, server, OAuth client, mailbox."""
    field = Credential._meta.get_field("access_token")
    assert isinstance(field, EncryptedTextField)
    return field.use(credential)


def _verifier(credential: Credential, begun: dict[str, Any]) -> Secret:
    sealed = Sealed(begun["verifier"])
    try:
        keyring = get_keyring(sealed.key_id)
        return keyring.open(sealed, _place(credential), _asked_for(credential))
    except SecretError:
        raise _changed() from None


def _changed() -> OAuthError:
    return OAuthError(
        gettext(
            "The account has another OAuth client, mail server, tenant, username or permission by "
            "now. Nothing was stored. Begin again: choose “Connect account”."
        )
    )


def _connect(credential: Credential, begun: dict[str, Any], answer: dict[str, Secret]) -> None:
    client, verifier = credential.oauth_client, _verifier(credential, begun)
    assert client is not None
    if "error" in answer:
        raise OAuthError(_denied(answer))
    tokens = provider.exchange_code(
        client,
        answer.get("code", Secret("")),
        redirect_uri=begun["redirect_uri"],
        verifier=verifier,
    )
    if not tokens.refresh_token:
        raise OAuthError(
            gettext(
                "%(client)s gave no refresh token, so the permission would end within the "
                "hour. See that the scopes ask for one (offline_access), and at Google remove "
                "this application from the account's third-party access first."
            )
            % {"client": client}
        )
    # What was read before the provider was asked is what it is stored for, whatever happens now.
    present = Credential.objects.select_related("server", "oauth_client").filter(pk=credential.pk)
    if [_asked_for(row) for row in present] != [_asked_for(credential)]:
        raise _changed()
    credential.refresh_token = tokens.refresh_token
    credential.access_token = tokens.access_token
    credential.access_token_expires_at = tokens.expires_at
    credential.save(update_fields=["refresh_token", "access_token"])
    audit.note(audit.Action.CONNECTED, credential, f"OAuth client: {client}")


def _denied(answer: dict[str, Secret]) -> str:
    if answer["error"] == "access_denied":
        return gettext("The permission was not given, so nothing was changed.")
    said = f"{answer['error']} {answer.get('error_description', '')}"
    return gettext("The provider did not connect the account. It said: %(said)s") % {
        "said": quotable(said)
    }
