"""“Verify connection”: the real path, step by step, each with its result, time and advice."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from smtplib import SMTPResponseException
from typing import Any, Literal

from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.utils import translation
from django.utils.translation import gettext as _

from mailpool import audit, delivery
from mailpool.addresses import parse_mailbox
from mailpool.exceptions import (
    ClientCertificateError,
    CredentialNeedsAttention,
    DeliveryUnknown,
    InvalidMessage,
    MailpoolError,
    NoRoute,
    OAuthError,
    OAuthUnavailable,
    PoolTimeout,
    RouteError,
    SecretError,
    SenderNotAllowed,
    ServerNotAllowed,
    ServerPaused,
    WrongSite,
)
from mailpool.identity import fit
from mailpool.models import Credential, MailServer
from mailpool.moments import moment
from mailpool.oauth import tokens
from mailpool.outcomes import MailpoolResult
from mailpool.routing import require_own_server, require_running
from mailpool.smtp import Handshake, Session, SessionParams
from mailpool.text import one_line

StepStatus = Literal["ok", "failed", "skipped"]

# Steps that tell of the operator's network and name server, and not only of the tenant's host.
REACHING = ("resolve", "connect")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a verification. *seconds* is how long it took; *advice* is for people."""

    key: str
    title: str
    status: StepStatus
    seconds: float = 0.0
    detail: str = ""
    advice: str = ""

    @property
    def milliseconds(self) -> float:
        return self.seconds * 1000


@dataclass(slots=True)
class Report:
    """All steps, in order. Nothing in it is secret."""

    address: str
    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.steps) and all(step.status != "failed" for step in self.steps)

    @property
    def failure(self) -> Step | None:
        """The step that failed, if one did."""
        return next((step for step in self.steps if step.status == "failed"), None)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def for_tenants(self) -> Report:
        """The same for somebody who may not learn what this machine sees.

        Which step failed and what to do about it, and nothing that the other side said, no
        addresses and no times. Why a server was not reached is not told either: a host that does
        not exist, one that may not be connected to and a port that is closed are all the same.
        """
        titles, advice = _titles(), _advice_for_tenants()
        steps: dict[str, Step] = {}
        for step in self.steps:
            key = "reach" if step.key in REACHING else step.key
            failed = step.status == "failed"
            steps[key] = Step(key, titles[key], step.status, advice=advice[key] if failed else "")
        return Report("", list(steps.values()))


def _titles() -> dict[str, str]:
    return {
        "owner": _("Check whose server it is"),
        "secret": _("Decrypt the password"),
        "key": _("Decrypt the private key"),
        "token": _("Get an access token"),
        "reach": _("Reach the server"),
        "resolve": _("Find the host"),
        "connect": _("Connect"),
        "greeting": _("Read the greeting"),
        "ehlo": _("Say hello (EHLO)"),
        "starttls": _("Ask for TLS (STARTTLS)"),
        "tls": _("Encrypt (TLS)"),
        "ehlo-tls": _("Say hello again (EHLO)"),
        "auth": _("Log in (AUTH)"),
        "mail": _("Offer a sender (MAIL)"),
        "rcpt": _("Offer a recipient (RCPT)"),
    }


def _advice_for_tenants() -> dict[str, str]:
    """What to do about a step that failed; by the step alone, so that no error shows through."""
    account = _(
        "The stored login can't be used. Enter the password again. If that does not help, ask the "
        "people who run this site."
    )
    encryption = _(
        "What answered can't be used with this encryption. Check port and security: 587 goes with "
        "STARTTLS, 465 with implicit TLS."
    )
    return {
        "owner": account,
        "secret": account,
        "key": account,
        "token": _("The account has to be connected again. Ask the people who run this site."),
        "reach": _(
            "The server could not be reached. Check host and port: they have to be the public ones "
            "that your mail provider names."
        ),
        "greeting": encryption,
        "ehlo": encryption,
        "starttls": encryption,
        "ehlo-tls": encryption,
        "tls": _(
            "No safe connection came about. Check that the host name is exactly the one that your "
            "mail provider names, since the server's certificate is for that, and check port and "
            "security: 587 goes with STARTTLS, 465 with implicit TLS."
        ),
        "auth": _(
            "The server did not accept the login. Check username and password. Many providers want "
            "an app password here, or have to allow SMTP for the account first."
        ),
        "mail": _("This account may not use that sender. Check the default From."),
        "rcpt": _("The server takes no mail from this account. Your mail provider can tell more."),
    }


