"""A checkpoint, trained on: the same updates as a plain loop, honest numbers, and a test split whose readings count."""

import json
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_iris
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor, nn
from torch.nn import functional

from tunecli import checkpoint, live, models
from tunecli.engine.batches import epoch_order
from tunecli.errors import CheckpointError, InputError, NoUsableTrial, StorageError, TunecliError, UsageError
from tunecli.finetune import Epoch, Finetuned, Notice, Request, finetune, training
from tunecli.search import search
from tunecli.store import Store, hold, read
from tunecli.study import Study, load_data, read_study
from tunecli.trial import Run, State, best_trial, derive_seed

Question = Callable[..., Study]
Weights = Mapping[str, Tensor]


@pytest.fixture
def folder(searched: Path, tmp_path: Path) -> Path:
    """The finished study, to write to."""
    return shutil.copytree(searched / "tiny", tmp_path / "studies" / "tiny")


def train_on(folder: Path, **request: Any) -> Finetuned:
    last = list(finetune(folder, Request(**request)))[-1]
    assert isinstance(last, Finetuned)
    return last


def network() -> nn.Sequential:
    """The model of `tiny`, written out by hand."""
    layers = OrderedDict(layer1=nn.Linear(4, 8), relu=nn.ReLU(), head=nn.Linear(8, 3))
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), **layers))


def loaded(weights: Weights, module: nn.Module | None = None) -> nn.Module:
    module = module or network()
    module.load_state_dict(dict(weights))
    return module.eval()


def predicted(module: nn.Module, inputs: Tensor) -> Any:
    with torch.no_grad():
        return module(inputs).argmax(1).numpy()


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5}),
    "adam": (torch.optim.Adam, {"betas": (0.85, 0.99)}),
    "adamw": (torch.optim.AdamW, {"betas": (0.85, 0.99)}),
    "nadam": (torch.optim.NAdam, {"betas": (0.85, 0.99)}),
}


def plain_loop(module: nn.Module, study: Study, run: Run, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What a person would write: an optimizer of torch's, cosine decay, L1 by hand."""
    hparams: dict[str, Any] = dict(run.hparams)
    kind, own = OPTIMIZERS[hparams["optimizer"]]
    batch = len(inputs) if hparams["batch_size"] == "full" else hparams["batch_size"]
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = kind(parameters, lr=hparams["learning_rate"], weight_decay=hparams["l2"], **own)  # type: ignore[call-arg]
    updates = run.epochs * -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=updates)
    module.train()
    for epoch in range(run.epochs):
        order = epoch_order(run.seed("order", epoch), len(inputs))
        for index in order.split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(module(inputs[index]), targets[index]).backward()  # type: ignore[no-untyped-call]
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad += hparams["l1"] * parameter.detach().sign()
            optimizer.step()
            schedule.step()
    return module.eval().state_dict()


def joined(study: Study) -> tuple[Tensor, Tensor]:
    data = load_data(study)
    parts = (data.train, data.validation)
    return torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])


def run_of(study: Study, trial: int, hparams: Mapping[str, Any], epochs: int) -> Run:
    return Run(trial, derive_seed(study.seed, trial, "finetune"), hparams, epochs, {"schedule": "cosine"})


# On the study's own task


def given(optimizer: str, **more: Any) -> dict[str, Any]:
    hparams = {"optimizer": optimizer, "learning_rate": 0.01, "batch_size": 32, "l1": 1e-3, "l2": 1e-2}
    momentum = {"sgd": 0.9, "rmsprop": 0.5}.get(optimizer)
    return hparams | ({"momentum": momentum} if momentum else {"beta1": 0.85, "beta2": 0.99}) | more


@pytest.mark.parametrize(("optimizer", "batch_size"), [*((own, 32) for own in OPTIMIZERS), ("adamw", "full")])
def test_the_weights_are_those_of_a_plain_loop_from_the_best_checkpoint(
    folder: Path, optimizer: str, batch_size: int | str
) -> None:
    study = read_study(folder / "study.toml")
    hparams = given(optimizer, batch_size=batch_size)
    result = train_on(folder, hparams=hparams, epochs=5)
    start, _ = checkpoint.load(folder / "checkpoints" / f"trial-{result.trial}")
    run = run_of(study, result.trial, hparams, 5)
    expected = plain_loop(loaded(start), study, run, *joined(study))
    found, manifest = checkpoint.load(result.checkpoint)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
        assert not torch.equal(found[name], start[name])
    # From scratch: from weights of its own, over the same batches, and by the trial's own recipe.
    own = read(folder / "study.db").trials[result.trial].hparams
    assert result.scratch_learning_rate == own["learning_rate"]
    fresh = models.build(
        "mlp", {"hidden": [8]}, base=Path(), features=(4,), outputs=3, seed=run.seed("weights")
    ).state_dict()
    recipe = replace(run, hparams={**own, "batch_size": batch_size})
    scratch = plain_loop(loaded(fresh), study, recipe, *joined(study))
    test = load_data(study).test
    for value, weights in ((result.before, start), (result.after, found), (result.scratch, scratch)):
        assert value == accuracy_score(test.targets, predicted(loaded(weights), test.inputs))
    assert manifest["value"] == result.after
    assert manifest["hparams"] == hparams


