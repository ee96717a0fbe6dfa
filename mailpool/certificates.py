"""Client certificates and their keys, as PEM: what can be seen to be wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from django.core.exceptions import ValidationError
from django.utils.formats import date_format
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool.secret import Secret, SecretBytes
from mailpool.validators import unreadable_certificate

EXPIRES_SOON = timedelta(days=30)


def validate_client_certificate(value: str) -> None:
    """PEM certificates, at least one, and no private key."""
    if "PRIVATE KEY" in value:
        raise ValidationError(
            _("This contains a private key, which has a field of its own. Enter certificates only.")
        )
    _chain(value)


def validate_pair(certificate: str, key: Secret) -> None:
    """*key* is a private key without a passphrase, and *certificate*'s first one is its own."""
    loaded = _private_key(key)
    chain = _chain(certificate)
    try:
        own = [each.public_key() == loaded.public_key() for each in chain]
    except (ValueError, UnsupportedAlgorithm):
        own = []
    if any(own[1:]):
        raise ValidationError(
            {"client_certificate": _("The key's own certificate comes first, then its chain.")}
        )
    if not any(own):
        raise ValidationError(
            {"client_key": _("This is not the key of the certificate. Enter both as they belong.")}
        )


def attention(certificate: str, within: timedelta = EXPIRES_SOON) -> str:
    """Why *certificate* is not, or only *within* that time, accepted anywhere; empty if it is."""
    try:
        own = _chain(certificate)[0]
    except ValidationError as error:
        return " ".join(error.messages)
    now = datetime.now(UTC)
    begins, ends = own.not_valid_before_utc, own.not_valid_after_utc
    if now > ends:
        text = gettext("The client certificate expired on %(day)s. Enter a new one.")
    elif now > ends - within:
        text = gettext("The client certificate expires on %(day)s. Enter a new one in time.")
    elif now < begins:
        text, ends = gettext("The client certificate is not valid before %(day)s."), begins
    else:
        return ""
    return text % {"day": date_format(ends, "DATE_FORMAT")}


def _chain(pem: str) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise ValidationError(unreadable_certificate(pem)) from None


def _private_key(key: Secret):  # type: ignore[no-untyped-def]  # any of a dozen classes
    # Errors leave without the frames of what reads the key.
    try:
        return load_pem_private_key(SecretBytes(key.encode()), None)
    except TypeError:
        problem = _(
            "This key is protected by a passphrase. Remove it with 'openssl pkey -in key.pem' and "
            "enter what that prints: it is stored encrypted."
        )
    except (ValueError, UnsupportedAlgorithm):
        problem = _(
            "Enter the private key in PEM form, beginning with -----BEGIN PRIVATE KEY-----."
        )
    raise ValidationError({"client_key": problem})
