"""How commands get on with their terminal, pipe or file; knows nothing of models."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from django.core.management.base import BaseCommand

INTERRUPTED = 130  # what shells make of a process that Ctrl-C ended
NOT_READ = 141  # and of one that nobody reads any more, as with "| head -1"


class TerminalCommand(BaseCommand):
    """On the command line, Ctrl-C and an output that can't be written are no tracebacks.

    Who calls the command from Python gets what Python raises.
    """

    interrupted = "Interrupted."
    """What to say then: of what there is already, and how to go on."""

    escapes = True
    """Whether characters that the output can't have are escaped; else that is an error."""

    def __init__(self, stdout: Any = None, stderr: Any = None, **kwargs: Any) -> None:
        # Where these are closed, Python has none.
        stdout = stdout or sys.stdout or io.StringIO()
        super().__init__(stdout, stderr or sys.stderr or io.StringIO(), **kwargs)

    def run_from_argv(self, argv: list[str]) -> None:
        if self.escapes and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            try:
                super().run_from_argv(argv)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # or the interpreter does, and complains by itself
        except KeyboardInterrupt:
            self._end(f"\n{self.interrupted}", INTERRUPTED)
        except BrokenPipeError:
            write_nowhere()
            sys.exit(NOT_READ)
        except UnicodeEncodeError as error:
            char = ascii(error.object[error.start])
            self._end(f"The output is in {error.encoding}, which has no {char}.", 1)
        except OSError as error:
            if "--traceback" in argv:
                raise
            write_nowhere()
            self._end(f"{error.strerror or error}.", 1)

    def _end(self, text: str, status: int) -> None:
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
        sys.exit(status)


def write_nowhere() -> None:
    """What is left of the output, the interpreter would try to write at its end, and complain."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
