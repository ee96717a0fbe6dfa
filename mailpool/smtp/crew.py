"""``Crew``: the caller's thread and helpers, working through tasks together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from mailpool.smtp.session import Session

# How long an interrupted call waits for the replies that are under way, before it cuts the
# connections: seconds.
GRACE = 2.0


class Crew:
    """Runs tasks at the same time: in helpers while the caller does something else, then in the
    caller's own thread as well, unless there are helpers enough.

    So where no thread can be started (the interpreter is shutting down, a limit, a server
    without threads) everything still gets done, one after the other. A task that uses a session
    says so with ``enter()`` and ``leave()``: an interruption of the caller waits for those, and
    ends them if that takes too long.
    """

    def __init__(self) -> None:
        # Entered is the lock: the condition's own methods are Python, and can be interrupted.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._tasks: deque[Callable[[], None]] = deque()
        self._running = 0
        self._sessions: set[Session] = set()
        self._failure: BaseException | None = None
        self._is_full = False
        self.is_stopped = False

    def start(self, tasks: Sequence[Callable[[], None]], width: int) -> None:
        """Begin with *tasks*, up to *width* at a time. A single one waits for ``finish()``."""
        self._tasks.extend(tasks)
        helpers = min(width, len(tasks))
        if helpers < 2:
            return
        try:
            for _ in range(helpers):
                threading.Thread(target=self._work, name="mailpool-send", daemon=True).start()
        except RuntimeError:
            return
        self._is_full = True

    def finish(self) -> None:
        """Do what is left of the tasks. Raises what one of them raises."""
        if not self._is_full:
            self._work(is_caller=True)
        with self._lock:
            self._changed.wait_for(lambda: not (self._running or self._tasks))
        if self._failure is not None:
            raise self._failure

    def enter(self, session: Session) -> bool:
        """Whether *session* may be used; not any more once the call was interrupted."""
        with self._lock:
            if not self.is_stopped:
                self._sessions.add(session)
            return not self.is_stopped

    def leave(self, session: Session) -> None:
        with self._lock:
            self._sessions.discard(session)
            self._changed.notify_all()

    def _work(self, *, is_caller: bool = False) -> None:
        while True:
            with self._lock:
                if self.is_stopped or not self._tasks:
                    return
                task = self._tasks.popleft()
                self._running += 1
            failure = None
            try:
                task()
            except BaseException as error:
                if is_caller:
                    raise
                failure = error
            finally:
                with self._lock:
                    self._failure = self._failure or failure
                    self._running -= 1
                    self._changed.notify_all()

    def stop(self) -> None:
        """Nobody begins another message; those under way get a moment, then are cut off."""
        with self._lock:
            self.is_stopped = True
            try:
                self._changed.wait_for(lambda: not self._sessions, GRACE)
            finally:
                for session in self._sessions:
                    session.cut()
                self._changed.wait_for(lambda: not self._sessions, GRACE)
