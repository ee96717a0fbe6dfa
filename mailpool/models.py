"""Tenants, mail servers, credentials and senders. Nothing here opens a connection."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.utils.translation import gettext_lazy as _

from mailpool import changes, conf
from mailpool.addresses import parse_mailbox
from mailpool.audit import AuditEntry as AuditEntry
from mailpool.certificates import validate_client_certificate, validate_pair
from mailpool.changes import Audited, AuditedQuerySet
from mailpool.exceptions import SecretError, ServerNotAllowed
from mailpool.guard import Guard
from mailpool.presets import preset
from mailpool.validators import (
    is_loopback,
    literal_addresses,
    normalize_sender,
    validate_ca_certificate,
    validate_from_address,
    validate_full_address,
    validate_host,
    validate_provider_url,
    validate_sender,
)
from mailpool.vault import EncryptedQuerySet, EncryptedTextField

if apps.apps_ready and not apps.is_installed("mailpool"):
    raise ImproperlyConfigured("mailpool is used but not installed: add it to INSTALLED_APPS.")


class SiteMarker(models.Model):
    """The one row that says which site this database belongs to; a copy has it as well."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    name = models.CharField(_("name"), max_length=100)

    class Meta:
        default_permissions = ()  # nobody edits it: ``mailpool_scrub`` does
        verbose_name = _("site marker")
        verbose_name_plural = _("site markers")
        constraints: ClassVar = [
            models.CheckConstraint(condition=models.Q(id=1), name="mailpool_sitemarker_one_row"),
        ]

    def __str__(self) -> str:
        return self.name


