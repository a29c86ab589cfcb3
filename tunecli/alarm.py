"""A limit on the time that a user's own code may take, however deep in it Python is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Overdue(BaseException):
    """The time is up. No Exception, so that a loop around `except Exception` does not go on for ever."""


def overdue(seconds: float | None) -> str:
    """Why a trial failed that took longer."""
    return f"it took more than {seconds:g} second{'' if seconds == 1 else 's'}, the search.trial_timeout"


_held = 0
"""Blocks that hold Overdue back, one in another."""

_missed = False
"""Whether the time went up in one of them."""


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise Overdue within this block once `seconds` are over; again each second, should it be caught there.

    It reaches Python code, and what waits or sleeps; what a library computes is waited for. None is no limit, and a
    thread beside the main one has none: signals do not reach it.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    global _missed
    within = True

    def on_alarm(number: int, frame: FrameType | None) -> None:
        global _missed
        if within and _held:
            _missed = True
        elif within:
            raise Overdue

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
        yield
    finally:
        within = _missed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def held() -> Iterator[None]:
    """Hold Overdue back to the end of this block, which must be short and would leave half of something behind.

    In Python, since a signal that only this thread blocks is handed to another one.
    """
    global _held, _missed
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _missed and not _held:
        _missed = False
        raise Overdue
