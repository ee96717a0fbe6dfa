"""The large mail providers' servers, as a form for a new server begins with them.

Each figure names a page of the provider's. It is the page's own number, or a cautious choice
within what the page allows, and then says so. Where no page was found that has one, there is none
here, and the field keeps mailpool's own default. What only users have observed is in the notes,
with one of their reports. (``presets`` is about the same providers' OAuth 2 addresses.)
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
    cautious: bool = False
    """A choice of ours within what the page allows, and not a number that it has."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is good to know, and the page that it is from, if that is not the preset's own."""

    text: Text
    source: str = ""


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
    notes: tuple[Note, ...] = ()
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
        """The figures of this provider, by the field of ``MailServer``."""
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
_MICROSOFT = (
    "https://learn.microsoft.com/en-us/exchange/mail-flow-best-practices/how-to-set-up-a-"
    "multifunction-device-or-application-to-send-email-using-microsoft-365-or-office-365"
)
_MICROSOFT_LIMITS = "https://learn.microsoft.com/en-us/exchange/troubleshoot/send-emails/smtp-submission-improvements"
_MICROSOFT_PASSWORDS = (
    "https://techcommunity.microsoft.com/blog/exchange/"
    "updated-exchange-online-smtp-auth-basic-authentication-deprecation-timeline/4489835"
)
_POSTFIX = "https://www.postfix.org/postconf.5.html"
_ZOHO = "https://www.zoho.com/mail/help/zoho-smtp.html"
_ZOHO_LOGIN = _(
    "The whole address, and the account's password; with two-factor login an app password."
)
_ZOHO_NOTES = (
    Note(_("The sender has to be the account's address or an alias of it.")),
    Note(_("Accounts of other regions have servers of their own, such as .eu, .in or .com.au.")),
)
_PORT_2525 = _("Where port 587 is closed: 2525.")

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
        source="https://developers.google.com/workspace/gmail/imap/imap-smtp",
        notes=(
            Note(
                _("App passwords are made in the Google account, once 2-step verification is on."),
                "https://knowledge.workspace.google.com/kb/how-to-create-app-passwords-000009237",
            ),
            Note(
                _("Users report “454 4.7.0 Too many login attempts”: keep connections maintained."),
                "https://github.com/nodemailer/nodemailer/issues/1388",
            ),
            Note(_("How much may be sent a day depends on the account.")),
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
            Note(
                _("30 messages a minute and 10,000 recipients a day for each mailbox."),
                _MICROSOFT_LIMITS,
            ),
            Note(
                _(
                    "Login by password is off by default from the end of December 2026; an "
                    "administrator can allow it again."
                ),
                _MICROSOFT_PASSWORDS,
            ),
            Note(
                _(
                    "Users report that Microsoft's servers close idle connections after about 5 "
                    "minutes."
                ),
                "https://github.com/foxcpp/maddy/issues/693",
            ),
        ),
        max_connections=Figure(
            3,
            _(
                "3 at a time for each mailbox, of all processes together. With more processes that "
                "send at the same time, enter less."
            ),
            _MICROSOFT_LIMITS,
        ),
        recipients_per_day=Figure(10_000, _("For each mailbox."), _MICROSOFT_LIMITS),
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
            Note(_("Replace us-east-1 by your own region.")),
            Note(
                _(
                    "Amazon advises new connections after a number of messages or some time, and "
                    "closes idle ones. It names no figures."
                ),
                "https://docs.aws.amazon.com/ses/latest/dg/troubleshoot-smtp.html",
            ),
            Note(
                _("Users report that it closes connections after 10 idle seconds."),
                "https://github.com/juhasev/laravel-ses/pull/15",
            ),
            Note(
                _("Users report “421 … Maximum message count per session” after 350 messages."),
                "https://repost.aws/questions/QUw5qK9rBFSKqXvW5a-nAteg/"
                "amazon-ses-smtp-error-response-421-connection-closed-by-server-"
                "maximum-message-count-per-session-reached",
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
        notes=(
            Note(_("Give each tenant an API key of its own: the username tells nobody apart.")),
        ),
        max_messages=Figure(
            100,
            _("It allows up to 5,000 a connection; its page said 100 in the past."),
            _SENDGRID,
            cautious=True,
        ),
        max_connections=Figure(
            10,
            _("It allows up to 10,000 at a time; its page said 10 in the past."),
            _SENDGRID,
            cautious=True,
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
        # No page of Mailgun's was found that has the EU's host; many users' settings have it.
        notes=(Note(_("Domains in the EU: smtp.eu.mailgun.org.")), Note(_PORT_2525)),
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
        notes=(
            Note(
                _("Broadcast messages have a host of their own: smtp-broadcasts.postmarkapp.com."),
                "https://postmarkapp.com/support/article/"
                "811-what-are-the-smtp-details-api-tokens-i-should-be-using",
            ),
            Note(_PORT_2525),
        ),
    ),
    ServerPreset(
        key="brevo",
        name="Brevo",
        # The host is not in the text of that page, but in its examples.
        host="smtp-relay.brevo.com",
        port=465,
        security="tls",
        login=_("The SMTP login and an SMTP key. An API key is another thing."),
        source="https://developers.brevo.com/docs/smtp-integration",
        notes=(
            Note(
                _("The host is in its examples."),
                "https://developers.brevo.com/docs/node-smtp-relay-example",
            ),
            Note(_("Port 465, because its page calls 587 and 2525 unencrypted.")),
        ),
    ),
    ServerPreset(
        key="mailjet",
        name="Mailjet",
        host="in-v3.mailjet.com",
        port=587,
        security="starttls",
        login=_("The API key as username, the secret key as password."),
        # Not read, unlike the others: the figures are those of the library.
        source="https://dev.mailjet.com/smtp-relay/configuration/",
        notes=(
            Note(
                _("Host, port and login are those of Mailjet's own library."),
                "https://rubydoc.info/gems/mailjet/Mailjet/Mailer",
            ),
            Note(
                _PORT_2525,
                "https://docs.cloud.google.com/compute/docs/tutorials/sending-mail/using-mailjet",
            ),
        ),
    ),
    # Zoho's page was read as others quote it.
    ServerPreset(
        key="zoho",
        name="Zoho Mail",
        host="smtppro.zoho.com",
        port=465,
        security="tls",
        login=_ZOHO_LOGIN,
        source=_ZOHO,
        notes=(
            Note(
                _(
                    "For organizations with a domain of their own and a paid plan. With the free "
                    "plan: smtp.zoho.com."
                )
            ),
            *_ZOHO_NOTES,
        ),
    ),
    ServerPreset(
        key="zoho_personal",
        name="Zoho Mail (zohomail.com)",
        host="smtp.zoho.com",
        port=465,
        security="tls",
        login=_ZOHO_LOGIN,
        source=_ZOHO,
        notes=(
            Note(_("For personal accounts, and for organizations with the free plan.")),
            *_ZOHO_NOTES,
        ),
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
            Note(
                _("Accounts in the EU: smtp.eu.sparkpostmail.com. Where port 587 is closed: 2525.")
            ),
        ),
        idle_timeout=Figure(
            50, _("It closes connections after 60 idle seconds."), _SPARKPOST, cautious=True
        ),
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
            Note(_("Your own server. It has no limit of messages a connection.")),
            Note(_("Port 587 is there once “submission” is switched on in master.cf.")),
        ),
        idle_timeout=Figure(
            30,
            _(
                "It waits for 300 seconds (smtpd_timeout), under load for 10, and an idle "
                "connection keeps one of its 100 processes."
            ),
            _POSTFIX,
            cautious=True,
        ),
        max_connections=Figure(
            10,
            _(
                "50 at a time from one address (smtpd_client_connection_count_limit), of all "
                "credentials and processes together; from its trusted networks (mynetworks) there "
                "is no limit but its 100 processes."
            ),
            _POSTFIX,
            cautious=True,
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