def test_by_default_it_is_a_third_of_the_epochs_at_a_tenth_of_the_best_rate(folder: Path) -> None:
    record = read(folder / "study.db")
    best = best_trial(list(record.trials), "maximize")
    assert best is not None
    result = train_on(folder)
    assert result.trial == best.number
    assert result.epochs == 1
    assert result.learning_rate == pytest.approx(float(best.hparams["learning_rate"]) / 10, rel=1e-12)  # type: ignore[arg-type]
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert manifest["hparams"] == dict(best.hparams) | {"learning_rate": result.learning_rate}
    study = read_study(folder / "study.toml")
    if best.hparams["optimizer"] == "adamw":
        assert manifest["hparams"]["l2"] == best.hparams["l2"]
    # 150 samples less the 15 of the test split.
    assert (result.samples, len(joined(study)[0])) == (135, 135)
    assert result.trained == ("layer1", "head")
    assert not result.new_head


@pytest.mark.parametrize(("batch_size", "an_epoch"), [(32, 5), ("full", 1), (1000, 1), (1, 135)])
def test_both_budgets_are_told(folder: Path, batch_size: int | str, an_epoch: int) -> None:
    result = train_on(folder, hparams={"batch_size": batch_size}, epochs=3)
    assert result.updates == 3 * an_epoch
    record = read(folder / "study.db")
    trial = record.trials[result.trial]
    # The checkpoint is of the trial's best tick, over the 120 samples of the training split.
    batch = 120 if trial.hparams["batch_size"] == "full" else 32
    assert result.updates_before == (trial.best_tick or 0) * -(-120 // batch)
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert manifest["updates"] == result.updates_before + result.updates


def test_two_runs_give_bitwise_the_same_weights_and_each_a_folder_of_its_own(folder: Path) -> None:
    first, second = (train_on(folder, epochs=3, fresh=True) for _ in range(2))
    assert first.checkpoint != second.checkpoint
    ours, theirs = (checkpoint.load(own.checkpoint)[0] for own in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert replace(first, reading=2, checkpoint=second.checkpoint) == second
    assert not list((folder / "finetuned").glob("*.new"))


def test_epochs_are_told_as_they_end(folder: Path) -> None:
    *epochs, last = list(finetune(folder, Request(epochs=2)))
    told = [(own.of, own.epoch, own.epochs) for own in epochs if isinstance(own, Epoch)]
    assert told == [(of, number, 2) for of in ("fine-tuning", "from scratch") for number in (1, 2)]
    assert isinstance(last, Finetuned)


def test_where_the_metric_fell_the_starting_checkpoint_stays_in_use(folder: Path) -> None:
    trained = train_on(folder, hparams={"optimizer": "adam", "learning_rate": 0.05, "l1": 0, "l2": 0}, epochs=8)
    assert trained.after > 0.8
    assert trained.used
    start = trained.checkpoint / "weights.safetensors"
    result = train_on(folder, checkpoint=start, hparams={"optimizer": "adam", "learning_rate": 30.0, "l1": 0, "l2": 0})
    assert result.before == trained.after
    assert result.after < result.before
    assert not result.used
    assert json.loads((result.checkpoint / "manifest.json").read_text())["used"] is False
    assert result.updates_before == 0


AND_NOT_KEPT = "starting from trial 3 did not help; it is compared with, and not kept"


@pytest.mark.parametrize(
    ("direction", "scratch", "said"),
    [
        ("maximize", 0.9375, f"\nfrom scratch came out better, by 0.0625: {AND_NOT_KEPT}; --set learning_rate=0."),
        ("maximize", 0.875, None),
        ("minimize", 0.5, f"\nfrom scratch came out better, by 0.3750: {AND_NOT_KEPT}; --set learning_rate=0."),
        ("minimize", float("nan"), None),
    ],
)
def test_where_training_from_scratch_came_out_better_it_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], direction: str, scratch: float, said: str | None
) -> None:
    result = replace(train_on(folder, epochs=1), start="trial 3", after=0.875, scratch=scratch, direction=direction)
    live.print_finetuned(result, live.progress_console())
    told = capsys.readouterr().err
    assert said in told if said is not None else "came out better" not in told
    # At a rate that is no smaller there is none to go back to.
    live.print_finetuned(replace(result, learning_rate=result.scratch_learning_rate), live.progress_console())
    assert "--set learning_rate" not in capsys.readouterr().err


# The same again


def events_of(folder: Path, **request: Any) -> tuple[Finetuned, list[tuple[str, int]], list[str]]:
    """What came of it, the epochs that were trained, and the notices."""
    *others, last = list(finetune(folder, Request(**request)))
    assert isinstance(last, Finetuned)
    epochs = [(own.of, own.epoch) for own in others if isinstance(own, Epoch)]
    return last, epochs, [own.text for own in others if isinstance(own, Notice)]


def test_the_same_asked_again_is_done_and_trains_and_reads_nothing(folder: Path, tmp_path: Path) -> None:
    first = train_on(folder)
    longer = train_on(folder, epochs=3)
    again, epochs, notices = events_of(folder, save=tmp_path / "m.pth")
    assert again == replace(first, earlier=True, saved=tmp_path / "m.pth")
    assert (epochs, notices) == ([], [])
    assert len(read(folder / "study.db").readings) == 2
    saved, kept = torch.load(tmp_path / "m.pth", weights_only=True), checkpoint.load(first.checkpoint)[0]
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
    # By another name, and of a study that was copied, it is the same; the folder told is the copy's.
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert train_on(copy, trial=first.trial, epochs=1).checkpoint == copy / "finetuned" / first.checkpoint.name
    assert train_on(folder, epochs=3) == replace(longer, earlier=True)
    anew, epochs, _ = events_of(folder, fresh=True)
    assert replace(anew, reading=1, checkpoint=first.checkpoint) == first
    assert epochs == [("fine-tuning", 1), ("from scratch", 1)]
    # Of equal ones the latest is shown.
    assert train_on(folder) == replace(anew, earlier=True)


