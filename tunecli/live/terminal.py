"""The terminal that a command runs in: where its progress goes."""

from __future__ import annotations

import os
import sys

from tunecli.report.console import VisibleConsole

LINE_SECONDS = 5.0
"""How often a search that nobody watches says where it is."""


class _Unread(VisibleConsole):
    """A console whose reader may go: then the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def progress_console() -> VisibleConsole:
    """What goes to stderr."""
    return _Unread(stderr=True)
