"""Text that came from data, made harmless for what it is printed to: a terminal, a spreadsheet.

Names of columns, labels, a study's name in a database, the text of an error in a user's code: none of them is ours.
"""

from __future__ import annotations

import csv
import io
import re
import sys
import textwrap
from collections.abc import Iterable
from typing import TextIO

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, delete, C1: a terminal obeys them
    "\u202a-\u202e\u2066-\u2069"  # turn the direction of what follows, so that a line reads as another one
    "\ud800-\udfff]"  # halves of a character, which no encoding can write
)

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection), or hides one behind."""


_IN_URL = re.compile(r"(:/{1,2}[^\s:/?@]*):\S*@")  # a path makes one slash of two
_HIDDEN = r"\w*(?:password|passwd|passw|pwd|secret)"
_IN_QUERY = re.compile(rf"(?i)[?&]?\b{_HIDDEN}=[^&\s'\"]*")


def visible(text: str) -> str:
    """The text without passwords, and with a replacement character for each that a terminal would obey, not show."""
    return _OBEYED.sub("\ufffd", without_password(text))


def without_password(text: str) -> str:
    """The text without the passwords of URLs that are in it."""
    if ":/" not in text and "=" not in text:
        return text
    return _IN_QUERY.sub("", _IN_URL.sub(r"\1@", text))


def is_secret(key: str) -> bool:
    """Whether a key of a URL is one of those that `without_password` leaves out."""
    return re.fullmatch(_HIDDEN, key, re.IGNORECASE) is not None


def say(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Print to stdout, or to `file`, what may hold anything."""
    print(visible(text), file=file or sys.stdout, end=end)


def broken(text: str, width: int) -> str:
    """The text broken between words into lines of at most `width` columns, set in after the first. Lines that are set
    in already, a command to copy or a list, stay whole, and so does a word that is longer."""
    lines = [
        line
        if line.startswith(" ")
        else textwrap.fill(line, max(width, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    ]
    return "\n".join(lines)


def csv_line(cells: Iterable[object]) -> str:
    """A line of CSV. A text that a spreadsheet would compute gets an apostrophe before it; a number stays one."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_harmless(value) for value in cells])
    return text.getvalue()


def _harmless(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value.startswith(FORMULA):
        return visible(value)
    try:
        float(value)
    except ValueError:
        return visible(f"'{value}")
    return visible(value)