def verify_server(server: MailServer) -> Report:
    """Connect to *server* as far as that goes without a login."""
    return _verify(lambda: delivery.server_params(server, credential_id=""), server)


def verify_credential(
    credential: Credential,
    *,
    recipient: str | None = None,
    seconds: float | None = None,
    reach: float | None = None,
) -> Report:
    """Go the whole way that a message of *credential* goes, up to RCPT and never to DATA.

    On a connection of its own, so that a refused login that the pool remembers is tried again.
    *recipient* is the address to offer; the credential's own by default. Never raises for what
    is wrong with the account; ``InvalidMessage`` if *recipient* is no address.

    *seconds* bounds all of it, by default ``POOL_TIMEOUT`` all up to the login, and *reach*
    finding the server and connecting to it.
    """
    own = _some_address(credential)
    target = _full_address(recipient) if recipient else own
    deadline = seconds and time.monotonic() + seconds

    def verify() -> Report:
        left = deadline and max(0.1, deadline - time.monotonic())
        return _verify(
            lambda: delivery.session_params(credential, deadline),
            credential.server,
            target,
            credential,
            seconds=left,
            reach=reach,
        )

    report = verify()
    if report.failure and report.failure.key == "auth" and _renew_token(credential, deadline):
        report = verify()
    if report.ok:
        delivery.get_pool().forgive(str(credential.pk))
    with translation.override(None):  # the record has one language
        outcome = f"failed: {_titles()[report.failure.key]}" if report.failure else "ok"
    audit.note(audit.Action.VERIFIED, credential, outcome, only_news=True)
    return report


def _renew_token(credential: Credential, deadline: float | None) -> bool:
    """After a refused login: whether there is another access token to try, as when mail is sent."""
    if not credential.is_oauth or tokens.is_young(credential):
        return False
    try:
        refused = credential.access_token
        return bool(tokens.access_token(credential, refused=refused, deadline=deadline))
    except MailpoolError:
        return True  # which the next verification will say


def _verify(
    make_params: Callable[[], SessionParams],
    server: MailServer,
    recipient: str = "",
    credential: Credential | None = None,
    *,
    seconds: float | None = None,
    reach: float | None = None,
) -> Report:
    started = time.monotonic()
    until = started + (seconds or delivery.get_pool().timeout)
    reached = min(until, started + reach) if reach else until
    report = Report(f"{server.host}:{server.port}")
    if credential and not _run(report, "owner", lambda: _check_owner(credential)):
        return report
    report.steps.clear()  # worth a word only if it fails
    made: list[SessionParams] = []

    def get_secret() -> str:
        made.append(make_params())
        return ""

    if not _run(report, _secret_step(credential), get_secret):
        return report
    if not (made[0].password or made[0].access_token or made[0].client_key):
        report.steps.clear()  # there was nothing to decrypt
    handshake = Handshake(made[0], deadline=reached)
    for name, step in handshake.steps():
        if name == "resolve":
            step = partial(_in_time, step, reached)
        if not _run(report, name, step):
            return report
        if name == "connect":
            handshake.wire.deadline = until
    if seconds:
        handshake.wire.deadline = until  # which the handshake took off at its end
    session = Session(handshake)
    try:
        if credential:
            _offer(report, session, credential, recipient)
    finally:
        session.close()
    return report


def _secret_step(credential: Credential | None) -> str:
    if credential and credential.is_oauth:
        return "token"
    if credential and credential.has_client_key and not credential.uses_password:
        return "key"
    return "secret"


def _in_time(step: Callable[[], str], until: float) -> str:
    """Make *step* in a thread, and give up on it at *until*: a look-up can't be interrupted."""
    outcome: list[str | Exception] = []

    def run() -> None:
        try:
            outcome.append(step())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="mailpool-resolve", daemon=True)
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    if not outcome:
        raise TimeoutError(_("The host name was not found in time."))
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _check_owner(credential: Credential) -> str:
    require_own_server(credential)
    return ""


def _offer(report: Report, session: Session, credential: Credential, recipient: str) -> None:
    if _run(report, "mail", lambda: session.try_sender(_sender_of(credential))):
        _run(report, "rcpt", lambda: session.try_recipient(recipient))


def _run(report: Report, key: str, step: Callable[[], str]) -> bool:
    """Make one step, and put down what came of it. Whether the next one makes sense."""
    started = time.monotonic()
    status: StepStatus = "ok"
    advice = ""
    try:
        detail = one_line(step())
    except Exception as error:
        status, detail, advice = "failed", describe_error(error), explain(error)
    title = _titles()[key]
    report.steps.append(Step(key, title, status, time.monotonic() - started, detail, advice))
    return status == "ok"


