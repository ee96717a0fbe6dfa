"""Which keys are in force: the settings', the environment's or a provider's."""

from __future__ import annotations

from functools import lru_cache

from mailpool import conf
from mailpool.exceptions import SecretError
from mailpool.vault.keyring import Keyring
from mailpool.vault.provider import provided_keys


@lru_cache(maxsize=8)
def _keyring(keys: tuple[str, ...]) -> Keyring:
    return Keyring(keys)


def get_keyring(*wanted: str) -> Keyring:
    """The keyring of the current settings. ``SecretError`` for keys that can't be used.

    *wanted* are ids of keys that secrets are under: a key provider whose keys lack one of them is
    asked again.
    """
    if conf.get("KEY_PROVIDER") is not None:
        if conf.get("ENCRYPTION_KEYS") is not None:
            raise SecretError(
                "MAILPOOL has both KEY_PROVIDER and ENCRYPTION_KEYS. Remove ENCRYPTION_KEYS, once "
                "the provider returns its keys too."
            )
        # No local variable: a debug page would show it, and what is in it by mistake may be a key.
        return provided_keys(conf.get("KEY_PROVIDER")).keyring(*wanted)
    try:
        return _keyring(conf.encryption_keys())
    except OSError as error:
        raise SecretError(
            f"The file that {conf.KEYS_VARIABLE}_FILE names can't be read: {error.strerror}."
        ) from None
