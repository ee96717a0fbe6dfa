"""Keys of service accounts, as a provider hands them out, and what is wrong with them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from mailpool.secret import Secret, SecretBytes

# RS256 wants no less (RFC 7518).
LEAST_BITS = 2048

_LONGEST_EMAIL = 320

_FIELDS = ("client_email", "private_key", "token_uri")


@dataclass(frozen=True, slots=True)
class ServiceAccountKey:
    """What is needed of a key. Of a bare private key nothing else is known."""

    private_key: Secret
    """RSA, PEM."""

    email: str = ""
    token_url: str = ""


def read_key(text: Secret) -> ServiceAccountKey:
    """The key in *text*: a whole JSON key file, or a private key in PEM form.

    ``ValidationError`` says what is wrong with it, and nothing of what is in it.
    """
    text = Secret(text.strip())
    if text.startswith("-----BEGIN"):
        validate_private_key(text)
        return ServiceAccountKey(text)
    found = _parse(text)
    if not isinstance(found, dict):
        raise ValidationError(
            _(
                "Paste the service account's whole JSON key file, from { to }, or its private key "
                "in PEM form, beginning with -----BEGIN PRIVATE KEY-----."
            )
        )
    if found.get("type") != "service_account":
        raise ValidationError(
            _(
                "This is JSON, but not the key of a service account (its type is not "
                "“service_account”). At the provider, open the service account and choose “Keys”."
            )
        )
    missing = [name for name in _FIELDS if not found.get(name)]
    if missing:
        raise ValidationError(
            _("This key file is not complete. It lacks: %(fields)s."),
            params={"fields": ", ".join(missing)},
        )
    if not _is_address(found["client_email"]):
        raise ValidationError(
            _("This key file is damaged: its client_email is not the address of a service account.")
        )
    validate_private_key(found["private_key"])
    return ServiceAccountKey(
        private_key=found["private_key"],
        email=str(found["client_email"]),
        token_url=str(found["token_uri"]),
    )


def validate_private_key(key: Secret) -> None:
    """*key* is one that assertions can be signed with: RSA, PEM, without a passphrase."""
    # Errors leave without the frames of what reads the key.
    try:
        loaded = load_pem_private_key(SecretBytes(key.encode()), None)
    except TypeError:
        problem = _("The private key is protected by a passphrase. Enter one without.")
    except (ValueError, UnsupportedAlgorithm):
        problem = _(
            "The private key can't be read. Paste all of it, with its first and last line, or "
            "make a new key at the provider."
        )
    else:
        if isinstance(loaded, RSAPrivateKey) and loaded.key_size >= LEAST_BITS:
            return
        problem = _("The private key has to be an RSA key of 2048 bits or more.")
    raise ValidationError(problem)


def _is_address(text: str) -> bool:
    """Whether *text* may be one; nothing else is put into the database or shown."""
    return len(text) <= _LONGEST_EMAIL and re.fullmatch(r"[!-?A-~]+@[!-?A-~]+", text) is not None


def is_same_host(one: str, other: str) -> bool:
    """Whether both addresses are at the same host, by the same way."""
    try:
        first, second = (
            (url.scheme, url.hostname, url.port) for url in map(urlsplit, (one, other))
        )
    except ValueError:
        return False
    return first == second


def _parse(text: Secret) -> Any:
    """*text* as JSON, with nothing in it that shows itself; ``None`` if it is none."""
    try:
        return json.loads(text, object_pairs_hook=_hidden)
    except (ValueError, RecursionError):
        return None


def _hidden(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: Secret(value) for name, value in pairs if isinstance(value, str)}
