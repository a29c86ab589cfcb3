"""RESULTS.md: a section a benchmark, each with what was asked, what was got, on which machine and how.

    parser = results.parser(__doc__)         # knows --write
    given = parser.parse_args()
    ...
    results.show("Title", how, results.table(["figure", "goal", "got"], rows), write=given.write)

A section is printed, and with --write put in the place of the earlier one of its title: the others stay as they are.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import __main__

RESULTS = Path(__file__).with_name("RESULTS.md")

HEAD = """# What was measured

A section a benchmark, which replaces it where it runs with --write; `make bench` does so with the quick ones. Seconds
differ from machine to machine and with what else runs there; ratios are of two sides that took turns.
"""

LOAD = os.getloadavg()[0]
"""Before the benchmark itself loads the machine: what else was at work."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark's arguments, with --write."""
    first = (description or "").partition("\n")[0]
    made = argparse.ArgumentParser(description=first)
    made.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    return made


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; its first column is text, the others are set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def show(
    title: str, *parts: str, write: bool, versions: Sequence[str] = ("torch",), command: str | None = None
) -> None:
    """Print a section of paragraphs and tables and, where asked to, keep it.

    `versions` are packages that the figures depend on. The command is the one that is running, unless given.
    """
    paragraphs = [own if own.startswith("|") else _fill(own) for own in parts]
    text = "\n\n".join([f"## {title}", *paragraphs, _fill(_origin(versions, command))])
    print(text, flush=True)
    if write:
        replace_section(RESULTS, text)


def fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def replace_section(path: Path, text: str) -> None:
    """Put a section, which begins with its heading, in the place of the one with that heading, or at the end."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    sections = {part.partition("\n")[0]: part.strip() for part in ("\n" + old).split("\n## ")[1:]}
    text = text.removeprefix("## ").strip()
    sections[text.partition("\n")[0]] = text
    path.write_text("\n## ".join([HEAD, *(f"{own}\n" for own in sections.values())]), encoding="utf-8")


def _fill(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _origin(versions: Sequence[str], command: str | None) -> str:
    found = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in versions)])
    machine = f"{processor()}, {os.cpu_count()} cores, load {LOAD:.1f} at the start"
    return f"`{command or _running()}`, {datetime.now(UTC):%Y-%m-%d}; {machine}; {found}"


def _running() -> str:
    """The command that runs this benchmark, without --write."""
    arguments = [own for own in sys.argv[1:] if own != "--write"]
    spec = getattr(__main__, "__spec__", None)
    return shlex.join(["python", "-m", spec.name if spec else Path(sys.argv[0]).stem, *arguments])


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