class Tenant(models.Model):
    """A customer, brand or department; used where ``MAILPOOL_TENANT_MODEL`` names no other."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.SlugField(
        _("slug"),
        max_length=100,
        unique=True,
        help_text=_("The short name that code uses: use_tenant('acme')."),
    )
    name = models.CharField(_("name"), max_length=200)
    is_active = models.BooleanField(
        _("active"), default=True, help_text=_("An inactive tenant sends nothing.")
    )

    class Meta:
        swappable = conf.TENANT_MODEL_SETTING
        ordering = ("name",)
        verbose_name = _("tenant")
        verbose_name_plural = _("tenants")

    def __str__(self) -> str:
        return self.name


def _bounded(label: Any, default: int | None, top: int, **kwargs: Any) -> Any:
    """A whole number from 1 to *top*, or empty if that is the default."""
    if default is None:
        kwargs |= {"null": True, "blank": True}
    validators = [MinValueValidator(1), MaxValueValidator(top)]
    return models.PositiveIntegerField(label, default=default, validators=validators, **kwargs)


# Limits of the numbers above, for the database: name -> highest value. The lowest is 1.
SERVER_BOUNDS = {
    "port": 65535,
    "max_connections": 1000,
    "idle_timeout": 3600,
    "max_lifetime": 86400,
    "max_messages": 100000,
    "timeout": 600,
    "connect_timeout": 600,
    "data_timeout": 600,
    "final_timeout": 3600,
}


class MailServer(models.Model):
    """How to reach one mail server, and whether connections to it are kept."""

    class Security(models.TextChoices):
        STARTTLS = "starttls", _("STARTTLS (usually port 587)")
        TLS = "tls", _("Implicit TLS (usually port 465)")
        PLAIN = "plain", _("None: clear text (this machine only, if there is a login)")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        _("name"), max_length=100, unique=True, help_text=_("What operators call this server.")
    )
    tenant = models.ForeignKey(
        conf.tenant_model(),
        # Never SET_NULL: a deleted tenant's server would become everybody's, and unguarded.
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="mailpool_servers",
        verbose_name=_("tenant"),
        help_text=_(
            "Empty: the operator's own server, for everybody. A tenant's server is for that tenant "
            "alone, and has to be at a public address and a mail port."
        ),
    )
    host = models.CharField(
        _("host"),
        max_length=253,
        validators=[validate_host],
        help_text=_("Host name as in the server's certificate, for example smtp.example.com."),
    )
    port = _bounded(_("port"), 587, SERVER_BOUNDS["port"])
    security = models.CharField(
        _("security"),
        max_length=10,
        choices=Security.choices,
        default=Security.STARTTLS,
        help_text=_(
            "Encryption of the connection. Once chosen it is required: mailpool never falls back "
            "to clear text."
        ),
    )
    timeout = _bounded(
        _("timeout"),
        30,
        SERVER_BOUNDS["timeout"],
        help_text=_("Seconds to wait for each answer of the server."),
    )
    connect_timeout = _bounded(
        _("timeout of connecting"),
        None,
        SERVER_BOUNDS["connect_timeout"],
        help_text=_("Seconds. Empty: the same as the timeout above."),
    )
    data_timeout = _bounded(
        _("timeout of the transfer"),
        None,
        SERVER_BOUNDS["data_timeout"],
        help_text=_(
            "Seconds that the network may take over each 64 KiB of a message. Empty: the same as "
            "the timeout above."
        ),
    )
    final_timeout = _bounded(
        _("timeout of the last answer"),
        None,
        SERVER_BOUNDS["final_timeout"],
        help_text=_(
            "Seconds that the server may take over a complete message, for example to scan it. "
            "When they are over, nobody knows whether it was accepted, and it is not sent again: "
            "rather too long than too short. Empty: four times the timeout above."
        ),
    )
    ca_certificate = models.TextField(
        _("CA certificate"),
        blank=True,
        validators=[validate_ca_certificate],
        help_text=_(
            "PEM. Only for a server whose certificate comes from your own authority; then no "
            "other authority is accepted. Empty: the system's authorities."
        ),
    )
    maintain_connection = models.BooleanField(
        _("maintain connection to mail server"),
        default=True,
        help_text=_(
            "Keeps connections open for the next message of the same credential, never for "
            "another one. Off: each call that sends opens its own connections and closes them, "
            "which costs several round trips more. In force at the next send, in every process."
        ),
    )
    max_connections = _bounded(
        _("maximum connections"),
        3,
        SERVER_BOUNDS["max_connections"],
        help_text=_(
            "Open connections per credential in each process. Providers refuse more than their "
            "own limit (Microsoft 365: 3 per mailbox); further senders wait."
        ),
    )
    idle_timeout = _bounded(
        _("idle timeout"),
        30,
        SERVER_BOUNDS["idle_timeout"],
        help_text=_(
            "Seconds that an unused connection stays open. Longer saves connecting; longer than "
            "the server allows only leaves dead connections."
        ),
    )
    max_lifetime = _bounded(
        _("maximum lifetime"),
        300,
        SERVER_BOUNDS["max_lifetime"],
        help_text=_("Seconds after which a connection is replaced, however busy it is."),
    )
    max_messages = _bounded(
        _("messages per connection"),
        100,
        SERVER_BOUNDS["max_messages"],
        help_text=_("After so many messages a connection is replaced, before the server ends it."),
    )
    single_flight = models.BooleanField(
        _("single flight"),
        default=False,
        help_text=_(
            "Sends commands and message in one go where the server takes chunks (CHUNKING): half "
            "the time for a single message. The price: when a connection is lost, nobody knows "
            "whether the message was accepted, and it is not sent again."
        ),
    )
    is_active = models.BooleanField(
        _("active"), default=True, help_text=_("Nothing is sent over an inactive server.")
    )

    class Meta:
        ordering = ("name",)
        verbose_name = _("mail server")
        verbose_name_plural = _("mail servers")
        permissions: ClassVar = [
            ("verify_mailserver", "Can verify the connection to a mail server"),
            ("move_mailserver", "Can have stored passwords presented to another host"),
            ("view_connections", "Can view open connections"),
            ("close_connections", "Can close open connections"),
        ]
        constraints: ClassVar = [
            *(
                models.CheckConstraint(
                    condition=models.Q(**{f"{field}__gte": 1, f"{field}__lte": top}),
                    name=f"mailpool_server_{field}",
                    violation_error_message=_("%(field)s must be from 1 to %(top)d.")
                    % {"field": field, "top": top},
                )
                for field, top in SERVER_BOUNDS.items()
            ),
            models.CheckConstraint(
                condition=models.Q(security__in=["starttls", "tls", "plain"]),
                name="mailpool_server_security",
                violation_error_message=_("security must be starttls, tls or plain."),
            ),
            models.CheckConstraint(
                condition=~models.Q(host=""),
                name="mailpool_server_host",
                violation_error_message=_("Enter the server's host name."),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def allows_login(self) -> bool:
        """Whether a password may be sent: over TLS, or in clear text to this very machine."""
        return self.security != self.Security.PLAIN or is_loopback(self.host)

    @property
    def guard(self) -> Guard | None:
        """Where connections to it may go; ``None``: anywhere. ``ImproperlyConfigured`` at worst."""
        return None if self.tenant_id is None else conf.tenant_guard()

    def is_open_to(self, credential: Credential) -> bool:
        """Whether *credential* may use it: everybody may, or those of its own tenant."""
        return self.tenant_id is None or _scope(self) == credential.get_scope()

    def clean(self) -> None:
        self.host = self.host.strip()
        if self.tenant_id is not None:
            self._clean_owned()
        if self.security == self.Security.PLAIN and self._has_certificates():
            raise ValidationError(
                _(
                    "Credentials with a client certificate use this server, and show it over TLS "
                    "only. Choose STARTTLS or implicit TLS."
                )
            )
        if not self.allows_login and self.credentials.exclude(username="").exists():
            # Of no field, since the list's form does not have them all.
            raise ValidationError(
                _(
                    "Credentials with a login use this server; their passwords would travel in "
                    "clear text. Choose STARTTLS or implicit TLS."
                )
            )

    def _has_certificates(self) -> bool:
        return self.credentials.exclude(client_certificate="").exists()

    def _clean_owned(self) -> None:
        """What is asked of a tenant's server. Of no field, here too."""
        if self.credentials.exclude(tenant=self.tenant_id).exists():
            raise ValidationError(
                _("Credentials of others use this server, so it can't be that tenant's own.")
            )
        # What can be seen by now. Where a name leads is seen by whoever connects, each time.
        if self.host and self.port:
            try:
                conf.tenant_guard().check(self.host, self.port, literal_addresses(self.host))
            except (ServerNotAllowed, ImproperlyConfigured) as error:
                raise ValidationError(str(error)) from None


