"""Data from every kind of source, through `data.load`: what they hold, how they are split, and what can be wrong."""

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PowerTransformer, RobustScaler, StandardScaler
from torch import Tensor

from tests.conftest import examples
from tunecli import data
from tunecli.data import Data, Samples
from tunecli.data.prepare import split_indices
from tunecli.data.scaling import Scaling
from tunecli.errors import DataError, SourceError, TunecliError
from tunecli.trial import derive_seed

PARTS = ("train", "validation", "test")


def load(path: Path, **options: Any) -> Data:
    """A table with the target y."""
    return data.load(path.name, {}, base=path.parent, **{"seed": 0, "target": "y", **options})


def bundled(name: str, seed: int = 0, **options: Any) -> Data:
    return data.load(name, {}, base=Path(), seed=seed, **options)


def inputs(loaded: Data) -> list[Tensor]:
    return [getattr(loaded, part).inputs for part in PARTS]


def targets(loaded: Data) -> list[Tensor]:
    return [getattr(loaded, part).targets for part in PARTS]


def csv(rows: int, line: Callable[[int], str], header: str = "a,b,y") -> str:
    return "\n".join([header, *(line(row) for row in range(rows))]) + "\n"


# Bundled data


@pytest.mark.parametrize("name", data.BUNDLED)
def test_bundled_data_hold_what_scikit_learn_ships(name: str) -> None:
    bunch = getattr(datasets, f"load_{name}")()
    loaded = bundled(name)
    assert sum(len(getattr(loaded, part)) for part in PARTS) == len(bunch.data)
    assert loaded.features == (bunch.data.shape[1],)
    assert {part.dtype for part in inputs(loaded)} == {torch.float32}
    if name == "diabetes":
        assert (loaded.task, loaded.classes) == ("regression", ())
        assert {part.dtype for part in targets(loaded)} == {torch.float32}
    else:
        assert loaded.task == "classification"
        assert loaded.classes == tuple(str(label) for label in bunch.target_names)
        assert torch.bincount(torch.cat(targets(loaded))).tolist() == np.bincount(bunch.target).tolist()
    assert loaded.notices == ()


def test_digits_are_flat_pixels_from_zero_to_one_whatever_the_split() -> None:
    loaded = bundled("digits", split=(1, 1, 1))
    pixels = torch.cat(inputs(loaded))
    assert pixels.shape == (1797, 64)
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)
    rows = {
        (bytes(row), int(label)) for row, label in zip((pixels * 16).numpy(), torch.cat(targets(loaded)), strict=True)
    }
    bunch = datasets.load_digits()
    assert rows == {(bytes(row), label) for row, label in zip(bunch.data.astype("float32"), bunch.target, strict=True)}


@pytest.mark.parametrize("keys", [{"features": [f"pixel_{n // 8}_{n % 8}" for n in range(64)]}, {"fitted": True}])
def test_digits_are_the_same_where_they_are_asked_for_as_columns(keys: dict[str, Any]) -> None:
    whole = bundled("digits", seed=3)
    if "fitted" in keys:
        keys = {"fitted": json.loads(json.dumps(dict(whole.preprocessing)))}
    columns = bundled("digits", seed=3, **keys)
    assert columns.fingerprint() == whole.fingerprint()
    assert columns.classes == whole.classes
    assert json.dumps(dict(columns.preprocessing)) == json.dumps(dict(whole.preprocessing))


def test_columns_of_digits_can_be_chosen_and_predicted_as_a_quantity() -> None:
    loaded = bundled("digits", features=["pixel_3_4", "pixel_0_1"], task="regression")
    assert (loaded.task, loaded.features, loaded.classes) == ("regression", (2,), ())
    assert [column["name"] for column in loaded.preprocessing["columns"]] == ["pixel_0_1", "pixel_3_4"]


