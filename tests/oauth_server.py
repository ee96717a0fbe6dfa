"""An OAuth 2 provider on this machine, and a mail host that takes its tokens.

The provider verifies what a real one does: client secret, redirect URI, PKCE (S256), codes that
are good for once, refresh tokens that are replaced with each use, and what service accounts sign.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from urllib.parse import parse_qs, urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tests.smtpd import MailHost

CLIENT_ID = "mailpool-tests"
CLIENT_SECRET = "s3cret+of/the=client"
SERVICE_ACCOUNT = "mailer@project.iam.example.com"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


@dataclass
class Grant:
    """What somebody allowed: to send as *user*."""

    user: str
    scope: str
    refresh_token: str = ""
    is_revoked: bool = False
    access_tokens: list[str] = field(default_factory=list)


class Refused(Exception):
    def __init__(self, error: str, description: str = "", status: str = "400 Bad Request"):
        self.error, self.description, self.status = error, description, status


class OAuthServer:
    """``with OAuthServer() as provider:`` listens on 127.0.0.1.

    ``grants`` are what was allowed, ``requests`` the bodies that came to the token URL,
    ``refreshes`` how many refresh tokens were used. *lifetime* is that of an access token.
    """

    def __init__(self, *, lifetime: int = 3600, rotates: bool = True):
        self.lifetime = lifetime
        self.rotates = rotates
        self.grants: list[Grant] = []
        self.requests: list[dict[str, str]] = []
        self.authorizations: list[dict[str, str]] = []
        self.refreshes = 0
        self.denies = ""  # an error for whoever is asked for permission
        self.omits_refresh_token = False
        self.answers: Callable[[], tuple[str, bytes]] | None = None  # instead of tokens
        self.redirects_to = ""  # where the token URL sends everybody, with what they brought
        self.redirect_status = "307 Temporary Redirect"
        self.headers: list[tuple[str, str]] = []  # of the token URL's answers, besides
        self.accepted_encodings: list[str] = []  # that the token URL was asked for
        self.before_answer: Callable[[], object] = lambda: None
        self.keys: dict[str, RSAPublicKey] = {}  # service account → its public key
        self.delegated: set[str] = set()  # mailboxes that service accounts may act for
        self.scope = "https://mail.google.com/"  # and for what
        self._codes: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> OAuthServer:
        self._server = make_server("127.0.0.1", 0, self._app, _Server, _Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    # What tests ask and do

    def grant(self, user: str) -> Grant:
        """Somebody allowed it already."""
        grant = Grant(user, "mail", refresh_token=f"refresh-{secrets.token_urlsafe(24)}")
        self.grants.append(grant)
        return grant

    def revoke(self, grant: Grant) -> None:
        """Its owner has changed their mind: no token of it is good any more."""
        with self._lock:
            grant.is_revoked = True
            grant.access_tokens.clear()

    def expire_access_tokens(self) -> None:
        """Long before their time."""
        with self._lock:
            for grant in self.grants:
                grant.access_tokens.clear()

    def owner_of(self, access_token: str) -> str | None:
        with self._lock:
            owners = [grant.user for grant in self.grants if access_token in grant.access_tokens]
        return owners[0] if owners else None

    # The provider

    def _app(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/authorize":
            status, headers, body = self._authorize(_flat(environ["QUERY_STRING"]))
        elif path == "/token" and environ["REQUEST_METHOD"] == "POST":
            form = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0)).decode()
            status, body = self._token(_flat(form))
            headers = [("Content-Type", "application/json"), *self.headers]
            self.accepted_encodings.append(environ.get("HTTP_ACCEPT_ENCODING", ""))
            if self.redirects_to:
                status, body = self.redirect_status, b""
                headers.append(("Location", self.redirects_to))
        else:
            status, headers, body = "404 Not Found", [], b""
        start_response(status, headers)
        return [body]

    def _authorize(self, asked):
        """A page that asks for permission; the test's client follows its link."""
        self.authorizations.append(asked)
        answer = {"state": asked["state"]}
        if self.denies:
            answer |= {"error": self.denies, "error_description": "not today"}
        else:
            assert asked["client_id"] == CLIENT_ID
            assert asked["response_type"] == "code"
            assert asked["code_challenge_method"] == "S256"
            code = f"code-{secrets.token_urlsafe(16)}"
            self._codes[code] = asked
            answer["code"] = code
        link = f"{asked['redirect_uri']}?{urlencode(answer)}"
        page = f'<!doctype html><title>Provider</title><a id="allow" href="{link}">Allow</a>'
        page = page.replace("&", "&amp;")
        return "200 OK", [("Content-Type", "text/html"), ("X-Link", link)], page.encode()

    def _token(self, form):
        with self._lock:
            self.requests.append(form)
        self.before_answer()
        if self.answers is not None:
            return self.answers()
        try:
            return "200 OK", json.dumps(self._give(form)).encode()
        except Refused as refusal:
            error = {"error": refusal.error, "error_description": refusal.description}
            return refusal.status, json.dumps(error).encode()

    def _give(self, form) -> dict[str, object]:
        kind = form["grant_type"]
        if kind != JWT_BEARER and (form.get("client_id"), form.get("client_secret")) != (
            CLIENT_ID,
            CLIENT_SECRET,
        ):
            raise Refused("invalid_client", "unknown client or wrong secret", "401 Unauthorized")
        with self._lock:
            if kind == "authorization_code":
                grant = self._redeem(form)
            elif kind == "refresh_token":
                self.refreshes += 1
                grant = next((g for g in self.grants if g.refresh_token == form[kind]), None)
                if grant is None or grant.is_revoked:
                    raise Refused("invalid_grant", f"{form[kind]} has been revoked")
                if self.rotates:
                    grant.refresh_token = f"refresh-{secrets.token_urlsafe(24)}"
            elif kind == JWT_BEARER:
                grant = self._delegate(form["assertion"])
                self.grants.append(grant)
            elif kind == "client_credentials":
                grant = Grant("*", form["scope"])
                self.grants.append(grant)
            else:
                raise Refused("unsupported_grant_type")
            token = f"access-{secrets.token_urlsafe(24)}"
            grant.access_tokens.append(token)
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime}
        if grant.refresh_token and not self.omits_refresh_token:
            answer["refresh_token"] = grant.refresh_token
        return answer

    def _delegate(self, assertion: str) -> Grant:
        """RFC 7523, by hand: not with the library that made it."""
        signed, _, signature = assertion.rpartition(".")
        head, claims = (json.loads(_decode(part)) for part in signed.split("."))
        key = self.keys.get(claims["iss"])
        if head["alg"] != "RS256" or key is None:
            raise Refused("invalid_grant", "Invalid email or User ID")
        try:
            key.verify(_decode(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise Refused("invalid_grant", f"Invalid JWT Signature of {assertion}.") from None
        now = time.time()
        if claims["aud"] != f"{self.url}/token":
            raise Refused("invalid_grant", "wrong audience")
        if not now - 600 < claims["iat"] <= now < claims["exp"] <= claims["iat"] + 3600:
            raise Refused("invalid_grant", "Token must be a short-lived token")
        if claims["sub"] not in self.delegated or claims["scope"] != self.scope:
            raise Refused("unauthorized_client", "Client is unauthorized", "401 Unauthorized")
        return Grant(claims["sub"], claims["scope"])

    def _redeem(self, form) -> Grant:
        asked = self._codes.pop(form["code"], None)
        if asked is None or asked["redirect_uri"] != form["redirect_uri"]:
            raise Refused("invalid_grant", "no such code")
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if challenge != asked["code_challenge"]:
            raise Refused("invalid_grant", "PKCE verification failed")
        return self.grant(asked["login_hint"])


def _decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _flat(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query).items()}


class BearerMailHost(MailHost):
    """A mail host that takes the access tokens of *provider*, and passwords as well."""

    def __init__(self, authority, provider: OAuthServer, **kwargs):
        self.provider = provider
        self.tokens: list[str] = []  # that it was shown, in order
        self.at_message: dict[int, Callable[[], None]] = {}  # what happens with the n-th one
        super().__init__(authority, **kwargs)

    async def handle_DATA(self, server, session, envelope):
        reply = await super().handle_DATA(server, session, envelope)
        self.at_message.get(len(self.delivered), lambda: None)()
        return reply

    async def auth_OAUTHBEARER(self, server, args):
        return await self._bearer(server, args, {"status": "invalid_token", "schemes": "bearer"})

    async def auth_XOAUTH2(self, server, args):
        return await self._bearer(server, args, {"status": "401", "schemes": "bearer"})

    async def _bearer(self, server, args, error):
        fields = base64.b64decode(args[1]).decode().split("\1")
        named = next(f for f in fields if f.startswith(("n,a=", "user=")))
        user = named.partition("=")[2].rstrip(",")
        token = next(f for f in fields if f.startswith("auth=")).removeprefix("auth=Bearer ")
        self.tokens.append(token)
        if self.provider.owner_of(token) not in (user, "*"):
            self.refused_logins += 1
            await server.challenge_auth(json.dumps(error))
            return AuthResult(success=False, handled=False)
        self.logins.append(user)
        return AuthResult(success=True, auth_data=LoginPassword(user.encode(), token.encode()))
