"""Predictions: raw input through a checkpoint, row by row."""

import csv
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from scipy.stats import yeojohnson
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from torch import nn

from tests.conftest import Command, Question
from tunecli import checkpoint
from tunecli.data.split import split_indices
from tunecli.errors import NoUsableTrial
from tunecli.finetune import Finetuned, Request, finetune
from tunecli.predict import predict
from tunecli.search import search
from tunecli.source import load_function
from tunecli.store import create_study, hold, read
from tunecli.study.code import changed_code, code_of_model
from tunecli.trial import State

NAMES = {"setosa": "=1+1", "versicolor": "-versi", "virginica": "virginica"}
"""Labels of a table's own, two of which a spreadsheet would take for formulas."""


def flowers(path: Path) -> pd.DataFrame:
    """Iris as a table with a category, which says nothing, and codes that look like numbers."""
    iris = load_iris(as_frame=True)
    frame = iris.data.rename(columns=lambda name: name.replace(" (cm)", ""))
    frame["colour"] = [("blue", "red", "white")[i % 3] for i in range(150)]
    frame["plot"] = [f"{i % 2:02d}{'x' if i == 7 else ''}" for i in range(150)]
    frame["species"] = [NAMES[iris.target_names[y]] for y in iris.target]
    frame.to_csv(path, index=False)
    return frame


@pytest.fixture(scope="session")
def studies(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with `flowers`, from a table of classes, `price`, from one of numbers, and `tumour` with one output."""
    place = tmp_path_factory.mktemp("predict")
    flowers(place / "flowers.csv")
    draw = np.random.default_rng(0)
    price = pd.DataFrame({"area": draw.uniform(40, 250, 120), "rooms": draw.integers(1, 9, 120)})
    price["price"] = 1e6 + 5000 * price.area + 100 * price.rooms
    price.to_csv(place / "price.csv", index=False)
    home, small = place / "studies", {"trials": 4, "window": 4, "pruner": "none"}
    data = {"source": "flowers.csv", "target": "species"}
    list(search(question(name="flowers", base=place, data=data, train={"epochs": 6}, **small), home / "flowers"))
    data = {"source": "price.csv", "target": "price"}
    train = {"metric": "r2", "epochs": 6}
    list(search(question(name="price", base=place, data=data, train=train, **small), home / "price"))
    train = {"loss": "binary_cross_entropy", "epochs": 2}
    list(search(question(name="tumour", data={"source": "breast_cancer"}, train=train, **small), home / "tumour"))
    return place


@pytest.fixture
def here(studies: Path, tmp_path: Path) -> Path:
    """The folder that commands are typed in, with that home and its tables."""
    return shutil.copytree(studies, tmp_path, dirs_exist_ok=True)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def by_hand(checkpoint: Path, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    """What a checkpoint's mlp makes of a frame, without tunecli: numbers standardized, one column a category."""
    manifest, weights = (
        json.loads((checkpoint / "manifest.json").read_text()),
        load_file(checkpoint / "weights.safetensors"),
    )
    parts = []
    for column in manifest["preprocessing"]["columns"]:
        if column["kind"] == "number":
            numbers, milder = frame[column["name"]], column["milder"]
            if milder is not None:
                numbers = yeojohnson((numbers - milder["center"]) / milder["spread"], milder["power"])
            parts.append([(numbers - column["mean"]) / column["scale"]])
        else:
            parts.append([frame[column["name"]] == level for level in column["levels"]])
    inputs = np.concatenate(parts).T.astype(np.float64)
    hidden = np.maximum(inputs @ weights["layer1.weight"].T + weights["layer1.bias"], 0)
    return np.asarray(hidden @ weights["head.weight"].T + weights["head.bias"])


def best_checkpoint(folder: Path) -> Path:
    record = read(folder / "study.db")
    complete = [own for own in record.trials if own.state is State.COMPLETE and own.value is not None]
    best = max(complete, key=lambda own: (own.value, -own.number))  # accuracy and R2 are both maximized
    return folder / "checkpoints" / f"trial-{best.number}"


# What comes out


def test_probabilities_are_the_softmax_of_the_outputs_of_the_best_trial(tunecli: Command, here: Path) -> None:
    frame = pd.read_csv(here / "flowers.csv", dtype={"plot": str})
    best = best_checkpoint(here / "studies" / "flowers")
    outputs = by_hand(best, frame)
    expected = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    done = tunecli("predict", "flowers", "flowers.csv")
    assert done.code == 0
    rows = rows_of(done.out)
    assert done.out.splitlines()[0] == "prediction,probability_-versi,probability_=1+1,probability_virginica"
    found = np.array([[float(cell) for cell in list(row.values())[1:]] for row in rows])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=1e-15)
    # The labels are the table's own, but for the apostrophe that keeps a spreadsheet from computing them.
    labels = [("'-versi", "'=1+1", "virginica")[k] for k in expected.argmax(1)]
    assert [row["prediction"] for row in rows] == labels
    number = best.name.removeprefix("trial-")
    assert f"flowers: predicting species with the best trial {number} (accuracy " in done.err
    assert " on validation)" in done.err


