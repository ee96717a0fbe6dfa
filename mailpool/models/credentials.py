"""Logins, and the secrets that they take."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from functools import cached_property
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool import audit, conf
from mailpool.addresses import parse_mailbox
from mailpool.certificates import validate_client_certificate, validate_pair
from mailpool.changes import Audited, AuditedQuerySet
from mailpool.exceptions import InvalidMessage, SecretError
from mailpool.models.oauth import OAuthClient
from mailpool.models.scopes import ScopeField, proof_of, scope_of
from mailpool.models.secret_fields import (
    LONGEST_KEY,
    LONGEST_PASSWORD,
    begin_save,
    check_length,
    leave_out_unset_secrets,
    secret_field,
)
from mailpool.models.servers import MailServer
from mailpool.secret import Secret
from mailpool.text import can_be_a_name, can_be_a_password
from mailpool.validators import validate_from_address, validate_full_address
from mailpool.vault import EncryptedQuerySet, EncryptedTextField, note_written


class CredentialQuerySet(EncryptedQuerySet, AuditedQuerySet):  # type: ignore[override]
    """Keeps the encrypted secrets and the tenant's scope out of reach of bulk updates."""

    def update(self, **kwargs: Any) -> int:
        if {"tenant", "tenant_id", "scope"} & kwargs.keys():
            raise TypeError("A credential's tenant is changed with save(): its senders follow it.")
        return super().update(**kwargs)


# What a secret of a credential was entered for. Whoever can redirect it, by an edit or by SQL, gets
# an error and not the secret.
_ENTERED_FOR = ("tenant_id", "server__host", "server__port", "server__security")


_PROVIDER = ("oauth_client__token_url", "oauth_client__client_id")


# Of an existing row these change with a new grant, and are otherwise the business of
# ``oauth.tokens`` alone: somebody who saves an instance that is a minute old leaves them be.
_TOKEN_STATE = {
    "grant",
    "access_token_expires_at",
    "token_lease",
    "token_lease_until",
    "needs_attention",
    "needs_attention_since",
}


# Logins that nobody connects: the application may send as more mailboxes than one.
_BY_APPLICATION = ("client_credentials", "service_account")


def new_grant() -> str:
    """The name of a permission that a provider has given, or is about to give."""
    return uuid.uuid4().hex


