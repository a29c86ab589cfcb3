"""The terminal that a command runs in: where its progress goes."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from functools import partial

from tunecli.prints import printed_once
from tunecli.report.console import VisibleConsole

LINE_SECONDS = 5.0
"""How often a search that nobody watches says where it is."""


ECHOED = len("^C")
"""What a terminal writes at the end of the last line where Ctrl-C is typed: a line without room for it becomes two, of
which one is never erased."""


class _Unread(VisibleConsole):
    """A console whose reader may go: then the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def own_prints(console: VisibleConsole) -> AbstractContextManager[None]:
    """Within it a user's own code is called: what that prints is shown here, each line once."""
    return printed_once(partial(console.print, soft_wrap=True))


def progress_console() -> VisibleConsole:
    """What goes to stderr."""
    return _Unread(stderr=True)
