"""`python -m tunecli` is `tunecli`."""

from tunecli.cli import run

run()