def test_a_number_comes_in_the_unit_of_its_target(tunecli: Command, here: Path) -> None:
    frame = pd.read_csv(here / "price.csv")
    best = best_checkpoint(here / "studies" / "price")
    target = json.loads((best / "manifest.json").read_text())["preprocessing"]["target"]
    expected = by_hand(best, frame)[:, 0] * target["scale"] + target["mean"]
    done = tunecli("predict", "price", "price.csv")
    found = [float(line) for line in done.out.splitlines()[1:]]
    assert done.out.splitlines()[0] == "prediction"
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert min(found) > 5e5


def test_the_probabilities_of_one_logit_are_its_sigmoid(tunecli: Command, here: Path) -> None:
    tumours = load_breast_cancer(as_frame=True).data
    tumours.to_csv(here / "new.csv", index=False)
    logits = by_hand(best_checkpoint(here / "studies" / "tumour"), tumours)[:, 0]
    rows = rows_of(tunecli("predict", "tumour", "new.csv").out)
    assert list(rows[0]) == ["prediction", "probability_malignant", "probability_benign"]
    benign = np.array([float(row["probability_benign"]) for row in rows])
    np.testing.assert_allclose(benign, 1 / (1 + np.exp(-logits)), rtol=1e-3, atol=1e-6)
    assert [row["prediction"] for row in rows] == ["benign" if logit > 0 else "malignant" for logit in logits]


def test_a_table_longer_than_a_batch_is_predicted_row_by_row(tunecli: Command, here: Path) -> None:
    frame = pd.read_csv(here / "price.csv")
    once = tunecli("predict", "price", "price.csv").out.splitlines()[1:]
    pd.concat([frame] * 100).to_csv(here / "long.csv", index=False)
    found = tunecli("predict", "price", "long.csv").out.splitlines()[1:]
    assert len(found) == 12_000
    np.testing.assert_allclose([float(line) for line in found], [float(line) for line in once] * 100, rtol=1e-6)


def mixed(rows: int = 300) -> pd.DataFrame:
    """A table of every kind of column, with gaps, and classes that all of them tell something of."""
    draw = np.random.default_rng(3)
    day = draw.integers(0, 900, rows)
    frame = pd.DataFrame(
        {
            "income": np.exp(draw.normal(8, 2, rows)),
            "member": draw.choice(["yes", "no"], rows),
            "colour": draw.choice(["blue", "red", "white"], rows),
            "postcode": [f"P{number}" for number in draw.integers(0, 80, rows)],
            "since": (pd.Timestamp("2020-01-01") + pd.to_timedelta(day, unit="D")).strftime("%Y-%m-%d"),
        }
    )
    score = np.log(frame.income) + (frame.member == "yes") * 3 + (frame.colour == "red") * 2 + day / 300
    frame.loc[::9, "income"] = None
    frame.loc[::11, "colour"] = None
    frame["class"] = np.where(score > score.median(), "high", "low")
    return frame


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npz"])
def test_predictions_score_what_the_search_recorded(
    tunecli: Command, question: Question, tmp_path: Path, suffix: str
) -> None:
    frame, path = mixed(), tmp_path / f"mixed{suffix}"
    if suffix == ".parquet":
        frame.assign(since=pd.to_datetime(frame.since)).to_parquet(path)
    elif suffix == ".npz":
        np.savez(path, inputs=np.random.default_rng(0).normal(5, 3, (300, 4)), targets=frame["class"].to_numpy(str))
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    data = {"source": path.name} | ({} if suffix == ".npz" else {"target": "class"})
    study = question(name="mixed", base=tmp_path, data=data, train={"epochs": 3}, trials=2, window=2)
    list(search(study, tmp_path / "studies" / "mixed"))
    if suffix != ".npz":
        manifest = json.loads((best_checkpoint(tmp_path / "studies" / "mixed") / "manifest.json").read_text())
        kinds = {column["kind"] for column in manifest["preprocessing"]["columns"]}
        assert kinds == {"number", "boolean", "category", "code", "date"}
    done = tunecli("predict", path.name)
    told = [line.split(":")[1] for line in done.err.splitlines() if line.startswith("note")]
    assert set(told) <= {" column 'postcode'"}, "only codes that training saw once at most are strange"
    rows = rows_of(done.out)
    assert len(rows) == 300
    codes = (frame["class"] == "low").to_numpy(np.int64)
    (_, validation, _), _ = split_indices(300, (8, 1, 1), study.seed, codes, ("high", "low"))
    hits = sum(rows[row]["prediction"] == frame["class"][row] for row in validation)
    value = tunecli("report", "--format", "json").document["best"]["value"]
    assert hits / len(validation) == pytest.approx(value, abs=1e-12)


