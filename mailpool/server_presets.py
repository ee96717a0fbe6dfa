"""The large mail providers' servers, as a form for a new server begins with them.

Each figure comes from a page of the provider's and says which. Where a provider publishes none,
there is none here, and the field keeps mailpool's own default. What only users have observed is in
the notes. (``presets`` is about the same providers' OAuth 2 addresses.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from mailpool.addresses import parse_mailbox
from mailpool.exceptions import InvalidMessage

Text = str | Promise


@dataclass(frozen=True, slots=True)
class Figure:
    """What a field begins with, why, and the page that says so."""

    value: int
    why: Text
    source: str


@dataclass(frozen=True, slots=True)
class ServerPreset:
    """One provider: how its server is reached, and what it allows."""

    key: str
    name: str
    host: str  # empty: nobody but the operator knows
    port: int
    security: str
    login: Text
    """What username and password are there."""
    source: str
    """The provider's own page about host, port and login."""
    notes: tuple[Text, ...] = ()
    idle_timeout: Figure | None = None
    max_messages: Figure | None = None
    max_connections: Figure | None = None
    recipients_per_day: Figure | None = None
    """For each login. Of no field: the dashboard says when it is near."""
    domains: tuple[str, ...] = ()
    """Mail domains that are the provider's own, with their subdomains."""
    oauth_provider: str = ""
    """The OAuth client's provider, where a login by OAuth 2 is what to use."""

    @property
    def figures(self) -> Iterator[tuple[str, Figure]]:
        """The figures that the provider publishes, by the field of ``MailServer``."""
        for name in ("idle_timeout", "max_messages", "max_connections"):
            if (figure := getattr(self, name)) is not None:
                yield name, figure

    def initial(self) -> dict[str, Any]:
        """What the form of a new server begins with."""
        address = {"host": self.host, "port": self.port, "security": self.security}
        return {**address, **{name: figure.value for name, figure in self.figures}}


_SENDGRID = (
    "https://www.twilio.com/docs/sendgrid/for-developers/sending-email/"
    "integrating-with-the-smtp-api"
)
_SPARKPOST = "https://developers.sparkpost.com/api/smtp"
_SPARKPOST_ADVICE = "https://support.sparkpost.com/docs/tech-resources/smtp-rest-api-performance"
_MICROSOFT = "https://learn.microsoft.com/en-us/exchange/troubleshoot/send-emails/smtp-submission-improvements"
_POSTFIX = "https://www.postfix.org/postconf.5.html"
_ZOHO = "https://www.zoho.com/mail/help/zoho-smtp.html"
_ZOHO_LOGIN = _(
    "The whole address, and the account's password; with two-factor login an app password."
)
_ZOHO_REGION = _(
    "Accounts of other regions have servers of their own, such as .eu, .in or .com.au."
)

