"""Disks that are full or read-only, files that may not grow: the message names the path, exit 5, nothing is lost."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Question
from tests.faults.conftest import Report

DRIVER = """
import json, os, random, resource, subprocess, sys, traceback
from pathlib import Path
# Loaded once, for all the commands to come.
import alembic.command, optuna, safetensors.torch, sqlalchemy.orm
from tunecli import data, engine, models, sampler
from tunecli.data import bundled, prepare
from tunecli.engine import task
from tunecli.cli import main
from tunecli.errors import InputError
from tunecli.search import loop
from tunecli.store import read, writer

writer.GROUP_SECONDS = 0.0  # so that even a study as short as this is committed often
base = Path(sys.argv[1])
home, filler = base / "studies", base / "filler"

def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(base)], check=True)

def typed(*arguments, most_bytes=None, stdout=None):
    shown, show = os.pipe()  # no file, whose size may be limited
    child = os.fork()
    if child == 0:
        os.dup2(os.open(stdout or os.devnull, os.O_WRONLY), 1)
        os.dup2(show, 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        sys.argv = ["tunecli", *arguments, "--home", str(home)]
        code = 99
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    os.close(show)
    with open(shown) as errors:
        text = errors.read()
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "err": text}

def answer():
    record = read(home / "tiny" / "study.db")
    trials = [[t.number, t.state, dict(t.hparams), t.value, [m.metric for m in t.curve]] for t in record.trials]
    kept = sorted(path.name for path in (home / "tiny" / "checkpoints").iterdir())
    return json.loads(json.dumps([trials, kept, record.kept]))

def begin(question):
    (base / "question.toml").write_text(question)

def search(**keys):
    return typed("search", str(base / "question.toml"), **keys)

def say(**found):
    print(json.dumps(found), flush=True)
"""

FULL = """
mount("size=64m")
question = sys.stdin.read()
begin(question)
say(**search())
expected = answer()
for seed in map(int, sys.argv[2:]):
    subprocess.run(["umount", str(base)], check=True)
    mount("size=1m")
    begin(question)
    moments = random.Random(seed)
    free = moments.randrange(0, 400) * 1024
    space = os.statvfs(base)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(space.f_bavail * space.f_bsize - free, 1))
    first = search()
    report = typed("report", "tiny")
    filler.unlink()
    again = search()
    say(first=first, report=report, again=again, same=answer() == expected, free=free)
"""

GROWING = """
question = sys.stdin.read()
mount("size=64m")
begin(question)
say(**search())
expected = answer()
for seed in map(int, sys.argv[2:]):
    subprocess.run(["umount", str(base)], check=True)
    mount("size=64m")
    begin(question)
    most = random.Random(seed).choice([0, 1, 300, 1500, 4096, 100_000, 130_000, 160_000, 180_000, 200_000])
    first = search(most_bytes=most)
    report = typed("report", "tiny")
    say(first=first, report=report, again=search(), same=answer() == expected, most=most)
"""

READ_ONLY = """
question = sys.stdin.read()
mount("size=64m")
begin(question)
def remount(how):
    subprocess.run(["mount", "-o", "remount," + how, str(base)], check=True)
remount("ro")
say(new=search())
remount("rw")
say(**search())
expected = answer()
import shutil
shutil.rmtree(home)
stopped = typed("search", str(base / "question.toml"), "--timeout", "0.02s")
remount("ro")
half, report, listed = search(), typed("report", "tiny"), typed("ls")
remount("rw")
say(stopped=stopped, half=half, report=report, ls=listed, again=search(), same=answer() == expected)
told = typed("report", "tiny", stdout="/dev/full")
say(full=told, json=typed("report", "tiny", "--format", "json", stdout="/dev/full"))
"""


def drive(script: str, question: Question, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a script says, in a namespace of its own, whose mounts go with it."""
    folder.mkdir()
    program = [sys.executable, "-c", DRIVER + script, str(folder), *arguments]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *program],
        input=question(trials=6, keep=2).toml().replace(f'base = "{Path().resolve()}"\n', ""),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "500"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module", autouse=True)
def _needs_mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("mounts")
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")


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


@pytest.mark.parametrize(("fault", "script"), [("a full disk", FULL), ("a limit on the size of files", GROWING)])
def test_what_cannot_be_written_is_named_and_the_search_goes_on_where_it_was(
    question: Question, tmp_path: Path, full: bool, report: Report, fault: str, script: str
) -> None:
    rounds = 100 if full else 2
    uninterrupted, *found = drive(script, question, tmp_path / "disk", *map(str, range(rounds)))
    assert uninterrupted["code"] == 0, uninterrupted
    assert len(found) == rounds
    named: Counter[str] = Counter()
    for own in found:
        if own["first"]["code"] != 0:
            named[names(own["first"], tmp_path / "disk")] += 1
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


def test_a_read_only_disk_is_named_and_reports_read_it(question: Question, tmp_path: Path, report: Report) -> None:
    new, whole, half, output = drive(READ_ONLY, question, tmp_path / "disk")
    names(new["new"], tmp_path / "disk")
    assert whole["code"] == 0
    assert half["stopped"]["code"] in (0, 4), half
    names(half["half"], tmp_path / "disk")
    assert half["report"]["code"] == 0, half
    assert half["ls"]["code"] == 0, half
    assert half["again"]["code"] == 0, half
    assert half["same"]
    for own in output.values():
        assert own["code"] == 5, own
        assert "error: cannot write the output: No space left on device" in own["err"], own
    report("a read-only disk, new study and half a one", "both named, exit 5; read as before, and gone on with")