def other_trial(folder: Path) -> dict[str, Any]:
    record = read(folder / "study.db")
    best = best_trial(list(record.trials), record.direction)
    return {"trial": next(number for number in record.kept if best is not None and number != best.number)}


def other_start(folder: Path) -> dict[str, Any]:
    return {"checkpoint": folder / "finetuned" / "1" / "weights.safetensors"}


@pytest.mark.parametrize(
    "other", [{"epochs": 2}, {"hparams": {"l1": 0}}, {"layers": ("head",)}, other_trial, other_start]
)
def test_whatever_else_is_asked_for_is_trained(folder: Path, other: Any) -> None:
    train_on(folder)
    found = train_on(folder, **(other(folder) if callable(other) else other))
    assert (found.earlier, found.checkpoint.name) == (False, "2")


def test_other_code_of_the_users_is_another_training(normed: Path, tmp_path: Path) -> None:
    place = shutil.copytree(normed.parent, tmp_path / "moved")
    text = (place / "own" / "study.toml").read_text().replace(str(normed.parent), str(place))
    (place / "own" / "study.toml").write_text(text)
    assert [train_on(place / "own").earlier for _ in range(2)] == [False, True]
    with (place / "own.py").open("a") as file:
        file.write("# changed\n")
    assert not train_on(place / "own").earlier


def test_a_training_anew_that_was_stopped_goes_on_without_being_asked_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PAUSE_SECONDS", -1.0)
    first = train_on(folder, epochs=3)
    calls = iter(range(100))
    list(finetune(folder, Request(epochs=3, fresh=True), lambda: next(calls) >= 20))
    second, epochs, _ = events_of(folder, epochs=3)
    assert replace(second, reading=1, checkpoint=first.checkpoint) == first
    assert epochs[0] not in (("fine-tuning", 1), ("from scratch", 1))
    assert train_on(folder, epochs=3) == replace(second, earlier=True)
    # Asked for anew once more, it begins anew.
    calls = iter(range(100))
    list(finetune(folder, Request(epochs=3, fresh=True), lambda: next(calls) >= 20))
    assert events_of(folder, epochs=3, fresh=True)[1][0] == ("fine-tuning", 1)
    assert not (folder / "snapshots").exists()


@pytest.mark.parametrize(
    ("until", "said"),
    [
        (("fine-tuning", 1), ["fine-tuning goes on after epoch 1 of 3"]),
        (("from scratch", 2), ["fine-tuning was through", "from scratch goes on after epoch 2 of 3"]),
    ],
)
def test_a_training_that_goes_on_says_from_where(folder: Path, until: tuple[str, int], said: list[str]) -> None:
    seen: list[tuple[str, int]] = []
    for event in finetune(folder, Request(epochs=3), lambda: until in seen):
        if isinstance(event, Epoch):
            seen.append((event.of, event.epoch))
    assert seen[-1] == until
    assert events_of(folder, epochs=3)[2] == said


@pytest.mark.parametrize("where", ["read_split", "flush"])
def test_a_kill_after_the_checkpoint_loses_no_reading_and_counts_none_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    class Crash(BaseException):
        pass

    def dies(*given: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Store, where, dies)
        with pytest.raises(Crash):
            train_on(folder)
    assert [path.name for path in (folder / "finetuned").iterdir()] == ["1"]
    found, epochs, _ = events_of(folder)
    assert (found.reading, found.checkpoint.name, epochs) == (1, "1", [])
    (reading,) = read(folder / "study.db").readings
    assert (reading.trial, reading.values["after"]) == (found.trial, found.after)
    assert not (folder / "snapshots").exists()
    assert train_on(folder) == found


