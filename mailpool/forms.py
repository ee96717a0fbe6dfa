"""Forms for a product's own pages, where tenants enter their mail accounts themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from django import forms
from django.core.exceptions import NON_FIELD_ERRORS, ImproperlyConfigured, ValidationError
from django.db import router, transaction
from django.db.models import ProtectedError, QuerySet, RestrictedError
from django.utils.translation import gettext_lazy as _

from mailpool import conf
from mailpool.exceptions import SecretError, ServerNotAllowed
from mailpool.models import Credential, MailServer, Sender
from mailpool.relocation import ADDRESS
from mailpool.server_presets import preset_for_address
from mailpool.validators import literal_addresses, normalize_sender, validate_host
from mailpool.vault import get_keyring
from mailpool.vault.fields import SecretFormField


class AccountForm(forms.ModelForm):  # type: ignore[type-arg]
    """A credential's own fields. Of a username that is not accepted, that alone is told."""

    def _update_errors(self, errors: ValidationError) -> None:
        if "username" in self.errors:
            # The model was not given it, and finds that there is none or that it is another's.
            about_it = ("username", NON_FIELD_ERRORS)
            found = errors.update_error_dict({})
            errors = ValidationError({k: v for k, v in found.items() if k not in about_it})
        super()._update_errors(errors)  # type: ignore[misc]


