"""Data in memory and on their way there: what bytes save, what gathering them costs, what reading ahead gains.

    python -m tests.benchmarks.memory [--write]

Pictures are 60,000 of 28 x 28 bytes in an .npz file, loaded in a process of their own. Gathering compares the same
samples kept as bytes and as float32, taking turns. Reading ahead trains an mlp on a Dataset whose items take 2 ms, once
asleep, as one that waits for a disk, and once at work, as one that decodes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks import results
from tunecli.data import Samples
from tunecli.data.scaling import BYTES, Scaling
from tunecli.engine import LOOPED, LocalEngine
from tunecli.engine.task import make_task
from tunecli.study import load_data, make_study
from tunecli.trial import Run

PICTURES, ITEMS, ROUNDS = 60_000, 400, 5

LOADING = """
import resource, sys, time
from pathlib import Path
import pandas, sklearn.model_selection, torch
from tunecli import data
import tunecli.data.npz, tunecli.data.prepare, tunecli.data.user
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
before, began = held(), time.process_time()
loaded = data.load(sys.argv[1], {}, base=Path(sys.argv[2]), seed=0)
seconds = time.process_time() - began
print(held() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before, seconds)
"""


def loading(folder: Path) -> str:
    """A row a kind of file: MiB held and at the peak beyond the imports', and seconds."""
    draw = np.random.default_rng(0)
    pictures, classes = draw.integers(0, 256, (PICTURES, 28, 28), dtype=np.uint8), draw.integers(0, 10, PICTURES)
    rows = []
    for kind in ("uint8", "float32"):
        np.savez(folder / f"{kind}.npz", inputs=pictures.astype(kind), targets=classes)
        command = [sys.executable, "-c", LOADING, f"{kind}.npz", str(folder)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        held, peak, seconds = map(float, said)
        rows.append([kind, f"{held:.0f}", f"{peak:.0f}", f"{seconds:.2f}"])
    return results.table(["60,000 x 28 x 28 as", "MiB held", "MiB at the peak", "CPU s to load"], rows)


def gathering() -> str:
    """A row a shape of index: microseconds a sample of each kind."""
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (48_000, 28, 28), dtype=torch.uint8, generator=draw)
    targets = torch.zeros(len(pictures), dtype=torch.int64)
    sides = {
        "uint8": Samples(pictures, targets, scaling=Scaling.of(BYTES)),
        "float32": Samples(pictures.float() / 255, targets),
    }
    rows = []
    for shape in ((64,), (256,), (16, 16), (32, 64)):
        wanted = [torch.randint(0, len(pictures), shape, generator=draw) for _ in range(100)]
        found: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS + 1):
            for name, samples in sides.items():
                began = time.process_time()
                for _ in samples.stream(wanted):
                    pass
                found[name].append((time.process_time() - began) / 100 / wanted[0].numel() * 1e6)
        each = [statistics.median(own[1:]) for own in found.values()]
        rows.append([" x ".join(map(str, shape)), *(f"{own:.2f}" for own in each), f"{each[1] / each[0]:.2f}x"])
    return results.table(["index", "uint8, us a sample", "float32, us a sample", "float32 over uint8"], rows)


DATASET = """
import time
import torch

class Slow(torch.utils.data.Dataset):
    targets = [0, 1] * {items}

    def __len__(self):
        return {items}

    def __getitem__(self, number):
        end = time.perf_counter() + 0.002
        time.sleep(0.002) if {asleep} else None
        while time.perf_counter() < end:
            pass
        return torch.full((16,), float(number)), number % 2

def load():
    return Slow()
"""


def reading_ahead(folder: Path) -> str:
    """A row a kind of item: seconds on the wall for an epoch with 0, 1, 2 and 4 processes."""
    counts, rows = (0, 1, 2, 4), []
    for asleep in (True, False):
        (own := folder / str(asleep)).mkdir()
        (own / "own.py").write_text(DATASET.format(items=ITEMS, asleep=asleep))
        engines = []
        for workers in counts:
            document = {"data": {"source": "own.py:load", "workers": workers}, "model": {"source": "linear"}}
            study = make_study(document, own, "own", where="a benchmark")
            engine = LocalEngine(make_task(study, load_data(study)), LOOPED)
            engine.start(Run(0, 0, {"optimizer": "sgd", "learning_rate": 0.01, "batch_size": 16}, 100))
            engines.append(engine)
        seconds: list[list[float]] = [[] for _ in counts]
        for _ in range(ROUNDS + 1):
            for engine, spent in zip(engines, seconds, strict=True):
                began = time.monotonic()
                engine.advance(float("inf"))
                spent.append(time.monotonic() - began)
        medians = [statistics.median(spent[1:]) for spent in seconds]
        gained = " / ".join(f"{medians[0] / own:.1f}x" for own in medians[1:])
        rows.append(["asleep" if asleep else "at work", *(f"{own:.2f}" for own in medians), gained])
    return results.table(["items", *(f"{own} workers, s" for own in counts), "gained by 1 / 2 / 4"], rows)


def main() -> None:
    given = results.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        loaded = loading(Path(scratch))
        ahead = reading_ahead(Path(scratch))
    how = f"""
    An epoch of {ITEMS} items of 2 ms each, a tenth of them for validation, is {ITEMS * 0.9 * 0.002:.2f} s of reading in
    one process; asleep they gain by any number of processes, at work by as many as there are cores
    ({os.cpu_count()} here).
    """
    results.show("Memory: bytes, gathering, reading ahead", loaded, gathering(), how, ahead, write=given.write)


if __name__ == "__main__":
    main()
