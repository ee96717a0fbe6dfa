"""Mail addresses: one way to read them, for routing, validation and the envelope."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.headerregistry import AddressHeader
from functools import lru_cache

from django.utils.encoding import punycode

from mailpool.exceptions import InvalidMessage

# What stands without quotes, as RFC 5322 has it. The standard library's Address leaves them out
# also where dots begin, end or follow each other.
_DOT_ATOM = re.compile(r"""[^\s()<>\[\]:;@\\,."]+(\.[^\s()<>\[\]:;@\\,."]+)*""")


@dataclass(frozen=True)
class Mailbox:
    """One address: ``local@domain`` with the domain as ASCII (IDNA), and the name shown with it."""

    local: str
    domain: str
    name: str = ""

    @property
    def addr_spec(self) -> str:
        """The address for the envelope, quoted where the local part needs it."""
        if not self.domain:
            return self.local
        return f"{self._quoted}@{self.domain}"

    @property
    def needs_smtputf8(self) -> bool:
        """Whether the local part has characters that only SMTPUTF8 (RFC 6531) can carry."""
        return not self.local.isascii()

    @property
    def key(self) -> str:
        """What senders are compared by: lower case throughout, as providers do.

        An address as well, that reads as the same one: it is what is stored of a sender.
        """
        return f"{self._quoted}@{self.domain}".lower()

    @property
    def _quoted(self) -> str:
        if not self.local or _DOT_ATOM.fullmatch(self.local):
            return self.local
        escaped = re.sub(r'(["\\])', r"\\\1", self.local)
        return f'"{escaped}"'

    @property
    def domain_key(self) -> str:
        """The sender entry that covers the whole domain."""
        return f"@{self.domain}".lower()


# What nearly all addresses look like, with or without a name; there is one way only to read it.
_PLAIN = re.compile(
    r"""
    (?: (?P<name> [A-Za-z0-9]+ (?:[ ][A-Za-z0-9]+)* ) [ ]< )?
    (?P<local> [A-Za-z0-9_+-]+ (?:\.[A-Za-z0-9_+-]+)* )
    @ (?P<domain> [A-Za-z0-9-]+ (?:\.[A-Za-z0-9-]+)* )
    (?(name)>)
    """,
    re.VERBOSE,
)

# So much may stand on a line of a header (RFC 5322). Python's parser takes time with the square of
# the length: for a megabyte it would be hours.
_MAX_LENGTH = 998

# Python's parser reports non-ASCII local parts as defects; they are valid with SMTPUTF8. Django
# allows local mailboxes like "webmaster".
_ACCEPTED_DEFECTS = {
    "addr-spec local part with no domain",
    "local-part contains non-ASCII characters)",
}


def parse_mailbox(text: str) -> Mailbox:
    """The one mailbox in *text* (``a@example.com`` or ``Name <a@example.com>``).

    Raises ``InvalidMessage``, a ``ValueError``, for anything else, line breaks included, and for
    more than 998 characters.
    """
    text = str(text)  # a lazy translation as well
    if len(text) > _MAX_LENGTH:
        raise InvalidMessage(
            f"{text[:60]!r}… is not a mail address: it has more than {_MAX_LENGTH} characters."
        )
    return _parse(text)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Mailbox:
    # One message's From is looked at several times.
    if plain := _PLAIN.fullmatch(text):
        return Mailbox(plain["local"], _ascii_domain(plain["domain"], text), plain["name"] or "")
    return _parse_any(text)


def _parse_any(text: str) -> Mailbox:
    """By the standard library, which takes dozens of times as long."""
    if "\r" in text or "\n" in text:
        raise InvalidMessage(f"{text!r} is not a mail address: it contains a line break.")
    try:
        parsed = AddressHeader.value_parser(text)
        defects = {str(defect) for defect in parsed.all_defects} - _ACCEPTED_DEFECTS
        mailboxes = parsed.all_mailboxes
    except Exception:  # the standard library's parser raises what it likes on garbage
        raise InvalidMessage(f"{text!r} is not a mail address.") from None
    if defects:
        raise InvalidMessage(f"{text!r} is not a mail address: {'; '.join(sorted(defects))}.")
    if len(mailboxes) != 1:
        raise InvalidMessage(f"{text!r} is not a single mail address.")
    found = mailboxes[0]
    domain = _ascii_domain(found.domain or "", text)
    if not found.local_part:
        raise InvalidMessage(f"{text!r} is not a mail address.")
    return Mailbox(found.local_part, domain, found.display_name or "")


def _ascii_domain(domain: str, text: str) -> str:
    try:
        return punycode(domain)
    except UnicodeError:
        raise InvalidMessage(f"{text!r} is not a mail address: its domain is invalid.") from None