class TenantCredentialForm(AccountForm):
    """Server and login of *tenant*, in one form; with *instance*, one that it has.

    The server becomes the tenant's own, so mailpool connects to it at public addresses and mail
    ports only. With *servers*, a queryset of the operator's own servers, the tenant chooses one of
    those instead of naming a host. *server_defaults* are fields of a new server of the tenant's
    that the form does not have, such as ``timeout``.

    What is saved is inactive until it is verified, unless *require_verification* is false. Whose
    mail goes out with it, senders that is, is not asked: that is the product's to decide.
    """

    server = forms.ModelChoiceField(MailServer.objects.none(), label=_("Mail server"))
    host = forms.CharField(
        label=_("Mail server"),
        max_length=253,
        validators=[validate_host],
        required=False,
        help_text=_(
            "As your mail provider names it, for example smtp.example.com. Empty: it is found by "
            "your address, at Gmail, Zoho, Fastmail."
        ),
    )
    port = forms.IntegerField(
        label=_("Port"),
        initial=587,
        min_value=1,
        max_value=65535,
        help_text=_("Usually 587 with STARTTLS, 465 with implicit TLS."),
    )
    security = forms.ChoiceField(
        label=_("Security"),
        # Nothing else: a password in clear text goes to this machine only, and that is not theirs.
        choices=[
            (MailServer.Security.STARTTLS.value, "STARTTLS"),
            (MailServer.Security.TLS.value, _("Implicit TLS")),
        ],
        help_text=_("Encryption of the connection. Without it nothing is sent."),
    )
    password = SecretFormField(label=_("Password"), required=False)

    class Meta:
        model = Credential
        fields = ("username", "password", "default_from")
        help_texts = {
            "username": _("Often your whole mail address."),
            "default_from": _(
                "Whom messages come from, for example shop@example.com, with or without a name. "
                "Empty: it depends on the message."
            ),
        }
        # Said to the tenant itself, who need not know that it is one.
        error_messages = {
            NON_FIELD_ERRORS: {
                "account_taken": _(
                    "You have entered this account at this server already. Change that one."
                )
            }
        }

    field_order = ("server", *ADDRESS, "username", "password", "default_from")

    def __init__(
        self,
        *args: Any,
        tenant: Any,
        servers: QuerySet[MailServer] | None = None,
        server_defaults: Mapping[str, Any] | None = None,
        require_verification: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if getattr(tenant, "pk", None) is None:  # without one, it would be the site's own account
            raise TypeError("TenantCredentialForm needs a tenant that is saved.")
        if self._is_new:
            self.instance.tenant = tenant
        elif self.instance.tenant_id != tenant.pk:
            raise ValueError("The credential is not that tenant's.")
        if self.instance.is_oauth:
            # Another username or server is another permission, which is not theirs to give.
            raise ValueError("The credential logs in by OAuth 2: it is changed in the admin.")
        self.tenant = tenant
        self.server_defaults = {"ca_certificate": "", **(server_defaults or {})}
        self.require_verification = require_verification
        self._before = None if self._is_new else self.instance.server
        self._server: MailServer | None = None
        if servers is None:
            del self.fields["server"]
            if (own := self._own_server()) is not None:
                for name in ADDRESS:
                    self.initial.setdefault(name, getattr(own, name))
        else:
            for name in ADDRESS:
                del self.fields[name]
            field: Any = self.fields["server"]
            field.queryset = servers.filter(tenant=None, is_active=True)
            self.initial.setdefault("server", self.instance.server_id)
        self.fields["username"].required = True
        # Beside a password, browsers fill in the login for this site.
        self.fields["username"].widget.attrs["autocomplete"] = "off"
        self.fields["password"].help_text = (
            _("Stored. Leave empty to keep it; it is never shown.")
            if self.instance.has_password
            else _("It is stored encrypted and never shown again.")
        )

    @property
    def _is_new(self) -> bool:
        return bool(self.instance._state.adding)

    def _own_server(self) -> MailServer | None:
        """The server that it has, if that is the tenant's own."""
        own = self._before is not None and self._before.tenant_id == self.tenant.pk
        return self._before if own else None

    def clean(self) -> dict[str, Any] | None:
        super().clean()
        is_to_be_found = "host" in self.fields and self.cleaned_data.get("host") == ""
        if is_to_be_found and "username" not in self.errors:
            self._find_address()
        if "server" in self.fields:
            self._server = self.cleaned_data.get("server")
        elif all(self.cleaned_data.get(name) for name in ADDRESS):
            address = {name: self.cleaned_data[name] for name in ADDRESS}
            self._check_place(address["host"], address["port"])
            self._server = self._server_at(address)
        if self.cleaned_data.get("password"):
            try:
                get_keyring().newest  # noqa: B018
            except SecretError:
                self.add_error("password", _("No password can be stored right now. Try later."))
        elif self._goes_elsewhere():
            self.add_error(
                "password",
                _("Enter the password again: the stored one is for the server as it was."),
            )
        self._check_senders()
        return self.cleaned_data

    def _find_address(self) -> None:
        """The server of the provider whose domain the username, an address, is in."""
        preset = preset_for_address(self.cleaned_data.get("username", ""))
        if preset is None:
            self.add_error("host", _("Enter the host name that your mail provider names."))
        else:
            self.cleaned_data.update({name: getattr(preset, name) for name in ADDRESS})

    def _check_place(self, host: str, port: int) -> None:
        """What can be seen by now, in words that tell nothing of the operator's network."""
        try:
            guard = conf.tenant_guard()
            if port not in guard.ports:
                ports = ", ".join(map(str, guard.ports))
                self.add_error("port", _("Use one of these ports: %s.") % ports)
                return
            guard.check(host, port, literal_addresses(host))
        except (ServerNotAllowed, ImproperlyConfigured):
            self.add_error("host", _("Enter the public host name that your mail provider names."))

    def _server_at(self, address: dict[str, Any]) -> MailServer:
        """The tenant's server with that address; what is not saved is saved with the form."""
        own = self._own_server()
        if own is not None and all(getattr(own, name) == address[name] for name in ADDRESS):
            return own
        found: MailServer | None = MailServer.objects.filter(tenant=self.tenant, **address).first()
        if found is not None:
            return found
        if own is None or own.credentials.exclude(pk=self.instance.pk).exists():
            # The passwords of other accounts are for the address that it has.
            own = MailServer(tenant=self.tenant, name="")
        server = copy.copy(own)
        if server.host != address["host"]:
            for name, value in self.server_defaults.items():
                setattr(server, name, value)
        for name in ADDRESS:
            setattr(server, name, address[name])
        if server.name in ("", _name(own)):
            server.name = _name(server)
        return server

    def _goes_elsewhere(self) -> bool:
        """Whether a stored password would be presented to another server than it was."""
        if self._before is None or not self.instance.has_password or self._server is None:
            return False
        return self._server.pk != self._before.pk or any(
            getattr(self._server, name) != getattr(self._before, name) for name in ADDRESS
        )

    def _check_senders(self) -> None:
        if self._is_new or "default_from" not in self.cleaned_data:
            return
        proposed = Credential(default_from=self.cleaned_data["default_from"])
        try:
            proposed.check_senders({each.address for each in self.instance.senders.all()})
        except ValidationError as error:
            self.add_error("default_from", error)

    def _post_clean(self) -> None:
        instance = self.instance
        if instance.client_certificate and not instance.has_client_key:
            # Revoked, and the key can't be entered here: a password is what it logs in with now.
            instance.client_certificate = ""
            if instance.mechanism == Credential.Mechanism.EXTERNAL:
                instance.mechanism = Credential.Mechanism.AUTOMATIC
        # Before the model's own validation, which looks at both together.
        if self._server is not None:
            self.instance.server = self._server
        super()._post_clean()  # type: ignore[misc]

    def save(self, commit: bool = True) -> Credential:
        """Write server and credential, both or neither. What was not changed stays as it is.

        With *commit* false, ``server`` and then the credential itself have to be saved.
        """
        credential: Credential = super().save(commit=False)
        if not self._is_new and not self.has_changed():
            return credential
        credential.is_active = not self.require_verification
        if commit:
            with transaction.atomic(using=router.db_for_write(Credential)):
                self._write(credential)
        return credential

    def _write(self, credential: Credential) -> None:
        server, before = credential.server, self._before
        if server._state.adding:
            server.save()
        elif before is not None and server.pk == before.pk and server is not before:
            server.save(update_fields={*ADDRESS, "name", *self.server_defaults})
        credential.server = server  # whose key may be new
        credential.save()
        left = self._own_server()
        if left is not None and left.pk != server.pk:
            with suppress(RestrictedError, ProtectedError):  # something else needs it
                left.delete()


class TenantSenderForm(forms.ModelForm):  # type: ignore[type-arg]
    """A further sender of *credential*. It counts for nothing until its ownership is proven."""

    class Meta:
        model = Sender
        fields = ("address",)

    def __init__(self, *args: Any, credential: Credential, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instance.credential = credential

    def clean_address(self) -> str:
        address = normalize_sender(self.cleaned_data["address"])
        # Among this tenant's own: whether another one has it is nothing to be told.
        if Sender.objects.filter(scope=self.instance.get_scope(), address=address).exists():
            raise ValidationError(_("You have entered this sender already."))
        return address


def _name(server: MailServer) -> str:
    """A name for operators. Unique without a look at the others, so it tells nothing of them."""
    return f"{server.host[:80]} ({server.pk.hex[:12]})"