def _scope(row: MailServer | Credential) -> str:
    """The tenant's key as text, ``""`` for none: keys may have been given in other spellings."""
    if row.tenant_id is None:
        return ""
    key = cast("models.ForeignKey[Any, Any]", row._meta.get_field("tenant")).target_field
    return str(key.to_python(row.tenant_id))


class ScopeField(models.CharField):  # type: ignore[type-arg]
    """The tenant's key as text, and ``""`` for the site itself.

    For unique constraints only: databases hold two NULLs for different, so one over a nullable
    tenant would let the site have the same account or sender twice. Nothing is routed by it.
    """

    def pre_save(self, model_instance: Any, add: bool) -> str:
        scope: str = model_instance.get_scope()
        setattr(model_instance, self.attname, scope)
        return scope


class OAuthClient(models.Model):
    """This site as a provider's OAuth 2 client: what the provider calls an application."""

    class Provider(models.TextChoices):
        GOOGLE = "google", _("Google")
        MICROSOFT = "microsoft", _("Microsoft 365")
        MICROSOFT_APP = "microsoft_app", _("Microsoft 365, by the application itself (app-only)")
        OTHER = "other", _("Another provider")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        _("name"), max_length=100, unique=True, help_text=_("What operators call it.")
    )
    provider = models.CharField(
        _("provider"),
        max_length=20,
        choices=Provider.choices,
        default=Provider.OTHER,
        help_text=_("Addresses and scopes that are left empty below are filled in for it."),
    )
    authorization_url = models.CharField(
        _("authorization URL"),
        max_length=500,
        blank=True,
        validators=[validate_provider_url],
        help_text=_("Where people allow this site to send. App-only access needs none."),
    )
    token_url = models.CharField(
        _("token URL"),
        max_length=500,
        blank=True,
        validators=[validate_provider_url],
        help_text=_(
            "Where tokens come from. App-only at Microsoft 365: "
            "https://login.microsoftonline.com/…/oauth2/v2.0/token with the directory (tenant) ID."
        ),
    )
    scopes = models.CharField(
        _("scopes"),
        max_length=1000,
        blank=True,
        help_text=_("What permission is asked for; several are separated by blanks."),
    )
    client_id = models.CharField(_("client ID"), max_length=500)
    client_secret = EncryptedTextField(
        _("client secret"),
        blank=True,
        default="",
        changed_at="client_secret_set_at",
        # It is told to that address, and whoever changes it there does not get to know it.
        bound_to=("token_url",),
    )
    client_secret_set_at = models.DateTimeField(
        _("client secret set on"), null=True, blank=True, editable=False
    )

    objects = EncryptedQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("name",)
        verbose_name = _("OAuth client")
        verbose_name_plural = _("OAuth clients")

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the row; of an existing one the client secret only if it was set here."""
        _leave_out_unset_secrets(self, kwargs)
        super().save(*args, **kwargs)
        # What kept the provider from giving tokens may be put right now.
        paused = Credential.objects.filter(oauth_client=self, token_lease="")
        models.QuerySet.update(paused, token_lease_until=None)

    @property
    def has_client_secret(self) -> bool:
        """Whether a client secret is stored, or set to be; it is not decrypted to find out."""
        return bool(_secret_field(self, "client_secret").is_set(self))

    def clean(self) -> None:
        known = preset(self.provider)
        for name in ("authorization_url", "token_url", "scopes"):
            value = getattr(self, name) or getattr(known, name)
            setattr(self, name, " ".join(value.split()))
        if not self.token_url:
            raise ValidationError({"token_url": _("Enter the token URL.")})


def _secret_field(row: models.Model, name: str) -> EncryptedTextField:
    return cast("EncryptedTextField", row._meta.get_field(name))


def _leave_out_unset_secrets(
    row: models.Model, kwargs: dict[str, Any], also: Collection[str] = ()
) -> None:
    """Have ``save()`` write only those secrets of an existing row that were set on *row*.

    Otherwise somebody who has held the instance for a while would put an old secret back, or
    one under a key that was rotated out meanwhile. *also* are further fields to leave alone.
    """
    secrets = [found for found in row._meta.fields if isinstance(found, EncryptedTextField)]
    fields = kwargs.get("update_fields")
    if fields is not None:
        named = set(fields)
        for found in secrets:
            if {found.name, found.attname} & named and found.changed_at:
                named.add(found.changed_at)  # goes with it
        kwargs["update_fields"] = named
    elif not row._state.adding and not kwargs.get("force_insert"):
        written = {field.attname for field in row._meta.concrete_fields}
        written -= row.get_deferred_fields() | {row._meta.pk.attname}
        written -= set(also)
        for found in secrets:
            if not found.is_pending(row):
                written -= {found.attname, found.changed_at}
        kwargs["update_fields"] = written


class CredentialQuerySet(EncryptedQuerySet, AuditedQuerySet):  # type: ignore[override]
    """Keeps the encrypted secrets and the tenant's scope out of reach of bulk updates."""

    def update(self, **kwargs: Any) -> int:
        if {"tenant", "tenant_id", "scope"} & kwargs.keys():
            raise TypeError("A credential's tenant is changed with save(): its senders follow it.")
        return super().update(**kwargs)