# What goes in


def test_columns_are_matched_by_name_and_the_target_is_not_looked_at(tunecli: Command, here: Path) -> None:
    frame = pd.read_csv(here / "flowers.csv", dtype=str)
    expected = tunecli("predict", "flowers", "flowers.csv")
    assert "note" not in expected.err
    other = frame[frame.columns[::-1]].assign(species="nonsense", note="mine")
    other.to_csv(here / "other.csv", index=False)
    done = tunecli("predict", "flowers", "other.csv")
    assert done.out == expected.out
    assert "note: column 'note' is not used: the model was not trained on it\n" in done.err
    frame.drop(columns="species").to_csv(here / "other.csv", index=False)
    done = tunecli("predict", "flowers", "other.csv")
    assert (done.out, "note" in done.err) == (expected.out, False)


def test_codes_stay_what_they_are_in_a_table_that_has_only_digits(tunecli: Command, here: Path) -> None:
    # "00" and "01" are text where another row holds "01x", and would be numbers in a table without it.
    frame = pd.read_csv(here / "flowers.csv", dtype=str)
    frame[:7].to_csv(here / "few.csv", index=False)
    done = tunecli("predict", "flowers", "few.csv")
    assert done.out.splitlines() == tunecli("predict", "flowers", "flowers.csv").out.splitlines()[:8]
    assert "note" not in done.err


def test_missing_columns_are_filled_in_with_a_notice(tunecli: Command, here: Path) -> None:
    frame = pd.read_csv(here / "flowers.csv", dtype=str)
    frame.drop(columns=["colour", "sepal width"]).to_csv(here / "new.csv", index=False)
    done = tunecli("predict", "flowers", "new.csv")
    assert len(rows_of(done.out)) == 150
    for name in ("colour", "sepal width"):
        assert f"note: column {name!r} is missing and filled in\n" in done.err
    median = json.loads((best_checkpoint(here / "studies" / "flowers") / "manifest.json").read_text())
    (fill,) = (own["fill"] for own in median["preprocessing"]["columns"] if own["name"] == "sepal width")
    frame.assign(colour="", **{"sepal width": fill}).to_csv(here / "new.csv", index=False)
    assert tunecli("predict", "flowers", "new.csv").out == done.out
    frame[["species"]].to_csv(here / "new.csv", index=False)
    done = tunecli("predict", "flowers", "new.csv")
    assert (done.code, done.out) == (3, "")
    message, hint = done.complaint
    assert "none of the columns" in message
    assert "sepal length" in hint


def test_strange_values_are_counted_and_every_row_is_answered(tunecli: Command, here: Path) -> None:
    frame = pd.read_csv(here / "flowers.csv", dtype=str)[:6]
    frame.loc[[1, 4], "colour"] = ["green", "black"]
    frame.loc[2, "petal width"] = "wide"
    frame.loc[[3, 5]] = None
    frame.to_csv(here / "new.csv", index=False)
    done = tunecli("predict", "flowers", "new.csv")
    rows = rows_of(done.out)
    assert len(rows) == 6
    assert rows[3] == rows[5] != rows[0]
    assert all(np.isfinite(float(cell)) for row in rows for cell in list(row.values())[1:])
    told = [line.removeprefix("note: ") for line in done.err.splitlines() if line.startswith("note: ")]
    assert told == [
        "column 'petal width': 1 row holds a value that is no number ('wide'), filled in",
        "column 'colour': 2 rows hold a value that is not seen in training ('green', 'black'), taken for missing",
        "2 rows hold no value at all and are filled in throughout",
    ]


def test_a_header_without_rows_gives_a_header_without_rows(tunecli: Command, here: Path) -> None:
    (here / "empty.csv").write_text((here / "flowers.csv").read_text().splitlines()[0] + "\n")
    done = tunecli("predict", "flowers", "empty.csv")
    assert (done.code, len(done.out.splitlines())) == (0, 1)
    (here / "empty.csv").write_text("")
    done = tunecli("predict", "flowers", "empty.csv")
    assert (done.code, done.out) == (3, "")
    assert "is empty" in done.complaint[0]


def test_labels_that_are_numbers_are_not_touched(tunecli: Command, tmp_path: Path) -> None:
    rows = [f"{x % 7},{x % 5},{-1 if x % 2 else 1}" for x in range(60)]
    (tmp_path / "signs.csv").write_text("\n".join(["a,b,sign", *rows]) + "\n")
    quick = ("--trials", "2", "--set", "train.epochs=1", "--set", "model.hidden=[2]")
    assert tunecli("search", "signs.csv", "--target", "sign", *quick).code == 0
    done = tunecli("predict", "signs.csv")
    assert done.out.startswith("prediction,probability_-1,probability_1\n")
    assert {row["prediction"] for row in rows_of(done.out)} <= {"-1", "1"}


