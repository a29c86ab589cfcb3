"""The signals that ask a command to stop, and what happens where it does not get to hear of them."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tunecli.patience import AT_ONCE_SECONDS, LEAVE_SECONDS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks a command to stop: Ctrl-C, the system, and Slurm some time before it ends a job (--signal=USR1)."""

CLOSED = 0

INTERRUPTED = "interrupted: what was recorded is kept"


class Interrupt:
    """Signals that ask a command to stop: `asked` holds the first. `again` is what to type to go on with it, as it
    stands then.

    A second one ends the process at once. So does the first where the command has not come to its end in time: it is in
    the middle of a step of the user's own model, which may take an hour. All that it goes on from is on disk then.
    """

    def __init__(self, again: str) -> None:
        self.again = again
        self.asked: int | None = None

    def __call__(self) -> bool:
        return self.asked is not None

    @property
    def exit_code(self) -> int:
        return _exit_code(self.asked)

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Catch SIGNALS within this block, which is all that a command does: after it they change nothing any more.

        What follows is Python's own end, and the exit code is that of what was done.
        """

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.asked is not None:
                raise KeyboardInterrupt
            self.asked = number

        # Python calls on_signal when what a library computes is over; it writes the signal's number to a pipe at once.
        heard, told = os.pipe()
        os.set_blocking(told, False)
        threading.Thread(target=self._watch, args=(heard,), daemon=True).start()
        for number in SIGNALS:
            signal.signal(number, on_signal)
        told_before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        try:
            yield self
        except KeyboardInterrupt:
            if self.asked is not None:  # by then all is closed, and Python's own end takes another second
                _leave(INTERRUPTED, self.again, self.exit_code)
            raise
        finally:
            signal.set_wakeup_fd(told_before)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            os.close(told)

    def _watch(self, heard: int) -> None:
        """From the first signal on, see to it that the process ends."""
        if (first := _next_signal(heard, None)) != CLOSED:
            second = _next_signal(heard, LEAVE_SECONDS)
            if second is None:
                _leave(
                    "stopped in the middle of its work: what was recorded is kept",
                    self.again,
                    _exit_code(first),
                )
            elif second != CLOSED and _next_signal(heard, AT_ONCE_SECONDS) != CLOSED:
                _leave(INTERRUPTED, self.again, _exit_code(second))
        os.close(heard)


def _exit_code(asked: int | None) -> int:
    """130 after Ctrl-C, 75 after a signal of the system: try again later."""
    return 130 if asked == signal.SIGINT else 75


def _next_signal(heard: int, seconds: float | None) -> int | None:
    """The next of SIGNALS, None where none came in time, CLOSED where nobody listens any more."""
    until = None if seconds is None else time.monotonic() + seconds
    while select.select([heard], [], [], None if until is None else max(0.0, until - time.monotonic()))[0]:
        number = int.from_bytes(os.read(heard, 1))
        if number in (CLOSED, *SIGNALS):
            return number
    return None


def _leave(what: str, again: str, code: int) -> None:
    """End the process as it is, by words that wait for no lock."""
    show_cursor = "\n\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{show_cursor}{what}\nto go on:\n  {again}\n".encode())
    os._exit(code)
