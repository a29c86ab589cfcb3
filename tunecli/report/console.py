"""What everything that is drawn with rich goes through."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tunecli.output import broken, visible


class VisibleConsole(Console):
    """Shows control characters in what it is given instead of sending them; its own colours and cursor are sent.

    Without markup: `--set space.optimizer=[sgd,adam]` is printed as it was typed.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def say(self, text: str) -> None:
        """Print a message: in a terminal broken between words, elsewhere with its lines whole."""
        self.print(broken(text, self.width) if self.is_terminal else text, soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)