# Which model


def train_on(folder: Path, **keys: Any) -> Finetuned:
    *_, last = finetune(folder, Request(**keys))
    assert isinstance(last, Finetuned)
    return last


def test_the_newest_fine_tuned_model_in_use_comes_before_the_best_trial(tunecli: Command, here: Path) -> None:
    folder = here / "studies" / "flowers"
    trial = tunecli("predict", "flowers", "flowers.csv")
    learns: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.05, "l1": 0, "l2": 0}
    first = train_on(folder, epochs=4, hparams=learns)
    assert first.used
    done = tunecli("predict", "flowers", "flowers.csv")
    assert done.out != trial.out
    words = f"trial-{first.trial} trained on with {first.data} (accuracy {first.after:.4f} on test)"
    assert f"the fine-tuned model 1, {words}" in done.err
    frame = pd.read_csv(here / "flowers.csv", dtype={"plot": str})
    names = ["'-versi", "'=1+1", "virginica"]
    labels = [names[k] for k in by_hand(first.checkpoint, frame).argmax(1)]
    assert [row["prediction"] for row in rows_of(done.out)] == labels
    # One that made it worse is not in use; the trial's own is asked for by its number.
    worse = train_on(
        folder, checkpoint=first.checkpoint / "weights.safetensors", hparams=learns | {"learning_rate": 30.0}
    )
    assert not worse.used
    stays = tunecli("predict", "flowers", "flowers.csv")
    assert stays.out == done.out
    moved = f"accuracy went from {worse.before:.4f} to {worse.after:.4f} on test"
    assert f"note: the fine-tuned model 2 is passed over: {moved}; --finetuned 2 takes it all the same\n" in stays.err
    assert "the fine-tuned model 2, " in tunecli("predict", "flowers", "flowers.csv", "--finetuned", "2").err
    assert tunecli("predict", "flowers", "flowers.csv", "--finetuned", "1").out == done.out
    again = tunecli("predict", "flowers", "flowers.csv", "--trial", str(first.trial))
    assert again.out == trial.out
    assert f"flowers: predicting species with trial {first.trial} (accuracy" in again.err


def test_a_fine_tuned_model_of_another_trial_than_the_best_says_so(tunecli: Command, here: Path) -> None:
    folder = here / "studies" / "price"
    record = read(folder / "study.db")
    best = int(best_checkpoint(folder).name.removeprefix("trial-"))
    other = next(number for number in record.kept if number != best)
    assert train_on(folder, trial=other, epochs=3).used
    done = tunecli("predict", "price", "price.csv")
    by_now = f"note: the best trial is {best} by now, the fine-tuned model comes from trial {other}; "
    assert f"{by_now}--trial {best} takes the best\n" in done.err


def test_a_fine_tuned_model_that_is_not_there(tunecli: Command, here: Path) -> None:
    asked = ("predict", "flowers", "flowers.csv", "--finetuned", "3")
    done = tunecli(*asked)
    assert (done.code, done.out) == (3, "")
    hint = "tunecli finetune flowers --best makes one"
    assert done.complaint == ("flowers has no fine-tuned model 3", hint)
    train_on(here / "studies" / "flowers", epochs=1)
    assert tunecli(*asked).complaint[1] == "it has 1"
    both = tunecli(*asked, "--trial", "0")
    assert (both.code, both.complaint[0]) == (2, "--trial and --finetuned both name the model to use")


OWN = """
import numpy as np
import torch

def load(classes=3, first=0):
    draw = np.random.default_rng(5)
    labels = np.arange(90) % classes + first
    return draw.normal(0, 0.3, (90, 2)).astype("float32") + labels[:, None], labels

def more(): return load(classes=5)
def inputs(): return load()[0]
def wide(): return np.zeros((3, 7))
def gaps(): return np.full((3, 2), np.nan)
def words(): return np.array([["a", "b"]])
def three(): return load(), load(), load()

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = torch.nn.Linear(2, width)
        self.out = torch.nn.Linear(width, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.body(x)))

def make(width): return Net(width)
"""


