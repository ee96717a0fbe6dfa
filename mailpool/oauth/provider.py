"""What is asked of an OAuth 2 provider (RFC 6749, PKCE: RFC 7636), and its errors in plain words.

The protocol is Authlib's, from the extra ``mailpool[oauth2]``, and loaded when it is first needed.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import Any

from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext as _

from mailpool.exceptions import (
    CredentialNeedsAttention,
    MailpoolError,
    OAuthError,
    OAuthUnavailable,
)
from mailpool.models import OAuthClient
from mailpool.oauth.transport import BadAnswer, ask_plainly
from mailpool.oauth.words import quotable
from mailpool.presets import preset
from mailpool.secret import Secret
from mailpool.validators import validate_provider_url

# Seconds for connecting, and for each part of the answer.
TIMEOUT = (5, 15)

# What a token is good for where the provider does not say.
DEFAULT_LIFETIME = 3600
LONGEST_LIFETIME = 30 * 86400

# A signed assertion is good for so many seconds; clocks may differ by so many.
ASSERTION_LIFETIME = 300
SKEW = 30
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

# The permission is gone, and only the owner of the account can give it again.
_WITHDRAWN = {"invalid_grant", "interaction_required", "consent_required", "login_required"}
# The same of a service account: nobody lets it act for the mailbox.
_NOT_DELEGATED = {"unauthorized_client", "access_denied"}
_TEMPORARY = {"server_error", "temporarily_unavailable", "slow_down"}


class ProviderAway(OAuthUnavailable):
    """The provider does not answer, whichever account is asked for."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a provider gave."""

    access_token: Secret
    expires_at: datetime
    refresh_token: Secret
    """Empty where the one that there is stays as it is."""


def is_installed() -> bool:
    """Whether the extra ``mailpool[oauth2]`` is there."""
    return find_spec("authlib") is not None and find_spec("requests") is not None


def authorization_url(
    client: OAuthClient, *, redirect_uri: str, state: Secret, verifier: Secret, username: str
) -> Secret:
    """Where somebody allows this site to send as *username*; *state* is in it."""
    _require_safe(client.authorization_url)
    with _session(client, redirect_uri=redirect_uri, code_challenge_method="S256") as session:
        try:
            url, _state = session.create_authorization_url(
                client.authorization_url,
                state=str(state),
                code_verifier=str(verifier),
                login_hint=username,
                **preset(client.provider).parameters,
            )
            return Secret(url)
        except Exception:  # whose frames have both in clear text
            text = _("The authorization URL of %(client)s can't be used. Correct it.")
    raise OAuthError(text % {"client": client})


def exchange_code(
    client: OAuthClient, code: Secret, *, redirect_uri: str, verifier: Secret
) -> Tokens:
    """The tokens for *code*, with which the provider sent somebody back to *redirect_uri*."""
    return _ask(
        client,
        [code, verifier],
        lambda session: session.fetch_token(
            client.token_url,
            grant_type="authorization_code",
            code=str(code),
            code_verifier=str(verifier),
            redirect_uri=redirect_uri,
            allow_redirects=False,
        ),
    )


def refresh(client: OAuthClient, refresh_token: Secret) -> Tokens:
    """The next access token, and perhaps the next refresh token."""
    return _ask(
        client,
        [refresh_token],
        lambda session: session.refresh_token(
            client.token_url,
            refresh_token=str(refresh_token),
            # As granted: what is asked for now may be more than that.
            scope=None,
            allow_redirects=False,
        ),
    )


def client_credentials(client: OAuthClient) -> Tokens:
    """The next access token of the application itself."""
    return _ask(
        client,
        [],
        lambda session: session.fetch_token(
            client.token_url,
            grant_type="client_credentials",
            scope=client.scopes,
            allow_redirects=False,
        ),
    )


def service_account(client: OAuthClient, mailbox: str) -> Tokens:
    """The next access token for *mailbox*, which the service account may act for (RFC 7523)."""
    assertion: list[Secret] = []

    def question(session: Any) -> Any:
        assertion.append(_assertion(client, mailbox))
        return session.fetch_token(
            client.token_url,
            grant_type=JWT_BEARER,
            assertion=str(assertion[0]),
            # The assertion says who asks: no client ID beside it.
            auth=lambda request: request,
            allow_redirects=False,
        )

    return _ask(client, assertion, question, mailbox)


def _assertion(client: OAuthClient, mailbox: str) -> Secret:
    """Signed: that the service account asks, for *mailbox*, this provider, and now."""
    from authlib.oauth2.rfc7523 import JWTBearerGrant
    from joserfc.jwk import RSAKey

    now = int(time.time())
    try:
        return Secret(
            JWTBearerGrant.sign(
                RSAKey.import_key(str(client.private_key)),
                issuer=client.client_id,
                audience=client.token_url,
                subject=mailbox,
                issued_at=now - SKEW,
                expires_at=now + ASSERTION_LIFETIME,
                claims={"scope": client.scopes},
                alg="RS256",
            )
        )
    except Exception:  # whose frames have the key in clear text
        text = _("The service account's key of %(client)s can't be used. Paste it again.")
    raise OAuthError(text % {"client": client})


