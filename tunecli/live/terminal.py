"""The terminal that a command runs in: where progress goes, and the signals that ask it to stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tunecli.report.console import VisibleConsole

LINE_SECONDS = 5.0
"""How often a search that nobody watches says where it is."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks a command to stop: Ctrl-C, the system, and Slurm some time before it ends a job (--signal=USR1)."""


class _Unread(VisibleConsole):
    """A console whose reader may go: then the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def progress_console() -> VisibleConsole:
    """What goes to stderr."""
    return _Unread(stderr=True)


class Interrupt:
    """Signals that ask a search to stop: `asked` holds the first. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def __call__(self) -> bool:
        return self.asked is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 after a signal of the system: try again later."""
        return 130 if self.asked == signal.SIGINT else 75

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Catch SIGNALS within this block, which is all that a command does: after it they change nothing any more.

        What follows is Python's own end, and the exit code is that of what was done.
        """

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.asked is not None:
                raise KeyboardInterrupt
            self.asked = number

        for number in SIGNALS:
            signal.signal(number, on_signal)
        try:
            yield self
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
