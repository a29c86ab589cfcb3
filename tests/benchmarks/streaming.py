"""Data larger than memory: what training on a file holds, how often it reads it, how fast it is, how well it learns.

    python -m tests.benchmarks.streaming [FASHION] [--gib 4] [--limit 1] [--write]

Memory: a file of so many GiB of random bytes is trained on for one tick, by a process in a control group that may have
`limit` GiB of memory, the cache of the file included (where this user may make such a group: Linux, root), and by one
that may have all. Anonymous memory is what is no copy of a file.

Speed: 60,000 pictures of 28 x 28 bytes, in memory and in a file that the system holds in its cache, taking turns.

Quality: an mlp on 20,000 pictures of Fashion-MNIST in memory, in a file, and in a file sorted by class, in chunks of
1,000 of 256 pieces as those of a large file are. FASHION is the folder of its four .gz files, that of Debian's package
unless given.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks import results
from tests.benchmarks.fashion import EXAMPLE, INSTALLED
from tunecli.data import order
from tunecli.engine import LocalEngine, Plan
from tunecli.engine.task import make_task
from tunecli.source import call
from tunecli.study import load_data, make_study
from tunecli.trial import Run

SIDE, ROWS, ROUNDS, SEEDS, EPOCHS = 64, 4, 5, 6, 8
PLAN = Plan("rules", cap=16, block_rows=ROWS, threads=1)

CHILD = """
import json, os, re, resource, sys, threading, time
from pathlib import Path
folder, group = Path(sys.argv[1]), sys.argv[2]
if group:
    Path(group, "cgroup.procs").write_text(str(os.getpid()))

from tests.benchmarks.streaming import ROWS, engine_of

def counted(file, name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self", file).read_text()).group(1))

peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, counted("status", "RssAnon"))
        time.sleep(0.02)

