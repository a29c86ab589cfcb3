"""Disks that are full or read-only, files that may not grow: the message names the path, exit 5, nothing is lost."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Question
from tests.faults.conftest import Report

ROOT = Path(__file__).parents[2]
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]

Drive = Callable[[str, int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where disks are mounted, in the driver's own namespace."""
    folder = tmp_path_factory.mktemp("disk")
    try:
        subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    return folder


@pytest.fixture(scope="module")
def drive(question: Question, disk: Path) -> Iterator[Drive]:
    """What came of a fault in each of some rounds (disks.py)."""
    asked = question(trials=6, keep=2).toml().replace(f'base = "{Path().resolve()}"\n', "")
    driver = subprocess.Popen(
        [*UNSHARE, sys.executable, "-m", "tests.faults.disks", str(disk)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "500"},
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    stdin, stdout = driver.stdin, driver.stdout

    def work(fault: str, rounds: int) -> list[dict[str, Any]]:
        stdin.write(json.dumps([fault, asked, rounds]) + "\n")
        stdin.flush()
        return [json.loads(line) for line in iter(stdout.readline, "\n")]

    yield work
    driver.communicate()


def names(end: dict[str, Any], folder: Path) -> str:
    """What of the study could not be written, by the one message."""
    assert end["code"] == 5, end
    assert "Traceback" not in end["err"], end
    message = next(line for line in end["err"].splitlines() if line.startswith("error: "))
    assert str(folder) in message, end
    assert end["err"].splitlines()[-1].startswith("hint: "), end
    return next(
        (own for own in ("study.db", "study.toml", "checkpoints", "snapshots", "lock") if own in message), message
    )


@pytest.mark.parametrize(("fault", "which"), [("a full disk", "full"), ("a limit on the size of files", "growing")])
def test_what_cannot_be_written_is_named_and_the_search_goes_on_where_it_was(
    drive: Drive, disk: Path, full: bool, report: Report, fault: str, which: str
) -> None:
    rounds = 100 if full else 2
    found = drive(which, rounds)
    assert len(found) == rounds
    named: Counter[str] = Counter()
    for own in found:
        if own["first"]["code"] != 0:
            named[names(own["first"], disk)] += 1
        assert own["again"]["code"] == 0, own
        assert own["same"], own
        # Whatever had been written can be read; where there is no study yet, that is said.
        assert own["report"]["code"] in (0, 3), own
        assert "Traceback" not in own["report"]["err"], own
    assert named
    told = ", ".join(f"{place} {count}" for place, count in named.most_common())
    report(
        f"{fault}, then the same search with room",
        f"{named.total()} of {named.total()} named a path and left with exit 5 ({told}); "
        f"{rounds} of {rounds} went on to the same trials, none of them spent",
    )


def test_a_read_only_disk_is_named_and_reports_read_it(drive: Drive, disk: Path, report: Report) -> None:
    (found,) = drive("read-only", 1)
    names(found["new"], disk)
    assert found["stopped"]["code"] in (0, 4), found
    names(found["half"], disk)
    assert found["report"]["code"] == 0, found
    assert found["ls"]["code"] == 0, found
    assert found["again"]["code"] == 0, found
    assert found["same"]
    for own in found["outputs"]:
        assert own["code"] == 5, own
        assert "error: cannot write the output: No space left on device" in own["err"], own
    report("a read-only disk, new study and half a one", "both named, exit 5; read as before, and gone on with")
