"""Keys and encryption. Knows nothing of mail.

``keyring`` holds the keys, and seals and opens secrets; ``fields`` is the model field that
uses it.
"""

from mailpool.secret import Secret
from mailpool.vault.fields import EncryptedQuerySet, EncryptedTextField
from mailpool.vault.keyring import Keyring, Sealed, generate_key, get_keyring

__all__ = [
    "EncryptedQuerySet",
    "EncryptedTextField",
    "Keyring",
    "Sealed",
    "Secret",
    "generate_key",
    "get_keyring",
]
