"""Fashion-MNIST: the example's search, 40 recipes of the cnn, and its accuracy on test; against plain Optuna.

    python -m tests.benchmarks.fashion [FOLDER] [--trials 40] [--theirs 2] [--samples 60000] [--synthetic] [--write]

FOLDER has the four .gz files, and is that of Debian's package dataset-fashion-mnist unless given. Where there is none
it says so and ends; --synthetic measures on random pictures of the same shape, which say nothing about accuracy.

Ours is `tunecli search`, its start included, then `tunecli finetune`, whose first line is the test accuracy of what was
searched. Theirs is Optuna's TPE without pruning over a DataLoader of resident tensors and torch.optim, the cnn in
torch's usual layout; the seconds of its few trials, half before ours and half after, are scaled to as many as ours.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import optuna
import torch

from tests.benchmarks import results
from tests.benchmarks.plain import Split, accuracies, loaded, suggest
from tests.benchmarks.whole import Spent, timed
from tunecli.models.bundled import cnn
from tunecli.source import call
from tunecli.store import read

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
EPOCHS = 9


def random_pictures(folder: Path) -> Path:
    """Files as those of Fashion-MNIST, of noise."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        pictures, classes = draw.integers(0, 256, (count, 28, 28), np.uint8), draw.integers(0, 10, count, np.uint8)
        images = struct.pack(">4i", 2051, count, 28, 28) + pictures.tobytes()
        labels = struct.pack(">2i", 2049, count) + classes.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, 1))
    return folder


def our_search(home: Path, settings: dict[str, object]) -> tuple[Spent, float]:
    """What the search used, and the test accuracy of its best trial."""
    spent, command = Spent(), [sys.executable, "-m", "tunecli"]
    changes = [own for key, value in settings.items() for own in ("--set", f"{key}={value}")]
    search = [*command, "search", str(EXAMPLE / "fashion.toml"), "--home", str(home), "--device", "cpu", *changes]
    with timed(spent, resource.RUSAGE_CHILDREN):
        subprocess.run(search, check=True, capture_output=True)
    tuned = [*command, "finetune", "fashion", "--best", "--home", str(home), "--epochs", "1", "--format", "json"]
    said = subprocess.run(tuned, check=True, capture_output=True, text=True)
    return spent, float(json.loads(said.stdout)["before"])


class Theirs:
    """A study of plain Optuna that goes on by some trials at a time."""

    def __init__(self, folder: Path, samples: int) -> None:
        parts = call("fashion.py:load", {"folder": str(folder), "samples": samples}, EXAMPLE)
        train, validation = (
            (torch.tensor(inputs).float() / 255, torch.tensor(targets).long())
            for inputs, targets in (parts["train"], parts["validation"])
        )
        self._split, self.spent = Split(*train, *validation), Spent()
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))

    def go_on(self, trials: int) -> None:
        with timed(self.spent):
            self._study.optimize(self._objective, n_trials=trials)

    def _objective(self, trial: optuna.Trial) -> float:
        torch.manual_seed(trial.number)
        curve = accuracies(suggest(trial), self._split, loaded, cnn((1, 28, 28), 10))
        return max(next(curve) for _ in range(EPOCHS))


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=INSTALLED)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--theirs", type=int, default=2, help="trials of theirs, scaled to those of ours")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--synthetic", action="store_true")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_pictures(Path(scratch)) if given.synthetic else given.folder.resolve()
        if not (folder / "train-images-idx3-ubyte.gz").exists():
            sys.exit(f"skipped: {folder} does not have Fashion-MNIST; apt-get install dataset-fashion-mnist")
        theirs = Theirs(folder, given.samples)
        theirs.go_on(given.theirs // 2)
        home = Path(scratch) / "home"
        settings = {"data.folder": folder, "data.samples": given.samples, "search.trials": given.trials}
        ours, accuracy = our_search(home, settings)
        theirs.go_on(given.theirs - given.theirs // 2)
        seen = sum(trial.fidelity for trial in read(home / "fashion" / "study.db").trials)
    scale = given.trials / given.theirs
    cpu, wall = theirs.spent.cpu * scale, theirs.spent.wall * scale
    rows = [
        ["test accuracy", "91 %", "noise" if given.synthetic else f"{accuracy:.2%}"],
        ["the search, minutes on the wall", "60", f"{ours.wall / 60:.1f}"],
        [f"plain Optuna, minutes, {given.theirs} trials times {scale:g}", "", f"{wall / 60:.1f}"],
        ["plain Optuna over ours, on the wall", "4x", f"{wall / ours.wall:.1f}x"],
        ["plain Optuna over ours, CPU seconds", "", f"{cpu / ours.cpu:.1f}x"],
        ["epochs a trial, of 9", "", f"{seen / given.trials:.1f}"],
    ]
    how = f"""
    {given.trials} trials of up to {EPOCHS} epochs of the cnn (16, 32) on {given.samples:,} pictures, a tenth of
    them for validation, the default space, asha from the first epoch on; {os.cpu_count()} cores for either side, as
    many threads as it takes by itself.
    """
    results.show(
        f"Fashion-MNIST{', random pictures of its shape' if given.synthetic else ''}",
        how,
        results.table(["figure", "goal", "got"], rows),
        write=given.write,
        versions=("torch", "optuna"),
    )


if __name__ == "__main__":
    main()