class Credential(Audited):
    """One login at one mail server, of one tenant or of the site itself."""

    class SenderPolicy(models.TextChoices):
        REFUSE = "refuse", _("Refuse the message")
        REWRITE = "rewrite", _("Send it as this account, answers go to the author")

    class Mechanism(models.TextChoices):
        AUTOMATIC = "", _("Automatic")
        PLAIN = "PLAIN", "PLAIN"
        LOGIN = "LOGIN", "LOGIN"
        CRAM_MD5 = "CRAM-MD5", "CRAM-MD5"
        EXTERNAL = "EXTERNAL", _("EXTERNAL (the client certificate)")

    class Kind(models.TextChoices):
        PASSWORD = "password", _("Password")
        AUTHORIZATION_CODE = "authorization_code", _("OAuth 2: somebody connects the account")
        CLIENT_CREDENTIALS = "client_credentials", _("OAuth 2: the application itself (app-only)")
        SERVICE_ACCOUNT = "service_account", _("OAuth 2: a service account (Google Workspace)")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(
        conf.tenant_model(),
        # Never SET_NULL: a deleted tenant's login would become the site's default.
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="mailpool_credentials",
        verbose_name=_("tenant"),
        help_text=_("Empty: the site's own, for mail that belongs to no tenant."),
    )
    server = models.ForeignKey(
        MailServer,
        # Not PROTECT: a tenant that is deleted takes credentials and servers of its own along.
        on_delete=models.RESTRICT,
        related_name="credentials",
        verbose_name=_("mail server"),
    )
    username = models.CharField(
        _("username"),
        max_length=255,
        blank=True,
        help_text=_("Empty: the server is used without a login."),
    )
    kind = models.CharField(_("login"), max_length=20, choices=Kind.choices, default=Kind.PASSWORD)
    password = EncryptedTextField(
        _("password"),
        blank=True,
        default="",
        changed_at="password_set_at",
        bound_to=_ENTERED_FOR,
    )
    password_set_at = models.DateTimeField(
        _("password set on"), null=True, blank=True, editable=False
    )
    oauth_client = models.ForeignKey(
        OAuthClient,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="credentials",
        verbose_name=_("OAuth client"),
        help_text=_("Only for an OAuth 2 login."),
    )
    refresh_token = EncryptedTextField(
        _("refresh token"),
        blank=True,
        default="",
        editable=False,
        changed_at="connected_at",
        bound_to=(*_ENTERED_FOR, *_PROVIDER),
    )
    connected_at = models.DateTimeField(_("connected on"), null=True, blank=True, editable=False)
    grant = models.CharField(max_length=32, default=new_grant, editable=False)
    access_token = EncryptedTextField(
        _("access token"),
        blank=True,
        default="",
        editable=False,
        changed_at="access_token_set_at",
        bound_to=(*_ENTERED_FOR, *_PROVIDER, "kind", "grant", "username"),
    )
    access_token_set_at = models.DateTimeField(null=True, blank=True, editable=False)
    access_token_expires_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Who is getting the next access token, until when at the most; without a name: nobody may.
    token_lease = models.CharField(max_length=32, blank=True, default="", editable=False)
    token_lease_until = models.DateTimeField(null=True, blank=True, editable=False)
    needs_attention = models.TextField(_("needs attention"), blank=True, default="", editable=False)
    needs_attention_since = models.DateTimeField(
        _("needs attention since"), null=True, blank=True, editable=False
    )
    client_certificate = models.TextField(
        _("client certificate"),
        blank=True,
        validators=[validate_client_certificate],
        help_text=_(
            "PEM, followed by its chain. Only for a server that asks its clients for certificates."
        ),
    )
    client_key = EncryptedTextField(
        _("private key of the client certificate"),
        blank=True,
        default="",
        bound_to=_ENTERED_FOR,
    )
    mechanism = models.CharField(
        _("login mechanism"),
        max_length=20,
        choices=Mechanism.choices,
        blank=True,
        default=Mechanism.AUTOMATIC,
        help_text=_(
            "Automatic: the password by the first of PLAIN, LOGIN and CRAM-MD5 that the server "
            "offers; without a username the client certificate by EXTERNAL, where that is offered. "
            "With one chosen no other is used, and a server that does not offer it gets no "
            "password. EXTERNAL uses none."
        ),
    )
    default_from = models.CharField(
        _("default From"),
        max_length=320,
        blank=True,
        validators=[validate_from_address],
        help_text=_("From address of messages whose sender is the site's DEFAULT_FROM_EMAIL."),
    )
    sender_policy = models.CharField(
        _("if From is not among the senders"),
        max_length=10,
        choices=SenderPolicy.choices,
        default=SenderPolicy.REFUSE,
        help_text=_(
            "To send it as this account, From becomes the default From or else the first full "
            "address among the senders (“Mary via Shop”), and the author's address goes to "
            "Reply-To, unless the message has one."
        ),
    )
    bounce_address = models.CharField(
        _("bounce address"),
        max_length=320,
        blank=True,
        validators=[validate_full_address],
        help_text=_(
            "Where reports of failed delivery go: the envelope's sender (MAIL FROM), which need "
            "not be among the senders. Empty: the From address."
        ),
    )
    priority = models.PositiveSmallIntegerField(
        _("priority"),
        default=10,
        help_text=_("Among a tenant's credentials that fit a message, the lowest number is used."),
    )
    is_active = models.BooleanField(
        _("active"), default=True, help_text=_("Nothing is sent with an inactive credential.")
    )
    scope = ScopeField(max_length=64, editable=False, default="")

    objects = CredentialQuerySet.as_manager()

    class Meta:
        # Relations use the base manager: without this, tenant.mailpool_credentials.add() would
        # get around what the queryset keeps out.
        base_manager_name = "objects"
        ordering = ("priority", "username", "pk")
        verbose_name = _("credential")
        verbose_name_plural = _("credentials")
        permissions: ClassVar = [
            ("verify_credential", "Can verify a credential and send a test message with it"),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["scope", "server", "username"],
                name="mailpool_credential_account",
                violation_error_message=_("This tenant has this account at this server already."),
            ),
            models.CheckConstraint(
                condition=models.Q(kind="password")
                | models.Q(
                    kind__in=["authorization_code", "client_credentials", "service_account"],
                    oauth_client__isnull=False,
                ),
                name="mailpool_credential_kind",
                violation_error_message=_("Choose the OAuth client to log in with."),
            ),
            models.CheckConstraint(
                condition=models.Q(
                    mechanism__in=["", "PLAIN", "LOGIN", "CRAM-MD5", "EXTERNAL"],
                ),
                name="mailpool_credential_mechanism",
                violation_error_message=_("There is no such login mechanism."),
            ),
            models.CheckConstraint(
                condition=models.Q(sender_policy__in=["refuse", "rewrite"]),
                name="mailpool_credential_sender_policy",
                violation_error_message=_("The sender policy must be refuse or rewrite."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.login_name} @ {self.server.name}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the row; of an existing one only those secrets that were set on this instance.

        A refresh token that is set begins a new grant; a new row may have app-only access.
        """
        is_new = begin_save(self, kwargs)
        if self.is_by_application and is_new and not self.is_connected:
            self.allow_app_only()
        begins = secret_field(self, "refresh_token").is_pending(self)
        if self.is_by_application and begins and self.is_connected:
            self.refresh_token = self._mark()
        if begins:
            self._begin_grant()
        kept = set() if begins else set(_TOKEN_STATE)
        if secret_field(self, "access_token").is_pending(self):
            kept.discard("access_token_expires_at")
        leave_out_unset_secrets(self, kwargs, also=kept)
        fields = kwargs.get("update_fields")
        if fields is not None:
            if fields & {"tenant", "tenant_id"}:
                fields.add("scope")  # is derived from it
            if fields & {"refresh_token", "refresh_token_ciphertext"}:
                fields |= {*_TOKEN_STATE, "access_token", "access_token_set_at"}
        moves = not is_new and (fields is None or "scope" in fields)
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            super().save(*args, **kwargs)
            note_written(self, using, fields, is_new=is_new)
            if moves:
                scope = self.get_scope()
                self.senders.exclude(scope=scope).void(scope=scope)

    def _begin_grant(self) -> None:
        """Another permission of the provider's: what belongs to the last one is over."""
        self.grant = new_grant()
        self.needs_attention, self.needs_attention_since = "", None
        # Whoever is refreshing the last one's tokens at this moment has lost the lease.
        self.token_lease, self.token_lease_until = "", None
        if not secret_field(self, "access_token").is_pending(self):
            self.access_token = ""
            self.access_token_expires_at = None

    def allow_app_only(self) -> None:
        """Let app-only access be for the tenant, server, OAuth client and mailbox that are saved
        with it.

        There is no secret of the account's own that could be bound to these, so a mark stands in
        the place of a refresh token. It names the mailbox, which the application could choose as
        it likes: whoever redirects the account by an edit or by SQL gets no token.
        """
        self.refresh_token = self._mark()

    def _mark(self) -> str:
        return f"{self.kind} {self.username}"

    @property
    def permission(self) -> Secret:
        """What the next access token is got with: a refresh token, or the mark in its place.

        ``SecretError`` if it does not open, or if it is that of another mailbox or login.
        """
        found: Secret = self.refresh_token
        if found and self.is_by_application and found != self._mark():
            raise SecretError(
                gettext(
                    "The application may not send as %(username)s: its access was given for "
                    "another mailbox or login. Save the account in the admin to give it."
                )
                % {"username": self.username}
            )
        return found

    @property
    def is_permitted(self) -> bool:
        """Whether there is a *permission*, and it is for what the row is."""
        try:
            return bool(self.permission)
        except SecretError:
            return False

    @property
    def is_by_application(self) -> bool:
        """Whether the application itself gets access tokens, and nobody connects the account."""
        return self.kind in _BY_APPLICATION

    @property
    def is_oauth(self) -> bool:
        """Whether it logs in with access tokens, and never with a password."""
        return self.kind != self.Kind.PASSWORD

    named_after = ("tenant", "server")

    def audited_as(self) -> dict[str, Any]:
        return {
            "credential_id": self.pk,
            "tenant": audit.name_of(self, "tenant"),
            "server": audit.name_of(self, "server"),
            "username": self.username or (audit.CERTIFICATE if self.client_certificate else ""),
        }

    @property
    def login_name(self) -> str:
        """The username, or what is in its place where there is none."""
        if self.client_certificate and not self.username:
            return str(_("client certificate"))
        return str(self.username or _("no login"))

    @property
    def has_password(self) -> bool:
        """Whether a password is stored, or set to be; it is not decrypted to find out."""
        return bool(secret_field(self, "password").is_set(self))

    @property
    def is_connected(self) -> bool:
        """Whether there is what access tokens are got with; it is not decrypted to find out."""
        return bool(secret_field(self, "refresh_token").is_set(self))

    @property
    def has_client_key(self) -> bool:
        """The same of the client certificate's private key."""
        return bool(secret_field(self, "client_key").is_set(self))

    @property
    def uses_password(self) -> bool:
        """Whether it logs in by password."""
        external = self.mechanism == self.Mechanism.EXTERNAL
        return bool(self.username) and not external and not self.is_oauth

    @property
    def rewrites_from(self) -> bool:
        """Whether it sends as itself what comes from somebody that it may not send as."""
        return self.sender_policy == self.SenderPolicy.REWRITE

    @property
    def needs_proof(self) -> bool:
        """Whether it sends only as those whose ownership is proven, and as nobody without one."""
        return self.tenant_id is not None and conf.verifies_senders()

    def counts(self, address: str, proof: str) -> bool:
        """Whether it may send as *address*, which is among its senders with that *proof*."""
        return not self.needs_proof or proof == proof_of(self.get_scope(), address)

    @cached_property
    def sender_addresses(self) -> frozenset[str]:
        """The addresses that it may send as; none: anybody's, unless it ``needs_proof``.

        Read once, by routing with the row, since messages are rendered where no database is asked
        any more.
        """
        rows = self.senders.values_list("address", "proof")
        return frozenset(address for address, proof in rows if self.counts(address, proof))

    def check_senders(self, senders: Collection[str]) -> None:
        """``ValidationError`` where *senders*, as they are stored, leave the default From out, or
        a credential that rewrites without an address of its own.

        No constraint can say it, since it is about two tables; routing refuses it in any case.
        """
        if not self.default_from:
            if self.rewrites_from and all(address.startswith("@") for address in senders):
                raise ValidationError(
                    _(
                        "To send what others wrote as this account, it needs an address of its "
                        "own: enter a default From, or a full address among the senders."
                    )
                )
            return
        try:
            mailbox = parse_mailbox(self.default_from)
        except InvalidMessage:
            raise ValidationError(
                _("The default From is not a mail address, so nothing is sent as it. Correct it.")
            ) from None
        if senders and mailbox.key not in senders and mailbox.domain_key not in senders:
            raise ValidationError(
                _(
                    "The default From, %(address)s, is not among the senders, so mail with it "
                    "would be refused. Correct one of them."
                ),
                params={"address": self.default_from},
            )

    def get_scope(self) -> str:
        """The tenant's key as text, ``""`` for the site itself."""
        return scope_of(self)

    def clean(self) -> None:
        self.clean_by_itself()
        server = self._known_server()
        others = Credential.objects.exclude(pk=self.pk).filter(scope=self.get_scope())
        if self.server_id and others.filter(server=server, username=self.username).exists():
            raise ValidationError(
                _("This tenant has this account at this server already."), code="account_taken"
            )
        if self._scope_changes():
            taken = self.senders.model.objects.filter(
                scope=self.get_scope(), address__in=self.senders.values("address")
            ).exclude(credential=self)
            if taken.exists():
                raise ValidationError(
                    {"tenant": _("That tenant has one of this credential's senders already.")}
                )

    def clean_by_itself(self) -> None:
        """What ``clean()`` asks of the row and its relations, without a look at other rows: for
        whoever has looked for those of many at once."""
        self.username = self.username.strip()
        self.bounce_address = self.bounce_address.strip()
        check_length(self, "password", LONGEST_PASSWORD)
        check_length(self, "client_key", LONGEST_KEY)
        self._clean_characters()
        # A missing server is reported by its own field; one that the same form is about to save
        # has no key yet.
        server = self._known_server()
        if self.is_oauth:
            self._clean_oauth()
        elif self.uses_password and not self.has_password:
            raise ValidationError({"password": _("Enter the password of this account.")})
        if self.has_password and not self.username:
            raise ValidationError({"username": _("A password needs a username.")})
        if server and self.username and not server.allows_login:
            raise ValidationError(
                _(
                    "The password would travel to “%(server)s” in clear text. Choose STARTTLS or "
                    "implicit TLS for that server."
                ),
                params={"server": server.name},
            )
        self._clean_certificate(server)
        if server and not server.is_open_to(self):
            raise ValidationError(
                _("The mail server “%(server)s” belongs to another tenant."),
                params={"server": server.name},
            )

    def _clean_characters(self) -> None:
        """No line end, which would be another command to the server, and nothing like it."""
        if not can_be_a_name(self.username):
            raise ValidationError(
                {"username": _("There is a control character in the username. Type it again.")}
            )
        # One that is stored is not decrypted for this: no session is opened with it.
        if secret_field(self, "password").is_pending(self) and not can_be_a_password(self.password):
            raise ValidationError(
                {
                    "password": _(
                        "There is a line end, or a character that can't be sent, in the password. "
                        "Enter it again."
                    )
                }
            )

    def _clean_oauth(self) -> None:
        """What an OAuth 2 login needs; that somebody connects it comes afterwards."""
        client = self.oauth_client
        if client is None:
            raise ValidationError({"oauth_client": _("Choose the OAuth client to log in with.")})
        if not self.username:
            raise ValidationError({"username": _("Enter the mailbox that sends.")})
        if self.mechanism:
            raise ValidationError({"mechanism": _("Leave it automatic for an OAuth 2 login.")})
        if self.has_password:
            raise ValidationError(
                _("An OAuth 2 login has no password. Remove it, or choose to log in with it.")
            )
        if self.kind == self.Kind.CLIENT_CREDENTIALS and not client.has_client_secret:
            raise ValidationError(
                {"oauth_client": _("App-only access needs an OAuth client with a client secret.")}
            )
        if self.kind == self.Kind.SERVICE_ACCOUNT:
            self._clean_service_account(client)
        if self.kind == self.Kind.AUTHORIZATION_CODE and not client.authorization_url:
            raise ValidationError(
                {"oauth_client": _("To connect an account it needs an authorization URL.")}
            )

    def _clean_service_account(self, client: OAuthClient) -> None:
        if not client.has_private_key:
            raise ValidationError(
                {"oauth_client": _("A service account needs an OAuth client with its key.")}
            )
        try:
            validate_full_address(self.username)
        except ValidationError:
            raise ValidationError(
                {"username": _("Enter the mailbox's full address, such as bob@example.com.")}
            ) from None

    def _clean_certificate(self, server: MailServer | None) -> None:
        if self.mechanism == self.Mechanism.EXTERNAL and not self.client_certificate:
            raise ValidationError(
                {"mechanism": _("EXTERNAL is a login by client certificate: enter one.")}
            )
        if self.mechanism not in ("", self.Mechanism.EXTERNAL) and not self.username:
            raise ValidationError({"username": _("This login mechanism needs a username.")})
        if self.client_certificate and not self.has_client_key:
            raise ValidationError({"client_key": _("Enter the private key of the certificate.")})
        if self.has_client_key and not self.client_certificate:
            raise ValidationError(
                {"client_certificate": _("Enter the certificate of this private key.")}
            )
        if not self.client_certificate:
            return
        if server and server.security == MailServer.Security.PLAIN:
            raise ValidationError(
                _(
                    "A client certificate is shown over TLS only. Choose STARTTLS or implicit TLS "
                    "for “%(server)s”."
                ),
                params={"server": server.name},
            )
        try:
            key = self.client_key
        except SecretError:
            return  # does not open, which is told elsewhere and must not block other changes
        validate_pair(self.client_certificate, key)

    def _known_server(self) -> MailServer | None:
        if self.server_id is None and not Credential.server.is_cached(self):
            return None
        try:
            return self.server
        except MailServer.DoesNotExist:
            return None

    def _scope_changes(self) -> bool:
        return not self._state.adding and self.scope != self.get_scope()