def _full_address(text: str) -> str:
    mailbox = parse_mailbox(text)
    if not mailbox.domain:
        raise InvalidMessage(f"{text!r} is not a mail address: it has no domain.")
    return mailbox.addr_spec


def _sender_of(credential: Credential) -> str:
    """The envelope's sender of its mail; ``InvalidMessage`` where what is stored is no address."""
    if credential.default_from:
        parse_mailbox(credential.default_from)  # which it is mail with
    return parse_mailbox(credential.bounce_address or _some_address(credential)).addr_spec


def _some_address(credential: Credential) -> str:
    """An address to offer to the server, of which nothing comes; a guess, where there is none."""
    return own_address(credential) or f"postmaster@{credential.server.host}"


def own_address(credential: Credential) -> str:
    """An address that the credential may send as; empty where nothing names one.

    Its default From, its first full address among the senders, its username if that is an address
    (and not of another domain than those listed), or the postmaster of a domain that is listed.
    """
    senders = [s.address for s in credential.senders.all()]
    if credential.needs_proof:  # only those that count
        senders = sorted(credential.sender_addresses)
    candidates = [credential.default_from]
    candidates += [address for address in senders if not address.startswith("@")]
    username = credential.username if "@" in credential.username else ""
    if not senders or f"@{username.rpartition('@')[2].lower()}" in senders:
        candidates.append(username)
    candidates += [f"postmaster{address}" for address in senders]
    for text in filter(None, candidates):
        try:
            return parse_mailbox(text).addr_spec
        except InvalidMessage:
            continue
    return ""