@pytest.fixture
def own(tunecli: Command, tmp_path: Path) -> Path:
    """A folder with the study `own` of a user's model and data."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.toml").write_text(
        '[data]\nsource = "own.py:load"\n[model]\nsource = "own.py:make"\nwidth = 6\n'
        '[train]\nepochs = 2\n[space]\noptimizer = ["adam"]\n[search]\ntrials = 2\n'
    )
    assert tunecli("search", "own.toml").code == 0
    return tmp_path


def test_a_users_own_function_gives_inputs_and_a_fine_tuned_model_its_other_head(tunecli: Command, own: Path) -> None:
    done = tunecli("predict", "own.py:load")
    scope: dict[str, Any] = {}
    exec(OWN, scope)
    inputs = torch.from_numpy(scope["inputs"]()).float()

    def expected(checkpoint: Path, outputs: int) -> np.ndarray[Any, Any]:
        module = scope["make"](6)
        module.out = nn.Linear(6, outputs)
        weights = load_file(checkpoint / "weights.safetensors")
        module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        return module(inputs).softmax(1).detach().numpy()  # type: ignore[no-any-return]

    def found(text: str) -> np.ndarray[Any, Any]:
        return np.array([[float(cell) for cell in list(row.values())[1:]] for row in rows_of(text)])

    folder = own / "studies" / "own"
    np.testing.assert_allclose(found(done.out), expected(best_checkpoint(folder), 3), atol=1e-6)
    assert tunecli("predict", "own", "own.py:inputs").out == done.out
    result = train_on(
        folder, data=str(own / "own.py:more"), epochs=20, hparams={"learning_rate": 0.05, "l1": 0, "l2": 0}
    )
    assert result.used
    done = tunecli("predict", "own.py:inputs")
    assert done.out.splitlines()[0] == "prediction," + ",".join(f"probability_{k}" for k in range(5))
    np.testing.assert_allclose(found(done.out), expected(result.checkpoint, 5), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("own.py:wide", "samples of shape (7,), the model was trained on (2,)"),
        ("own.py:gaps", "a NaN or an infinity in the inputs of 3 samples"),
        ("own.py:three", "tuple of 3"),
        ("own.py:none", "no function 'none'"),
        ("flowers.csv", "no such file"),
        ("own.py:words", "inputs must be numbers"),
        ("digits", "no file to read"),
    ],
)
def test_what_the_model_cannot_read_is_refused(tunecli: Command, own: Path, source: str, words: str) -> None:
    done = tunecli("predict", "own", source)
    assert (done.code, done.out) == (3, "")
    assert words in done.complaint[0]


def test_a_project_that_was_moved_predicts_where_study_toml_says_that_it_is(tunecli: Command, own: Path) -> None:
    expected = tunecli("predict", "own.py:load").out
    shutil.copytree(own, own / "moved", ignore=shutil.ignore_patterns("moved"))
    (own / "own.py").rename(own / "new.py")
    question = own / "moved" / "studies" / "own" / "study.toml"
    done = tunecli("predict", "own", "new.py:load", "--home", "moved/studies")
    assert done.code == 3
    assert "no such file" in done.err
    question.write_text(question.read_text().replace(f'base = "{own}"', f'base = "{own / "moved"}"'))
    assert tunecli("predict", "own", "new.py:load", "--home", "moved/studies").out == expected


PICKY = """
class Picky(Net):
    def forward(self, x):
        if not self.training and len(x) == 1:
            raise ValueError("one alone")
        if len(x) > 60 and not self.training:
            raise RuntimeError("can't allocate memory: you tried to allocate 99 bytes")
        return super().forward(x)

def picky(width): return Picky(width)
def one(): return inputs()[:1]
"""


def test_predict_and_finetune_say_alike_that_a_forward_raised_and_share_memory_out_alike(
    tunecli: Command, own: Path
) -> None:
    (own / "picky.py").write_text(OWN + PICKY)
    picky = "--set", "model.source=picky.py:picky", "--set", "name=picky"
    assert tunecli("search", "own.toml", *picky).code == 0
    done = tunecli("predict", "picky", "picky.py:one")
    line = (OWN + PICKY).splitlines().index('            raise ValueError("one alone")') + 1
    assert (done.code, done.out) == (3, "")
    assert done.complaint == (
        f"the model's forward raised ValueError: one alone (picky.py, line {line})",
        "it was tried with 1 sample of shape (2,)",
    )
    whole = tunecli("predict", "picky", "picky.py:inputs")
    assert (whole.code, len(rows_of(whole.out))) == (0, 90)


def other_code(own: Path, name: str, old: str, new: str) -> None:
    """A copy of the project with other code: what this process has loaded once it does not load again."""
    place = shutil.copytree(own, own / name, ignore=shutil.ignore_patterns("same", "other"))
    (place / "own.py").write_text(OWN.replace(old, new))
    question = place / "studies" / "own" / "study.toml"
    question.write_text(question.read_text().replace(f'base = "{own}"', f'base = "{place}"'))


@pytest.mark.parametrize("name", ["same", "other"])
def test_code_of_the_model_that_changed_after_training_is_told_of(tunecli: Command, own: Path, name: str) -> None:
    other_code(own, name, "torch.tanh", "torch.tanh" if name == "same" else "torch.relu")
    best = best_checkpoint(own / "studies" / "own").name.replace("-", " ")
    now = f"{best} was trained: the model is made by what is there now"
    for told, *arguments in (
        (now, "predict", "own", f"{name}/own.py:load"),
        (now, "finetune", "own", "--best"),
        ("was trained: trials from now on are another model's", "search", f"{name}/own.toml", "--trials", "3"),
    ):
        done = tunecli(*arguments, "--home", f"{name}/studies")
        assert done.code == 0
        assert [told in line for line in done.err.splitlines() if "changed" in line] == [True] * (name == "other")
    tuned = tunecli("predict", "own", f"{name}/own.py:load", "--finetuned", "1", "--home", f"{name}/studies")
    assert (tuned.code, "changed" in tuned.err) == (0, False)


USED = """
import torch
from torch import nn
WIDTH = 4
ROWS = 9
torch.set_default_dtype(torch.float32)

