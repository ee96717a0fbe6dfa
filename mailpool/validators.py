"""Checks of single values, for forms and for ``full_clean()``. Each error says what to enter."""

from __future__ import annotations

import ipaddress
import re
import ssl
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.utils.encoding import punycode
from django.utils.translation import gettext_lazy as _

from mailpool.addresses import Mailbox, parse_mailbox
from mailpool.exceptions import InvalidMessage
from mailpool.text import can_be_shown

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
# No top-level domain looks like that, and resolvers take it for an address: 0x7f.1 is 127.0.0.1.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


def validate_name(value: str) -> None:
    """What something is called, in lists, logs and on terminals: on one line, and as it looks."""
    if not can_be_shown(value):
        raise ValidationError(
            _(
                "There is a line break or a character that can't be seen in it, such as a control "
                "character. Type it again."
            )
        )


def validate_host(value: str) -> None:
    """A host name or an IP address: no URL, no port, no blanks."""
    if "://" in value or "/" in value:
        raise ValidationError(_("Enter the host name alone, without a scheme or a path."))
    try:
        ipaddress.ip_address(value)
    except ValueError:
        pass
    else:
        return
    if ":" in value:
        raise ValidationError(_("Enter the host name alone; the port has a field of its own."))
    try:
        ascii_name = punycode(value)
    except UnicodeError:
        ascii_name = ""
    labels = ascii_name.removesuffix(".").split(".")
    if (
        len(ascii_name) > 253
        or not all(_LABEL.fullmatch(label) for label in labels)
        or _NUMBER.fullmatch(labels[-1])
    ):
        raise ValidationError(_("Enter a host name such as smtp.example.com, or an IP address."))


def is_loopback(host: str) -> bool:
    """Whether *host* names this very machine, so that nothing leaves it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def validate_provider_url(value: str) -> None:
    """An address of an OAuth 2 provider: https, or http on this very machine."""
    try:
        url = urlsplit(value)
        host, _port = url.hostname or "", url.port
    except ValueError:
        host = ""
    if not host or url.username is not None or url.fragment or not value.isprintable():
        raise ValidationError(_("Enter an address such as https://login.example.com/token."))
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(host)):
        raise ValidationError(_("Enter an address that begins with https://."))


def literal_addresses(host: str) -> list[str]:
    """The addresses that *host* can be seen to have without asking anybody."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ["127.0.0.1"] if is_loopback(host) else []
    return [host]


def validate_ca_certificate(value: str) -> None:
    """PEM certificates, at least one, that OpenSSL can load."""
    if "PRIVATE KEY" in value:
        raise ValidationError(_("This contains a private key. Enter the CA's certificate alone."))
    try:
        ssl.create_default_context(cadata=value)
    except (ssl.SSLError, ValueError, TypeError):  # the last: it has other than ASCII characters
        raise ValidationError(unreadable_certificate(value)) from None


def unreadable_certificate(value: str) -> Any:
    """What to do about *value*, which is no certificate that can be read."""
    if "-----BEGIN CERTIFICATE-----" in value:
        return _(
            "A part of the certificate is missing or was changed. Paste it anew, with its first "
            "and last line."
        )
    return _("Enter certificates in PEM form, beginning with -----BEGIN CERTIFICATE-----.")


def validate_from_address(value: str) -> None:
    """One address with a domain, with or without a name: ``Shop <shop@example.com>``."""
    mailbox = _parse(value)
    if not mailbox or not mailbox.domain:
        raise ValidationError(_("Enter a full address such as shop@example.com."))


def validate_full_address(value: str) -> None:
    """One address with a domain and without a name."""
    mailbox = _parse(value)
    if not mailbox or mailbox.name or not mailbox.domain:
        raise ValidationError(_("Enter an address alone, such as bounces@example.com."))


def normalize_sender(value: str) -> str:
    """The stored form of a sender: lower case, domain in ASCII. ``ValidationError`` otherwise."""
    value = value.strip()
    is_domain = value.startswith("@")
    mailbox = _parse(f"x{value}" if is_domain else value)
    if not mailbox or mailbox.name or not mailbox.domain:
        raise ValidationError(
            _("Enter a full address such as shop@example.com, or @example.com for all of a domain.")
        )
    return mailbox.domain_key if is_domain else mailbox.key


def validate_sender(value: str) -> None:
    """A full address, or ``@domain``."""
    normalize_sender(value)


def _parse(value: str) -> Mailbox | None:
    """``None`` where it is none: what the parser says of it is English, and for programmers."""
    try:
        return parse_mailbox(value)
    except InvalidMessage:
        return None