def send_test_message(
    credential: Credential, recipient: str, *, sender: str = "", deadline: float | None = None
) -> MailpoolResult:
    """Send a short message to *recipient* with exactly *credential*, through the pool.

    As *sender*, or as its ``own_address``. What goes wrong stands in the result, such as that it
    has none; nothing is sent with what is switched off. ``InvalidMessage`` if *recipient* or
    *sender* is no address. *deadline* (seconds) is that of ``deliver``.
    """
    _full_address(recipient)
    if sender:
        _full_address(sender)
    author = sender or sender_of_test(credential)
    message = EmailMessage(
        subject=_("Test message"),
        body=_(
            "This message was sent to try the account %(username)s at %(server)s.\n\n"
            "It was asked for on %(when)s. Nothing needs to be done."
        )
        % {
            "username": credential.username or "-",
            "server": credential.server.name,
            "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        },
        from_email=author or None,
        to=[recipient],
    )

    def route(message: EmailMessage) -> Credential:
        try:
            return allowed(message)
        except MailpoolError as error:
            error.tenant = credential.tenant  # whose the record of it is
            raise

    def allowed(message: EmailMessage) -> Credential:
        require_running(credential.server)
        if reason := switched_off(credential):
            raise NoRoute(reason)
        if not author:
            raise InvalidMessage(no_address())
        if sender and credential.sender_addresses and fit(message, credential) is None:
            raise SenderNotAllowed(
                _("%(address)s is not among the senders of this account, so nothing is sent as it.")
                % {"address": sender}
            )
        if credential.needs_proof and fit(message, credential) is None:
            raise SenderNotAllowed(
                _(
                    "The ownership of %(address)s is not proven, so nothing is sent as it. Enter "
                    "it as a sender of this account, and prove it by an emailed code or by DNS, or "
                    "let an operator confirm it."
                )
                % {"address": message.from_email}
            )
        return credential

    result = delivery.deliver([message], route, deadline=deadline)[0]
    audit.note(audit.Action.TEST_SENT, credential, f"to {recipient}: {result.status}")
    return result


def sender_of_test(credential: Credential) -> str:
    """Whom a test message is from; empty where it has to be asked."""
    return credential.default_from or own_address(credential)


def no_address() -> str:
    """What to do about a credential that has no ``own_address``."""
    return _(
        "This account has no address to send as: its username is no mail address. Enter a default "
        "From, or a full address among its senders."
    )


def switched_off(credential: Credential) -> str:
    """What keeps ordinary mail from going out with *credential*; empty if nothing does."""
    if not credential.is_active:
        return _("This credential is inactive, so nothing is sent with it.")
    if not credential.server.is_active:
        return _("The mail server is inactive, so nothing is sent over it.")
    if credential.server.is_paused:
        return _("The mail server is paused until %(until)s, so nothing is sent over it.") % {
            "until": moment(credential.server.paused_until)
        }
    if not getattr(credential.tenant, "is_active", True):
        return _("The tenant is inactive and sends nothing.")
    try:
        credential.check_senders(credential.sender_addresses)
    except ValidationError as error:
        return " ".join(error.messages)
    return ""


def describe_error(error: Exception) -> str:
    """What happened, with the server's own words, on one line."""
    if isinstance(error, SMTPResponseException):
        reply = one_line(error.smtp_error)
        return f"{error.smtp_code} {reply}" if error.smtp_code > 0 else reply
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "; ".join(
            f"{address}: {code} {one_line(reply)}"
            for address, (code, reply) in error.recipients.items()
        )
    if isinstance(error, OSError) and error.strerror:
        return one_line(str(error.strerror))
    return one_line(str(error))


def explain(error: Exception | None) -> str:
    """What a person can do about *error*, in plain words."""
    for kind, advice in _advice():
        if isinstance(error, kind):
            return advice
    return _("See the server's answer; its operator can tell more.")


def _advice() -> list[tuple[type[Exception] | tuple[type[Exception], ...], str]]:
    """The first class that fits counts."""
    return [
        (
            SecretError,
            _(
                "Put the encryption key back that is missing, or else enter the password again. If "
                "the key provider failed, see to that."
            ),
        ),
        (CredentialNeedsAttention, _("Open the credential in the admin and connect the account.")),
        (
            OAuthUnavailable,
            _("Try again later. If it stays like that: does this machine reach the token URL?"),
        ),
        (OAuthError, _("Compare the OAuth client's settings with those at the provider.")),
        (
            NoRoute,
            _("Enter or activate a credential of the tenant (or of the site), and its server."),
        ),
        (
            RouteError,
            _("Name another sender, or let a credential of the tenant send as this one."),
        ),
        (
            PoolTimeout,
            _("All connections are in use: raise the limits, or look for a server that hangs."),
        ),
        (
            DeliveryUnknown,
            _("Look for the message in the account's Sent folder before you send it again."),
        ),
        (InvalidMessage, _("Correct the address.")),
        (
            ServerNotAllowed,
            _(
                "Correct host and port. Only for a place that any tenant may reach: allow it in "
                "the settings."
            ),
        ),
        (
            ClientCertificateError,
            _(
                "Enter the client certificate that the server's operator issued for this account, "
                "followed by its chain, together with its private key. Renew one that has expired."
            ),
        ),
        (ServerPaused, _("Send again when the pause is over, or resume the server.")),
        (WrongSite, _("This keeps a copy of a database from sending as its customers.")),
        (MailpoolError, _("See the documentation of mailpool's errors.")),
        (
            socket.gaierror,
            _("Check the host name for typing errors, and this machine's name server."),
        ),
        (
            ssl.SSLCertVerificationError,
            _(
                "Check that the host name is the one in the certificate, and that it has not "
                "expired. For a certificate of your own authority, enter that as CA certificate."
            ),
        ),
        (
            ssl.SSLError,
            _("Check port and security: 587 goes with STARTTLS, 465 with implicit TLS."),
        ),
        (
            ConnectionRefusedError,
            _("Nothing listens on that port. Check the port, and that the server runs."),
        ),
        (
            smtplib.SMTPAuthenticationError,
            _(
                "Check username and password. Many providers want an app password or an OAuth 2 "
                "login here, or have to allow SMTP for the account first. A login by client "
                "certificate has to be known to the server."
            ),
        ),
        (
            smtplib.SMTPNotSupportedError,
            _(
                "The server lacks something that is required. Check port and security: 587 goes "
                "with STARTTLS, 465 with implicit TLS. Check the login mechanism, if one is chosen."
            ),
        ),
        (
            smtplib.SMTPSenderRefused,
            _("This account may not use that sender. Check the senders and the default From."),
        ),
        (
            smtplib.SMTPRecipientsRefused,
            _("The server does not take mail for that recipient from this account."),
        ),
        (
            smtplib.SMTPConnectError,
            _("This may be no mail server, or the port for another kind of encryption."),
        ),
        (
            smtplib.SMTPServerDisconnected,
            _(
                "Check port and security: 587 goes with STARTTLS, 465 with implicit TLS. If they "
                "are right, the server may be overloaded or may block this machine."
            ),
        ),
        (
            TimeoutError,
            _("Check host and port, and whether a firewall lets this machine out on that port."),
        ),
        (OSError, _("Check host and port, and this machine's network.")),
    ]