def test_a_regression_target_is_standardized_by_the_training_split_and_can_be_restored() -> None:
    loaded = bundled("diabetes")
    scale, mean = loaded.target_scale, loaded.preprocessing["target"]["mean"]
    restored = torch.cat(targets(loaded)) * scale + mean
    expected = np.sort(datasets.load_diabetes().target)
    np.testing.assert_allclose(np.sort(restored.numpy()), expected, atol=1e-4)
    np.testing.assert_allclose(loaded.train.targets.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(loaded.train.targets.std(correction=0), 1, atol=1e-6)
    assert loaded.preprocessing["target"]["scale"] == scale


# The split


@examples(60)
@given(
    samples=st.integers(3, 400),
    split=st.tuples(*[st.sampled_from([0.1, 1, 2, 8])] * 3),
    classes=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_is_complete_disjoint_and_of_the_sizes_asked_for(
    samples: int, split: tuple[float, ...], classes: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(classes, size=samples)
    labels = [f"class {number}" for number in range(classes)]
    codes = codes if classes > 1 else None
    held_out = [round(samples * part / sum(split)) for part in split[1:]]
    if min(*held_out, samples - sum(held_out)) < 1:
        with pytest.raises(DataError, match="too few"):
            split_indices(samples, split, seed, codes, labels)
        return
    parts, _ = split_indices(samples, split, seed, codes, labels)
    assert sorted(np.concatenate(parts)) == list(range(samples))
    for part, share in zip(parts, split, strict=True):
        assert abs(len(part) - samples * share / sum(split)) <= 1 + 1e-9
        assert list(part) == sorted(part)


@examples(60)
@given(samples=st.integers(20, 300), classes=st.integers(1, 8), parts=st.sampled_from([2, 3]), seed=st.integers(0, 99))
def test_a_split_is_scikit_learns(samples: int, classes: int, parts: int, seed: int) -> None:
    """Parts cut off one after another, with the same random numbers each."""
    draw = np.random.default_rng(seed)
    codes = draw.choice(classes, size=samples, p=draw.dirichlet(np.full(classes, 3.0))) if classes > 1 else None
    split = (6, 2, 2)[:parts]
    found, notices = split_indices(samples, split, seed, codes, [f"class {number}" for number in range(classes)])
    codes = None if notices else codes
    rest, expected = np.arange(samples), []
    for share in reversed(split[1:]):
        rest, part = train_test_split(
            rest,
            test_size=round(samples * share / sum(split)),
            random_state=derive_seed(seed, 0, "split") % 2**32,
            stratify=None if codes is None else codes[rest],
        )
        expected.append(np.sort(part))
    for own, its in zip(found, [np.sort(rest), *reversed(expected)], strict=True):
        assert np.array_equal(own, its)


def test_a_split_holds_each_class_in_the_same_share() -> None:
    loaded = bundled("digits")
    counts = np.bincount(datasets.load_digits().target)
    assert [len(getattr(loaded, part)) for part in PARTS] == [1437, 180, 180]
    for part, share in zip(targets(loaded), (0.8, 0.1, 0.1), strict=True):
        assert np.abs(np.bincount(part.numpy()) - counts * share).max() <= 1


def test_one_seed_gives_one_split_in_every_process_and_another_seed_another() -> None:
    code = """
    import hashlib, pathlib, sys
    from tunecli import data
    loaded = data.load("wine", {}, base=pathlib.Path(), seed=5)
    print(*(hashlib.sha256(p.inputs.numpy().tobytes() + p.targets.numpy().tobytes()).hexdigest()
            for p in (loaded.train, loaded.validation, loaded.test)))
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(data.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    def digests(loaded: Data) -> list[str]:
        pairs = zip(inputs(loaded), targets(loaded), strict=True)
        return [hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest() for x, y in pairs]

    assert printed.split() == digests(bundled("wine", seed=5))
    other = digests(bundled("wine", seed=6))
    assert not set(printed.split()) & set(other)


@pytest.mark.parametrize(
    ("text", "split", "notice"),
    [
        (csv(40, lambda i: f"{i % 7},{i % 5},{'rare' if i < 2 else 'often'}"), (8, 1, 1), "class 'rare' has 2 of 40"),
        (csv(40, lambda i: f"{i % 7},{i % 5},{'rare' if i < 4 else 'often'}"), (1, 1, 8), "class 'rare' has 4 of 40"),
        (csv(40, lambda i: f"{i % 7},{i % 5},{i % 6}"), (8, 1, 1), "a part of 4 samples cannot hold 6 classes"),
    ],
)
def test_where_a_split_cannot_be_stratified_a_notice_says_why(
    tmp_path: Path, text: str, split: tuple[float, ...], notice: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    loaded = load(tmp_path / "t.csv", split=split)
    assert sum(len(getattr(loaded, part)) for part in PARTS) == 40
    assert any("not stratified" in told and notice in told for told in loaded.notices)


# Tables


ROWS = 240


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """Numbers, categories and booleans, with holes in each; `row` tells a sample's row, so that a test can find it."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "row": rng.permutation(ROWS),
            "height": rng.normal(170, 12, ROWS).round(3),
            "count": rng.integers(0, 9, ROWS),
            "income": np.where(rng.random(ROWS) < 0.2, np.nan, rng.lognormal(10, 1, ROWS)),
            "colour": rng.choice(["red", "green", "blue", "wine, dark"], ROWS),
            "shape": np.where(rng.random(ROWS) < 0.3, None, rng.choice(["disc", "ring"], ROWS)),
            "flag": rng.random(ROWS) < 0.5,
            "constant": 7,
            "empty": None,
            "y": rng.choice(["yes", "no"], ROWS),
        }
    )
    frame.to_csv(tmp_path / "mixed.csv", index=False)
    return tmp_path / "mixed.csv", frame


def rows_of(part: Tensor, loaded: Data) -> Any:
    """Which values of the column `row` the samples of a part have."""
    column = loaded.preprocessing["columns"][0]
    assert column["name"] == "row"
    return np.rint(part[:, 0].numpy() * column["scale"] + column["mean"]).astype(int)


def test_a_table_is_encoded_as_scikit_learn_would_fitted_on_the_training_rows(mixed: tuple[Path, pd.DataFrame]) -> None:
    path, frame = mixed
    loaded = load(path)
    by_row = frame.set_index("row", drop=False)
    parts = [by_row.loc[rows_of(part, loaded)] for part in inputs(loaded)]
    assert sorted(np.concatenate([part.index for part in parts])) == list(range(ROWS))
    train = parts[0]
    symmetric = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit(train[["row", "height", "count"]])
    # The power is found from what is there; what is missing is filled in with its median.
    power = make_pipeline(RobustScaler(), PowerTransformer(standardize=False)).fit(train[["income"]].dropna())
    median = train["income"].median()
    scaler = StandardScaler().fit(power.transform(train[["income"]].fillna(median)))
    categories = OneHotEncoder(sparse_output=False).fit(train[["colour", "shape"]].astype(object))
    for part, samples in zip(parts, inputs(loaded), strict=True):
        expected = np.hstack(
            [
                symmetric.transform(part[["row", "height", "count"]]),
                scaler.transform(power.transform(part[["income"]].fillna(median))),
                part[["income"]].isna(),
                categories.transform(part[["colour", "shape"]].astype(object)),
                np.where(part[["flag"]], 1, -1),
            ]
        )
        assert samples.dtype == torch.float32
        np.testing.assert_allclose(samples.numpy(), expected, atol=1e-5)
    for part, codes in zip(parts, targets(loaded), strict=True):
        assert [loaded.classes[code] for code in codes] == list(part["y"])


def test_the_preprocessing_is_learned_from_the_training_rows_alone(mixed: tuple[Path, pd.DataFrame]) -> None:
    path, frame = mixed
    loaded = load(path)
    train = rows_of(loaded.train.inputs, loaded)
    column = {column["name"]: column for column in loaded.preprocessing["columns"]}["height"]
    values = frame.set_index("row")["height"].loc[train].to_numpy()
    assert column["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert column["scale"] == pytest.approx(values.std(), rel=1e-12)
    # Whatever the other rows hold, it is not looked at.
    frame.loc[~frame["row"].isin(train), "height"] = 1e6
    frame.to_csv(path, index=False)
    assert {c["name"]: c for c in load(path).preprocessing["columns"]}["height"] == column


def test_what_a_table_holds_in_vain_is_left_out_and_told(mixed: tuple[Path, pd.DataFrame]) -> None:
    path, frame = mixed
    frame.insert(0, "id", [f"customer-{row}" for row in range(ROWS)])
    frame.insert(1, "review", [f"came {row} days late, and cold" for row in range(ROWS)])
    frame.to_csv(path)  # with the index, in a column without a name
    loaded = load(path)
    assert {column["name"] for column in loaded.preprocessing["columns"]}.isdisjoint({"id", "constant", "empty"})
    assert "column 'id' is left out: it names the rows, its 192 values all differ" in loaded.notices
    told = "its 192 texts all differ: names, or free text, which a function of your own can make numbers of"
    assert f"column 'review' is left out: {told} (data.source = \"own.py:load\")" in loaded.notices
    assert "column 'constant' is left out: one value only" in loaded.notices
    assert "column 'empty' is left out: empty" in loaded.notices
    assert "column 'Unnamed: 0' is left out: it numbers the rows" in loaded.notices


def test_a_preprocessing_is_json_and_prepares_new_data_in_the_same_way(
    mixed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    path, frame = mixed
    first = load(path)
    fitted = json.loads(json.dumps(dict(first.preprocessing)))
    again = load(path, fitted=fitted)
    for before, after in zip(inputs(first), inputs(again), strict=True):
        assert torch.equal(before, after)
    # New data: other values, an unseen and a missing category, another order of columns, one missing, one more.
    new = frame.sample(100, random_state=1)[["y", "colour", "flag", "income", "count", "height", "row"]]
    new["height"] += 30
    new["more"] = 1.5
    new.iloc[:9, 1] = "violet"
    new.to_csv(tmp_path / "new.csv", index=False)
    loaded = load(tmp_path / "new.csv", fitted=fitted)
    assert loaded.features == first.features
    assert loaded.preprocessing["columns"] == fitted["columns"]
    assert loaded.notices == ("column 'shape' is missing and filled in",)
    columns = {column["name"]: column for column in fitted["columns"]}
    by_row = new.set_index("row")
    part = by_row.loc[rows_of(loaded.train.inputs, first)]
    height = (part["height"] - columns["height"]["mean"]) / columns["height"]["scale"]
    np.testing.assert_allclose(loaded.train.inputs[:, 1], height, atol=1e-5)
    colours = loaded.train.inputs[:, 5:9].numpy()
    assert columns["colour"]["levels"] == ["blue", "green", "red", "wine, dark"]
    np.testing.assert_array_equal(colours, part["colour"].to_numpy()[:, None] == columns["colour"]["levels"])
    np.testing.assert_array_equal(loaded.train.inputs[:, 9:12], np.tile([0, 0, 1], (len(part), 1)))


def test_new_data_without_any_known_column_are_refused(mixed: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text(csv(40, lambda i: f"{i},{i % 3},{i % 2}"))
    with pytest.raises(DataError, match="other has none of the columns") as caught:
        load(tmp_path / "other.csv", fitted=load(mixed[0]).preprocessing)
    assert "row, height" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["0", "1"], "classification", ("0", "1")),
        (["1", "2", "5"], "classification", ("1", "2", "5")),
        (["1.0", "2.0"], "classification", ("1", "2")),
        (["10", "9"], "classification", ("9", "10")),
        (["True", "False"], "classification", ("False", "True")),
        (["yes", "no", "3"], "classification", ("3", "no", "yes")),
        (["ä", "日本"], "classification", ("ä", "日本")),
        (["0.5", "1.5"], "regression", ()),
        ([str(number) for number in range(20)], "classification", None),
        ([str(number) for number in range(21)], "regression", ()),
    ],
)
def test_the_task_follows_from_the_targets(
    tmp_path: Path, values: list[str], task: str, classes: tuple[str, ...] | None
) -> None:
    text = csv(420, lambda i: f"{i % 11},{i % 3},{values[i % len(values)]}")
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    loaded = load(tmp_path / "t.csv")
    assert loaded.task == task
    if classes is not None:
        assert loaded.classes == classes


def test_a_stated_task_overrules_what_would_be_inferred(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(csv(60, lambda i: f"{i % 11},{i % 7},{i % 3}"))
    assert load(tmp_path / "t.csv", task="regression").task == "regression"
    assert load(tmp_path / "t.csv", target="b", task="classification").classes == tuple("0123456")


def test_an_infinity_in_a_column_counts_as_missing(tmp_path: Path) -> None:
    values = ["1", "2", "inf", "-inf", "4"]
    (tmp_path / "t.csv").write_text(csv(50, lambda i: f"{values[i % 5]},{i % 3},{i % 2}"))
    finite = csv(50, lambda i: f"{values[i % 5].replace('-inf', '').replace('inf', '')},{i % 3},{i % 2}")
    (tmp_path / "finite.csv").write_text(finite)
    for infinite, missing in zip(inputs(load(tmp_path / "t.csv")), inputs(load(tmp_path / "finite.csv")), strict=True):
        assert torch.equal(infinite, missing)


def test_a_table_from_a_spreadsheet_is_read_byte_order_mark_and_all(tmp_path: Path) -> None:
    text = csv(40, lambda i: f"{i % 11},{i % 3},{i % 2}", header="y, b ,c")
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    loaded = load(tmp_path / "t.csv")
    assert [column["name"] for column in loaded.preprocessing["columns"]] == ["b", "c"]


GOOD = csv(40, lambda i: f"{i % 11},{i % 3},{i % 2}")


@pytest.mark.parametrize(
    ("text", "options", "message", "hint"),
    [
        ("", {}, "is empty", "header"),
        ("\n  \n", {}, "is empty", "header"),
        ("a,b,y\n", {}, "a header and no rows", "sample"),
        ("y\n1\n2\n", {}, "no column beside 'y'", "at least one more"),
        (GOOD, {"target": "z"}, "t.csv has no column 'z'", "known: a, b, y"),
        (GOOD.replace("a,b", "age,b"), {"target": "agee"}, "no column 'agee'", "did you mean 'age'"),
        (GOOD, {"target": None}, "which column of t.csv", "--target"),
        (GOOD.replace(",", ";"), {}, "one column only, 'a;b;y'", "commas"),
        ("a;y\n" + "1,5;0\n2,5;1\n" * 20, {}, "one column only, 'a;y'", "points in decimals"),
        (
            csv(40, lambda i: f"{i},1,{'' if i in (7, 9) else i % 2}"),
            {},
            "missing in 2 of 40 rows, first in line 9",
            "drop",
        ),
        (csv(40, lambda i: f"{i},{i % 3},1"), {}, "one class only, '1'", "another target"),
        (csv(3, lambda i: f"{i},{i % 3},{i % 2}"), {}, "3 samples are too few for a split of 8:1:1", "at least one"),
        (GOOD, {"split": (1000, 1, 1)}, "40 samples are too few for a split of 1000:1:1", "at least one"),
        (GOOD + "1,2,3,4,5\n", {}, "Expected 3 fields in line 42, saw 5", "as many fields"),
        (GOOD + "1,0\n" + GOOD[6:], {}, "fewer fields than in the header in line 42", "as many fields"),
        ("y,b,a\n" + GOOD[6:] + "1\n", {}, "fewer fields than in the header in line 42", "as many fields"),
        (csv(40, lambda i: f"{i},1,2,{i % 2}"), {}, "more fields than the header", "name each column"),
        (GOOD.replace("a,b,y", "a, a,y"), {}, "t.csv has 2 columns 'a'", "own name"),
        (GOOD.replace("a,b,y", "a,y,y"), {}, "t.csv has 2 columns 'y'", "own name"),
        (csv(40, lambda i: f"k,{i % 3 // 3},{i % 2}"), {}, "no column to learn from", "one value only"),
        (csv(40, lambda i: f"1,2,{'a' if i % 2 else i}"), {"task": "regression"}, "needs numbers, .* 'a'", "classific"),
        (csv(40, lambda i: f"1,{i},{'inf' if i == 3 else i + 0.5}"), {}, "NaN or an infinity", "drop"),
        (csv(40, lambda i: f"1,{i},{1e300 if i == 3 else i + 0.5}"), {}, "holds 1e\\+300, too large", "rescale"),
        (b"a,b,y\n" + b"1,2,0\n" * 9 + "1,café,0\n".encode("latin-1"), {}, "is not UTF-8, first in line 11", "UTF-8"),
        (GOOD.encode("utf-16"), {}, "is not UTF-8, first in line 1", "UTF-8"),
    ],
)
def test_what_can_be_wrong_with_a_table(
    tmp_path: Path, text: str | bytes, options: dict[str, Any], message: str, hint: str
) -> None:
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of pandas' or NumPy's reaches a user beside our message
        with pytest.raises(DataError, match=message) as caught:
            load(tmp_path / "t.csv", **options)
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message


@examples(100)
@given(st.data())
def test_any_small_file_is_either_data_or_one_data_error(tmp_path_factory: pytest.TempPathFactory, drawn: Any) -> None:
    header = drawn.draw(
        st.sampled_from(["a,y", "y,a", "a,b,y", ",b,y", "b,,y", "y", " y ,a", '"a,b",y', "1,2,y", "Y,y"])
    )
    cells = ["", "1", "2", "-3.5", "inf", "nan", "x", "y", "1e300", "1e400", '"', '"a,b"', "True", " ", "9" * 25]
    columns = [
        drawn.draw(st.lists(st.sampled_from(cells[1:9] if "y" in name else cells), min_size=1, max_size=4, unique=True))
        for name in header.replace('"a,b"', "a").split(",")
    ]
    row = st.tuples(*(st.sampled_from(column) for column in columns))
    rows = [",".join(row) for row in drawn.draw(st.lists(row, min_size=drawn.draw(st.integers(0, 12)), max_size=30))]
    if drawn.draw(st.integers(0, 4)) == 0:
        rows += [
            ",".join(row) for row in drawn.draw(st.lists(st.lists(st.sampled_from(cells), max_size=4), max_size=2))
        ]
    path = tmp_path_factory.mktemp("fuzz") / "t.csv"
    path.write_text("\n".join([header, *rows]))
    task = drawn.draw(st.sampled_from([None, "classification", "regression"]))
    with suppress(DataError), warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(path, split=(1, 1, 1), task=task)
        assert all(bool(torch.isfinite(part).all()) for part in [*inputs(loaded), *targets(loaded)])
        json.dumps(dict(loaded.preprocessing), allow_nan=False)


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("digit", "unknown data source 'digit'", "did you mean 'digits'"),
        ("mnist", "unknown data source 'mnist'", "breast_cancer, diabetes, digits, iris, wine"),
        ("own.py", "unknown data source 'own.py'", '"file.py:function"'),
        ("none.csv", "no such file: .*none.csv", "relative"),
        ("none.py:make", "no such file: .*none.py", "relative"),
        (".", "holds neither folders of pictures nor .npy files", "cat/1.jpg"),
    ],
)
def test_a_source_that_is_none_is_refused_before_anything_is_read(
    tmp_path: Path, source: str, message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        data.check_source(source, tmp_path)
    assert hint in (caught.value.hint or "")
    with pytest.raises(DataError, match=message):
        data.load(source, {}, base=tmp_path, seed=0)


# A user's own function


def own(folder: Path, body: str, keys: dict[str, Any] | None = None, **options: Any) -> Data:
    """What a function `make` with this body gives; X is (60, 3), Y is (60,) of 0, 1, 2."""
    arguments = "n=60" if keys is None or "n" in keys else "n=60, **_"
    lines = [
        "import numpy as np, pandas as pd, torch",
        "from torch.utils.data import DataLoader, TensorDataset",
        f"def make({arguments}):",
        "    X = np.random.default_rng(0).normal(size=(n, 3)); Y = np.arange(n) % 3",
        f"    {body}",
    ]
    (folder / "own.py").write_text("\n".join(lines))
    return data.load("own.py:make", keys or {}, base=folder, **{"seed": 0, **options})


@pytest.mark.parametrize(
    ("body", "dtype", "task", "classes"),
    [
        ("return X, Y", torch.float32, "classification", ("0", "1", "2")),
        ("return X, Y.reshape(-1, 1)", torch.float32, "classification", ("0", "1", "2")),
        ("return [X.astype('float16'), Y.astype('uint8')]", torch.float32, "classification", ("0", "1", "2")),
        ("return X.tolist(), Y.tolist()", torch.float32, "classification", ("0", "1", "2")),
        ("return pd.DataFrame(X.astype('float32')), pd.Series(Y)", torch.float32, "classification", ("0", "1", "2")),
        ("return X.astype('>f8')[::-1], Y.astype('>i4')[::-1]", torch.float32, "classification", ("0", "1", "2")),
        ("return X, np.array(['b', 'a', 'ö'])[Y]", torch.float32, "classification", ("a", "b", "ö")),
        ("return X, ['no', 'yes'] * 30", torch.float32, "classification", ("no", "yes")),
        ("return X, Y > 0", torch.float32, "classification", ("False", "True")),
        ("return X, Y * 1.5", torch.float32, "regression", ()),
        ("return X, pd.Series(Y * 1.5)", torch.float32, "regression", ()),
        ("return torch.tensor(X), torch.tensor(Y)", torch.float64, "classification", ("0", "1", "2")),
        ("return torch.tensor(X), torch.tensor(Y).double()[:, None]", torch.float64, "regression", ()),
        (
            "return torch.tensor(X).half().requires_grad_(), torch.tensor(Y).int()",
            torch.float16,
            "classification",
            None,
        ),
        ("return (X * 20).astype('int64'), Y", torch.int64, "classification", None),
        ("return TensorDataset(torch.tensor(X).float(), torch.tensor(Y))", torch.float32, "classification", None),
        ("return X.reshape(n, 3, 1, 1), Y", torch.float32, "classification", None),
    ],
)
def test_what_a_users_function_may_return(
    tmp_path: Path, body: str, dtype: torch.dtype, task: str, classes: tuple[str, ...] | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = own(tmp_path, body)
    assert [len(getattr(loaded, part)) for part in PARTS] == [48, 6, 6]
    assert (loaded.task, loaded.name) == (task, "own.py:make")
    assert classes is None or loaded.classes == classes
    assert loaded.target_scale == 1
    assert {part.dtype for part in inputs(loaded)} == {dtype}
    assert {part.ndim for part in targets(loaded)} == {1}
    assert not any(part.requires_grad for part in inputs(loaded))
    if task == "classification":
        assert {part.dtype for part in targets(loaded)} == {torch.int64}


def test_a_users_numbers_are_taken_as_they_are_and_stay_with_their_targets(tmp_path: Path) -> None:
    loaded = own(tmp_path, "return torch.tensor(X) * 1e3, torch.tensor(X[:, 1])")
    x = np.random.default_rng(0).normal(size=(60, 3))
    found = zip(torch.cat(inputs(loaded)).tolist(), torch.cat(targets(loaded)).tolist(), strict=True)
    expected = sorted(zip((x * 1e3).tolist(), x[:, 1].tolist(), strict=True))
    assert sorted(found) == expected
    assert {part.dtype for part in targets(loaded)} == {torch.float64}


def test_numpy_regression_targets_become_float32_like_numpy_inputs(tmp_path: Path) -> None:
    loaded = own(tmp_path, "return X, X[:, 0]")
    assert {part.dtype for part in [*inputs(loaded), *targets(loaded)]} == {torch.float32}


def test_labels_of_a_users_own_keep_their_names_and_order(tmp_path: Path) -> None:
    loaded = own(tmp_path, "X[:, 0] = Y; return X, np.array(['tench', 'ant', 'bee'])[Y]")
    names = {0: "tench", 1: "ant", 2: "bee"}
    for part, codes in zip(inputs(loaded), targets(loaded), strict=True):
        assert [loaded.classes[code] for code in codes] == [names[int(number)] for number in part[:, 0]]


def test_three_pairs_are_the_three_parts_as_they_are(tmp_path: Path) -> None:
    loaded = own(tmp_path, "return (X, Y), (X[:9] + 1, Y[:9]), (X[:2].tolist(), [0, 5])")
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 3))).float()
    assert torch.equal(loaded.train.inputs, x)
    assert torch.equal(loaded.validation.targets, torch.arange(9) % 3)
    assert torch.equal(loaded.test.inputs, x[:2])
    assert loaded.classes == ("0", "1", "2", "3", "4", "5")  # the numbers are class numbers, as in torch


