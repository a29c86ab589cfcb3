"""`tunecli search` beside Ray Tune and Syne Tune, the same question: `make bench-peers`.

    python -m tests.benchmarks.peers.compare PYTHON [--trials 100] [--search "--workers 2"] [--write]

PYTHON is that of the environment in which the peers are installed. Each side is a command, from its start to its end,
on two cores, ours before and after each of theirs; the first of all, which builds our C, is told apart. They train by
the usual loop on tensors in memory, which is a good deal faster than a DataLoader.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import results
from tests.benchmarks.peers import save_split
from tests.benchmarks.plain import EPOCHS, MIN_TICKS, REDUCTION_FACTOR
from tests.benchmarks.whole import digits, our_search
from tunecli.trial import State

ROOT = Path(__file__).parents[3]

PEERS = {
    "Ray Tune, OptunaSearch and ASHA": "ray_tune",
    "Syne Tune, ASHA, local backend": "syne_tune_search",
}


def ours(cache: Path, trials: int, more: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Seconds, and what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        spent, record = our_search(Path(folder, "ours"), cache, trials, EPOCHS, *more)
    values = [own.value for own in record.trials if own.state is State.COMPLETE and own.value is not None]
    epochs = sum(own.fidelity for own in record.trials)
    return spent.wall, {"trials": len(record.trials), "epochs": epochs, "best": max(values)}


def theirs(python: str, module: str, trials: int) -> tuple[float, dict[str, Any]]:
    """Seconds, and what came of it, which is the last line that it prints."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # where its daemons may still be at work
        save_split(digits(), f"{folder}/digits.npz")
        quiet = {"RAY_DISABLE_IMPORT_WARNING": "1", "SYNETUNE_FOLDER": folder, "PYTHONPATH": str(ROOT)}
        command = [python, "-m", f"tests.benchmarks.peers.{module}", f"{folder}/digits.npz", str(trials), folder]
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=os.environ | quiet, capture_output=True, text=True, check=False)
        wall = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{module} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return wall, json.loads(done.stdout.strip().splitlines()[-1])


def installed(python: str) -> str:
    """The peers' versions."""
    names = "ray", "syne-tune", "optuna"
    script = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {names}), sep=', ')"
    return subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("python")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--search", default="", help="what `tunecli search` is given beside")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    more = given.search.split()
    peers = {}
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        (first, _), *found = (ours(cache, given.trials, more) for _ in range(2))
        for name, module in PEERS.items():
            peers[name] = theirs(str(Path(given.python).absolute()), module, given.trials)
            found.append(ours(cache, given.trials, more))
    seconds = statistics.median(wall for wall, _ in found)
    rows = [_row(" ".join(["tunecli search", *more]), seconds, found[0][1], seconds, "")]
    rows += [_row(name, wall, came, seconds, "20x") for name, (wall, came) in peers.items()]
    head = ["side", "wall s", "trials", "epochs", "best validation accuracy", "times ours", "goal"]
    how = f"""
    {given.trials} trials of up to {EPOCHS} epochs on digits, mlp 64-128-10, from the start of a command to its end on
    two cores. All sides: the default space (Syne Tune has no conditional hparams), asha from epoch {MIN_TICKS} with
    factor {REDUCTION_FACTOR}, the same split and L1. Peers train by the usual loop on tensors in memory, in two workers
    of one thread; Ray Tune uses its processes again, Syne Tune looks for results every 0.1 s instead of every 5. Ours
    is the median of {len(found)}, before and after each of theirs:
    {", ".join(f"{wall:.1f}" for wall, _ in found)} s; the first of all on a machine took {first:.1f} s. Installed:
    {installed(given.python)}.
    """
    results.show(f"{given.trials} trials in Ray Tune and Syne Tune", how, results.table(head, rows), write=given.write)


def _row(name: str, wall: float, came: dict[str, Any], ours_wall: float, goal: str) -> list[object]:
    ratio = f"{wall / ours_wall:.1f}x"
    return [name, f"{wall:.1f}", came["trials"], came["epochs"], f"{came['best']:.4f}", ratio, goal]


if __name__ == "__main__":
    main()