def _session(client: OAuthClient, **kwargs: Any) -> Any:
    try:
        from authlib.integrations.requests_client import OAuth2Session
    except ImportError:
        raise OAuthError(
            _("OAuth 2 logins need a library that is not installed: pip install mailpool[oauth2].")
        ) from None
    secret = client.client_secret
    session = OAuth2Session(
        client.client_id,
        str(secret) or None,
        scope=client.scopes,
        token_endpoint_auth_method="client_secret_post" if secret else "none",
        default_timeout=TIMEOUT,
        **kwargs,
    )
    ask_plainly(session)
    return session


def _ask(
    client: OAuthClient,
    secrets: list[Secret],
    question: Callable[[Any], Any],
    mailbox: str = "",
) -> Tokens:
    """Put *question*. None of the errors has what was sent in it, nor the frames that sent it.

    So they are raised here, where no other one is being handled: that would go along as their
    context, with its frames.
    """
    _require_safe(client.token_url)
    known = [client.client_secret, client.private_key]
    with _session(client) as session:
        # What is signed is among the secrets once the question was put.
        came = _answer(client, session, question, lambda: [*secrets, *known], mailbox)
    if isinstance(came, Tokens):
        return came
    raise came


def _answer(
    client: OAuthClient,
    session: Any,
    question: Callable[[Any], Any],
    hidden: Callable[[], list[Secret]],
    mailbox: str,
) -> Tokens | MailpoolError:
    """What came of *question*: tokens, or the error to raise."""
    from authlib.common.errors import AuthlibBaseError
    from requests import RequestException, Timeout

    try:
        return _tokens(question(session))
    except MailpoolError as error:
        return error  # the question was not even put
    except AuthlibBaseError as error:
        return _refusal(client, error, hidden(), mailbox)
    except BadAnswer as error:
        return _unavailable(client, str(error))
    except Timeout:
        return _unavailable(client, _("it did not answer in time"), ProviderAway)
    except RequestException as error:
        status = getattr(error.response, "status_code", None)
        what = _("it answered with status %d") % status if status else _("there is no connection")
        return _unavailable(client, what, ProviderAway)
    except Exception:
        # Whatever the libraries raise on an answer that is none, from JSON without end to a
        # lifetime that is no number. Their frames have what was sent in clear text.
        return _unavailable(client, _("its answer has no access token that can be used"))


def _tokens(answer: Any) -> Tokens:
    """What is in *answer*; any exception means that it is not one."""
    token, next_one = answer["access_token"], answer.get("refresh_token") or ""
    if not re.fullmatch(r"[!-~]+", token) or answer.get("token_type", "").lower() != "bearer":
        raise ValueError("no bearer token")
    if not re.fullmatch(r"[ -~]*", next_one):
        raise ValueError("no refresh token")
    seconds = float(answer.get("expires_in") or DEFAULT_LIFETIME)
    if not 0 < seconds < math.inf:
        raise ValueError("no lifetime")
    return Tokens(
        access_token=Secret(token),
        expires_at=timezone.now() + timedelta(seconds=max(1, min(seconds, LONGEST_LIFETIME))),
        refresh_token=Secret(next_one),
    )


def _refusal(client: OAuthClient, error: Any, secrets: list[Secret], mailbox: str) -> OAuthError:
    code, description = error.error, error.description
    if not isinstance(code, str):
        return _unavailable(client, _("its answer has no access token that can be used"))
    is_told = isinstance(description, str) and description
    said = quotable(f"{code}: {description}" if is_told else code, secrets)
    if code in _TEMPORARY:
        return _unavailable(client, said)
    if mailbox and code in _WITHDRAWN | _NOT_DELEGATED:
        return CredentialNeedsAttention(
            _(
                "The service account may not, or no longer, send as %(mailbox)s. See that the "
                "mailbox is there, the key is not deleted and domain-wide delegation has the "
                "scope; then save the OAuth client %(client)s. It said: %(said)s"
            )
            % {"mailbox": mailbox, "client": client, "said": said}
        )
    if code in _WITHDRAWN:
        return CredentialNeedsAttention(
            _(
                "The permission to send was withdrawn or has expired, so the account has to be "
                "connected again. %(client)s said: %(said)s"
            )
            % {"client": client, "said": said}
        )
    return OAuthError(
        _("%(client)s gives no token. It said: %(said)s") % {"client": client, "said": said}
    )


def _unavailable(
    client: OAuthClient, what: str, kind: type[OAuthUnavailable] = OAuthUnavailable
) -> OAuthUnavailable:
    return kind(
        _("%(client)s gives no access token right now: %(what)s. Try again later.")
        % {"client": client, "what": what}
    )


def _require_safe(url: str) -> None:
    try:
        validate_provider_url(url)
    except ValidationError as error:
        raise OAuthError(
            _("The OAuth client has an address that can't be used. %(error)s")
            % {"error": " ".join(error.messages)}
        ) from None