class SenderQuerySet(AuditedQuerySet):
    """Keeps what is derived from other columns out of reach of bulk updates."""

    def update(self, **kwargs: Any) -> int:
        if {"credential", "credential_id", "address", "scope"} & kwargs.keys():
            raise TypeError("A sender is changed with save(): its form and owner are derived.")
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


# Stands in the place of a refresh token where there is none.
APP_ONLY = "app-only"


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
        bound_to=(*_ENTERED_FOR, *_PROVIDER, "kind", "grant"),
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
                    kind__in=["authorization_code", "client_credentials"],
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
        is_new = self._state.adding or bool(kwargs.get("force_insert"))
        if self.kind == self.Kind.CLIENT_CREDENTIALS and not self.is_connected and is_new:
            self.allow_app_only()
        begins = _secret_field(self, "refresh_token").is_pending(self)
        if begins:
            self._begin_grant()
        kept = set() if begins else set(_TOKEN_STATE)
        if _secret_field(self, "access_token").is_pending(self):
            kept.discard("access_token_expires_at")
        _leave_out_unset_secrets(self, kwargs, also=kept)
        fields = kwargs.get("update_fields")
        if fields is not None:
            if fields & {"tenant", "tenant_id"}:
                fields.add("scope")  # is derived from it
            if fields & {"refresh_token", "refresh_token_ciphertext"}:
                fields |= {*_TOKEN_STATE, "access_token", "access_token_set_at"}
        moves = not is_new and (fields is None or "scope" in fields)
        with transaction.atomic():
            super().save(*args, **kwargs)
            if moves:
                scope = self.get_scope()
                models.QuerySet.update(self.senders.exclude(scope=scope), scope=scope)

    def _begin_grant(self) -> None:
        """Another permission of the provider's: what belongs to the last one is over."""
        self.grant = new_grant()
        self.needs_attention, self.needs_attention_since = "", None
        # Whoever is refreshing the last one's tokens at this moment has lost the lease.
        self.token_lease, self.token_lease_until = "", None
        if not _secret_field(self, "access_token").is_pending(self):
            self.access_token = ""
            self.access_token_expires_at = None

    def allow_app_only(self) -> None:
        """Let app-only access be for the present tenant, server and OAuth client, once saved.

        There is no secret of the account's own that could be bound to these, so a mark stands in
        its place: whoever redirects the account by an edit or by SQL gets no token sent there.
        """
        self.refresh_token = APP_ONLY

    @property
    def is_oauth(self) -> bool:
        """Whether it logs in with access tokens, and never with a password."""
        return self.kind != self.Kind.PASSWORD

    @classmethod
    def describe(cls, found: Sequence[changes.Change]) -> list[AuditEntry]:
        return changes.of_credentials(found)

    @property
    def login_name(self) -> str:
        """The username, or what is in its place where there is none."""
        if self.client_certificate and not self.username:
            return str(_("client certificate"))
        return str(self.username or _("no login"))

    @property
    def has_password(self) -> bool:
        """Whether a password is stored, or set to be; it is not decrypted to find out."""
        return bool(_secret_field(self, "password").is_set(self))

    @property
    def is_connected(self) -> bool:
        """Whether there is what access tokens are got with; it is not decrypted to find out."""
        return bool(_secret_field(self, "refresh_token").is_set(self))

    @property
    def has_client_key(self) -> bool:
        """The same of the client certificate's private key."""
        return bool(_secret_field(self, "client_key").is_set(self))

    @property
    def uses_password(self) -> bool:
        """Whether it logs in by password."""
        external = self.mechanism == self.Mechanism.EXTERNAL
        return bool(self.username) and not external and not self.is_oauth

    @property
    def rewrites_from(self) -> bool:
        """Whether it sends as itself what comes from somebody that it may not send as."""
        return self.sender_policy == self.SenderPolicy.REWRITE

    @cached_property
    def sender_addresses(self) -> frozenset[str]:
        """The addresses that it may send as; none: anybody's. Read once, by routing with the row,
        since messages are rendered where no database is asked any more."""
        return frozenset(self.senders.values_list("address", flat=True))

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
        mailbox = parse_mailbox(self.default_from)
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
        return _scope(self)

    def clean(self) -> None:
        self.username = self.username.strip()
        self.bounce_address = self.bounce_address.strip()
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
        others = Credential.objects.exclude(pk=self.pk).filter(scope=self.get_scope())
        if self.server_id and others.filter(server=server, username=self.username).exists():
            raise ValidationError(_("This tenant has this account at this server already."))
        if self._scope_changes():
            taken = Sender.objects.filter(
                scope=self.get_scope(), address__in=self.senders.values("address")
            ).exclude(credential=self)
            if taken.exists():
                raise ValidationError(
                    {"tenant": _("That tenant has one of this credential's senders already.")}
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
        if self.kind == self.Kind.AUTHORIZATION_CODE and not client.authorization_url:
            raise ValidationError(
                {"oauth_client": _("To connect an account it needs an authorization URL.")}
            )

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


class SenderAddressField(models.CharField):  # type: ignore[type-arg]
    """Stored in normalized form: routing compares text, and would never find another one."""

    def pre_save(self, model_instance: Any, add: bool) -> str:
        address = normalize_sender(getattr(model_instance, self.attname))
        setattr(model_instance, self.attname, address)
        return address


class Sender(Audited):
    """An address, or all of a domain, that a credential may send as."""

    is_part = True

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    credential = models.ForeignKey(
        Credential, on_delete=models.CASCADE, related_name="senders", verbose_name=_("credential")
    )
    address = SenderAddressField(
        _("address"),
        max_length=254,
        validators=[validate_sender],
        help_text=_("shop@example.com, or @example.com for all of a domain."),
    )
    scope = ScopeField(max_length=64, editable=False, default="")

    objects = SenderQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("address",)
        verbose_name = _("sender")
        verbose_name_plural = _("senders")
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["scope", "address"],
                name="mailpool_sender_unique",
                violation_error_message=_("This tenant has this sender already."),
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["address"], name="mailpool_sender_address")]

    def __str__(self) -> str:
        return str(self.address)

    @classmethod
    def describe(cls, found: Sequence[changes.Change]) -> list[AuditEntry]:
        return changes.of_senders(found)

    def get_scope(self) -> str:
        """The scope of the credential that the sender belongs to, as the database has it."""
        credential = self.credential
        if not credential._state.adding:
            # The instance may be older than a move to another tenant.
            credential = Credential.objects.filter(pk=credential.pk).first() or credential
        return credential.get_scope()

    def clean(self) -> None:
        try:
            self.address = normalize_sender(self.address)
        except ValidationError:
            return  # which the field has said already
        # The credential may be a new one that the same form is about to save; a missing one is
        # reported by its own field.
        if self.credential_id is None and not Sender.credential.is_cached(self):
            return
        scope = self.get_scope()
        if (
            Sender.objects.exclude(pk=self.pk)
            .filter(scope=scope, address=self.address)
            .exclude(credential__pk=self.credential_id)
            .exists()
        ):
            raise ValidationError({"address": _("This tenant has this sender already.")})