def test_three_torch_datasets_are_three_pairs(tmp_path: Path) -> None:
    loaded = own(tmp_path, "return [TensorDataset(torch.tensor(X), torch.tensor(Y))] * 3")
    assert [len(getattr(loaded, part)) for part in PARTS] == [60, 60, 60]


def test_a_stated_task_overrules_a_users_own_targets(tmp_path: Path) -> None:
    loaded = own(tmp_path, "return X, Y * 1000", task="regression")
    assert (loaded.task, loaded.train.targets.dtype) == ("regression", torch.float32)
    assert data.load("own.py:make", {}, base=tmp_path, seed=0, task="classification").classes[-1] == "2000"


@pytest.mark.parametrize(
    "body",
    [
        "return (X[:50], Y[:50]), (X[50:], Y[50:])",
        "return [(X[:50], Y[:50]), (X[50:], Y[50:])]",
        "return {'test': (X[50:], Y[50:]), 'Train': (X[:50], Y[:50])}",
        "X, Y = map(torch.tensor, (X, Y)); parts = TensorDataset(X[:50], Y[:50]), TensorDataset(X[50:], Y[50:])\n"
        "    return tuple(DataLoader(part, 7, shuffle=True) for part in parts)",
    ],
)
def test_two_sets_are_one_to_split_and_one_for_test(tmp_path: Path, body: str) -> None:
    loaded = own(tmp_path, body, split=(8, 2, 1))
    inputs, targets = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32), np.arange(60) % 3
    (train, validation), _ = split_indices(50, (8, 2), 0, targets[:50], ("0", "1", "2"))
    for part, rows in zip(
        (loaded.train, loaded.validation, loaded.test), (train, validation, range(50, 60)), strict=True
    ):
        assert isinstance(part, Samples)
        assert isinstance(part.inputs, torch.Tensor)
        np.testing.assert_allclose(part.inputs.numpy(), inputs[rows], rtol=1e-6)
        np.testing.assert_array_equal(part.targets.numpy(), targets[rows])
    told = "own.py:make: the second of its two sets is the test split"
    assert (told in loaded.notices) == ("{" not in body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "a, b = X[:30, :1], X[30:, :1]\n    return (a, b), (a, b)",
            "two pairs of one size: train and test, or inputs",
        ),
        ("return [X[0], X[1]], [0, 1]", "2 samples are too few"),
        ("return {'x': X[:50], 'y': Y[:50]}, {'x': X[50:], 'y': Y[50:]}", ""),
    ],
)
def test_what_could_be_two_sets_is_read_as_what_it_is(tmp_path: Path, body: str, said: str) -> None:
    if said:
        with pytest.raises(DataError, match=said):
            own(tmp_path, body)
    else:
        assert own(tmp_path, body + "  # few", split=(8, 1, 1)).train is not None


