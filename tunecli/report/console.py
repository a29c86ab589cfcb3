"""What everything that is drawn with rich goes through."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tunecli.output import broken, visible


class VisibleConsole(Console):
    """Shows control characters in what it is given instead of sending them; its own colours and cursor are sent.

    Without markup: `--set space.optimizer=[sgd,adam]` is printed as it was typed.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a message: in a terminal broken between words, elsewhere with its lines whole."""
        self.print(broken(text, self.width) if self.is_terminal else text, style=style, soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        shown = (Segment(t if c else visible(t), style, c) for t, style, c in super().render(renderable, options))
        return shown if self.is_terminal else _trimmed(shown)


def _trimmed(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Without blanks at the ends of lines: in a terminal they fill a table up, in a file they are in the way."""
    blanks: list[Segment] = []
    for text, style, control in segments:
        if not control:
            text = re.sub(r" +(?=\n)", "", text)
        if text.startswith("\n"):
            blanks.clear()
        rest = text.rstrip(" ")
        if rest or control:
            yield from blanks
            blanks.clear()
            yield Segment(rest, style, control)
        if len(rest) < len(text):
            blanks.append(Segment(text[len(rest) :], style))
    yield from blanks
