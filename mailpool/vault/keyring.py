"""AES-256-GCM under a list of keys, each secret bound to the place that it belongs to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.utils.translation import gettext as _

from mailpool import conf
from mailpool.exceptions import SecretError
from mailpool.secret import Secret, SecretBytes
from mailpool.text import is_unicode

VERSION = "1"
KEY_BYTES = 32
NONCE_BYTES = 12

# Where the id of the key stands in what is stored, counted from 1 as databases do.
KEY_ID_AT, KEY_ID_LENGTH = 3, 8

_SEALED = re.compile(r"(?P<version>1)\$(?P<key_id>[0-9a-f]{8})\$(?P<body>[A-Za-z0-9_-]{38,}=*)")


class Sealed(str):
    """An encrypted secret as the database holds it: ``version$key-id$nonce and ciphertext``."""

    __slots__ = ()

    @classmethod
    def looks_like(cls, text: str) -> bool:
        """Whether *text* has the form of a sealed secret (which says nothing of its key)."""
        return _SEALED.fullmatch(text) is not None

    @staticmethod
    def is_key_id(text: str) -> bool:
        """Whether *text* has the form of a key's id."""
        return re.fullmatch(r"[0-9a-f]{8}", text) is not None

    @property
    def key_id(self) -> str:
        """The id of the key that it was encrypted with; ``""`` where it is none of ours."""
        match = _SEALED.fullmatch(self)
        return match["key_id"] if match else ""


def generate_key() -> str:
    """A new random key: 32 bytes as URL-safe base64."""
    return base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode()


def parse_key(text: str) -> SecretBytes:
    """The 32 bytes of a key. ``ValueError`` says what is wrong, without showing the key."""
    try:
        padded = Secret(text + "=" * (-len(text) % 4))
        key = SecretBytes(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("it is not URL-safe base64") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"it has {len(key)} bytes instead of {KEY_BYTES}")
    return key


def key_id(key: bytes) -> str:
    """Eight hex digits that name a key without telling anything of it."""
    return hashlib.sha256(b"mailpool key id\0" + key).hexdigest()[:8]


class Keyring:
    """Keys, newest first: the first one encrypts, all of them decrypt.

    Raises ``SecretError`` for a key that is malformed. *source* is what errors call the keys.
    """

    def __init__(self, keys: Sequence[str], source: str = "ENCRYPTION_KEYS") -> None:
        self.source = source
        self._ciphers: dict[str, AESGCM] = {}
        for number, text in enumerate(keys, start=1):
            try:
                key = parse_key(text)
            except ValueError as error:
                raise SecretError(f"Encryption key number {number} is unusable: {error}.") from None
            self._ciphers.setdefault(key_id(key), AESGCM(key))
        self.key_ids: tuple[str, ...] = tuple(self._ciphers)

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self.key_ids) or 'empty'}>"

    @property
    def newest(self) -> str:
        """The id of the key that encrypts. ``SecretError`` where there is no key."""
        if not self.key_ids:
            raise SecretError(
                _(
                    "No encryption key is configured. Make one with 'manage.py "
                    "mailpool_generate_key' and put it into MAILPOOL['ENCRYPTION_KEYS'] or the "
                    "environment variable %(variable)s."
                )
                % {"variable": conf.KEYS_VARIABLE}
            )
        return self.key_ids[0]

    def seal(self, plaintext: str, place: str, use: str = "") -> Sealed:
        """Encrypt *plaintext* with the newest key, so that it opens only in *place* for *use*."""
        newest = self.newest
        if not is_unicode(plaintext):
            text = _("The secret for %(place)s is no Unicode text. Enter it again.")
            raise SecretError(text % {"place": place})
        nonce = os.urandom(NONCE_BYTES)
        body = self._ciphers[newest].encrypt(
            nonce, plaintext.encode(), _bound(VERSION, newest, place, use)
        )
        return Sealed(f"{VERSION}${newest}${base64.urlsafe_b64encode(nonce + body).decode()}")

    def open(self, sealed: str, place: str, use: str = "", *, meaning: str = "use") -> Secret:
        """Decrypt *sealed*; *place* and *use* are those that it was sealed for.

        ``SecretError`` where they are others, or its key is not known. *meaning* is what its text
        calls the use.
        """
        match = _SEALED.fullmatch(sealed)
        if match is None:
            text = _("The stored secret of %(place)s is damaged. Enter it again.")
            raise SecretError(text % {"place": place})
        cipher = self._ciphers.get(match["key_id"])
        if cipher is None:
            self.newest  # noqa: B018  (no key at all has a clearer error)
            raise SecretError(
                _(
                    "The secret of %(place)s was encrypted with key %(key)s, which is not among "
                    "the configured keys (%(known)s). Put that key back at the end of %(source)s, "
                    "or enter the secret again."
                )
                % {
                    "place": place,
                    "key": match["key_id"],
                    "known": ", ".join(self.key_ids),
                    "source": self.source,
                }
            )
        try:
            data = base64.urlsafe_b64decode(match["body"])
            plain = cipher.decrypt(
                data[:NONCE_BYTES],
                data[NONCE_BYTES:],
                _bound(match["version"], match["key_id"], place, use),
            )
        except (InvalidTag, binascii.Error, ValueError):
            raise SecretError(
                _(
                    "The stored secret of %(place)s does not open: it was altered, or it was "
                    "entered for another row or another %(meaning)s. Enter it again."
                )
                % {"place": place, "meaning": meaning}
            ) from None
        return Secret(plain.decode())


def _bound(version: str, key: str, place: str, use: str) -> bytes:
    """The associated data: a ciphertext is worthless in another place or for another use."""
    return f"mailpool\0{version}\0{key}\0{place}\0{use}".encode()
