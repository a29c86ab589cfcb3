"""What a user's own code prints while it is called for every trial: each line once, and never among the results."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MOST_LINES = 20
"""So many different lines are passed on: a model that prints its loss would print it without end."""

MORE = f"note: what your own code prints is left out from here on, for it printed {MOST_LINES} different lines"


class Prints(io.RawIOBase):
    """What stands behind sys.stdout while a user's code runs. `say` takes each line the first time that it is printed;
    what other processes and threads print goes to stderr, for `say` is this thread's.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say, self._owner = say, os.getpid()
        self._said: set[str] = set()
        self._line = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """That of stderr, for the programs that a user's code runs."""
        return 2

    def write(self, text: Any) -> int:
        if _is_debugged():  # by breakpoint(): what it says is asked for, its prompt has no end of a line
            os.write(2, self._line + bytes(text))
            self._line = b""
            return len(text)
        *lines, self._line = (self._line + bytes(text)).split(b"\n")
        for line in lines:
            self._take(line.rstrip().rpartition(b"\r")[2].decode(errors="replace"))
        return len(text)

    def _take(self, line: str) -> None:
        if not line or line in self._said or len(self._said) > MOST_LINES:
            return
        self._said.add(line)
        shown = line if len(self._said) <= MOST_LINES else MORE
        if os.getpid() == self._owner and threading.current_thread() is threading.main_thread():
            self._say(shown)
        else:
            os.write(2, f"{shown}\n".encode())


def _is_debugged() -> bool:
    """Whether pdb, or another debugger made of bdb, goes through the user's code now."""
    bdb = sys.modules.get("bdb")
    return bdb is not None and isinstance(getattr(sys.gettrace(), "__self__", None), bdb.Bdb)


@contextmanager
def printed_once(say: Callable[[str], object]) -> Iterator[None]:
    """Have `say` take what is printed within this block, each line once; results are to be printed after it."""
    raw = Prints(say)
    before, own = sys.stdout, io.TextIOWrapper(raw, "utf-8", errors="replace", write_through=True)  # type: ignore[type-var]  # raw is enough
    sys.stdout = own
    try:
        yield
    finally:
        sys.stdout = before
        own.write("\n")  # the last line may lack its end
