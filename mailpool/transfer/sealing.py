"""Secrets on their way to another site: whoever has its private key opens them, and nobody else.

Each is sealed for itself: X25519 with a key pair of its own, HKDF-SHA256, AES-256-GCM. What
the secret is of, and what it is for, is associated data: moved to another row of the file, or to
another host by an edit of it, it does not open. The padding hides its length.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from mailpool.exceptions import SecretError
from mailpool.secret import Secret, SecretBytes

_VERSION = "1"
_POINT, _NONCE = 32, 12
_PADDING = PKCS7(512)  # bits: the length is told in steps of 64 bytes


def seal(secret: str, key: X25519PublicKey, context: Sequence[str]) -> str:
    """*secret* as text that opens with the private key of *key*, in the same *context* only."""
    ephemeral, nonce = X25519PrivateKey.generate(), os.urandom(_NONCE)
    point = ephemeral.public_key().public_bytes_raw()
    cipher = _cipher(ephemeral.exchange(key), point, key)
    padder = _PADDING.padder()
    padded = SecretBytes(padder.update(secret.encode()) + padder.finalize())
    body = cipher.encrypt(nonce, padded, _bound(context))
    return f"{_VERSION}${base64.urlsafe_b64encode(point + nonce + body).decode()}"


def open_sealed(sealed: str, key: X25519PrivateKey, context: Sequence[str]) -> Secret:
    """The secret. ``SecretError`` where it is of another context, or sealed for another key."""
    version, _, text = sealed.partition("$")
    try:
        data = base64.b64decode(text, altchars=b"-_", validate=True)
        point = data[:_POINT]
        if version != _VERSION:
            raise ValueError
        shared = key.exchange(X25519PublicKey.from_public_bytes(point))
        nonce, body = data[_POINT : _POINT + _NONCE], data[_POINT + _NONCE :]
        cipher = _cipher(shared, point, key.public_key())
        unpadder = _PADDING.unpadder()
        padded = SecretBytes(cipher.decrypt(nonce, body, _bound(context)))
        return Secret((unpadder.update(padded) + unpadder.finalize()).decode())
    except (InvalidTag, ValueError, binascii.Error):
        raise SecretError(
            "It does not open: it was sealed for another key, or the tenant, server, host, port, "
            "security or username of its row is another one than when it was exported. Use the "
            "private key of the pair that it was exported for, or enter the secret itself."
        ) from None


def _cipher(shared: bytes, point: bytes, key: X25519PublicKey) -> AESGCM:
    salt = point + key.public_bytes_raw()
    info = f"mailpool transfer {_VERSION}".encode()
    return AESGCM(HKDF(SHA256(), length=32, salt=salt, info=info).derive(shared))


def _bound(context: Sequence[str]) -> bytes:
    return json.dumps(["mailpool transfer", _VERSION, *context]).encode()


def key_id(key: X25519PublicKey) -> str:
    """Eight hex digits that name a pair of keys."""
    return hashlib.sha256(b"mailpool transfer key\0" + key.public_bytes_raw()).hexdigest()[:8]


def make_pair(path: str) -> str:
    """Write a new pair: the private key to *path*, for its owner alone, the public one beside it.

    The path of the latter. ``SecretError`` where one of the files exists or can't be written.
    """
    private = X25519PrivateKey.generate()
    public_path = f"{path}.pub"
    pem = SecretBytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if os.path.lexists(public_path):
        raise SecretError(f"{public_path} exists already. Choose another name.")
    try:
        write_new(path, pem)
        write_new(public_path, public)
    except FileExistsError as error:
        raise SecretError(f"{error.filename} exists already. Choose another name.") from None
    except OSError as error:
        raise SecretError(f"{error.filename} can't be written: {error.strerror}.") from None
    return public_path


def write_new(path: str, data: bytes) -> None:
    """*data* as a new file that its owner alone may read. ``OSError``, if it exists as well."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def read_private_key(path: str) -> X25519PrivateKey:
    """The key in the file. ``SecretError`` where it is none, or others may read the file."""
    try:
        with open(path, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise SecretError(
                    f"{path} can be read by others than its owner. Run 'chmod 600 {path}', and "
                    "make a new pair if somebody may have read it."
                )
            pem = SecretBytes(file.read(10_000))
    except OSError as error:
        raise SecretError(f"{path} can't be read: {error.strerror}.") from None
    key: object = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load_pem_private_key(pem, None)
    if not isinstance(key, X25519PrivateKey):
        raise SecretError(
            f"{path} is no private key for transfers. 'manage.py mailpool_generate_key "
            "--transfer FILE' makes a pair: FILE is the private key."
        )
    return key


def read_public_key(path: str) -> X25519PublicKey:
    """The key in the file. ``SecretError`` where it is none."""
    try:
        pem = SecretBytes(Path(path).read_bytes())
    except OSError as error:
        raise SecretError(f"{path} can't be read: {error.strerror}.") from None
    key: object = None
    with suppress(ValueError, UnsupportedAlgorithm):
        key = load_pem_public_key(pem)
    if not isinstance(key, X25519PublicKey):
        raise SecretError(
            f"{path} is no public key for transfers. The receiving site makes a pair with "
            "'manage.py mailpool_generate_key --transfer FILE': FILE.pub is the public key."
        )
    return key
