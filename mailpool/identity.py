"""Who a message goes out as: its From, whom replies reach, and the envelope's sender.

Three headers of RFC 5322 (3.6.2) and one command: From is the author, Sender who transmitted it
if that is somebody else, Reply-To where answers go; MAIL FROM, the envelope's sender, is where
bounces go. Django has the last two in one place: ``from_email`` is the envelope's sender, and
``headers={"From": …}`` the header where that is to be another one.
"""

from __future__ import annotations

from typing import NamedTuple

from django.conf import settings
from django.core.mail import EmailMessage

from mailpool.addresses import Mailbox, parse_mailbox
from mailpool.exceptions import InvalidMessage
from mailpool.models import Credential

# How well a credential fits a message, best first.
EXACT, DOMAIN, ANYBODY, REWRITTEN = range(4)


class Identity(NamedTuple):
    """Who one message goes out as, with one credential."""

    header: Mailbox
    """The From header, which is what readers see and senders are checked by."""

    envelope: Mailbox
    author: Mailbox | None = None
    """Whose From it was, where the credential's own address has taken its place."""

    is_rewritten: bool = False
    """Whether a sender was replaced because the credential may not send as that one."""


def header_from(message: EmailMessage) -> Mailbox:
    """The address in the From header."""
    return parse_mailbox(message.extra_headers.get("From", message.from_email))


def is_site_default(message: EmailMessage) -> bool:
    """Whether the caller left the sender to the settings."""
    return "From" not in message.extra_headers and _is_default(message.from_email)


def identify(message: EmailMessage, credential: Credential) -> Identity:
    """Who *message* goes out as with *credential*; whether it may is for ``fit()`` to say."""
    header, envelope = header_from(message), parse_mailbox(message.from_email)
    # A sender of the envelope's own, and not just the author's or a setting's.
    is_chosen = header.key != envelope.key and not _is_default(message.from_email)
    own, rewrites = own_mailbox(credential), credential.rewrites_from
    author = None
    if own and is_site_default(message):
        header = envelope = own
    elif own and rewrites and _listed(credential, header) is None:
        header, author = _on_behalf(header, own), header
    is_foreign = (
        rewrites
        and envelope.key != _bounce_key(credential)
        and _listed(credential, envelope) is None
    )
    if not is_chosen or is_foreign:
        if credential.bounce_address:
            envelope = parse_mailbox(credential.bounce_address)
        elif rewrites:
            envelope = header
    is_rewritten = author is not None or (is_chosen and is_foreign)
    return Identity(header, envelope, author, is_rewritten)


def fit(message: EmailMessage, credential: Credential) -> int | None:
    """How well *credential* fits *message*: ``EXACT`` for a sender of its own, ``DOMAIN`` for one
    of its domain, ``ANYBODY`` where it may send as anybody, ``REWRITTEN`` where it may not but
    sends it as itself; ``None`` where it does not send it."""
    if not _senders(credential):
        return None if credential.rewrites_from or credential.needs_proof else ANYBODY
    found = identify(message, credential)
    # The envelope's sender has to be allowed like the header's: bounces go there, and some
    # readers show it. The bounce address was entered for that by whoever enters the senders.
    addresses = [found.header]
    if found.envelope.key != _bounce_key(credential):
        addresses.append(found.envelope)
    ranks = [_listed(credential, address) for address in addresses]
    if None in ranks:
        return None
    return REWRITTEN if found.is_rewritten else max(rank for rank in ranks if rank is not None)


def own_mailbox(credential: Credential) -> Mailbox | None:
    """What takes the place of a From that is not to stay, if there is anything."""
    if credential.default_from:
        return parse_mailbox(credential.default_from)
    if credential.rewrites_from:
        full = [each for each in credential.sender_addresses if not each.startswith("@")]
        return parse_mailbox(min(full)) if full else None
    return None


def keeps_sender_header(value: object, header: Mailbox, credential: Credential) -> bool:
    """Whether a Sender header may stay beside the From *header*.

    A credential that rewrites vouches for who transmitted a message as for who wrote it. RFC 5322
    wants no Sender where it would repeat From.
    """
    if not credential.rewrites_from:
        return True
    try:
        sender = parse_mailbox(str(value))
    except InvalidMessage:
        return False
    return sender.key != header.key and _listed(credential, sender) is not None


def _is_default(from_email: object) -> bool:
    return str(from_email) == settings.DEFAULT_FROM_EMAIL


def _senders(credential: Credential) -> frozenset[str]:
    """What it may send as; nothing listed: as anybody, or if it rewrites, as itself. Where
    ownership has to be proven, neither: as nobody."""
    listed = credential.sender_addresses
    if listed or credential.needs_proof:
        return listed
    if credential.rewrites_from and (own := own_mailbox(credential)):
        return frozenset([own.key])
    return listed


def _listed(credential: Credential, address: Mailbox) -> int | None:
    """How *address* is listed: itself, by its domain, or not at all."""
    listed = _senders(credential)
    if address.key in listed:
        return EXACT
    return DOMAIN if address.domain_key in listed else None


def _bounce_key(credential: Credential) -> str:
    return parse_mailbox(credential.bounce_address).key if credential.bounce_address else ""


def _on_behalf(author: Mailbox, own: Mailbox) -> Mailbox:
    """*own*, named so that one still sees who wrote: ``Mary via Shop``."""
    writer, account = author.name or author.local, own.name or own.domain
    same = writer.casefold() == account.casefold()
    return Mailbox(own.local, own.domain, account if same else f"{writer} via {account}")
