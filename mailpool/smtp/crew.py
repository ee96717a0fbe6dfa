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
    """Runs tasks at the same time, the caller's own thread among the workers.

    So where no thread can be started (the interpreter is shutting down, a limit, a server
    without threads) everything still gets done, one after the other. A task that uses a session
    says so with ``enter()`` and ``leave()``: an interruption of the caller waits for those, and
    ends them if that takes too long.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tasks: deque[Callable[[], None]] = deque()
        self._running = 0
        self._sessions: set[Session] = set()
        self._failure: BaseException | None = None
        self.is_stopped = False

    def run(self, tasks: Sequence[Callable[[], None]], width: int) -> None:
        """Do all *tasks*, up to *width* at a time. Raises what one of them raises."""
        self._tasks.extend(tasks)
        try:
            for _ in range(min(width, len(tasks)) - 1):
                try:
                    threading.Thread(target=self._help, name="mailpool-send", daemon=True).start()
                except RuntimeError:
                    break
            self._work()
            with self._changed:
                self._changed.wait_for(lambda: not self._running)
        except BaseException:
            self._stop()
            raise
        if self._failure is not None:
            raise self._failure

    def enter(self, session: Session) -> bool:
        """Whether *session* may be used; not any more once the call was interrupted."""
        with self._changed:
            if not self.is_stopped:
                self._sessions.add(session)
            return not self.is_stopped

    def leave(self, session: Session) -> None:
        with self._changed:
            self._sessions.discard(session)
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                if self.is_stopped or not self._tasks:
                    return
                task = self._tasks.popleft()
                self._running += 1
            try:
                task()
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def _help(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failure = error

    def _stop(self) -> None:
        """Nobody begins another message; those under way get a moment, then are cut off."""
        with self._changed:
            self.is_stopped = True
            try:
                self._changed.wait_for(lambda: not self._sessions, GRACE)
            finally:
                for session in self._sessions:
                    session.cut()
                self._changed.wait_for(lambda: not self._sessions, GRACE)
