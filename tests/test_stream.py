"""Data that stay in their files: the order they are read in, and that a run's result is its own."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import examples
from tunecli import data
from tunecli.data import Data, Samples, mapped, order
from tunecli.data.order import Chunked
from tunecli.engine import LOOPED, LocalEngine, Plan, epoch
from tunecli.engine.task import Task, make_task
from tunecli.errors import DataError, InputError
from tunecli.search import search
from tunecli.store import read
from tunecli.study import Study, load_data
from tunecli.trial import Measurement, Run

ROWS, CLASSES = 600, 3
RULES = Plan("rules", cap=16, block_rows=8, threads=1)


def write(folder: Path, *, sort: bool = False, dtype: str = "float32", name: str = "t") -> Path:
    """A .npz file of blobs, one a class, sorted by class or not."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, ROWS)
    y = np.sort(y) if sort else y
    x = draw.normal(100 + 20 * y[:, None], 20, (ROWS, 8)).astype(dtype)
    np.savez(folder / f"{name}.npz", inputs=x, targets=y)
    return folder / f"{name}.npz"


def load(path: Path, **options: Any) -> Data:
    return data.load(path.name, {}, base=path.parent, seed=0, **options)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 of these samples, in pieces of 4."""
    monkeypatch.setattr(order, "PIECE_BYTES", 4 * 32)
    monkeypatch.setattr(order, "CHUNK_BYTES", 64 * 32)
    monkeypatch.setattr(order, "LEAST_PIECES", 4)


# The order.


@examples(60)
@given(
    samples=st.integers(1, 500),
    length=st.integers(1, 20),
    width=st.integers(1, 12),
    seed=st.integers(0, 2**62),
    cuts=st.lists(st.integers(0, 500), max_size=5),
)
def test_an_epoch_has_every_sample_once_however_it_is_asked_for(
    samples: int, length: int, width: int, seed: int, cuts: list[int]
) -> None:
    chunked = Chunked(samples, length, width, seed=3)
    whole = chunked.order(seed)(0, samples)
    assert torch.equal(whole.sort().values, torch.arange(samples))
    bounds = sorted({0, samples, *(cut for cut in cuts if cut < samples)})
    for places in (list(pairwise(bounds)), list(pairwise(bounds))[::-1]):
        part = chunked.order(seed)
        for low, high in places:
            assert torch.equal(part(low, high), whole[low:high])


def test_runs_that_train_side_by_side_read_the_same_two_chunks() -> None:
    chunked = Chunked(10_000, length=10, width=20, seed=0)
    shared = torch.full((10_000,), -1)  # the chunk of each sample in the order of the study, by a run from its start
    first = chunked.order(0)(0, 10_000)
    for number, chunk in enumerate(first.split(200)):
        shared[chunk] = number
    for seed in range(1, 40):
        order_ = chunked.order(seed)(0, 10_000)
        for number, chunk in enumerate(order_[:-200].split(200)):
            assert set(shared[chunk].tolist()) <= {number, number + 1}
    starts = {tuple(sorted(chunked.order(seed)(0, 200).tolist())) for seed in range(40)}
    assert len(starts) == 20, "and begin at places of their own"
    assert not torch.equal(chunked.order(1)(0, 200), chunked.order(21)(0, 200)), "each shuffled by itself"


@pytest.mark.parametrize("seed", range(3))
def test_each_chunk_of_a_file_sorted_by_class_has_every_class_in_its_share(seed: int) -> None:
    chunked = Chunked.of(200_000, 784, seed)
    classes = torch.arange(200_000) * 10 // 200_000
    for start in (0, 17, 150):
        for chunk in chunked.order(start)(0, 200_000).chunk(3):
            counts = torch.bincount(classes[chunk], minlength=10) / len(chunk)
            assert 0.09 - 0.03 * bool(start) < float(counts.min())
            assert float(counts.max()) < 0.11 + 0.03 * bool(start)


def test_what_fits_a_chunk_is_read_in_the_order_of_samples_in_memory() -> None:
    whole = torch.randperm(500, generator=torch.Generator().manual_seed(9))
    assert torch.equal(Chunked.of(500, 784, seed=5).order(9)(0, 500), whole)


# The samples are those of the same data in memory.


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16", ">f4"])
def test_samples_in_a_file_are_those_in_memory(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, dtype=dtype)
    held, streamed = load(path), load(path, stream=True)
    assert (held.streamed, streamed.streamed) == (False, True)
    assert streamed.notices == ("t: inputs of 0 MiB stay in their file, read in chunks that each trial shuffles",)
    assert json.loads(json.dumps(held.preprocessing)) == json.loads(json.dumps(streamed.preprocessing))
    index = torch.tensor([[3, 1], [0, 40]])
    for name in ("train", "validation", "test"):
        one, other = getattr(held, name), getattr(streamed, name)
        for wanted in (index, slice(None), slice(10, 20)):
            assert torch.equal(one.take(wanted).inputs, other.take(wanted).inputs)
            assert torch.equal(one.take(wanted).targets, other.take(wanted).targets)
    both = held.train.join(held.validation), streamed.train.join(streamed.validation)  # type: ignore[arg-type]
    sent = pickle.loads(pickle.dumps(both[1]))  # as to a worker process, which opens the file itself
    assert torch.equal(both[0].take(slice(None)).inputs, sent.take(slice(None)).inputs)  # type: ignore[arg-type]


def test_arrays_come_in_parts_and_as_a_folder_of_npy_files(tmp_path: Path) -> None:
    x, y = np.arange(60 * 16, dtype=np.uint8).reshape(60, 4, 4), np.arange(60) % 3
    cuts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
    arrays = {f"{name}_{part}": own[rows] for part, rows in cuts.items() for name, own in (("x", x), ("y", y))}
    np.savez(tmp_path / "t.npz", **arrays)
    (tmp_path / "t").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "t" / f"{name}.npy", array)
    held = load(tmp_path / "t.npz")
    for path, stream in ((tmp_path / "t.npz", True), (tmp_path / "t", True), (tmp_path / "t", False)):
        found = load(path, stream=stream)
        joined = found.train.join(found.validation)  # type: ignore[arg-type]
        assert torch.equal(
            joined.take(torch.tensor([45, 2])).inputs,
            held.train.join(held.validation).take(torch.tensor([45, 2])).inputs,
        )  # type: ignore[arg-type]
        assert torch.equal(found.test.take(slice(None)).inputs, held.test.take(slice(None)).inputs)


def test_a_function_may_return_inputs_that_are_memory_mapped(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", draw.normal(size=(100, 4)))
    (tmp_path / "own.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        "def load(mode=None):\n"
        "    a, b = (np.load(Path(__file__).parent / f'{n}.npy', mmap_mode=mode) for n in 'ab')\n"
        "    return {'a': a, 'b': b[:, :]}, np.arange(100) % 2\n"
    )
    source = "own.py:load"
    held = data.load(source, {}, base=tmp_path, seed=0)
    found = data.load(source, {"mode": "r"}, base=tmp_path, seed=0, stream=True)
    assert found.streamed
    one, other = (own.train.take(torch.tensor([7, 3])).inputs for own in (held, found))
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    assert all(torch.equal(one[name], other[name]) for name in "ab")
    with pytest.raises(DataError, match=r"data.stream = true needs inputs that are memory-mapped"):
        data.load(source, {}, base=tmp_path, seed=0, stream=True)


# What a run gives is its own.


def task_of(path: Path, question: Callable[..., Study], **options: Any) -> Task:
    study = question(base=path.parent, data={"source": path.name, **options}, space={"batch_size": [4]})
    return make_task(study, load_data(study))


def run_of(trial: int, **more: Any) -> Run:
    hparams = {"optimizer": "adam", "learning_rate": 0.01, "batch_size": [4, 7, 16, 64, "full"][trial % 5], **more}
    return Run(trial, 5, hparams, 4)


def curves(task: Task, plan: Plan, runs: list[Run], ticks: int = 2) -> dict[int, list[str]]:
    engine = LocalEngine(task, plan)
    found: dict[int, list[str]] = {}
    for run in runs:
        engine.start(run)
    for _ in range(ticks):
        seen = 0
        while seen < len(runs):
            for own in engine.advance(float("inf")):
                found.setdefault(own.trial, []).append(shown(own))
                seen += 1
    for run in runs:
        weights = engine.weights(run)
        found[run.trial].append(b"".join(weights[name].numpy().tobytes() for name in sorted(weights)).hex())
    return found


def shown(own: Measurement) -> str:
    return repr((own.fidelity, own.train_loss, own.validation_loss, own.metric, own.gradient_norm, own.failure))


@pytest.mark.parametrize("plan", [RULES, LOOPED], ids=["rules", "looped"])
def test_within_a_chunk_a_run_has_the_bits_of_one_on_data_in_memory(
    tmp_path: Path, question: Callable[..., Study], plan: Plan
) -> None:
    path = write(tmp_path)
    runs = [run_of(trial) for trial in range(5)]
    held, streamed = (curves(task_of(path, question, stream=own), plan, runs) for own in (False, True))
    assert held == streamed


@pytest.mark.parametrize("plan", [RULES, LOOPED], ids=["rules", "looped"])
def test_a_batch_larger_than_what_is_evaluated_at_once_is_read_in_micro_batches(
    tmp_path: Path, question: Callable[..., Study], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "EVALUATION_SAMPLES", 128)
    task = task_of(write(tmp_path), question, stream=True)
    found = curves(task, plan, [run_of(0, batch_size=16), run_of(1, batch_size="full")])
    assert all("None)" in own for curve in found.values() for own in curve[:-1])  # none failed


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("plan", [RULES, LOOPED], ids=["rules", "looped"])
def test_a_run_on_data_in_a_file_is_bitwise_the_same_alone_and_beside_any_neighbours(
    tmp_path: Path, question: Callable[..., Study], plan: Plan
) -> None:
    task = task_of(write(tmp_path), question, stream=True)
    assert isinstance(task.train, Samples)
    assert task.train.chunked == replace(task.train.chunked, samples=480, length=4, width=16)  # type: ignore[type-var]
    runs = [run_of(trial) for trial in range(10)]
    together = curves(task, plan, runs)
    for run in runs[2:5]:
        assert curves(task, plan, [run])[run.trial] == together[run.trial]


@pytest.mark.usefixtures("_small")
def test_a_run_on_data_in_a_file_goes_on_in_the_middle_of_an_epoch(
    tmp_path: Path, question: Callable[..., Study]
) -> None:
    task, run = task_of(write(tmp_path), question, stream=True), run_of(0)
    whole = curves(task, RULES, [run], ticks=1)[0]
    engine = LocalEngine(task, RULES)
    engine.start(run)
    for _ in range(50):
        assert engine.advance(0.0) == []
    snapshot = engine.snapshot(run)
    assert snapshot is not None
    later = LocalEngine(task, RULES)
    later.restore(run, snapshot)
    assert [shown(own) for own in later.advance(float("inf"))] == whole[:1]


# Which data stream, and that this belongs to the study.


def test_large_data_stream_and_a_study_keeps_to_it(
    tmp_path: Path, question: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)

    def asked(trials: int, **more: Any) -> Study:
        return question(base=tmp_path, data={"source": path.name, **more}, trials=trials, window=2)

    size = ROWS * 8 * 4
    monkeypatch.setattr(mapped, "_memory", lambda: 4 * size)
    assert not load(path).streamed
    monkeypatch.setattr(mapped, "_memory", lambda: 4 * size - 4)
    assert load(path).streamed
    list(search(asked(2), tmp_path / "s"))
    assert "stream = true" in (tmp_path / "s" / "study.toml").read_text()
    monkeypatch.undo()
    list(search(asked(4), tmp_path / "s"))
    assert len(read(tmp_path / "s" / "study.db").trials) == 4
    with pytest.raises(InputError, match=r"data\.stream: true -> false") as refused:
        list(search(asked(6, stream=False), tmp_path / "s"))
    assert "--set data.stream=true goes on with it" in str(refused.value.hint)
    list(search(asked(2), tmp_path / "held"))
    monkeypatch.setattr(mapped, "_memory", lambda: size)
    list(search(asked(3), tmp_path / "held"))  # begun in memory, and kept there
    assert len(read(tmp_path / "held" / "study.db").trials) == 3


def test_workers_open_the_file_themselves_and_give_the_same_trials(
    tmp_path: Path, question: Callable[..., Study]
) -> None:
    path = write(tmp_path)
    study = question(base=tmp_path, data={"source": path.name, "stream": True}, trials=4, window=4)
    values = []
    for workers in (1, 2):
        list(search(study, tmp_path / str(workers), workers=workers))
        values.append([trial.value for trial in read(tmp_path / str(workers) / "study.db").trials])
    assert values[0] == values[1]


def test_compressed_arrays_cannot_stream_which_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "t.npz", inputs=np.ones((60, 4)) * np.arange(4), targets=np.arange(60) % 2)
    with pytest.raises(DataError, match=r"data.stream = true, but t.npz is compressed") as refused:
        load(tmp_path / "t.npz", stream=True)
    assert "np.savez " in str(refused.value.hint)
    monkeypatch.setattr(mapped, "_memory", lambda: 100)
    found = load(tmp_path / "t.npz")
    assert not found.streamed
    assert "read into memory" in found.notices[0]


@pytest.mark.parametrize("size", [0, 20, 300])
def test_a_damaged_npy_file_is_one_clear_line(tmp_path: Path, size: int) -> None:
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t" / "targets.npy", np.arange(60) % 2)
    np.save(tmp_path / "t" / "inputs.npy", np.ones((60, 4)))
    whole = (tmp_path / "t" / "inputs.npy").read_bytes()
    (tmp_path / "t" / "inputs.npy").write_bytes(whole[:size])
    for stream in (None, True):
        with pytest.raises(DataError, match="cannot be read: "):
            load(tmp_path / "t", stream=stream)


def test_a_nan_in_a_file_is_found(tmp_path: Path) -> None:
    x = np.ones((60, 4), dtype=np.float32) * np.arange(4)
    x[7, 2] = np.nan
    np.savez(tmp_path / "t.npz", inputs=x, targets=np.arange(60) % 2)
    with pytest.raises(DataError, match="NaN or an infinity in the inputs of 1 sample for"):
        load(tmp_path / "t.npz", stream=True)
