"""Keys and encryption. Knows nothing of mail.

``keyring`` holds the keys, and seals and opens secrets; ``provider`` gets keys from elsewhere;
``fields`` is the model field that uses them.
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