_ALL = (
    ServerPreset(
        key="gmail",
        name="Gmail / Google Workspace",
        host="smtp.gmail.com",
        port=587,
        security="starttls",
        login=_(
            "The whole address. Log in by OAuth 2, or with an app password, which needs 2-step "
            "verification. The account's own password is refused."
        ),
        source="https://support.google.com/a/answer/176600",
        notes=(
            _("Users report “454 4.7.0 Too many login attempts”: keep connections maintained."),
            _("How much may be sent a day depends on the account."),
        ),
        domains=("gmail.com", "googlemail.com"),
        oauth_provider="google",
    ),
    ServerPreset(
        key="microsoft365",
        name="Microsoft 365",
        host="smtp.office365.com",
        port=587,
        security="starttls",
        login=_(
            "The mailbox's whole address. Log in by OAuth 2; SMTP AUTH has to be switched on for "
            "the mailbox."
        ),
        source=_MICROSOFT,
        notes=(
            _("30 messages a minute and 10,000 recipients a day for each mailbox."),
            _("Users report that idle connections are closed after about 5 minutes."),
        ),
        max_connections=Figure(
            3,
            _(
                "3 at a time for each mailbox, of all processes together. With more processes that "
                "send at the same time, enter less."
            ),
            _MICROSOFT,
        ),
        recipients_per_day=Figure(10_000, _("For each mailbox."), _MICROSOFT),
        domains=("onmicrosoft.com",),
        oauth_provider="microsoft",
    ),
    ServerPreset(
        key="ses",
        name="Amazon SES",
        host="email-smtp.us-east-1.amazonaws.com",
        port=587,
        security="starttls",
        login=_("SMTP credentials made in the SES console. The AWS access keys are others."),
        source="https://docs.aws.amazon.com/ses/latest/dg/smtp-connect.html",
        notes=(
            _("Replace us-east-1 by your own region."),
            _(
                "Amazon advises new connections after a number of messages or some time, and names "
                "no figure. Users report that it closes connections after 10 idle seconds, and "
                "“421 Maximum message count per session” near 350 messages."
            ),
        ),
    ),
    ServerPreset(
        key="sendgrid",
        name="SendGrid",
        host="smtp.sendgrid.net",
        port=587,
        security="starttls",
        login=_("The username is “apikey” for everybody; the password is an API key."),
        source=_SENDGRID,
        notes=(_("Give each tenant an API key of its own: the username tells nobody apart."),),
        max_messages=Figure(
            100, _("Up to 5,000 a connection; another of its pages says 100."), _SENDGRID
        ),
        max_connections=Figure(
            10, _("Up to 10,000 at a time; another of its pages says 10."), _SENDGRID
        ),
    ),
    ServerPreset(
        key="mailgun",
        name="Mailgun",
        host="smtp.mailgun.org",
        port=587,
        security="starttls",
        login=_("SMTP credentials of the domain. The API key is another thing."),
        source="https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/send-smtp",
        notes=(_("Domains in the EU: smtp.eu.mailgun.org."),),
    ),
    ServerPreset(
        key="postmark",
        name="Postmark",
        host="smtp.postmarkapp.com",
        port=587,
        security="starttls",
        login=_(
            "An SMTP token of a message stream: access key and secret key. Or the server's API "
            "token, as username and as password."
        ),
        source="https://postmarkapp.com/developer/user-guide/send-email-with-smtp",
        notes=(_("Where port 587 is closed: 2525."),),
    ),
    ServerPreset(
        key="brevo",
        name="Brevo",
        host="smtp-relay.brevo.com",
        port=465,
        security="tls",
        login=_("The SMTP login and an SMTP key. An API key is another thing."),
        source="https://developers.brevo.com/docs/smtp-integration",
    ),
    ServerPreset(
        key="mailjet",
        name="Mailjet",
        host="in-v3.mailjet.com",
        port=587,
        security="starttls",
        login=_("The API key as username, the secret key as password."),
        source="https://dev.mailjet.com/smtp-relay/configuration/",
    ),
    ServerPreset(
        key="zoho",
        name="Zoho Mail",
        host="smtppro.zoho.com",
        port=465,
        security="tls",
        login=_ZOHO_LOGIN,
        source=_ZOHO,
        notes=(_("For organizations with a domain of their own."), _ZOHO_REGION),
    ),
    ServerPreset(
        key="zoho_personal",
        name="Zoho Mail (zohomail.com)",
        host="smtp.zoho.com",
        port=465,
        security="tls",
        login=_ZOHO_LOGIN,
        source=_ZOHO,
        notes=(_("For personal accounts."), _ZOHO_REGION),
        domains=("zohomail.com", "zoho.com"),
    ),
    ServerPreset(
        key="sparkpost",
        name="SparkPost",
        host="smtp.sparkpostmail.com",
        port=587,
        security="starttls",
        login=_("SMTP_Injection as username; an API key that may send by SMTP as password."),
        source=_SPARKPOST,
        notes=(
            _("Accounts in the EU: smtp.eu.sparkpostmail.com. Where port 587 is closed: 2525."),
        ),
        idle_timeout=Figure(50, _("It closes connections after 60 idle seconds."), _SPARKPOST),
        max_messages=Figure(100, _("It recommends up to 100 a connection."), _SPARKPOST),
        max_connections=Figure(
            10, _("It recommends up to 10 at a time, of all processes together."), _SPARKPOST_ADVICE
        ),
    ),
    ServerPreset(
        key="fastmail",
        name="Fastmail",
        host="smtp.fastmail.com",
        port=465,
        security="tls",
        login=_("The whole address and an app password. The account's own password is refused."),
        source="https://www.fastmail.com/help/technical/servernamesandports.html",
        domains=("fastmail.com", "fastmail.fm"),
    ),
    ServerPreset(
        key="postfix",
        name="Postfix",
        host="",
        port=587,
        security="starttls",
        login=_("As you have set up SASL; without it, leave both empty."),
        source=_POSTFIX,
        notes=(
            _("Your own server, as it is installed. It has no limit of messages a connection."),
        ),
        idle_timeout=Figure(
            30,
            _(
                "It waits for 300 seconds (smtpd_timeout), under load for 10, and an idle "
                "connection keeps one of its 100 processes."
            ),
            _POSTFIX,
        ),
        max_connections=Figure(
            10,
            _(
                "50 at a time from one address (smtpd_client_connection_count_limit), of all "
                "credentials and processes together."
            ),
            _POSTFIX,
        ),
    ),
)

SERVER_PRESETS = {preset.key: preset for preset in _ALL}


def preset_for_address(address: str) -> ServerPreset | None:
    """The provider whose domain *address* (or a bare domain) is in.

    ``None`` where no provider is known by it: the domains of companies tell nothing of their
    provider without a look into the DNS, which is not taken.
    """
    try:
        domain = parse_mailbox(f"x@{address.strip().rpartition('@')[2]}").domain.lower()
    except InvalidMessage:
        return None
    for preset in _ALL:
        if any(f".{domain}".endswith(f".{own}") for own in preset.domains):
            return preset
    return None
