"""What a person sees while a command runs, on stderr: a bar in a terminal, a line every few seconds in a pipe."""

from tunecli.live.finetune import finetune_json, print_finetuned, say_done_already, say_interrupted, show_finetune
from tunecli.live.interrupt import Interrupt
from tunecli.live.search import say_next, say_stopped, show
from tunecli.live.terminal import own_prints, progress_console

__all__ = [
    "Interrupt",
    "finetune_json",
    "own_prints",
    "print_finetuned",
    "progress_console",
    "say_done_already",
    "say_interrupted",
    "say_next",
    "say_stopped",
    "show",
    "show_finetune",
]
