"""Mail servers, of the operator or of a tenant."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from mailpool import audit, conf
from mailpool.changes import Audited, AuditedQuerySet
from mailpool.exceptions import ServerNotAllowed
from mailpool.guard import Guard
from mailpool.models.scopes import scope_of
from mailpool.moments import plain_moment
from mailpool.validators import (
    is_loopback,
    literal_addresses,
    validate_ca_certificate,
    validate_host,
    validate_name,
)

if TYPE_CHECKING:
    from mailpool.models.credentials import Credential


TENANTS_SERVERS = "(tenants)"


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


class Kept:
    """For a field that ``update()`` changes and ``save()`` does not.

    An instance may be older than the last change, and would undo it with everything else.
    """

    attname: str

    def pre_save(self, model_instance: Any, add: bool) -> Any:
        return super().pre_save(model_instance, add) if add else F(self.attname)  # type: ignore[misc]


class KeptIntegerField(Kept, models.PositiveIntegerField):  # type: ignore[type-arg]
    pass


class KeptDateTimeField(Kept, models.DateTimeField):  # type: ignore[type-arg]
    pass


class MailServer(Audited):
    """How to reach one mail server, and whether connections to it are kept."""

    class Security(models.TextChoices):
        STARTTLS = "starttls", _("STARTTLS (usually port 587)")
        TLS = "tls", _("Implicit TLS (usually port 465)")
        PLAIN = "plain", _("None: clear text (this machine only, if there is a login)")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        _("name"),
        max_length=100,
        unique=True,
        validators=[validate_name],
        help_text=_("What operators call this server."),
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
    # These two are ``maintenance``'s.
    generation = KeptIntegerField(_("generation of its connections"), default=0, editable=False)
    paused_until = KeptDateTimeField(_("paused until"), null=True, blank=True, editable=False)

    objects = AuditedQuerySet.as_manager()

    class Meta:
        # Relations use the base manager, and what they change is recorded as well.
        base_manager_name = "objects"
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

    named_after = ("tenant",)

    def audited_as(self) -> dict[str, Any]:
        return {
            "server_id": self.pk,
            "tenant": audit.name_of(self, "tenant"),
            "server": self.name,
        }

    @property
    def allows_login(self) -> bool:
        """Whether a password may be sent: over TLS, or in clear text to this very machine."""
        return self.security != self.Security.PLAIN or is_loopback(self.host)

    @property
    def label(self) -> str:
        """What metrics and logs call it; the same for all servers of tenants, of which there may
        be any number."""
        return str(self.name) if self.tenant_id is None else TENANTS_SERVERS

    @property
    def guard(self) -> Guard | None:
        """Where connections to it may go; ``None``: anywhere. ``ImproperlyConfigured`` at worst."""
        return None if self.tenant_id is None else conf.tenant_guard()

    @property
    def is_paused(self) -> bool:
        """Whether it is being maintained, so that nothing is sent over it just now."""
        return self.paused_until is not None and self.paused_until > timezone.now()

    @property
    def paused_text(self) -> str:
        """Until when, for errors and commands, which say the time zone."""
        assert self.paused_until is not None
        return plain_moment(self.paused_until)

    def is_open_to(self, credential: Credential) -> bool:
        """Whether *credential* may use it: everybody may, or those of its own tenant."""
        return self.tenant_id is None or scope_of(self) == credential.get_scope()

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
