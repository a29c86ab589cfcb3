"""A checkpoint is loaded as it was written, or it is refused: whatever bits flip, wherever it is cut or killed."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import Question
from tests.faults.conftest import Report
from tunecli import checkpoint
from tunecli.errors import CheckpointError
from tunecli.search import search
from tunecli.store import load_kept, read

FILES = ("weights.safetensors", "manifest.json")


@pytest.fixture(scope="module")
def written(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose checkpoints are some kilobytes, as a search wrote them."""
    base = tmp_path_factory.mktemp("faults")
    names = [f"column {k}" for k in range(12)]
    rows = [[str((i * (k + 3)) % 17 / 4) for k in range(12)] + ["abc"[i % 3]] for i in range(90)]
    (base / "t.csv").write_text("\n".join(",".join(row) for row in [[*names, "label"], *rows]))
    study = question(
        base=base, data={"source": "t.csv", "target": "label"}, model={"source": "mlp", "hidden": [128]}, pruner="none"
    )
    list(search(study, base / "studies" / "tiny"))
    return base / "studies" / "tiny"


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "tiny")


def outcome(load: Callable[[], object], file: Path) -> str:
    try:
        load()
    except CheckpointError as error:
        named = error.message.startswith("damaged checkpoint: ") and str(file) in error.message and error.hint
        return "refused" if named else f"refused with {error.message!r}"
    except BaseException as error:
        return f"raised {error!r}"
    return "loaded"


def flips(whole: bytes, often: int, rng: random.Random) -> Iterator[bytes]:
    for _ in range(often):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


def cuts(whole: bytes, often: int, rng: random.Random) -> Iterator[bytes]:
    assert len(whole) > 1000
    for length in rng.sample(range(len(whole)), often):
        yield whole[:length]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("how", "often"), [("single bit flips", 10_000), ("cuts", 1_000)])
def test_no_flipped_bit_and_no_cut_is_ever_loaded(
    folder: Path, file: str, how: str, often: int, full: bool, report: Report
) -> None:
    record = read(folder / "study.db")
    number = min(record.kept)
    place = folder / "checkpoints" / f"trial-{number}"
    path, rng = place / file, random.Random(file + how)
    whole, expected = path.read_bytes(), checkpoint.load(place)
    damage = flips if how == "single bit flips" else cuts
    counted: Counter[str] = Counter()
    for data in damage(whole, often if full else often // 20, rng):
        path.write_bytes(data)
        # By its own hashes, as a fine-tuned one is read; and as the one that the study recorded.
        counted[outcome(lambda: checkpoint.load(place), path)] += 1
        assert outcome(lambda: load_kept(folder, record, number), path) == "refused"
    path.write_bytes(whole)
    weights, manifest = checkpoint.load(place)
    assert manifest == expected[1]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected[0].items())
    report(f"{file}: {how}", f"{counted['loaded']} wrong loads, {counted['refused']:,} of {counted.total():,} refused")
    assert counted == {"refused": often if full else often // 20}


@pytest.mark.parametrize("file", FILES)
def test_every_single_bit_of_a_small_checkpoint_counts(tmp_path: Path, file: str, full: bool, report: Report) -> None:
    place = tmp_path / "trial-0"
    checkpoint.save(place, {"w": torch.arange(3.0)}, {"trial": 0, "value": 0.5})
    whole = (place / file).read_bytes()
    bits = range(0, 8 * len(whole), 1 if full else 7)
    counted: Counter[str] = Counter()
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (place / file).write_bytes(flipped)
        counted[outcome(lambda: checkpoint.load(place), place / file)] += 1
    report(f"{file}: every single bit of a small one", f"{counted['refused']:,} of {len(bits):,} refused")
    assert counted == {"refused": len(bits)}


def test_weights_and_manifest_of_two_checkpoints_are_none(folder: Path) -> None:
    places = sorted((folder / "checkpoints").iterdir())
    assert len(places) > 1
    for first, second in permutations(places, 2):
        mixed = shutil.copytree(first, folder / "mixed")
        shutil.copy(second / "manifest.json", mixed)
        assert outcome(partial(checkpoint.load, mixed), mixed / "weights.safetensors") == "refused"
        shutil.rmtree(mixed)


# kill -9 while a checkpoint is written


def numbered(version: int) -> dict[str, Tensor]:
    # Small ones: torch copies large tensors on several threads, which a forked process does not have.
    return {f"layer{k}": torch.full((10_000,), float(version * 8 + k)) for k in range(8)}


def write_for_ever(folder: Path, first: int, acknowledge: int) -> None:
    for version in count(first):
        checkpoint.save(folder, numbered(version), {"version": version})
        os.write(acknowledge, version.to_bytes(4, "big"))


def killed(folder: Path, first: int, seconds: float) -> int:
    """Write versions from `first` on in a process that is killed after some time; returns the last that it finished."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_for_ever(folder, first, writer)
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    with os.fdopen(reader, "rb") as file:
        acknowledged = file.read()
    return int.from_bytes(acknowledged[-4:], "big") if acknowledged else first - 1


def test_a_folder_holds_a_whole_checkpoint_after_kill_9_at_any_moment(
    tmp_path: Path, full: bool, report: Report
) -> None:
    folder, rng, rounds = tmp_path / "checkpoints" / "trial-1", random.Random(0), 500 if full else 15
    checkpoint.save(folder, numbered(1), {"version": 1})
    version, interrupted, between = 1, 0, 0
    for _ in range(rounds):
        finished = killed(folder, version + 1, rng.uniform(0.0, 0.06))
        interrupted += any(own.name != "trial-1" for own in folder.parent.iterdir())
        between += not folder.exists()
        weights, manifest = checkpoint.load(folder)
        version = manifest["version"]
        assert version in (finished, finished + 1)  # the last that was acknowledged, or the one on its way, whole
        assert all(torch.equal(weights[name], tensor) for name, tensor in numbered(version).items())
    checkpoint.save(folder, numbered(version), {"version": version})
    assert [own.name for own in folder.parent.iterdir()] == ["trial-1"]
    report(
        "kill -9 while a checkpoint is written, at random moments",
        f"{rounds} of {rounds} whole, old or new; {interrupted} kills fell within a write, {between} of them between "
        "its two renames",
    )
