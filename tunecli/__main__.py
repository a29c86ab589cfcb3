"""`python -m tunecli` is `tunecli`."""

from tunecli.cli import main

main()
