"""Faults at two sizes: a short selection with `make test`, all of them with `make faults`, which writes RESULTS.md."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

RESULTS = Path(__file__).with_name("RESULTS.md")

HEAD = """# What was broken on purpose, and what came of it

`make faults` writes this file.

| fault | what came of it | on |
|---|---|---|
"""

Report = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every fault, as often as the promise says; writes RESULTS.md")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full", default=False))


@pytest.fixture(scope="session")
def report(full: bool) -> Iterator[Report]:
    """Note what came of a fault. A full run puts it in the place of what an earlier one found for the same fault."""
    found: dict[str, str] = {}

    def note(fault: str, outcome: str) -> None:
        found[fault] = f"| {fault} | {outcome} | {datetime.now(UTC):%Y-%m-%d} |"

    yield note
    if full and found:
        lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.endswith(" |")}
        rows.pop("fault", None)
        RESULTS.write_text(HEAD + "".join(f"{row}\n" for row in (rows | found).values()), encoding="utf-8")