def layer(width): return nn.Linear(2, width)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = layer(WIDTH)

def load(): return ROWS

def make(): return Net()

if __name__ == "__main__":
    make()
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("WIDTH = 4", "WIDTH = 5", True),
        ("nn.Linear(2, width)", "nn.Linear(2, width, bias=False)", True),
        ("return Net()", "return nn.Sequential(Net())", True),
        ("torch.float32", "torch.float64", True),
        ("from torch import nn", "from torch import nn as nn\nclass nn(nn.Module): pass", True),
        ("return Net()", "return Net(", True),
        ("ROWS = 9", "ROWS = 5  # fewer", False),
        ("def load(): return ROWS", "def load():\n    return ROWS, more()\n\ndef more(): return 1", False),
        ("class Net(nn.Module):", 'class Net(nn.Module):\n    """Mine."""\n', False),
        ("    make()", "    print(make())", False),
        ("nn.Linear(2, width)", "nn.Linear(\n    2,\n    width,\n)", False),
        # By names alone it cannot be told that the model needs these.
        (
            "def load",
            "KINDS = {}\ndef put(own): KINDS[own.__name__] = own\n@put\nclass Wide(Net): pass\n\ndef load",
            True,
        ),
        ("ROWS = 9", "for ROWS in range(9): pass", True),
        ("import torch\n", "import torch\nfrom math import *\n", True),
        ("    make()", "    make()\nelse:\n    torch.manual_seed(5)", True),
        ("return Net()", "return globals()['Net']()", True),
    ],
)
def test_only_what_makes_the_model_counts_as_its_code(
    question: Question, tmp_path: Path, old: str, new: str, told: bool
) -> None:
    for name, code in (("before", USED), ("after", USED.replace(old, new))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(code)
    study = question(base=tmp_path / "before", model={"source": "own.py:make"})
    load_function("own.py:make", study.base)
    manifest = {"trial": 7, "model": {"source": "own.py:make"}, "code": code_of_model(study)}
    assert changed_code(manifest, study.base) is None
    said = "own.py changed after trial 7 was trained" if told else None
    assert changed_code(manifest, tmp_path / "after") == said


def test_code_that_makes_a_model_of_another_shape_is_the_hint(tunecli: Command, own: Path) -> None:
    other_code(own, "other", "2, width", "2, width + 1")
    done = tunecli("predict", "own", "other/own.py:load", "--home", "other/studies")
    assert done.code == 3
    assert done.complaint[1].startswith("own.py changed after trial ")


TOKENS = """
import torch

class Net(torch.nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.table, self.columns = torch.nn.Embedding(rows, 4), torch.nn.Embedding(6, 4)
        self.out = torch.nn.Linear(columns, 2)

class Words(Net):
    def __init__(self): super().__init__(50, 4)
    def forward(self, x): return self.out(self.table(x).amax(1))

class Numbers(Net):
    def __init__(self): super().__init__(1, 4)
    def forward(self, x): return self.out((x[..., None] * self.columns(torch.arange(6))).sum(1))
"""


def test_integers_of_a_file_reach_a_model_as_they_are_where_it_reads_them_only_so(
    tunecli: Command, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).integers(0, 50, (200, 6))
    np.savez(tmp_path / "t.npz", inputs=x, targets=(x == 7).any(1).astype(int))
    (tmp_path / "own.py").write_text(TOKENS)
    asked = "search", "t.npz", "--set", "train.epochs=2", "--set"
    done = tunecli(*asked, "model.source=own.py:Words", "--trials", "2")
    assert done.code == 0
    assert "its whole numbers are left as they are, for the model reads them only so" in " ".join(done.err.split())
    more = tunecli("search", "t", "--trials", "3")
    assert (more.code, "2 of 3 done, 1 to go" in more.err) == (0, True)
    predicted = rows_of(tunecli("predict", "t", "t.npz").out)
    assert len(predicted) == 200
    scope: dict[str, Any] = {}
    exec(TOKENS, scope)
    module = scope["Words"]()
    weights = load_file(best_checkpoint(tmp_path / "studies" / "t") / "weights.safetensors")
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    probabilities = module(torch.from_numpy(x)).softmax(1)[:, 1].tolist()
    np.testing.assert_allclose([float(row["probability_1"]) for row in predicted], probabilities, atol=1e-6)
    for data in ((), ("--data", "t.npz")):
        assert tunecli("finetune", "t", "--best", "--epochs", "1", *data).code == 0
    refused = tunecli("search", "t", "--set", "data.as_is=false", "--trials", "4")
    assert (refused.code, "data.as_is: true -> false" in refused.complaint[0]) == (3, True)


def test_integers_of_a_file_that_a_model_reads_as_numbers_are_standardized(tunecli: Command, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 50, (200, 6))
    np.savez(tmp_path / "t.npz", inputs=x, targets=(x == 7).any(1).astype(int))
    (tmp_path / "own.py").write_text(TOKENS)
    done = tunecli(
        "search", "t.npz", "--set", "model.source=own.py:Numbers", "--set", "train.epochs=1", "--trials", "1"
    )
    assert (done.code, "whole numbers" in done.err) == (0, False)
    assert "inputs are standardized; data.as_is = true leaves them as they are" in " ".join(done.err.split())
    np.savez(tmp_path / "b.npz", inputs=x.astype(np.uint8), targets=(x == 7).any(1).astype(int))
    done = tunecli(
        "search", "b.npz", "--set", "model.source=own.py:Numbers", "--set", "train.epochs=1", "--trials", "1"
    )
    assert "0 to 255 become 0 to 1; data.as_is = true leaves them as they are" in " ".join(done.err.split())
    manifest = json.loads((best_checkpoint(tmp_path / "studies" / "t") / "manifest.json").read_text())
    assert manifest["preprocessing"]["kind"] == "array"


PICTURES = """
import numpy as np
import torch

def load():
    pictures = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
    return pictures, (pictures[:, 0, 0, 0] > 100).astype(int)

def floats():
    pictures, _ = load()
    return pictures / 255

class Net(torch.nn.Sequential):
    def forward(self, x):
        assert x.dtype == torch.uint8
        return super().forward(x / 255)

def make():
    return Net(torch.nn.Flatten(), torch.nn.Linear(16, 2))
"""


@pytest.mark.parametrize("model", ["linear", "own.py:make"])
def test_bytes_become_numbers_from_0_to_1_for_a_bundled_model_and_reach_a_users_own_as_they_are(
    tunecli: Command, tmp_path: Path, model: str
) -> None:
    (tmp_path / "own.py").write_text(PICTURES)
    (tmp_path / "own.toml").write_text(
        f'[data]\nsource = "own.py:load"\n[model]\nsource = "{model}"\n[train]\nepochs = 2\n[search]\ntrials = 1\n'
    )
    assert tunecli("search", "own.toml").code == 0
    weights, bias = load_file(best_checkpoint(tmp_path / "studies" / "own") / "weights.safetensors").values()
    scope: dict[str, Any] = {}
    exec(PICTURES, scope)
    weights, bias = sorted((weights, bias), key=np.ndim, reverse=True)
    outputs = torch.tensor(scope["load"]()[0] / 255).float().flatten(1) @ torch.tensor(weights).T + torch.tensor(bias)
    found = [
        [float(row["probability_0"]), float(row["probability_1"])]
        for row in rows_of(tunecli("predict", "own.py:load").out)
    ]
    np.testing.assert_allclose(found, outputs.softmax(1), atol=1e-6)
    if model == "linear":
        refused = tunecli("predict", "own", "own.py:floats")
        assert (refused.code, refused.out) == (3, "")
        assert "the model was trained on bytes (uint8)" in refused.complaint[0]


# What stays as it was


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_nothing_is_written_into_the_study_and_no_lock_is_taken(tunecli: Command, here: Path) -> None:
    before = contents(here)
    (here / "flowers.csv").rename(here / "new.csv")  # the training data are not needed any more
    with hold(here / "studies" / "flowers"):
        assert tunecli("predict", "flowers", "new.csv").code == 0
    (here / "new.csv").rename(here / "flowers.csv")
    assert contents(here) == before
    assert read(here / "studies" / "flowers" / "study.db").readings == ()


def test_output_goes_to_a_file_whole_or_not_at_all(
    tunecli: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tunecli("predict", "flowers", "flowers.csv").out
    done = tunecli("predict", "flowers", "flowers.csv", "--output", "out.csv")
    assert (done.code, done.out) == (0, "")
    assert (here / "out.csv").read_text() == expected
    assert "wrote 150 predictions to out.csv" in done.err
    (here / "out.csv").write_text("earlier")
    assert tunecli("predict", "flowers", "none.csv", "--output", "out.csv").code == 3
    assert (here / "out.csv").read_text() == "earlier"
    assert tunecli("predict", "flowers", "flowers.csv", "--output", "nowhere/out.csv").code == 2

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = tunecli("predict", "flowers", "flowers.csv", "--output", "out.csv")
    assert done.code == 5
    assert "No space left" in done.complaint[0]
    assert (here / "out.csv").read_text() == "earlier"
    assert not list(here.glob("out.csv.*"))


# Mistakes


def test_a_checkpoint_of_another_version_says_what_it_lacks(tunecli: Command, here: Path) -> None:
    best = best_checkpoint(here / "studies" / "flowers")
    weights, manifest = checkpoint.load(best)
    del manifest["classes"], manifest["model"]["outputs"]
    checkpoint.save(best, weights, manifest)
    done = tunecli("predict", "flowers", "flowers.csv")
    assert done.code == 3
    assert "does not say its classes, model.outputs" in done.complaint[0]


def test_without_a_study_or_a_complete_trial_there_is_nothing_to_predict_with(
    tunecli: Command, question: Question, tmp_path: Path
) -> None:
    (tmp_path / "new.csv").write_text("a,b\n1,2\n")
    done = tunecli("predict", "new.csv")
    assert done.code == 3
    assert "no study in studies yet" in done.complaint[0]
    study, folder = question(), tmp_path / "studies" / "tiny"
    plan: dict[str, Any] = {}
    row = {"metric": "accuracy", "document": study.document(), "plan": plan, "data_hash": "", "environment": {}}
    create_study(folder / "study.db", name="tiny", direction="maximize", **row)  # type: ignore[arg-type]
    with pytest.raises(NoUsableTrial, match="no complete trial yet"):
        predict(folder, "new.csv", base=tmp_path)
    done = tunecli("predict", "tiny", "new.csv")
    assert done.code == 4
    assert done.complaint[1] == "tunecli search tiny"

    doomed = ("--set", "space.optimizer=sgd", "--set", "space.learning_rate=1e30")
    assert tunecli("search", "diabetes", "--trials", "2", *doomed).code == 4
    for command in (("predict", "diabetes", "new.csv"), ("finetune", "diabetes", "--best")):
        done = tunecli(*command)
        assert done.code == 4
        # A search would have nothing left to do.
        assert done.complaint == ("none of the 2 trials of diabetes is complete", "tunecli report diabetes tells why")


def test_where_nothing_may_be_written_the_output_is_named(
    tunecli: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a medium that is read only nothing can be removed either."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(path))

    (tmp_path / "own.py").write_text("import sklearn.datasets as own\ndef load(): return own.load_iris().data[:2]\n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        done = tunecli("predict", "tiny", "own.py:load", "--output", "/proc/new.csv")
    assert done.code == 5
    assert done.complaint[0].startswith("cannot write /proc/new.csv: ")
    assert done.complaint[1] == "choose another --output"


def test_a_function_gives_the_columns_of_a_table_of_numbers_in_order(tunecli: Command, tmp_path: Path) -> None:
    assert tunecli("search", "wine", "--trials", "1", "--set", "train.epochs=1").code == 0
    wine = load_wine(as_frame=True)
    wine.data.to_csv("wine.csv", index=False)
    (tmp_path / "own.py").write_text(
        "from sklearn.datasets import load_wine\n"
        "def load(): return load_wine(return_X_y=True)\n"
        "def few(): return load()[0][:, :5]\n"
        "def several(): return (load()[0], load()[0]), load()[1]\n"
    )
    done = tunecli("predict", "wine", "own.py:load")
    assert done.code == 0
    ours, theirs = (
        np.array([[float(cell) for cell in list(row.values())[1:]] for row in rows_of(text)])
        for text in (done.out, tunecli("predict", "wine", "wine.csv").out)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for function, holds in (("few", "samples of shape (5,)"), ("several", "several inputs")):
        message = tunecli("predict", "wine", f"own.py:{function}").complaint[0]
        assert message == f"own.py:{function} holds {holds}, the model was trained on a table of 13 columns"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["flowers", "flowers.csv", "price.csv"], 2, "a study and a table, got 3"),
        ([], 2, "missing argument"),
        (["flowers", "flowers.csv", "--trial", "99"], 3, "has no trial 99"),
        (["flower", "flowers.csv"], 3, "no study 'flower'"),
        (["flowers", "none.csv"], 3, "no such file"),
        (["flowers", "flowers"], 3, "no file to read"),
        (["flowers"], 2, "flowers is a study: what is it to predict?"),
        (["flowers", "own.py:load"], 3, "takes a table (.csv, .tsv, .parquet), and own.py:load is none"),
        (["flowers", "flowers.csv", "--device", "tpu9"], 2, "device"),
    ],
)
def test_mistakes_are_answered(tunecli: Command, here: Path, arguments: list[str], code: int, words: str) -> None:
    done = tunecli("predict", *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in done.complaint[0]
