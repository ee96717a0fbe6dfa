"""``EmailMessage`` → ``Envelope``: everything that can be wrong with a message, before MAIL."""

from __future__ import annotations

import copy
import email.policy
from email import message_from_bytes
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage as MIMEMessage

import django
from django.core.mail import EmailMessage

from mailpool.addresses import Mailbox, parse_mailbox
from mailpool.exceptions import InvalidMessage
from mailpool.identity import Identity, header_from, identify, keeps_sender_header
from mailpool.models import Credential
from mailpool.smtp import Envelope


class _HeaderClasses(HeaderRegistry):
    """Makes the class of each header once; the standard library makes a new one for each header,
    which takes an eighth of the time that rendering a message takes."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, type] = {}

    def __getitem__(self, name: str) -> type:
        # Only the known ones: names are the project's, and there may be any number of them.
        key = name.lower()
        if key not in self.registry:
            return super().__getitem__(name)
        if key not in self._made:
            self._made[key] = super().__getitem__(name)
        return self._made[key]


_SMTP = email.policy.SMTP.clone(header_factory=_HeaderClasses())
_SMTPUTF8 = email.policy.SMTPUTF8.clone(header_factory=_HeaderClasses())


def render(message: EmailMessage, credential: Credential) -> Envelope:
    """The envelope of *message* as *credential* sends it.

    Raises ``InvalidMessage`` for addresses that are none and for a message without recipients,
    Django's own ``ValueError`` for line breaks in headers.
    """
    identity = identify(message, credential)
    recipients = [parse_mailbox(address) for address in message.recipients()]
    if not recipients:
        raise InvalidMessage("The message has no recipients.")
    boxes = [identity.header, identity.envelope, *recipients]
    if identity.author and not _reply_to(message):
        boxes.append(identity.author)
    needs_smtputf8 = any(box.needs_smtputf8 for box in boxes)
    return Envelope(
        sender=identity.envelope.addr_spec,
        # Each mailbox once, however often it is named.
        recipients=tuple(dict.fromkeys(box.addr_spec for box in recipients)),
        content=_content(_readdressed(message, credential, identity), needs_smtputf8),
        needs_smtputf8=needs_smtputf8,
    )


def _readdressed(message: EmailMessage, credential: Credential, identity: Identity) -> EmailMessage:
    """*message* with the headers of *identity*; the caller's own stays as it is."""
    headers = {
        name: value
        for name, value in message.extra_headers.items()
        if name.lower() != "sender" or keeps_sender_header(value, identity.header, credential)
    }
    is_changed = identity.header != header_from(message)
    if not is_changed and len(headers) == len(message.extra_headers):
        return message
    message = copy.copy(message)
    if is_changed:
        headers.pop("From", None)
        message.from_email = _display(identity.header)
    if identity.author and not _reply_to(message):
        headers.pop("Reply-To", None)
        message.reply_to = [_display(identity.author)]
    message.extra_headers = headers
    return message


def _reply_to(message: EmailMessage) -> object:
    """Where the message itself wants answers to go."""
    return message.extra_headers.get("Reply-To", message.reply_to)


def _content(message: EmailMessage, needs_smtputf8: bool) -> bytes:
    if django.VERSION < (6, 0):
        rendered: bytes = message.message().as_bytes(linesep="\r\n")  # type: ignore[call-arg]
        return _with_utf8_headers(message, rendered) if needs_smtputf8 else rendered
    return message.message(policy=_SMTPUTF8 if needs_smtputf8 else _SMTP).as_bytes()


def _with_utf8_headers(message: EmailMessage, rendered: bytes) -> bytes:
    """Before Django 6.0 a non-ASCII local part is encoded, which makes another address of it."""
    parsed = message_from_bytes(rendered, _class=MIMEMessage, policy=email.policy.SMTPUTF8)
    fields = {
        "From": [message.extra_headers.get("From", message.from_email)],
        "To": message.to,
        "Cc": message.cc,
        "Reply-To": message.reply_to,
    }
    given = {name.lower() for name in message.extra_headers} - {"from"}
    for name, addresses in fields.items():
        # A header that the caller wrote stays: it may be there to hide who gets the message.
        if addresses and name.lower() not in given:
            del parsed[name]
            parsed[name] = ", ".join(_display(parse_mailbox(str(each))) for each in addresses)
    return parsed.as_bytes()


def _display(box: Mailbox) -> str:
    return str(Address(display_name=box.name, username=box.local, domain=box.domain))