def test_a_damaged_result_is_trained_anew(folder: Path) -> None:
    first = train_on(folder)
    with (first.checkpoint / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    found, epochs, (notice,) = events_of(folder)
    assert "damaged" in notice
    assert (found.earlier, found.after, found.checkpoint.name, len(epochs)) == (False, first.after, "2", 2)


# Readings of the test split


def test_each_reading_of_the_test_split_is_counted_and_dated(folder: Path, tmp_path: Path) -> None:
    began = datetime.now(UTC).replace(tzinfo=None)
    assert read(folder / "study.db").readings == ()
    other = {"data": f"{other_flowers(tmp_path)}:load"}
    again = {"fresh": True}
    results = [train_on(folder), train_on(folder, **again), train_on(folder, **other), train_on(folder, **again)]
    results += [train_on(folder, **other, **again), train_on(folder, trial=min(read(folder / "study.db").kept))]
    assert [own.reading for own in results] == [1, 2, 1, 3, 2, 4]
    readings = read(folder / "study.db").readings
    assert [own.values["after"] for own in readings] == [own.after for own in results]
    assert [own.values["before"] for own in readings] == [own.before for own in results]
    assert [own.trial for own in readings] == [own.trial for own in results]
    assert {(own.split, own.purpose) for own in readings} == {("test", "finetune")}
    dates = [own.read_at for own in readings]
    assert dates == sorted(dates)
    assert began - timedelta(seconds=1) <= dates[0]
    assert dates[-1] <= datetime.now(UTC).replace(tzinfo=None)


def test_a_stop_in_mid_training_writes_nothing_but_snapshots(folder: Path, tmp_path: Path) -> None:
    before = (folder / "study.db").read_bytes()
    for patience in (0, 1, 2, 4):
        shutil.rmtree(folder / "snapshots", ignore_errors=True)  # or one goes on where the other stopped
        calls = iter(range(100))
        events = list(finetune(folder, Request(epochs=3, save=tmp_path / "m.pth"), lambda: next(calls) >= patience))  # noqa: B023
        assert not any(isinstance(event, Finetuned) for event in events)
    assert (folder / "study.db").read_bytes() == before
    assert not (folder / "finetuned").exists()
    assert not (tmp_path / "m.pth").exists()


def test_a_training_that_diverges_says_so_and_writes_nothing(folder: Path) -> None:
    before = (folder / "study.db").read_bytes()
    with pytest.raises(NoUsableTrial, match="diverged") as caught:
        train_on(folder, hparams={"optimizer": "sgd", "learning_rate": 1e30, "momentum": 0.0}, epochs=4)
    assert "learning_rate" in (caught.value.hint or "")
    assert (folder / "study.db").read_bytes() == before
    assert not (folder / "finetuned").exists()


def test_a_study_held_by_a_search_is_left_alone(folder: Path) -> None:
    with hold(folder), pytest.raises(StorageError, match="held by another"):
        train_on(folder)


# New data


def other_flowers(place: Path, *, classes: int = 3, features: int = 4) -> Path:
    """A file of a user's own data, iris-like: `classes` blobs."""
    (place / "flowers.py").write_text(
        f"""
import numpy as np

def load(shift=0.0):
    draw = np.random.default_rng(5)
    labels = np.arange(120) % {classes}
    return draw.normal(0, 0.3, (120, {features})) + labels[:, None] + shift, labels
"""
    )
    return place / "flowers.py"


def test_other_classes_get_a_new_head_and_what_is_not_named_stays_bitwise(folder: Path, tmp_path: Path) -> None:
    data = f"{other_flowers(tmp_path, classes=5)}:load"
    result = train_on(folder, data=data, layers=("head",), epochs=3)
    assert result.new_head
    assert result.trained == ("head",)
    assert result.data == "flowers.py:load"
    start, _ = checkpoint.load(folder / "checkpoints" / f"trial-{result.trial}")
    found, manifest = checkpoint.load(result.checkpoint)
    assert found["head.weight"].shape == (5, 8)
    assert all(torch.equal(found[name], start[name]) for name in ("layer1.weight", "layer1.bias"))
    assert manifest["classes"] == ["0", "1", "2", "3", "4"]
    # At the best rate itself, for as many epochs as the study's trials had.
    best = read(folder / "study.db").trials[result.trial]
    assert result.learning_rate == best.hparams["learning_rate"]
    assert train_on(folder, data=data).epochs == 4
    everything = checkpoint.load(train_on(folder, data=data, layers=("all",), epochs=3).checkpoint)[0]
    assert not torch.equal(everything["layer1.weight"], start["layer1.weight"])


def test_the_same_classes_keep_their_head(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "iris.csv").write_text(iris_table())
    result = train_on(folder, data=str(tmp_path / "iris.csv"), target="species")
    assert not result.new_head
    # The very samples that the study was searched with: its checkpoint meets them prepared as it knows them.
    assert result.before == train_on(folder).before


def iris_table() -> str:
    iris = load_iris()
    rows = [
        ",".join([*(str(x) for x in row), iris.target_names[y]]) for row, y in zip(iris.data, iris.target, strict=True)
    ]
    return "\n".join([",".join([*iris.feature_names, "species"]), *rows]) + "\n"


@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        (("head",), ("head",)),
        (("layer*",), ("layer1",)),
        (("*",), ("layer1", "head")),
        (("all",), ("layer1", "head")),
        (("head", "layer1"), ("head", "layer1")),
        (("l*", "layer1"), ("layer1",)),
    ],
)
def test_layers_are_globs_and_the_others_stay_bitwise(
    folder: Path, layers: tuple[str, ...], trained: tuple[str, ...]
) -> None:
    hparams = {"optimizer": "adam", "learning_rate": 0.01, "l1": 1e-3, "l2": 1e-3}
    result = train_on(folder, layers=layers, hparams=hparams)
    assert result.trained == trained
    start, _ = checkpoint.load(folder / "checkpoints" / f"trial-{result.trial}")
    found, _ = checkpoint.load(result.checkpoint)
    for name, tensor in start.items():
        assert torch.equal(found[name], tensor) == (name.partition(".")[0] not in trained)


def test_a_pattern_that_matches_nothing_names_the_layers(folder: Path) -> None:
    with pytest.raises(UsageError, match="'lay'") as caught:
        train_on(folder, layers=("head", "lay"))
    assert all(name in (caught.value.hint or "") for name in ("layer1", "head", "all"))
    assert not (folder / "finetuned").exists()


