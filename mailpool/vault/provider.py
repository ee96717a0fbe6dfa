"""Keys from elsewhere: a callable of the project gives them, and is asked seldom."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from django.utils.module_loading import import_string

from mailpool.events import event
from mailpool.exceptions import SecretError
from mailpool.secret import Secret
from mailpool.vault.keyring import Keyring

logger = logging.getLogger("mailpool.vault")

# Seconds. Keys that are older are asked for again in passing: so long after a rotation elsewhere,
# a process may go on encrypting with the key before.
REFRESH_AFTER = 300.0
# Seconds between two questions, whatever is missing: a row that nobody can decrypt, or a provider
# that is down, must not make each send ask.
PAUSE = 5.0

_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


class ProvidedKeys:
    """The keys of one provider, kept in this process. Safe to use from many threads.

    *provider* is ``MAILPOOL["KEY_PROVIDER"]``, *clock* a monotonic clock in seconds.
    """

    def __init__(self, provider: object, clock: Callable[[], float] = time.monotonic) -> None:
        self.provider = provider
        self.clock = clock
        self._keyring: Keyring | None = None
        self._failure = f"The {name_of(provider)} needs the keys that it is to provide."
        self._asked_at = float("-inf")
        self.forget_threads()

    def forget_threads(self) -> None:
        """In a forked child: whoever was asking stayed behind in the parent. The keys are kept."""
        # Reentrant: a provider that needs a key itself would wait for itself.
        self._lock = threading.RLock()
        self._asking = False

    def keyring(self, *wanted: str) -> Keyring:
        """The keys as they were last given; ``SecretError`` where they never were.

        Asks if there are none yet, if one of the key ids *wanted* is not among them, or if they
        are old. Nobody waits for the last of these but the thread that asks.
        """
        known = self._keyring
        if known is None or not {"", *known.key_ids}.issuperset(wanted):
            self._ask(PAUSE, wait=True)
        else:
            self._ask(REFRESH_AFTER, wait=False)
        if self._keyring is None:
            raise SecretError(self._failure)
        return self._keyring

    def _ask(self, pause: float, *, wait: bool) -> None:
        """Ask, unless somebody did within *pause* seconds or, without *wait*, is doing it."""
        if self._asked_within(pause) or not self._lock.acquire(blocking=wait):
            return
        try:
            if self._asking or self._asked_within(pause):
                return
            self._asking = True
            try:
                answer = _answer_of(self.provider)
            finally:
                self._asking = False
            if isinstance(answer, Keyring):
                self._keyring = answer
            else:
                self._failure = answer
            self._asked_at = self.clock()  # last: it tells other threads that there is an answer
        finally:
            self._lock.release()
        # Outside the lock: a handler may mail what it gets, and need a key for that.
        if isinstance(answer, str) and self._keyring is not None:
            logger.warning(
                "%s The keys that it gave before stay in use.",
                answer,
                extra=event("mailpool.key_provider_failed"),
            )

    def _asked_within(self, pause: float) -> bool:
        return self.clock() - self._asked_at < pause


def name_of(provider: object) -> str:
    """What errors call *provider*.

    Never its ``repr``, nor text that is no path: keys may be in both.
    """
    if isinstance(provider, str):
        name = provider if _DOTTED_PATH.fullmatch(provider) else "in MAILPOOL['KEY_PROVIDER']"
    else:
        named = provider if hasattr(provider, "__qualname__") else type(provider)
        name = f"{named.__module__}.{named.__qualname__}"
    return f"key provider {name}"


def load(provider: object) -> Callable[[], Any]:
    """The callable that *provider* is or names by its path; ``SecretError`` if there is none."""
    function, problem = provider, "can't be called"
    if isinstance(provider, str):
        try:
            function = import_string(provider)
        except Exception as error:  # a module may raise anything while it is imported
            function, problem = None, f"can't be imported: {type(error).__name__}"
    if not callable(function):
        raise SecretError(f"The {name_of(provider)} {problem}.")
    return function


def _answer_of(provider: object) -> Keyring | str:
    """Ask *provider*: its keys, or a sentence on what is wrong.

    Not an exception, which would take along the provider's own one (whose text may hold secrets)
    and the local variables of this function.
    """
    name = name_of(provider)
    try:
        function = load(provider)
    except SecretError as error:
        return str(error)
    try:
        given = function()
        is_list = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
        keys = list(given) if is_list else None
    except Exception as error:
        return (
            f"The {name} failed with {type(error).__name__}. "
            "Call it in 'manage.py shell' to see why."
        )
    if keys is None:
        return (
            f"The {name} returned {type(given).__name__} instead of a list of keys, newest first."
        )
    if not keys:
        return f"The {name} returned no keys."
    for number, key in enumerate(keys, start=1):
        if not isinstance(key, str):
            return (
                f"The {name} returned {type(key).__name__} instead of text as key number {number}."
            )
    try:
        return Keyring([Secret(key.strip()) for key in keys], f"the keys of the {name}")
    except SecretError as error:
        return f"The {name} returned keys that can't be used. {error}"


_lock = threading.Lock()
_provided: ProvidedKeys | None = None


def provided_keys(provider: object) -> ProvidedKeys:
    """What is kept for *provider*. A change of the setting begins anew."""
    global _provided
    with _lock:
        if _provided is None or _provided.provider != provider:
            _provided = ProvidedKeys(provider)
        return _provided


def _forget_parents() -> None:
    global _lock
    _lock = threading.Lock()
    if _provided is not None:
        _provided.forget_threads()


os.register_at_fork(after_in_child=_forget_parents)