began, before = time.monotonic(), counted("status", "RssAnon")
threading.Thread(target=watch, daemon=True).start()
samples, engine = engine_of(folder, ROWS)
loaded, read = time.monotonic(), counted("io", "read_bytes")
cpu = time.process_time()
engine.advance(float("inf"))
print(json.dumps({
    "before": before / 1024, "peak": peak / 1024, "load": loaded - began, "samples": samples,
    "seconds": time.monotonic() - loaded, "cpu": time.process_time() - cpu,
    "read": counted("io", "read_bytes") - read,
}))
"""


def engine_of(folder: Path, rows: int, **more: Any) -> tuple[int, LocalEngine]:
    """The training samples, and an engine with so many runs on them."""
    document = {"data": {"source": str(folder), "stream": True, **more}, "model": {"source": "linear"}}
    study = make_study(document, Path.cwd(), "own", where="a benchmark")
    task = make_task(study, load_data(study))
    engine = LocalEngine(task, PLAN)
    for trial in range(rows):
        engine.start(Run(trial, 0, {"optimizer": "sgd", "learning_rate": 1e-3, "batch_size": 16}, 9))
    return len(task.train), engine


def write_random(folder: Path, size: int) -> None:
    """A folder of .npy files, whose inputs take so many bytes."""
    folder.mkdir()
    count = size // (3 * SIDE * SIDE)
    draw = np.random.default_rng(0)
    inputs = np.lib.format.open_memmap(folder / "inputs.npy", "w+", np.uint8, (count, 3, SIDE, SIDE))
    for low in range(0, count, 4096):
        some = inputs[low : low + 4096]
        some[:] = draw.integers(0, 256, some.shape, dtype=np.uint8)
    inputs.flush()
    np.save(folder / "targets.npy", draw.integers(0, 10, count))


@contextmanager
def group(limit: int) -> Iterator[str]:
    """The folder of a control group with so many bytes of memory, "" where none can be made."""
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    own = root / ("memory" if old else "") / f"tunecli-{os.getpid()}"
    try:
        own.mkdir()
        (own / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
    except OSError:
        yield ""
        return
    try:
        yield str(own)
    finally:
        own.rmdir()


def memory(scratch: Path, gib: float, limit: float) -> str:
    """A row a limit: anonymous memory, seconds and how often the file was read from disk."""
    folder, size = scratch / "large", int(gib * 2**30)
    write_random(folder, size)
    with group(int(limit * 2**30)) as limited:
        limits = {f"{limit:g} GiB": limited, "all": ""} if limited else {"all": ""}
        rows = [[name, *_trained(folder, at, size)] for name, at in limits.items()]
    head = ["memory", "anonymous MiB after import", "at the peak", "file read", "s to load"]
    return results.table([*head, "samples a CPU s", "a second"], rows)


def _trained(folder: Path, limited: str, size: int) -> list[str]:
    """What a process of its own says of a tick, on a file that is in no cache."""
    file = os.open(folder / "inputs.npy", os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    command = [sys.executable, "-c", CHILD, str(folder), limited]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        return [f"died with code {said.returncode}: {said.stderr.strip()[-80:]}"]
    found = json.loads(said.stdout)
    taken = ROWS * found["samples"]
    memory = [f"{found['before']:.0f}", f"{found['peak']:.0f}", f"{found['read'] / size:.2f}", f"{found['load']:.1f}"]
    return [*memory, f"{taken / found['cpu']:,.0f}", f"{taken / found['seconds']:,.0f}"]


def speed(scratch: Path) -> str:
    """A row a side: CPU seconds of a tick of several runs."""
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(0, 256, (60_000, 28, 28), dtype=np.uint8), draw.integers(0, 10, 60_000)
    np.savez(scratch / "small.npz", inputs=inputs, targets=targets)
    engines = {name: engine_of(scratch / "small.npz", ROWS, stream=own)[1] for name, own in _SIDES.items()}
    spent: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(ROUNDS + 1):
        for name, engine in engines.items():
            began = time.process_time()
            engine.advance(float("inf"))
            spent[name].append(time.process_time() - began)
    medians = {name: statistics.median(own[1:]) for name, own in spent.items()}
    ratio = f"{medians['in a file'] / medians['in memory']:.2f}x"
    return results.table(
        [f"a tick of {ROWS} runs", "CPU s"], [*((n, f"{s:.2f}") for n, s in medians.items()), ("ratio", ratio)]
    )


_SIDES = {"in memory": False, "in a file": True}


def quality(scratch: Path, fashion: Path) -> str:
    """A row a side: the best validation accuracy of each seed, their mean, and how far from the first side's."""
    order.PIECE_BYTES, order.CHUNK_BYTES = 4 * 784, 1024 * 784
    inputs, targets = call("fashion.py:load", {"folder": str(fashion.absolute())}, EXAMPLE)["train"]
    inputs, targets = np.asarray(inputs[:20_000]), np.asarray(targets[:20_000])
    by_class = np.argsort(targets, kind="stable")
    np.savez(scratch / "mixed.npz", inputs=inputs, targets=targets)
    np.savez(scratch / "sorted.npz", inputs=inputs[by_class], targets=targets[by_class])
    found: dict[str, list[float]] = {}
    for name, file, stream in _QUALITY:
        for seed in range(SEEDS):
            document = {
                "seed": seed,
                "data": {"source": file, "stream": stream},
                "model": {"source": "mlp", "hidden": [32]},
            }
            study = make_study(document, scratch, "own", where="a benchmark")
            engine = LocalEngine(make_task(study, load_data(study)), Plan("rules", 64, 2, 1))
            for trial in range(2):
                engine.start(Run(trial, seed, {"optimizer": "adam", "learning_rate": 1e-3, "batch_size": 64}, EPOCHS))
            best = [
                max(own)
                for own in zip(*([m.metric for m in engine.advance(float("inf"))] for _ in range(EPOCHS)), strict=True)
            ]
            found.setdefault(name, []).append(statistics.mean(best))
    first = next(iter(found.values()))
    rows = []
    for name, own in found.items():
        apart = [a - b for a, b in zip(own, first, strict=True)]
        error = statistics.stdev(apart) / SEEDS**0.5
        rows.append([name, f"{statistics.mean(own):.4f}", f"{statistics.mean(apart):+.4f}", f"{error:.4f}"])
    return results.table(["Fashion-MNIST", "accuracy on validation", "against the first", "standard error"], rows)


_QUALITY = (
    ("in memory", "mixed.npz", False),
    ("in a file", "mixed.npz", True),
    ("sorted by class, in memory", "sorted.npz", False),
    ("sorted by class, in a file", "sorted.npz", True),
)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("fashion", nargs="?", type=Path, default=INSTALLED)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--limit", type=float, default=1.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        parts = [memory(Path(scratch), given.gib, given.limit), speed(Path(scratch))]
        if given.fashion.is_dir():
            parts.append(quality(Path(scratch), given.fashion))
    how = f"""
    {ROWS} runs in one block. The file has {given.gib:g} GiB, in samples of {3 * SIDE * SIDE} bytes; `file read` is what
    came from the disk in a tick, in times of its size: training and validation each go through it once.
    """
    results.show("Streaming: data larger than memory", how, *parts, write=given.write)


if __name__ == "__main__":
    main()