def test_a_study_file_can_say_what_trains_and_how_long(question: Question, tmp_path: Path) -> None:
    study = question(trials=3)
    section = study.finetune.model_copy(update={"layers": ["head"], "epochs": 2})
    list(search(replace(study, finetune=section), tmp_path / "tiny"))
    result = train_on(tmp_path / "tiny")
    assert (result.trained, result.epochs) == (("head",), 2)
    result = train_on(tmp_path / "tiny", layers=("all",), epochs=1)
    assert (result.trained, result.epochs) == (("layer1", "head"), 1)


def test_new_data_of_other_features_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(7,\).*\(4,\)") as caught:
        train_on(folder, data=f"{other_flowers(tmp_path, features=7)}:load")
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert not (folder / "finetuned").exists()


def test_keys_of_the_new_data_reach_their_function(folder: Path, tmp_path: Path) -> None:
    data = f"{other_flowers(tmp_path)}:load"
    for shift in (0.0, 50.0):
        train_on(folder, data=data, data_keys={"shift": shift})
    near, far = (own.values["samples"] for own in read(folder / "study.db").readings)
    assert near != far
    with pytest.raises(InputError, match="does not take the keys"):
        train_on(folder, data=data, data_keys={"shaft": 1})


def table(path: Path, *, seed: int, offset: float, target: Callable[[Any, Any], Any]) -> None:
    draw = np.random.default_rng(seed)
    x, town = draw.normal(offset, 2.0, 90), draw.choice(["Bern", "Chur"], 90)
    y = target(x - offset, town)
    path.write_text("\n".join(["x,town,y", *(f"{a},{b},{c}" for a, b, c in zip(x, town, y, strict=True))]) + "\n")


def test_a_new_table_is_prepared_as_the_checkpoint_knows_it(question: Question, tmp_path: Path) -> None:
    def side(x: Any, town: Any) -> Any:
        return np.where(x + (town == "Bern") > 0.5, "up", "down")

    table(tmp_path / "old.csv", seed=0, offset=100.0, target=side)
    table(tmp_path / "new.csv", seed=1, offset=104.0, target=side)
    source = {"source": "old.csv", "target": "y"}
    list(search(question(base=tmp_path, data=source, trials=4), tmp_path / "tiny"))
    result = train_on(tmp_path / "tiny", data=str(tmp_path / "new.csv"))
    _, before = checkpoint.load(tmp_path / "tiny" / "checkpoints" / f"trial-{result.trial}")
    weights, after = checkpoint.load(result.checkpoint)
    assert after["preprocessing"]["columns"] == before["preprocessing"]["columns"]
    assert read_study(tmp_path / "tiny" / "study.toml").data.target == "y"
    # By hand: the new table's numbers as they are, then standardized by the old table's.
    new = load_data(question(base=tmp_path, data={"source": "new.csv", "target": "y"}))
    (theirs,) = (own for own in new.preprocessing["columns"] if own["kind"] == "number")
    (number,) = (own for own in before["preprocessing"]["columns"] if own["kind"] == "number")
    assert (number["mean"], theirs["mean"]) == (pytest.approx(100, abs=1), pytest.approx(104, abs=1))
    inputs = new.test.inputs.clone()
    inputs[:, 0] = (inputs[:, 0] * theirs["scale"] + theirs["mean"] - number["mean"]) / number["scale"]
    module = nn.Sequential(OrderedDict(layer1=nn.Linear(3, 8), relu=nn.ReLU(), head=nn.Linear(8, 2)))
    start, _ = checkpoint.load(tmp_path / "tiny" / "checkpoints" / f"trial-{result.trial}")
    for value, own in ((result.before, start), (result.after, weights)):
        assert value == accuracy_score(new.test.targets, predicted(loaded(own, module), inputs))


def test_a_loss_is_measured_in_the_shape_that_the_search_gave_it(question: Question, tmp_path: Path) -> None:
    train = {"loss": "huber", "huber_delta": 0.1, "metric": "loss"}
    study = question(data={"source": "diabetes"}, train=train, trials=1)
    list(search(study, tmp_path / "tiny"))
    weights, _ = checkpoint.load(tmp_path / "tiny" / "checkpoints" / "trial-0")
    test = load_data(study).test
    layers = OrderedDict(layer1=nn.Linear(10, 8), relu=nn.ReLU(), head=nn.Linear(8, 1))
    with torch.no_grad():
        outputs = loaded(weights, nn.Sequential(OrderedDict(flatten=nn.Flatten(), **layers)))(test.inputs)
    expected = float(functional.huber_loss(outputs[:, 0], test.targets, delta=0.1))
    assert train_on(tmp_path / "tiny", epochs=1).before == pytest.approx(expected, rel=1e-5)


def test_levels_that_look_like_numbers_stay_levels_in_a_new_table_with_a_gap(
    question: Question, tmp_path: Path
) -> None:
    """pandas reads 1, 2 and a gap as 1.0 and 2.0: levels that the checkpoint never saw."""
    kinds = [str(1 + row % 3) for row in range(120)]
    rows = [f"{kind},{0.1 * (row % 7)},{'yes' if kind == '1' else 'no'}" for row, kind in enumerate(kinds)]
    old, new = [f"none,0.1,{'no'}"] * 3 + rows, [",0.1,no", *rows]
    (tmp_path / "old.csv").write_text("\n".join(["kind,x,side", *old]) + "\n")
    (tmp_path / "new.csv").write_text("\n".join(["kind,x,side", *new]) + "\n")
    source = {"source": "old.csv", "target": "side"}
    fixed = {"optimizer": "adam", "learning_rate": 0.1, "batch_size": 32}
    list(search(question(base=tmp_path, data=source, space=fixed, trials=1), tmp_path / "tiny"))
    assert [trial.value for trial in read(tmp_path / "tiny" / "study.db").trials] == [1.0]
    assert train_on(tmp_path / "tiny", data=str(tmp_path / "new.csv"), epochs=1).before == 1.0


