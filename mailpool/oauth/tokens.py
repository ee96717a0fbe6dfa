"""Each credential's access token, fresh, and got from the provider once however many need it.

Whoever finds it about to expire takes a lease on it, in a single UPDATE that only one can win, and
asks the provider. All others, threads and processes, wait for what comes of that.

Providers replace the refresh token as well, and the old one may be worthless then. So what came
is stored at once: within a caller's transaction, which may be rolled back, that is done in a
thread with a connection of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from uuid import uuid4

from django.db import DatabaseError, connections, models, router
from django.utils import timezone
from django.utils.translation import gettext as _

from mailpool import audit, signals
from mailpool.exceptions import CredentialNeedsAttention, OAuthError, OAuthUnavailable, SecretError
from mailpool.models import Credential
from mailpool.oauth import provider
from mailpool.secret import Secret
from mailpool.vault import EncryptedTextField, Sealed

# All in seconds. A token that expires sooner is replaced; of short-lived ones at a quarter.
MARGIN = 120
# One that is younger and refused all the same is not replaced: the next would be refused too.
YOUNG = 60
# Longer than the provider may take. Whoever dies meanwhile keeps the others waiting for so long.
LEASE = 60
WAIT = 30
POLL = 0.05
# After a failure nobody asks: the provider can't be reached, or it wants no more of this client.
PAUSE = 5
PAUSE_AFTER_REFUSAL = 60

# Providers that did not answer a moment ago, in this process: OAuth client → until when (monotonic)
# and why. A hundred accounts of a batch do not wait for the same provider in turn.
_away: dict[object, tuple[float, str]] = {}

_CIPHERTEXT = "access_token_ciphertext"
_PERMISSION = "refresh_token_ciphertext"


@dataclass(frozen=True, slots=True)
class _Found:
    """What became of it, as plain values: it may have been found in another thread."""

    row: Credential
    is_new_trouble: bool = False
    error: Exception | None = None


def access_token(
    credential: Credential, *, refused: str = "", deadline: float | None = None
) -> Secret:
    """An access token for *credential* that does not expire right away, and is not *refused*.

    *deadline* (monotonic, seconds) bounds the wait for others that are getting one. Where this
    caller asks the provider itself, that is not cut short: what came of it would be lost.

    Raises ``CredentialNeedsAttention`` where the account has to be connected (again),
    ``OAuthUnavailable`` where there is no token right now, ``OAuthError`` where the provider wants
    nothing of this client, ``SecretError`` where a secret does not open.
    """
    if credential.needs_attention:
        raise CredentialNeedsAttention(credential.needs_attention)
    if (usable := _usable(credential)) and usable != refused:
        return usable
    using = router.db_for_write(Credential, instance=credential)
    until = time.monotonic() + WAIT
    until = until if deadline is None else min(until, deadline)
    found = _apart(using, lambda: _obtain(credential.pk, using, refused, until))
    if found.is_new_trouble:
        signals.credential_needs_attention.send_robust(
            sender=Credential, credential=found.row, reason=str(found.error)
        )
    if found.error is not None:
        # It may be in use a little longer, if the provider is just not there.
        last = _usable(found.row, margin=False)
        if last and isinstance(found.error, OAuthUnavailable) and not refused:
            return last
        raise found.error
    for name in (_CIPHERTEXT, "access_token_set_at", "access_token_expires_at"):
        setattr(credential, name, getattr(found.row, name))
    return Secret(found.row.access_token)


def is_young(credential: Credential) -> bool:
    """Whether its access token was got a moment ago, so that another one would be no better."""
    since = credential.access_token_set_at
    return since is not None and timezone.now() - since < timedelta(seconds=YOUNG)


def _usable(credential: Credential, *, margin: bool = True) -> Secret | None:
    """The stored access token, if it is good for a while (or, without *margin*, at all)."""
    since, until = credential.access_token_set_at, credential.access_token_expires_at
    if since is None or until is None:
        return None
    spare = min(timedelta(seconds=MARGIN), (until - since) / 4) if margin else timedelta()
    if timezone.now() >= until - spare:
        return None
    try:
        token: Secret = credential.access_token
    except SecretError:
        return None  # of another grant, server or key; a new one is had for the asking
    return token or None


def _obtain(pk: object, using: str, refused: str, until: float) -> _Found:
    """The row with a token that will do, whoever gets it."""
    while True:
        row = Credential.objects.using(using).select_related("server", "oauth_client").get(pk=pk)
        if row.needs_attention:
            return _Found(row, error=CredentialNeedsAttention(row.needs_attention))
        if (token := _usable(row)) and token != refused:
            return _Found(row)
        now = timezone.now()
        if row.token_lease_until is None or row.token_lease_until <= now:
            if found := _renew(row):
                return found
        elif not row.token_lease:
            seconds = (row.token_lease_until - now).total_seconds()
            text = _(
                "%(client)s gave no access token a moment ago; it is not asked again for "
                "%(seconds).0f more seconds."
            )
            names = {"client": row.oauth_client, "seconds": seconds}
            return _Found(row, error=OAuthUnavailable(text % names))
        elif time.monotonic() >= until:
            text = _("Another process is getting an access token for %(credential)s for too long.")
            return _Found(row, error=OAuthUnavailable(text % {"credential": row}))
        time.sleep(POLL)


def _renew(row: Credential) -> _Found | None:
    """Get a token for *row*; ``None`` if somebody else does, or if it was connected anew."""
    client = row.oauth_client
    if client is None or not row.is_connected:
        text = _("The account is not connected. Connect it in the admin.")
        return _Found(row, error=CredentialNeedsAttention(text))
    try:
        permission = row.permission
        # These open, or are an error before anything is begun.
        client.client_secret, client.private_key  # noqa: B018
    except SecretError as error:
        return _Found(row, error=error)
    away_until, why = _away.get(client.pk, (0.0, ""))
    if time.monotonic() < away_until:
        return _Found(row, error=provider.ProviderAway(why))
    if not _take_lease(row):
        return None
    try:
        if row.kind == Credential.Kind.CLIENT_CREDENTIALS:
            tokens = provider.client_credentials(client)
        elif row.kind == Credential.Kind.SERVICE_ACCOUNT:
            tokens = provider.service_account(client, row.username)
        else:
            tokens = provider.refresh(client, permission)
    except CredentialNeedsAttention as error:
        is_new = _finish(row, needs_attention=str(error), needs_attention_since=timezone.now())
        if is_new:
            audit.note(audit.Action.CHANGED, row, "OAuth 2 permission withdrawn by the provider")
        return _Found(row, is_new_trouble=is_new, error=error)
    except OAuthError as error:
        if isinstance(error, provider.ProviderAway):
            _away[client.pk] = (time.monotonic() + PAUSE, str(error))
        pause = PAUSE if isinstance(error, OAuthUnavailable) else PAUSE_AFTER_REFUSAL
        _finish(row, token_lease_until=timezone.now() + timedelta(seconds=pause))
        return _Found(row, error=error)
    except BaseException:
        _finish(row)
        raise
    return _store(row, permission, tokens)


def _take_lease(row: Credential) -> bool:
    """Whether it is this caller that is to get the next token.

    Compare and swap in a single statement. That the access token is compared as well keeps out
    whoever read the row before somebody else got one.
    """
    unchanged = _rows(row).filter(
        pk=row.pk,
        grant=row.grant,
        token_lease=row.token_lease,
        token_lease_until=row.token_lease_until,
        access_token=Sealed(getattr(row, _CIPHERTEXT)),
    )
    row.token_lease = uuid4().hex
    row.token_lease_until = timezone.now() + timedelta(seconds=LEASE)
    return bool(
        unchanged.update(token_lease=row.token_lease, token_lease_until=row.token_lease_until)
    )


def _finish(row: Credential, permission: Sealed | None = None, **values: object) -> bool:
    """Write *values* and give the lease back, if it is still this caller's.

    With *permission*, only if that is what is stored.
    """
    mine = _rows(row).filter(pk=row.pk, token_lease=row.token_lease)
    if permission is not None:
        mine = mine.filter(refresh_token=permission)
    return bool(mine.update(**{"token_lease": "", "token_lease_until": None, **values}))


def _store(row: Credential, permission: Secret, tokens: provider.Tokens) -> _Found | None:
    """Store what came of *permission*; ``None`` if the lease was lost meanwhile.

    The server may have got another address while the provider was asked. Where somebody decided
    that, *permission* was taken along, and so are the tokens. Where it does not open there, they
    are stored for what they were asked for and for nothing else: at the new address they are an
    error, and nothing is lost if the address is changed back.
    """
    asked_for = row.server
    present = Credential.objects.using(row._state.db).select_related("server", "oauth_client")
    while True:
        found = present.filter(pk=row.pk, token_lease=row.token_lease).first()
        if found is None:
            return None
        is_given = _is_given(found, permission)
        row.server = found.server if is_given else asked_for
        sealed, now = _seal(row, "access_token", tokens.access_token), timezone.now()
        values: dict[str, object] = {
            "access_token": sealed,
            "access_token_set_at": now,
            "access_token_expires_at": tokens.expires_at,
        }
        if tokens.refresh_token and not row.is_by_application:
            values["refresh_token"] = _seal(row, "refresh_token", tokens.refresh_token)
        # Unless it moves at this very moment: then once more, for the address that it has by then.
        if _finish(row, Sealed(getattr(found, _PERMISSION)), **values):
            break
    if not is_given:
        text = _(
            "The tenant, mail server or OAuth client of %(credential)s was changed while an access "
            "token was got, by somebody who may not take the permission along. It is not used "
            "there. Change it back, or connect the account again."
        ) % {"credential": row}
        return _Found(row, error=SecretError(text))
    setattr(row, _CIPHERTEXT, sealed)
    row.access_token_set_at, row.access_token_expires_at = now, tokens.expires_at
    return _Found(row)


def _is_given(row: Credential, permission: Secret) -> bool:
    """Whether *permission* was given for what *row* is now."""
    try:
        return row.permission == permission
    except SecretError:
        return False


def _rows(row: Credential) -> models.QuerySet[Credential]:
    """Past the model's own queryset: a token that is renewed is no change that anybody made."""
    return models.QuerySet(Credential).using(row._state.db)


