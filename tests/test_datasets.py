"""Torch Datasets and DataLoaders, dicts and several inputs, from a user's function to a trained trial."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tunecli import data
from tunecli.alarm import Overdue, limited
from tunecli.data import Data, Samples
from tunecli.data.items import Items
from tunecli.data.readers import Readers
from tunecli.engine import LOOPED, LocalEngine, Plan
from tunecli.engine.task import make_task
from tunecli.errors import DataError, SourceError
from tunecli.source import load_function
from tunecli.study import Study, load_data, make_study
from tunecli.trial import Measurement, Run

Command = Callable[..., Any]

OWN = """
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Pairs(Dataset):
    "Not plain tensors: every item is made when it is asked for."

    def __init__(self, low=0, high=60):
        self.low, self.high = low, high

    def __len__(self):
        return self.high - self.low

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        return X[self.low + index], int(Y[self.low + index])


class Dicts(Pairs):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return {"left": x[:2], "right": x[2:], "label": y}


class Noisy(Pairs):
    "Draws from all three generators."

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(4) * random.random() * float(np.random.rand()), y


class Two(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(2, 6), nn.Linear(2, 6), nn.Linear(6, outputs)

    def forward(self, left, right):
        return self.head((self.left(left) + self.right(right)).tanh())


def make():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
"""


def study_of(folder: Path, body: str, *, model: str = "make", **more: Any) -> Study:
    """A study whose data function has this body; the other keywords are keys of [data], and [train] whole."""
    for name in [name for name in sys.modules if name.startswith("tunecli_user_")]:
        del sys.modules[name]  # a file is loaded once in a process
    (folder / "own.py").write_text(OWN + f"\n\ndef load():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n")
    document: dict[str, Any] = {
        "train": {"epochs": 2} | more.pop("train", {}),
        "data": {"source": "own.py:load"} | more,
        "model": {"source": f"own.py:{model}"},
    }
    return make_study(document, folder, "own", where="a test")


def loaded(folder: Path, body: str, **more: Any) -> Data:
    return load_data(study_of(folder, body, **more))


def train(study: Study, *trials: int, plan: Plan = LOOPED, batch_size: int | str = 16) -> list[list[Measurement]]:
    engine = LocalEngine(make_task(study, load_data(study)), plan)
    hparams = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": batch_size}
    for trial in trials:
        engine.start(Run(trial, 7, hparams, 2))
    found = [sorted(engine.advance(time.monotonic() + 600), key=lambda own: own.trial) for _ in range(2)]
    return [list(own) for own in zip(*found, strict=True)]


def shown(curves: list[list[Measurement]]) -> list[tuple[float, ...]]:
    return [(o.train_loss, o.validation_loss, o.metric, o.gradient_norm) for curve in curves for o in curve]


# Tensors in other shapes.


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ("return (X[:, :2], X[:, 2:]), Y", "Two"),
        ("return {'left': X[:, :2], 'right': X[:, 2:]}, Y", "Two"),
        ("return {'right': X[:, 2:], 'y': Y, 'left': X[:, :2]}", "Two"),
        ("return TensorDataset(X[:, :2], X[:, 2:], Y)", "Two"),
        ("return X, Y[:, None]", "make"),
        ("return X.numpy(), Y.numpy()", "make"),
        ("return TensorDataset(X, Y)", "make"),
        ("return Subset(TensorDataset(X.flip(0), Y.flip(0)), range(59, -1, -1))", "make"),
        ("return DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)", "make"),
    ],
)
def test_whatever_holds_the_same_tensors_trains_alike(tmp_path: Path, body: str, model: str) -> None:
    expected = shown(train(study_of(tmp_path, "return X, Y"), 0, 1))
    (tmp_path / "other").mkdir()
    study = study_of(tmp_path / "other", body, model=model)
    if model == "make":
        assert shown(train(study, 0, 1)) == expected
    assert isinstance(load_data(study).train, Samples)
    together = train(study, 0, 1, plan=Plan("rules", cap=16, block_rows=8, threads=1))
    assert torch.tensor(shown(together)) == pytest.approx(torch.tensor(shown(train(study, 0, 1))), rel=1e-4)


def test_three_sets_may_be_named(tmp_path: Path) -> None:
    found = loaded(tmp_path, "return {'train': (X, Y), 'validation': (X[:9], Y[:9]), 'test': (X[:5], Y[:5])}")
    assert [len(part) for part in (found.train, found.validation, found.test)] == [60, 9, 5]


def test_the_target_of_a_dict_is_the_key_that_the_study_names(tmp_path: Path) -> None:
    found = loaded(tmp_path, "return {'x': X, 'label': Y, 'other': Y * 0 + X[:, 0]}", target="other")
    assert found.task == "regression"
    assert found.features == {"x": (4,), "label": ()}


# Datasets.


@pytest.mark.parametrize("body", ["return Pairs()", "return DataLoader(Pairs(), batch_size=7, shuffle=True)"])
def test_a_dataset_trains_as_its_tensors_do(tmp_path: Path, body: str) -> None:
    """The same split, order, batches and numbers: items are read one by one, and nothing else differs."""
    (tmp_path / "tensors").mkdir()
    expected = shown(train(study_of(tmp_path / "tensors", "return X, Y"), 0, 1))
    study = study_of(tmp_path, body)
    found = load_data(study)
    assert isinstance(found.train, Items)
    assert (found.task, found.classes) == ("classification", ("0", "1", "2"))
    assert shown(train(study, 0, 1)) == expected
    assert ("DataLoader" in " ".join(found.notices)) == ("DataLoader" in body)
    assert shown(train(study, 0, 1, plan=Plan("rules", cap=16, block_rows=8, threads=1))) == expected


def test_items_that_are_dicts_reach_forward_by_name(tmp_path: Path) -> None:
    (tmp_path / "tensors").mkdir()
    plain = study_of(tmp_path / "tensors", "return {'left': X[:, :2], 'right': X[:, 2:], 'label': Y}", model="Two")
    study = study_of(tmp_path, "return Dicts()", model="Two")
    assert load_data(study).features == {"left": (2,), "right": (2,)}
    assert shown(train(study, 0)) == shown(train(plain, 0))


def test_three_datasets_and_their_collate_functions(tmp_path: Path) -> None:
    """Items of different lengths, padded batch by batch."""
    body = """
    class Words(Pairs):
        def __getitem__(self, index):
            return torch.arange(1 + index % 5), int(Y[index])
    def pad(items):
        inputs = nn.utils.rnn.pad_sequence([own for own, _ in items], batch_first=True)
        return inputs, torch.tensor([own for _, own in items])
    return [DataLoader(Words(0, high), 4, collate_fn=pad) for high in (40, 20, 10)]
    """
    code = "\n\nclass Bag(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    code += "        self.head = nn.Linear(1, 3)\n\n    def forward(self, words):\n"
    code += "        return self.head(words.float().mean(1, keepdim=True))\n"
    study = study_of(tmp_path, body)
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text() + code)
    document = {"data": {"source": "own.py:load"}, "model": {"source": "own.py:Bag"}, "train": {"epochs": 2}}
    study = make_study(document, tmp_path, "own", where="a test")
    found = load_data(study)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [40, 20, 10]
    assert all(own.failure is None for own in train(study, 0)[0])


def test_what_an_item_draws_depends_on_its_run_epoch_and_number_alone(tmp_path: Path) -> None:
    study = study_of(tmp_path, "return Noisy()")
    crowd = train(study, 0, 1, 2)
    assert [shown([curve]) for curve in crowd] == [shown(train(study, trial)) for trial in range(3)]
    items = load_data(study).train
    assert isinstance(items, Items)

    def first(seed: int, index: list[int]) -> torch.Tensor:
        return items.drawn_by(lambda place: seed + place).take(torch.tensor(index)).inputs[0]  # type: ignore[index,return-value]

    assert torch.equal(first(0, [3, 1]), first(0, [3, 2, 1])), "nor on what is read beside it"
    assert not torch.equal(first(0, [3]), first(1, [3]))
    assert torch.equal(items.take(slice(0, 2)).inputs, items.take(slice(0, 2)).inputs)  # type: ignore[arg-type]


def test_reading_leaves_the_processs_own_randomness_alone(tmp_path: Path) -> None:
    items = loaded(tmp_path, "return Noisy()").train
    state = torch.get_rng_state()
    items.take(slice(0, 3))
    assert torch.equal(state, torch.get_rng_state())


def test_a_dataset_with_a_generator_of_its_own_is_told(tmp_path: Path) -> None:
    body = """
    class Hidden(Pairs):
        rng = np.random.default_rng(0)
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + float(self.rng.random()), y
    return Hidden()
    """
    assert "items differ from reading to reading" in " ".join(loaded(tmp_path, body).notices)
    assert loaded(tmp_path, body).fingerprint() == loaded(tmp_path, body).fingerprint()
    assert not loaded(tmp_path, "return Noisy()").notices


def test_a_cached_dataset_is_tensors_and_trains_alike(tmp_path: Path) -> None:
    read, cached = (train(study_of(tmp_path, "return Dicts()", model="Two", cache=own), 0) for own in (False, True))
    assert shown(read) == shown(cached)
    for body in ("return Pairs()", "return Dicts()", "return ConcatDataset([Pairs(), Pairs()])"):
        assert isinstance(loaded(tmp_path, body, cache=True).train, Samples)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return Noisy()", "its items differ from one reading to the next"),
        ("return DataLoader(Pairs(), collate_fn=torch.utils.data.default_convert)", "its collate_fn makes batches"),
    ],
)
def test_what_differs_from_reading_to_reading_is_never_cached(tmp_path: Path, body: str, why: str) -> None:
    if "default_convert" in body:
        body = "return DataLoader(Pairs(), collate_fn=lambda items: torch.utils.data.default_collate(items))"
    found = loaded(tmp_path, body, cache=True)
    assert isinstance(found.train, Items)
    assert why in " ".join(found.notices)


def test_class_numbers_are_taken_from_a_datasets_own_list_where_it_agrees(tmp_path: Path) -> None:
    body = """
    class Listed(Pairs):
        reads = []
        targets = {targets}
        def __getitem__(self, index):
            self.reads.append(index)
            return super().__getitem__(index)
    return Listed()
    """
    for targets, few in (("Y.tolist()", True), ("[0] * 60", False), ("'none'", False)):
        (folder := tmp_path / str(len(targets))).mkdir()
        found = loaded(folder, body.replace("{targets}", targets))
        assert found.classes == ("0", "1", "2")
        assert isinstance(found.train, Items)
        assert (len(set(found.train.dataset.reads)) < 30) == few


def test_a_fingerprint_of_items_sees_their_number_and_their_values(tmp_path: Path) -> None:
    bodies = ["return Pairs()", "return Pairs(0, 59)", "X.add_(1); return Pairs()", "return Dicts()"]
    seen = []
    for number, body in enumerate(bodies):
        (tmp_path / str(number)).mkdir()
        seen.append(loaded(tmp_path / str(number), body).fingerprint())
    assert len(set(seen)) == len(bodies)
    assert loaded(tmp_path / "0", bodies[0]).fingerprint() == seen[0]


# Read ahead by processes.


@pytest.mark.parametrize(("body", "batch_size"), [("Noisy()", 7), ("DataLoader(Noisy(), num_workers=2)", "full")])
def test_items_are_the_same_whoever_reads_them(tmp_path: Path, body: str, batch_size: int | str) -> None:
    study = study_of(tmp_path, f"return {body}", workers=0)
    alone, fingerprint = shown(train(study, 0, 1, batch_size=batch_size)), load_data(study).fingerprint()
    for workers in (3, None):
        study = study_of(tmp_path, f"return {body}", **({} if workers is None else {"workers": workers}))
        items = load_data(study).train
        assert isinstance(items, Items)
        assert (items.readers and items.readers.workers) == (workers or (2 if "num_workers" in body else None))
        assert load_data(study).fingerprint() == fingerprint
        assert shown(train(study, 0, 1, batch_size=batch_size)) == alone


def test_processes_read_ahead_and_forget_what_is_not_wanted_any_more(tmp_path: Path) -> None:
    body = """
    class Slow(Pairs):
        def __getitem__(self, index):
            (folder / str(index)).touch()
            return super().__getitem__(index)
    from pathlib import Path
    folder = Path(__file__).parent / "read"
    folder.mkdir(exist_ok=True)
    return Slow()
    """
    items = load_data(study_of(tmp_path, body, workers=2)).train
    assert isinstance(items, Items)
    for path in (tmp_path / "read").iterdir():
        path.unlink()
    index = [torch.tensor([place]) for place in range(20)]
    first = items.stream(index)
    assert torch.equal(next(first).inputs, items.take(index[0]).inputs)  # type: ignore[arg-type]
    give_up = time.monotonic() + 20
    while len(list((tmp_path / "read").iterdir())) < 4 and time.monotonic() < give_up:
        time.sleep(0.01)
    assert 4 <= len(list((tmp_path / "read").iterdir())) <= 6, "two a process, and no more"
    first.close()  # a run that was pruned, say
    found = [own.inputs for own in items.stream(index)]
    assert all(torch.equal(own, items.take(place).inputs) for own, place in zip(found, index, strict=True))  # type: ignore[arg-type]


def test_a_search_with_readers_ends_and_leaves_none_behind(tunecli: Command, tmp_path: Path) -> None:
    document = '[data]\nsource = "own.py:load"\n[model]\nsource = "own.py:make"\n[train]\nepochs = 1\n'
    study_of(tmp_path, "return Noisy()")
    (tmp_path / "own.toml").write_text(document)
    alone = tunecli("search", "own.toml", "--trials", "2", "--home", "alone")
    options = ["--trials", "2", "--set", "data.workers=2", "--home", str(tmp_path / "studies")]
    command = [sys.executable, "-m", "tunecli", "search", "own.toml", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, alone.out)
    running = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert not running.stdout
    again = tunecli("search", "own.toml", "--trials", "3", "--set", "data.workers=0")
    assert again.code == 0, again.err


def test_a_reader_that_dies_is_replaced_and_one_that_cannot_live_is_told(tmp_path: Path) -> None:
    body = """
    class Deadly(Pairs):
        def __getitem__(self, index):
            path = Path(__file__).with_name("died")
            if os.getpid() != main and index == 5 and (always or not path.exists()):
                path.touch()
                os.kill(os.getpid(), 9)
            return super().__getitem__(index)
    import os
    from pathlib import Path
    main, always = os.getpid(), {always}
    return DataLoader(Deadly())
    """
    alone = load_data(study_of(tmp_path, "return Pairs()")).train
    once = load_data(study_of(tmp_path, body.replace("{always}", "False"), workers=2)).train
    assert isinstance(once, Items)
    index = [slice(low, low + 8) for low in range(0, 48, 8)]
    found = [own.inputs for own in once.stream(index)]
    assert all(torch.equal(own, alone.take(part).inputs) for own, part in zip(found, index, strict=True))  # type: ignore[arg-type]
    assert (tmp_path / "died").exists()
    with pytest.raises(SourceError, match=r"4 processes that read own.py:load have died, the last one by SIGKILL"):
        load_data(study_of(tmp_path, body.replace("{always}", "True"), workers=2))


def test_what_an_item_raises_in_another_process_fails_its_run_alone(tmp_path: Path) -> None:
    body = """
    class Broken(Pairs):
        targets = Y.tolist()
        def __getitem__(self, index):
            assert index != 55, "item 55 is broken"
            return super().__getitem__(index)
    return [Broken(), Broken(0, 40), Broken(0, 40)]
    """
    curves = [train(study_of(tmp_path, body, workers=workers), 0)[0] for workers in (0, 2)]
    assert "item 55 is broken (own.py, line" in (curves[1][0].failure or "")
    assert curves[0][0].failure == curves[1][0].failure


def test_who_reads_slow_items_alone_is_told_of_workers(tmp_path: Path) -> None:
    body = """
    class Slow(Pairs):
        def __getitem__(self, index):
            time.sleep(0.002)
            return super().__getitem__(index)
    import time
    return Slow()
    """
    assert "ms to read; data.workers = " in " ".join(loaded(tmp_path, body).notices)
    assert not loaded(tmp_path, body, workers=2).notices


# With a step.


def test_a_step_gets_a_batch_as_its_data_have_it(tmp_path: Path) -> None:
    """What a plain DataLoader over the same data would give: a tensor, a tuple or a dict."""
    kinds = {
        "X": "Tensor",
        "(X, Y)": "tuple Tensor Tensor",
        "((X, Y), Y)": "tuple tuple Tensor",
        "TensorDataset(X, X, Y)": "tuple Tensor Tensor Tensor",
        "{'x': X, 'labels': Y}": "dict labels x",
        "{'ids': X.long(), 'labels': X.long()}": "dict ids labels",
        "Pairs()": "list Tensor Tensor",
        "Dicts()": "dict label left right",
        "DataLoader([{'text': 'a b', 'x': X[0]}] * 60)": "dict text x",
    }
    step = """
def step(model, batch):
    parts = sorted(batch) if isinstance(batch, dict) else [type(own).__name__ for own in batch]
    global seen
    seen = " ".join([type(batch).__name__, *(parts if not isinstance(batch, torch.Tensor) else [])])
    return model(X[:5]).sum(), 5
"""
    for number, (returned, kind) in enumerate(kinds.items()):
        (folder := tmp_path / str(number)).mkdir()
        study = study_of(folder, f"return {returned}", train={"step": "own.py:step"})
        (folder / "own.py").write_text((folder / "own.py").read_text() + step)
        (curve,) = train(study, 0)
        assert all(own.failure is None for own in curve)
        seen = load_function("own.py:step", folder).__globals__["seen"]
        assert seen.replace("list", "tuple") == kind.replace("list", "tuple"), returned


def test_a_search_of_a_dataset_with_a_step_goes_on_after_an_end_and_is_fine_tuned(
    tunecli: Command, tmp_path: Path
) -> None:
    body = "return DataLoader(Noisy())"
    study_of(tmp_path, body)
    step = (
        "def step(model, batch):\n    x, y = batch\n    return F.cross_entropy(model(x), y, reduction='sum'), len(y)\n"
    )
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text() + "\n\n" + step)
    (tmp_path / "own.toml").write_text(
        '[data]\nsource = "own.py:load"\n[model]\nsource = "own.py:make"\n[train]\nepochs = 2\nstep = "own.py:step"\n'
    )
    whole = tunecli("search", "own.toml", "--trials", "6", "--window", "3", "--home", "whole", "--format", "json")
    assert whole.code == 0, whole.err
    assert "DataLoader's batch size" in whole.err
    tunecli("search", "own.toml", "--trials", "3", "--window", "3", "--home", "parts")
    parts = tunecli("search", "own.toml", "--trials", "6", "--window", "3", "--home", "parts", "--format", "json")
    assert [t["value"] for t in parts.document["trials"]] == [t["value"] for t in whole.document["trials"]]
    tuned = tunecli("finetune", "own", "--best", "--home", "whole", "--format", "json")
    assert tuned.code == 0, tuned.err
    assert tuned.document["metric"] == "loss"


# Mistakes.


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        (
            "class Lines(IterableDataset):\n    def __iter__(self):\n        return iter([])\nreturn Lines()",
            "returned Lines, whose items have no numbers",
            "__getitem__ and __len__",
        ),
        ("return Pairs(0, 0)", "returned no samples", "at least one"),
        ("return Pairs(0, 3)", "3 samples are too few", "at least one"),
        ("return Pairs(), Pairs(), (X, Y)", "both tensors and Datasets", "one kind"),
        ("return [X[i] for i in range(3)], Pairs()", "returned tuple of 2: list, Pairs|no array", "return"),
        ("return DataLoader([X[0]] * 60)", "items that are a Tensor when collated", "a pair"),
        ("return DataLoader([(X[0], 'a')] * 60)", "returned targets", "numbers"),
        ("return DataLoader([(X[0], X[0])] * 60)", r"targets of shape \(4,\) a sample", "one target"),
        ("return DataLoader([('a', 1)] * 60)", "items with a str in their inputs", "step of your own"),
        ("return DataLoader([{'x': X[0], 'z': 1}] * 60)", "which key is the target", "target = "),
        ("return DataLoader([(X[:n + 1, 0], 1) for n in range(60)])", "cannot be collated", "collate_fn"),
        ("return (X, X[:9]), Y", "60 of 0, 9 of 1", "one of each"),
    ],
)
def test_what_can_be_wrong_with_datasets(tmp_path: Path, body: str, message: str, hint: str) -> None:
    with pytest.raises((DataError, SourceError), match=message) as caught:
        loaded(tmp_path, body)
    assert hint in (caught.value.hint or "")


def test_an_item_that_raises_is_named_with_its_line(tmp_path: Path) -> None:
    body = """
    class Broken(Pairs):
        def __getitem__(self, index):
            if index == 41:
                raise OSError("no such picture")
            return super().__getitem__(index)
    return Broken()
    """
    with pytest.raises(SourceError, match=r"item 41 of own.py:load raised OSError: no such picture \(own.py, line"):
        loaded(tmp_path, body)


def test_a_dataset_of_pictures_reads_like_torchs_own_loader(tmp_path: Path) -> None:
    items = loaded(tmp_path, "return Pairs()").train
    assert isinstance(items, Items)
    read = items.take(torch.arange(len(items)))
    whole = torch.utils.data.Subset(items.dataset, items.index.tolist())
    ((inputs, targets),) = DataLoader(whole, batch_size=len(items))
    assert torch.equal(read.inputs, inputs)  # type: ignore[arg-type]
    assert torch.equal(read.targets, targets)
    assert data.load("own.py:load", {}, base=tmp_path, seed=0).features == (4,)


def test_a_time_that_goes_up_in_the_middle_of_a_message_leaves_the_readers_in_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readers = Readers(lambda places, seeds: torch.tensor(places), 1, "own.py")
    wanted = [([place], [0]) for place in range(6)]
    whole = Connection._recv  # type: ignore[attr-defined]  # between the length of a message and the message

    def rings(end: Connection, size: int, *more: object) -> object:
        if size > 4:
            signal.raise_signal(signal.SIGALRM)
        return whole(end, size, *more)

    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(Connection, "_recv", rings)
            with pytest.raises(Overdue), limited(60):
                list(readers.batches(wanted))
        assert [int(batch) for batch in readers.batches(wanted)] == list(range(6))
