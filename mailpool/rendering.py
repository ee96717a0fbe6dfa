"""``EmailMessage`` → ``Envelope``: everything that can be wrong with a message, before MAIL."""

from __future__ import annotations

import copy
import email.policy
import re
from email import message_from_bytes
from email.header import Header
from email.headerregistry import Address, AddressHeader, BaseHeader, Group, HeaderRegistry
from email.message import EmailMessage as MIMEMessage
from functools import lru_cache

import django
from django.core.mail import EmailMessage

from mailpool.addresses import Mailbox, parse_mailbox
from mailpool.exceptions import InvalidMessage
from mailpool.identity import Identity, header_from, identify, keeps_sender_header
from mailpool.models import Credential
from mailpool.smtp import Envelope

_SPECIAL = re.compile(r"""[()<>\[\]:;@\\,."]""")


def _addresses_in(value: str) -> list[str]:
    """As whoever gets it reads them."""
    try:
        return [str(each.addr_spec) for each in AddressHeader.value_parser(value).all_mailboxes]
    except Exception:  # the standard library's parser raises what it likes on garbage
        return []


def _encoded_name(name: str | None) -> str:
    return Header(name or "", "utf-8").encode(linesep="\r\n")


def _encoded(group: Group) -> str:
    """*group* as it can be folded nowhere and read in one way only."""
    addresses = ", ".join(
        f"{_encoded_name(each.display_name)} <{each.addr_spec}>"
        if each.display_name
        else each.addr_spec
        for each in group.addresses
    )
    # An address by itself is a group without a name here.
    name = _encoded_name(group.display_name)
    return f"{name}: {addresses};" if name else addresses


class _Header(BaseHeader):
    """Remembers how it was folded, since a header that repeats is one object for many messages."""

    _folded: tuple[object, str] | None = None

    def fold(self, *, policy: email.policy.Policy) -> str:
        if self._folded is None or self._folded[0] is not policy:
            self._folded = policy, self._fold(policy)
        return self._folded[1]

    def _fold(self, policy: email.policy.Policy) -> str:
        folded: str = super().fold(policy=policy)
        addresses: tuple[Address, ...] = getattr(self, "addresses", ())
        # Many releases of Python leave out the quotes where they fold a name or decode one (CPython
        # gh-121284): then "boss@bank.example, Mary" would be two, and one of them nobody's sender.
        groups: tuple[Group, ...] = getattr(self, "groups", ())
        names = [each.display_name for each in addresses]
        names += [group.display_name or "" for group in groups]
        if not any(map(_SPECIAL.search, names)):
            return folded
        value = folded.replace(policy.linesep, "").partition(":")[2]
        if _addresses_in(value) == [address.addr_spec for address in addresses]:
            return folded
        return f"{self.name}: {', '.join(map(_encoded, groups))}{policy.linesep}"


class _Headers(HeaderRegistry):
    """The standard library's headers, each made once where the next message has the same.

    Making a class for each header, parsing what repeats and folding it again is half of the time
    that rendering a short message takes.
    """

    # Addresses of recipients and identifiers differ from message to message. Many have the same
    # subject, and those of one second the same date.
    REPEATING = frozenset(
        (
            "from",
            "reply-to",
            "subject",
            "date",
            "mime-version",
            "content-type",
            "content-transfer-encoding",
        )
    )
    LONGEST = 200  # characters of a value that is kept: a bound for the memory

    def __init__(self) -> None:
        super().__init__(base_class=_Header)
        self._classes: dict[str, type] = {}
        self._repeated = lru_cache(maxsize=1000)(super().__call__)

    def __call__(self, name: str, value: object) -> BaseHeader:
        repeats = (
            name.lower() in self.REPEATING
            and type(value) is str
            and len(value) <= self.LONGEST
            and "boundary=" not in value  # a new one in each message
        )
        return self._repeated(name, value) if repeats else super().__call__(name, value)

    def __getitem__(self, name: str) -> type:
        # Only the known ones: names are the project's, and there may be any number of them.
        key = name.lower()
        if key not in self.registry:
            return super().__getitem__(name)
        if key not in self._classes:
            self._classes[key] = super().__getitem__(name)
        return self._classes[key]


_SMTP = email.policy.SMTP.clone(header_factory=_Headers())
_SMTPUTF8 = email.policy.SMTPUTF8.clone(header_factory=_Headers())


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
    parsed = message_from_bytes(rendered, _class=MIMEMessage, policy=_SMTPUTF8)
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