def test_new_data_are_weighed_by_class_and_what_is_filled_in_is_told(question: Question, tmp_path: Path) -> None:
    def side(x: Any, town: Any) -> Any:
        return np.where(x + (town == "Bern") > 0.5, "up", "down")

    def price(x: Any, town: Any) -> Any:
        return 50 * x + (town == "Bern")

    table(tmp_path / "old.csv", seed=0, offset=100.0, target=side)
    table(tmp_path / "new.csv", seed=1, offset=100.0, target=side)
    table(tmp_path / "price.csv", seed=1, offset=100.0, target=price)
    path = tmp_path / "new.csv"
    path.write_text("\n".join(line.partition(",")[2] for line in path.read_text().splitlines()) + "\n")
    study = question(
        base=tmp_path, data={"source": "old.csv", "target": "y"}, trials=1, train={"class_weight": {"up": 50.0}}
    )
    folder = tmp_path / "tiny"
    list(search(study, folder))

    def events(data: Path) -> tuple[float, list[str]]:
        seen = list(finetune(folder, Request(data=str(data), epochs=1, hparams={"learning_rate": 0.0})))
        loss = next(event.train_loss for event in seen if isinstance(event, Epoch))
        return loss, [event.text for event in seen if isinstance(event, Notice)]

    weighed, told = events(path)
    assert told == ["column 'x' is missing and filled in"]
    assert events(tmp_path / "price.csv")[1] == ["class_weight is left out: price has other classes"]
    stated = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(stated.replace("up = 50.0", "up = 1.0"))
    assert events(path)[0] != weighed


def test_a_new_regression_target_is_met_in_the_checkpoints_unit(question: Question, tmp_path: Path) -> None:
    def price(level: float) -> Callable[[Any, Any], Any]:
        return lambda x, town: level + 30 * x + 50 * (town == "Bern")

    table(tmp_path / "old.csv", seed=0, offset=0.0, target=price(1000))
    table(tmp_path / "new.csv", seed=1, offset=0.0, target=price(3000))
    source = {"source": "old.csv", "target": "y"}
    space = {"batch_size": 16, "optimizer": "adam", "learning_rate": 0.02}
    study = question(base=tmp_path, data=source, train={"metric": "r2"}, space=space, trials=3)
    list(search(study, tmp_path / "tiny"))
    # Two thousand more than the checkpoint has ever seen: before training on it is worse than guessing the mean.
    assert train_on(tmp_path / "tiny", data=str(tmp_path / "new.csv")).before < -10


# Weights of the user's own

MODEL = """
import torch
from torch import nn

def load():
    from sklearn.datasets import load_iris
    flowers = load_iris()
    return flowers.data, flowers.target

def make():
    norm = nn.BatchNorm1d(6, affine=False)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), norm, nn.Linear(6, 3))
"""


