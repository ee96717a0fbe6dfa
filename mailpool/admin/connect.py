"""“Connect account”: its owner allows this site to send, at the provider (RFC 6749, PKCE)."""

from __future__ import annotations

import secrets
import time
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool import audit
from mailpool.admin.acting import as_user
from mailpool.admin.pages import OwnPages
from mailpool.exceptions import MailpoolError, OAuthError
from mailpool.models import Credential
from mailpool.oauth import provider
from mailpool.secret import Secret

PERMISSION = "mailpool.change_credential"
CALLBACK = "mailpool_credential_connected"

# In the session: state → what was begun with it. A few at a time, and not for ever.
_SESSION_KEY = "mailpool_oauth"
_AT_MOST = 5
_SECONDS = 900


def redirect_uri(request: HttpRequest, site_name: str) -> str:
    """Where providers send people back to: the same for all credentials, known to the provider."""
    return request.build_absolute_uri(reverse(f"admin:{CALLBACK}", current_app=site_name))


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
    def connected_view(self, request: HttpRequest) -> HttpResponseBase:
        """The provider sends people back to here, with a code or an error in the URL."""
        begun = self._take_begun(request)
        if begun is None:
            text = gettext(
                "This was not begun in this session, or too long ago. Choose “Connect account” "
                "again."
            )
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(reverse(self.url_name("changelist")))
        credential = self._credential(request, begun["credential"])
        try:
            self._connect(request, credential, begun)
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
        return HttpResponseRedirect(reverse(self.url_name("change"), args=[credential.pk]))

    def _credential(self, request: HttpRequest, object_id: str) -> Credential:
        credential: Credential = self.row(request, object_id, PERMISSION)
        if not self.has_change_permission(request, credential):
            raise PermissionDenied
        if not self.may_connect(request, credential):
            raise Http404(gettext("This account is not one that is connected."))
        return credential

    def _go(self, request: HttpRequest, credential: Credential) -> HttpResponseRedirect:
        client = credential.oauth_client
        assert client is not None
        state, verifier = secrets.token_urlsafe(32), Secret(secrets.token_urlsafe(48))
        back = redirect_uri(request, self.admin_site.name)
        url = provider.authorization_url(
            client, redirect_uri=back, state=state, verifier=verifier, username=credential.username
        )
        begun = dict(list(request.session.get(_SESSION_KEY, {}).items())[1 - _AT_MOST :])
        begun[state] = {
            "credential": str(credential.pk),
            "client": str(client.pk),
            "verifier": str(verifier),
            "redirect_uri": back,
            "at": time.time(),
        }
        request.session[_SESSION_KEY] = begun
        return HttpResponseRedirect(url)

    def _take_begun(self, request: HttpRequest) -> dict[str, Any] | None:
        """What was begun in this session with the state that came back; each is good for once."""
        begun = dict(request.session.get(_SESSION_KEY, {}))
        found: dict[str, Any] | None = begun.pop(request.GET.get("state", ""), None)
        request.session[_SESSION_KEY] = begun
        return found if found and time.time() - found["at"] < _SECONDS else None

    def _connect(self, request: HttpRequest, credential: Credential, begun: dict[str, Any]) -> None:
        client = credential.oauth_client
        assert client is not None
        if str(client.pk) != begun["client"]:
            raise OAuthError(gettext("The account has another OAuth client by now. Begin again."))
        if "error" in request.GET:
            raise OAuthError(_denied(request))
        tokens = provider.exchange_code(
            client,
            Secret(request.GET.get("code", "")),
            redirect_uri=begun["redirect_uri"],
            verifier=Secret(begun["verifier"]),
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
        credential.refresh_token = tokens.refresh_token
        credential.access_token = tokens.access_token
        credential.access_token_expires_at = tokens.expires_at
        credential.save(update_fields=["refresh_token", "access_token"])
        audit.note(audit.Action.CONNECTED, credential, f"OAuth client: {client}")


def _denied(request: HttpRequest) -> str:
    if request.GET["error"] == "access_denied":
        return gettext("The permission was not given, so nothing was changed.")
    said = f"{request.GET['error']} {request.GET.get('error_description', '')}"
    said = "".join(c if c.isprintable() else " " for c in said).strip()[:300]
    return gettext("The provider did not connect the account. It said: %(said)s") % {"said": said}
