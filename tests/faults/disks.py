"""A process that types commands on disks which cannot be written: python -m tests.faults.disks FOLDER

It is started in a namespace of its own, whose mounts go with it, and has searched once before, so that the commands,
which are forked, have loaded all there is to load. Each line of stdin is a fault and its arguments; the lines of stdout
say what came of it, up to an empty one.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401  # so that no command has to

from tests.faults.killer import warm_up
from tunecli import live  # noqa: F401
from tunecli.cli import main as tunecli
from tunecli.report import console, formats  # noqa: F401
from tunecli.store import read, writer

BASE = Path(sys.argv[1])
HOME = BASE / "studies"
FILE_SIZES = (0, 1, 300, 1500, 4096, 100_000, 130_000, 160_000, 180_000, 200_000)

Found = dict[str, Any]


def mount(*options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(BASE)], check=True)


def remount(how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(BASE)], check=True)


def unmount() -> None:
    subprocess.run(["umount", str(BASE)], check=True)


def typed(*arguments: str, most_bytes: int | None = None, stdout: str = os.devnull) -> Found:
    shown, show = os.pipe()  # no file, whose size may be limited
    child = os.fork()
    if child == 0:
        os.dup2(os.open(stdout, os.O_WRONLY), 1)
        os.dup2(show, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        sys.argv = ["tunecli", *arguments, "--home", str(HOME)]
        code: Any = 99
        try:
            tunecli()
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


def answer() -> Any:
    record = read(HOME / "tiny" / "study.db")
    trials = [[t.number, t.state, dict(t.hparams), t.value, [m.metric for m in t.curve]] for t in record.trials]
    kept = sorted(path.name for path in (HOME / "tiny" / "checkpoints").iterdir())
    return json.loads(json.dumps([trials, kept, record.kept]))


def search(**keys: Any) -> Found:
    return typed("search", str(BASE / "question.toml"), **keys)


def begin(question: str, *options: str) -> None:
    mount(*options)
    (BASE / "question.toml").write_text(question)


def whole(question: str) -> Any:
    """The answer of the search that nothing stops."""
    begin(question, "size=64m")
    assert (found := search())["code"] == 0, found
    expected = answer()
    unmount()
    return expected


def full(question: str, rounds: int) -> Iterator[Found]:
    expected = whole(question)
    for seed in range(rounds):
        begin(question, "size=1m")
        free, space = random.Random(seed).randrange(0, 400) * 1024, os.statvfs(BASE)
        filler = BASE / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(space.f_bavail * space.f_bsize - free, 1))
        first = search()
        report = typed("report", "tiny")
        filler.unlink()
        yield {"first": first, "report": report, "again": search(), "same": answer() == expected, "free": free}
        unmount()


def growing(question: str, rounds: int) -> Iterator[Found]:
    expected = whole(question)
    for seed in range(rounds):
        begin(question, "size=64m")
        most = random.Random(seed).choice(FILE_SIZES)
        first = search(most_bytes=most)
        report = typed("report", "tiny")
        yield {"first": first, "report": report, "again": search(), "same": answer() == expected, "most": most}
        unmount()


def read_only(question: str, rounds: int) -> Iterator[Found]:
    for _ in range(rounds):
        begin(question, "size=64m")
        remount("ro")
        new = search()
        remount("rw")
        assert (found := search())["code"] == 0, found
        expected = answer()
        shutil.rmtree(HOME)
        stopped = typed("search", str(BASE / "question.toml"), "--timeout", "0.02s")
        remount("ro")
        half, report, listed = search(), typed("report", "tiny"), typed("ls")
        remount("rw")
        again, same = search(), answer() == expected
        outputs = [typed("report", "tiny", "--format", own, stdout="/dev/full") for own in ("text", "json")]
        yield {"new": new, "stopped": stopped, "half": half, "report": report, "ls": listed, "again": again} | {
            "same": same,
            "outputs": outputs,
        }
        unmount()


FAULTS: dict[str, Callable[[str, int], Iterator[Found]]] = {"full": full, "growing": growing, "read-only": read_only}


def main() -> None:
    writer.GROUP_SECONDS = 0.0  # so that even a study as short as this is committed often
    warm_up()
    for line in sys.stdin:
        fault, question, rounds = json.loads(line)
        for found in FAULTS[fault](question, rounds):
            print(json.dumps(found), flush=True)
        print(flush=True)
    os._exit(0)  # to take down all that was loaded takes longer than a command


if __name__ == "__main__":
    main()