@pytest.fixture(scope="module")
def normed(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of a user's own model, with norms."""
    place = tmp_path_factory.mktemp("normed")
    (place / "own.py").write_text(MODEL)
    study = question(
        name="own",
        base=place,
        data={"source": "own.py:load"},
        model={"source": "own.py:make"},
        space={"batch_size": 32},
        trials=3,
    )
    list(search(study, place / "own"))
    return place / "own"


def own_model() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(MODEL, scope)
    module: nn.Module = scope["make"]()
    return module


def test_what_is_saved_loads_strictly_into_the_users_own_model(normed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(normed, tmp_path / "own")
    result = train_on(folder, save=tmp_path / "model.pth")
    assert result.saved == tmp_path / "model.pth"
    module = own_model()
    module.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    test = load_data(read_study(folder / "study.toml")).test
    assert result.after == accuracy_score(test.targets, predicted(module.eval(), test.inputs))


def test_a_place_that_cannot_be_saved_to_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    events = finetune(folder, Request(save=tmp_path / "nowhere" / "model.pth"))
    with pytest.raises(UsageError, match="nowhere"):
        next(events)
    assert read(folder / "study.db").readings == ()


def test_frozen_norms_keep_their_running_statistics(normed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(normed, tmp_path / "own")
    result = train_on(folder, layers=("head",), epochs=2)
    start, _ = checkpoint.load(folder / "checkpoints" / f"trial-{result.trial}")
    frozen, _ = checkpoint.load(result.checkpoint)
    assert result.trained == ("4",)
    changed = {name for name, tensor in start.items() if not torch.equal(frozen[name], tensor)}
    assert changed == {"4.weight", "4.bias"}
    everything, _ = checkpoint.load(train_on(folder, epochs=2).checkpoint)
    for norm in ("1", "3"):
        for statistic in ("running_mean", "running_var"):
            assert not torch.equal(everything[f"{norm}.{statistic}"], start[f"{norm}.{statistic}"])
        assert everything[f"{norm}.num_batches_tracked"] == start[f"{norm}.num_batches_tracked"] + 2 * 5


def test_a_frozen_part_gives_what_a_plain_loop_with_frozen_weights_gives(folder: Path) -> None:
    study = read_study(folder / "study.toml")
    hparams = given("adam")
    result = train_on(folder, hparams=hparams, layers=("head",), epochs=3)
    start, _ = checkpoint.load(folder / "checkpoints" / f"trial-{result.trial}")
    module = loaded(start)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    expected = plain_loop(module, study, run_of(study, result.trial, hparams, 3), *joined(study))
    found, _ = checkpoint.load(result.checkpoint)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_of_ones_own_are_the_start(folder: Path, tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    module = network()
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(module.state_dict(), path)
    else:
        torch.save(module.state_dict(), path)
    result = train_on(folder, checkpoint=path)
    test = load_data(read_study(folder / "study.toml")).test
    assert result.before == accuracy_score(test.targets, predicted(module.eval(), test.inputs))
    assert result.updates_before == 0
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert manifest["source"] == str(path)
    # Nobody knows the rate that they were trained at: the trial's own holds.
    assert result.learning_rate == read(folder / "study.db").trials[result.trial].hparams["learning_rate"]


def test_weights_for_other_classes_bring_all_but_the_head(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = network()
    module.head = nn.Linear(8, 7)
    torch.save(module.state_dict(), tmp_path / "seven.pth")
    result = train_on(folder, checkpoint=tmp_path / "seven.pth", layers=("head",))
    assert result.new_head
    found, _ = checkpoint.load(result.checkpoint)
    assert torch.equal(found["layer1.weight"], module.state_dict()["layer1.weight"])
    assert found["head.weight"].shape == (3, 8)


def wrong(kind: str, path: Path) -> None:
    """Files that are no weights of this model."""
    state = network().state_dict()
    if kind == "other width":
        torch.save({**state, "layer1.weight": torch.zeros(9, 4)}, path)
    elif kind == "other head width":
        torch.save({**state, "head.weight": torch.zeros(3, 9)}, path)
    elif kind == "missing":
        torch.save({name: tensor for name, tensor in state.items() if name != "layer1.bias"}, path)
    elif kind == "missing beside another head":
        torch.save({"head.weight": torch.zeros(7, 8), "head.bias": torch.zeros(7)}, path)
    elif kind == "unknown":
        torch.save({**state, "more": torch.zeros(2)}, path)
    elif kind == "no state dict":
        torch.save([1, 2], path)
    elif kind == "nothing in it":
        torch.save({}, path)
    elif kind == "a module":
        torch.save(network(), path)
    elif kind == "text":
        path.write_text("weights")
    elif kind == "empty":
        path.touch()
    else:
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("other width", r"layer1\.weight is \(9, 4\), the model's \(8, 4\)"),
        ("other head width", r"head\.weight is \(3, 9\), the model's \(3, 8\)"),
        ("missing", r"layer1\.bias is missing"),
        ("missing beside another head", r"layer1\.weight is missing"),
        ("unknown", "more is not in the model"),
        ("no state dict", "no state dict"),
        ("nothing in it", "missing"),
        ("a module", "cannot be read as weights"),
        ("text", "cannot be read as weights"),
        ("empty", "cannot be read as weights"),
        ("a folder", "no such file"),
    ],
)
def test_files_that_are_no_weights_of_this_model_are_refused(
    folder: Path, tmp_path: Path, kind: str, says: str
) -> None:
    before = (folder / "study.db").read_bytes()
    path = tmp_path / "mine.pth"
    wrong(kind, path)
    with pytest.raises(CheckpointError, match=says) as caught:
        train_on(folder, checkpoint=path)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    assert (folder / "study.db").read_bytes() == before
    assert not (folder / "finetuned").exists()


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_in_a_pickle_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(pickle.dumps({"weight": Bomb()}))
    with pytest.raises(CheckpointError) as caught:
        train_on(folder, checkpoint=path)
    # Nobody is told how to have it run all the same.
    assert "trust" not in caught.value.message
    torch.save({"weight": Bomb()}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError):
        train_on(folder, checkpoint=tmp_path / "other.pth")
    assert not Path("exploded").exists()


# Regression


def test_regression_is_told_in_the_metric_of_the_target(question: Question, tmp_path: Path) -> None:
    table(tmp_path / "t.csv", seed=0, offset=10.0, target=lambda x, town: 1000 + 30 * x + 50 * (town == "Bern"))
    study = question(
        base=tmp_path,
        data={"source": "t.csv", "target": "y"},
        train={"metric": "r2"},
        space={"batch_size": 16, "optimizer": "adam", "learning_rate": 0.02},
        trials=3,
    )
    list(search(study, tmp_path / "tiny"))
    result = train_on(tmp_path / "tiny", epochs=5)
    assert (result.metric, result.direction) == ("r2", "maximize")
    data = load_data(study)
    start, _ = checkpoint.load(tmp_path / "tiny" / "checkpoints" / f"trial-{result.trial}")
    found, manifest = checkpoint.load(result.checkpoint)
    mean, scale = (manifest["preprocessing"]["target"][key] for key in ("mean", "scale"))
    module = nn.Sequential(OrderedDict(layer1=nn.Linear(3, 8), relu=nn.ReLU(), head=nn.Linear(8, 1)))
    for value, weights in ((result.before, start), (result.after, found)):
        with torch.no_grad():
            guessed = loaded(weights, module)(data.test.inputs)[:, 0].double() * scale + mean
        assert value == pytest.approx(r2_score(data.test.targets.double() * scale + mean, guessed), rel=1e-5, abs=1e-6)
    assert result.used
    assert result.samples == 81


# What cannot begin


def test_an_unknown_hparam_is_refused_with_the_nearest(folder: Path) -> None:
    for name, hint in (("lr", "learning_rate"), ("momentun", "momentum"), ("wd", "l2")):
        with pytest.raises(UsageError, match=name) as caught:
            train_on(folder, hparams={name: 0.1})
        assert hint in (caught.value.hint or "")
    for name, value in (("learning_rate", -1), ("batch_size", 0), ("optimizer", "sdg")):
        with pytest.raises(UsageError, match=name):
            train_on(folder, hparams={name: value})
    with pytest.raises(UsageError, match=r"model\.hidden"):
        train_on(folder, hparams={"model.hidden": [9]})
    assert not (folder / "finetuned").exists()


def test_a_trial_without_a_checkpoint_names_those_that_have_one(folder: Path) -> None:
    record = read(folder / "study.db")
    without = next(trial.number for trial in record.trials if trial.number not in record.kept)
    with pytest.raises(InputError, match="no checkpoint") as caught:
        train_on(folder, trial=without)
    assert ", ".join(map(str, sorted(record.kept))) in caught.value.message
    with pytest.raises(InputError, match="no trial 99"):
        train_on(folder, trial=99)
    kept = max(record.kept)
    assert train_on(folder, trial=kept).trial == kept


def test_a_study_without_a_complete_trial_has_nothing_to_train_on(question: Question, tmp_path: Path) -> None:
    calls = iter(range(100))
    list(search(question(), tmp_path / "tiny", stop=lambda: next(calls) > 3))
    found = read(tmp_path / "tiny" / "study.db").trials
    assert found
    assert not any(trial.state is State.COMPLETE for trial in found)
    with pytest.raises(NoUsableTrial, match="no complete trial") as caught:
        train_on(tmp_path / "tiny")
    assert caught.value.exit_code == 4


def test_data_that_have_changed_are_refused(question: Question, tmp_path: Path) -> None:
    table(tmp_path / "t.csv", seed=0, offset=0.0, target=lambda x, town: np.where(x > 0, "up", "down"))
    source = {"source": "t.csv", "target": "y"}
    list(search(question(base=tmp_path, data=source, trials=3), tmp_path / "tiny"))
    train_on(tmp_path / "tiny")
    table(tmp_path / "t.csv", seed=1, offset=0.0, target=lambda x, town: np.where(x > 0, "up", "down"))
    with pytest.raises(InputError, match="other samples") as caught:
        train_on(tmp_path / "tiny")
    assert "--data" in (caught.value.hint or "")
    # As new data they are welcome, and their test split was never read.
    assert train_on(tmp_path / "tiny", data=str(tmp_path / "t.csv")).reading == 1
    (tmp_path / "t.csv").unlink()
    with pytest.raises(InputError, match="no such file"):
        train_on(tmp_path / "tiny")


def test_a_study_whose_code_is_gone_says_which_file(normed: Path, tmp_path: Path) -> None:
    place = shutil.copytree(normed.parent, tmp_path / "moved")
    text = (place / "own" / "study.toml").read_text()
    (place / "own" / "study.toml").write_text(text.replace("own.py:make", "gone.py:make"))
    with pytest.raises(TunecliError, match=r"gone\.py") as caught:
        train_on(place / "own")
    assert caught.value.exit_code == 3


def test_a_saved_head_for_the_new_classes_is_taken_with_its_checkpoint(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(searched / "tiny", folder)
    (tmp_path / "two.py").write_text(
        "from sklearn.datasets import load_iris\n"
        "def load():\n"
        "    flowers = load_iris()\n"
        "    return flowers.data[50:], flowers.target[50:] - 1\n"
    )
    source = f"{tmp_path / 'two.py'}:load"
    first = train_on(folder, data=source, save=tmp_path / "model.pth")
    again = train_on(folder, data=source, checkpoint=tmp_path / "model.pth")
    assert (first.new_head, again.new_head) == (True, False)
    assert again.before == first.after
    assert again.start == str(tmp_path / "model.pth")


def test_what_the_models_own_function_has_frozen_stays_so_unless_it_is_named(
    question: Question, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def net():\n"
        "    body = torch.nn.Linear(4, 8)\n"
        "    body.weight.data = torch.linspace(-1, 1, 32).view(8, 4)\n"
        "    body.weight.requires_grad_(False)\n"
        "    first = torch.nn.Linear(4, 4)\n"
        "    torch.nn.init.eye_(first.weight), torch.nn.init.zeros_(first.bias)\n"
        "    return torch.nn.Sequential(first.requires_grad_(False), body, torch.nn.Linear(8, 3))\n"
    )
    list(search(question(base=tmp_path, model={"source": "own.py:net"}, trials=3), tmp_path / "tiny"))
    done = train_on(tmp_path / "tiny", epochs=1)
    weights, _ = checkpoint.load(Path(done.checkpoint))
    assert done.trained == ("1", "2")
    torch.testing.assert_close(weights["0.weight"], torch.eye(4), rtol=0, atol=0)
    torch.testing.assert_close(weights["1.weight"], torch.linspace(-1, 1, 32).view(8, 4), rtol=0, atol=0)
    weights, _ = checkpoint.load(Path(train_on(tmp_path / "tiny", epochs=1, layers=("0",)).checkpoint))
    assert not torch.equal(weights["0.weight"], torch.eye(4))