def test_two_datasets_are_split_alike(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Rows(torch.utils.data.Dataset):\n"
        "    def __init__(self, low, high): self.low, self.high = low, high\n"
        "    def __len__(self): return self.high - self.low\n"
        "    def __getitem__(self, place): return torch.full((2,), float(self.low + place)), (self.low + place) % 2\n"
        "def make(): return {'train': Rows(0, 50), 'test': Rows(50, 60)}\n"
        "def three(): return {'train': Rows(0, 40), 'val': Rows(40, 50), 'test': Rows(50, 60)}\n"
    )
    two, three = (data.load(f"own.py:{name}", {}, base=tmp_path, seed=0) for name in ("make", "three"))
    sizes = [[len(part) for part in (own.train, own.validation, own.test)] for own in (two, three)]
    assert sizes == [[44, 6, 10], [40, 10, 10]]


@pytest.mark.parametrize(
    ("body", "options", "message", "hint"),
    [
        ("return X", {}, "own.py:make returned ndarray", r"\(inputs, targets\), or three such pairs"),
        ("return None", {}, "returned NoneType", "three such pairs"),
        ("return X, Y, X", {}, "returned tuple of 3: ndarray, ndarray, ndarray", "three such pairs"),
        ("return (X, Y), (X, Y), 1, 2", {}, "returned tuple of 4: tuple, tuple, int, int", "three such pairs"),
        ("return X, Y, X, Y", {}, "returned tuple of 4: ", r"pairs: \(inputs, targets\) of train, and of test"),
        ("return {'x': X, 'z': Y}", {}, "a dict of x, z: which key is the target?", "target = "),
        ("return {'x': X, 'y': Y, 'label': Y}", {}, "a dict of 'label' and 'y': which key is the target?", "target = "),
        ("return DataLoader(TensorDataset(torch.tensor(X)))", {}, "TensorDataset of 1 tensor", "three such pairs"),
        ("return TensorDataset(torch.tensor(X))", {}, "returned TensorDataset", "three such pairs"),
        ("return TensorDataset", {}, "returned type", "three such pairs"),
        ("return X, None", {}, "returned NoneType for targets", "three such pairs"),
        ("return X, 3", {}, "returned int for targets", "three such pairs"),
        ("return X[:, 0], Y", {}, r"inputs of shape \(60,\)", r"\(samples, features...\)"),
        ("return X, Y[:-1]", {}, "60 inputs and 59 targets", "one target"),
        ("return X, X", {}, r"targets must be \(samples,\) or \(samples, 1\), got \(60, 3\)", r"argmax\(1\)"),
        ("return [[1, 2], [3]] * 30, Y", {}, "inputs that are no array", "one shape"),
        ("return X.astype(str), Y", {}, "inputs must be numbers, got <U", "numbers first"),
        (
            "return pd.DataFrame({'a': ['x'] * n, 'b': Y}), Y",
            {},
            "inputs must be numbers, got object",
            "the table's file itself",
        ),
        ("return X, Y * 0", {}, "one class only", "two"),
        ("return X, ['a'] * n", {}, "one class only, 'a'", "another"),
        ("return X, Y - 1", {}, "class numbers start at 0", "from 0"),
        ("return X, Y * 1000", {}, "whole numbers up to 2000", 'task = "regression"'),
        ("return X, Y / 0.0", {}, "NaN or an infinity", "drop"),
        ("return X, ['a', 'b'] * 30", {"task": "regression"}, "needs numbers", 'task = "classification"'),
        ("return X[:3], Y[:3]", {}, "3 samples are too few", "at least one"),
        ("return X[:0], Y[:0]", {}, "own.py:make returned no samples", "at least one"),
        ("return (X, Y), (X, Y), (X[:0], Y[:0])", {}, "own.py:make returned no samples for test", "at least one"),
        ("return (X, Y), (X[:, :2], Y), (X, Y)", {}, r"validation have shape \(2,\), for training \(3,\)", "one model"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_what_can_be_wrong_with_what_a_users_function_returns(
    tmp_path: Path, body: str, options: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        own(tmp_path, body, **options)
    assert re.search(hint, caught.value.hint or "")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("body", "keys", "message", "hint"),
    [
        ("raise ValueError('no\\nluck')", {}, r"own.py:make raised ValueError: no luck \(own.py, line 5\)", None),
        ("return torch.zeros(2) @ torch.zeros(3)", {}, r"raised RuntimeError: .* \(own.py, line 5\)", None),
        ("assert n > 100", {}, r"raised AssertionError \(own.py, line 5\)", None),
        ("import sys; sys.exit('bye')", {}, r"raised SystemExit: bye \(own.py, line 5\)", None),
        ("return X, Y", {"n": 60, "size": 3}, "unexpected keyword argument 'size'", "it takes n; .* gives n, size"),
    ],
)
def test_what_can_go_wrong_inside_a_users_function(
    tmp_path: Path, body: str, keys: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        own(tmp_path, body, keys)
    assert hint is None or re.search(hint, caught.value.hint or "")


def test_the_keys_of_a_study_file_reach_the_function(tmp_path: Path) -> None:
    loaded = own(tmp_path, "return X, Y", {"n": 30})
    assert sum(len(getattr(loaded, part)) for part in PARTS) == 30


def test_a_function_that_is_missing_is_named_with_the_nearest(tmp_path: Path) -> None:
    own(tmp_path, "return X, Y")
    with pytest.raises(SourceError, match=r"own\.py has no function 'mak'") as caught:
        data.load("own.py:mak", {}, base=tmp_path, seed=0)
    assert caught.value.hint == "did you mean 'make'?"


def test_a_users_file_has_one_module_name_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Thing: pass")
    say = "from tunecli.source import load_function as f; from pathlib import Path; print(f('own.py:Thing', Path()))"
    told = {
        subprocess.check_output([sys.executable, "-c", say], cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_a_function_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "readers_of_mine.py").write_text("SIZE = 30\n")
    before = list(sys.path)
    loaded = own(tmp_path, "from readers_of_mine import SIZE; return X[:SIZE], Y[:SIZE]")
    assert sum(len(getattr(loaded, part)) for part in PARTS) == 30
    assert sys.path == before


def test_a_partial_or_an_object_is_as_good_as_a_function(tmp_path: Path) -> None:
    (tmp_path / "objects.py").write_text(
        "import functools\n"
        "def read(n):\n    if n > 50:\n        raise ValueError('too many')\n"
        "    return [[float(i)] for i in range(n)], [i % 2 for i in range(n)]\n"
        "few = functools.partial(read, 40)\nmany = functools.partial(read, 60)\n"
    )
    assert len(data.load("objects.py:few", {}, base=tmp_path, seed=0).train) == 32
    with pytest.raises(TunecliError, match=r"ValueError: too many \(objects.py, line 4\)"):
        data.load("objects.py:many", {}, base=tmp_path, seed=0)


def test_a_fingerprint_tells_whether_the_samples_are_the_same(tmp_path: Path) -> None:
    seen = {bundled("iris").fingerprint(), bundled("iris", seed=1).fingerprint(), bundled("wine").fingerprint()}
    for number, body in enumerate(
        [
            "return torch.tensor(X), torch.tensor(Y)",
            "return torch.tensor(X).float(), torch.tensor(Y)",
            "return torch.tensor(X).bfloat16(), torch.tensor(Y)",
            "return torch.tensor(X) > 0, torch.tensor(Y)",
            "return torch.tensor(X).float().T.contiguous().T, torch.tensor(Y * 1.5).bfloat16()",
        ]
    ):
        (tmp_path / str(number)).mkdir()
        seen.add(own(tmp_path / str(number), body).fingerprint())
    assert len(seen) == 8
    assert bundled("iris").fingerprint() in seen


def test_a_fingerprint_covers_every_input_and_the_weights() -> None:
    x, y = torch.arange(6.0).reshape(3, 2), torch.arange(3)
    kinds = [x, (x, x), (x, x + 1), {"a": x, "b": x}, {"a": x, "c": x}]
    weighed = [Samples(x, y, torch.ones(3)), Samples(x, y, torch.tensor([1.0, 1.0, 2.0]))]
    every = [*(Samples(inputs, y) for inputs in kinds), *weighed]
    assert len({Data("own", "classification", own, own, own).fingerprint() for own in every}) == len(every)


@pytest.mark.parametrize("width", [3, 5000], ids=["several at once", "one after another"])
def test_samples_that_stream_are_those_that_are_taken_one_by_one(width: int) -> None:
    inputs = {"x": torch.randn(20, width), "mask": torch.arange(20) % 2}
    samples = Samples(inputs, torch.arange(20), torch.rand(20), scaling=Scaling(None, torch.tensor(0.5)))
    index = torch.randint(20, (7, 2, 3))
    for found, own in zip(samples.stream(index), index, strict=True):
        torch.testing.assert_close(vars_of(found), vars_of(samples.take(own)), rtol=0, atol=0)


def vars_of(samples: Samples) -> dict[str, Any]:
    return {name: getattr(samples, name) for name in ("inputs", "targets", "weights")}


def test_samples_join_with_a_weight_of_one_where_only_some_have_weights() -> None:
    first = Samples((torch.zeros(2, 3), torch.ones(2)), torch.zeros(2), torch.tensor([0.5, 2.0]))
    second = Samples((torch.ones(1, 3), torch.zeros(1)), torch.ones(1))
    joined = first.join(second)
    assert isinstance(joined.inputs, tuple)
    assert [part.sum().item() for part in joined.inputs] == [3, 2]
    assert joined.weights is not None
    assert joined.weights.tolist() == [0.5, 2.0, 1.0]