def _seal(row: Credential, name: str, secret: Secret) -> Sealed:
    field = Credential._meta.get_field(name)
    assert isinstance(field, EncryptedTextField)
    return field.seal(row, secret)


def _apart(using: str, work: Callable[[], _Found]) -> _Found:
    """Do *work* so that it stands, whatever becomes of a transaction that the caller is in."""
    connection = connections[using]
    if not connection.in_atomic_block and connection.get_autocommit():
        return work()
    if connection.vendor == "sqlite" and connection.is_in_memory_db():  # type: ignore[attr-defined]
        return work()  # of this connection alone, so that no other one could see it
    outcome: list[_Found | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)
        finally:
            connections[using].close()

    thread = Thread(target=run, name="mailpool-oauth", daemon=True)
    thread.start()
    thread.join(WAIT)
    came = outcome[0] if outcome else None
    if isinstance(came, _Found):
        return came
    if isinstance(came, Credential.DoesNotExist):
        # It was made in this very transaction, and is gone with it anyway.
        return work()
    if came is not None and not isinstance(came, DatabaseError):
        raise came
    raise OAuthUnavailable(
        _(
            "The access token has to be renewed, and within this transaction that can't be stored "
            "for good. Send when the transaction is over: transaction.on_commit()."
        )
    ) from None
