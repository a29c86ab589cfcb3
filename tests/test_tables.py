"""Tables of every format and kind of column, arrays in files, and weights: what a model is given of them."""

import datetime
import decimal
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from tests.conftest import examples
from tunecli import data, models
from tunecli.data import Data, scaling, table
from tunecli.engine import LocalEngine, choose_plan
from tunecli.engine.task import make_task
from tunecli.errors import DataError, StudyFileError
from tunecli.search import Opened, search
from tunecli.study import Study, load_data, make_study
from tunecli.trial import Run

ROWS = 200


def load(path: Path, **options: Any) -> Data:
    return data.load(path.name, {}, base=path.parent, **{"seed": 0, "target": "y", **options})


def fitted(values: Any, name: str = "c", **options: Any) -> tuple[dict[str, Any] | None, list[str]]:
    """The encoding of one column, and the notices; through JSON, as a checkpoint keeps it."""
    columns, notices = table.fit(pd.DataFrame({name: values}), **options)
    return (json.loads(json.dumps(columns[0], allow_nan=False)) if columns else None), notices


def encoded(values: Any, column: dict[str, Any]) -> np.ndarray[Any, Any]:
    return table.encode(pd.DataFrame({column["name"]: values}), [column])


# Columns


@examples(6)
@given(seed=st.integers(0, 99), unit=st.sampled_from([1e-9, 1e-3, 1e5, 1e12]), shift=st.sampled_from([0, 50, -1e3]))
def test_a_skewed_column_is_made_milder_whatever_its_unit(seed: int, unit: float, shift: float) -> None:
    values = np.random.default_rng(seed).lognormal(0, 1.2, 400) + shift
    column, _ = fitted(values)
    scaled, _ = fitted(values * unit)
    assert column is not None
    assert scaled is not None
    found = encoded(values, column)[:, 0]
    np.testing.assert_allclose(encoded(values * unit, scaled)[:, 0], found, atol=1e-3)
    assert np.all(np.diff(found[np.argsort(values)]) >= 0)
    assert abs(pd.Series(found).skew()) < 0.5 < 2 < pd.Series(values).skew()


def test_an_outlier_does_not_squeeze_the_others_together() -> None:
    values = np.append(np.random.default_rng(0).normal(size=300), 1e30)
    column, _ = fitted(values)
    assert column is not None
    assert encoded(values, column)[:300].std() > 0.3


@pytest.mark.parametrize("values", [np.arange(300) % 7**2 % 3, [0.0] * 280 + [1.0] * 20, np.linspace(-1, 1, 300)])
def test_what_is_not_skewed_or_tells_few_levels_is_only_standardized(values: Any) -> None:
    column, _ = fitted(values)
    assert column is not None
    np.testing.assert_allclose(encoded(values, column)[:, 0], (values - np.mean(values)) / np.std(values), atol=1e-5)


def test_a_gap_in_a_number_has_the_median_and_a_column_that_tells_it() -> None:
    column, _ = fitted([1.0, 2.0, np.nan, 4.0, 6.0])
    whole, _ = fitted([1.0, 2.0, 3.0, 4.0, 6.0])
    assert column is not None
    assert whole is not None
    found = encoded([np.nan, 3.0, np.inf, "x"], column)
    np.testing.assert_array_equal(found[:, 1], [1, 0, 1, 1])
    assert len(set(found[:, 0])) == 1
    assert encoded([np.nan, 3.0], whole)[:, 0].tolist() == encoded([3.0, 3.0], whole)[:, 0].tolist()


@pytest.mark.parametrize(
    "values",
    [
        [True, False, True, True],
        ["yes", "no", "yes", "YES"],
        ["True", "false", "TRUE", "true"],
        ["Y", "n", "y", "y"],
        ["on", "off", "on", "on"],
        [True, False, None, True],
        ["t", "f", None, "t"],
    ],
)
def test_booleans_in_words_or_not_become_one_column(values: list[Any]) -> None:
    column, notices = fitted(values)
    assert column is not None
    assert notices == []
    assert encoded(values, column)[:, 0].tolist() == [1, -1, 0 if values[2] is None else 1, 1]
    assert encoded(["maybe", None], column)[:, 0].tolist() == [0, 0]


def test_numbers_written_with_separators_are_not_guessed_at() -> None:
    column, notices = fitted(["1,000", "2,500", "1,000", "2,500", "300"] * 5)
    assert column is not None
    assert column["kind"] == "category"
    assert notices == []
    _, notices = fitted(["1", "2", "?", "3", "1", "2", "3", "1"])
    assert notices == ["column 'c' counts as categories: it holds text, such as '?', among numbers"]


DATES = pd.date_range("2023-11-07 05:00", periods=60, freq="37h")


@pytest.mark.parametrize(
    "written",
    [
        list(DATES),
        list(DATES.strftime("%Y-%m-%dT%H:%M:%SZ")),
        list(DATES.strftime("%Y-%m-%d %H:%M")),
        list(DATES.tz_localize("UTC").tz_convert("Europe/Zurich").strftime("%Y-%m-%dT%H:%M:%S%z")),
    ],
)
def test_a_date_becomes_its_parts_and_the_days_since_the_first(written: list[Any]) -> None:
    column, notices = fitted(written)
    assert column is not None
    assert (column["kind"], notices) == ("date", [])
    found = encoded(written, column)
    expected = {
        "year": (DATES.year - DATES.year.to_numpy().mean()) / DATES.year.to_numpy().std(),
        "day": (DATES.day - DATES.day.to_numpy().mean()) / DATES.day.to_numpy().std(),
    }
    for part, period in (("month", 12), ("weekday", 7), ("hour", 24)):
        angle = 2 * np.pi * getattr(DATES, "day_of_week" if part == "weekday" else part).to_numpy() / period
        expected |= {f"{part} sine": np.sin(angle), f"{part} cosine": np.cos(angle)}
    elapsed = ((DATES - DATES[0]) / pd.Timedelta(days=1)).to_numpy()
    expected["elapsed"] = (elapsed - elapsed.mean()) / elapsed.std()
    order = ["year", "month sine", "month cosine", "day", "weekday sine", "weekday cosine", "hour sine", "hour cosine"]
    np.testing.assert_allclose(found, np.stack([expected[name] for name in [*order, "elapsed"]], axis=1), atol=1e-5)


def test_parts_of_a_date_that_never_vary_are_left_out_and_gaps_are_told() -> None:
    column, _ = fitted(["2024-03-01", "2024-03-05", None, "2024-03-09"])
    assert column is not None
    assert list(column["parts"]) == ["day", "weekday", "elapsed"]
    assert encoded(["2024-02-30", None, 5, "yesterday"], column).tolist() == [[0, 0, 0, 0, 1]] * 4
    assert fitted(["2024-03-01"] * 9) == (None, ["column 'c' is left out: one value only"])


@pytest.mark.parametrize("text", ["03/01/2024", "2024-13-01", "1 March 2024", "20240301", "2024-03"])
def test_what_is_no_iso_date_is_no_date(text: str) -> None:
    column, _ = fitted([text, "2024-01-02", text, "2024-01-02"])
    assert column is not None
    assert column["kind"] == "category"


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("n", range(7, 7 + ROWS), "it numbers the rows"),
        ("Unnamed: 0", range(ROWS), "it numbers the rows"),
        ("id", np.random.default_rng(0).permutation(9 * ROWS)[:ROWS], "each has its own number"),
        ("customer_id", np.random.default_rng(0).permutation(9 * ROWS)[:ROWS], "each has its own number"),
        ("orderId", np.random.default_rng(0).permutation(9 * ROWS)[:ROWS], "each has its own number"),
        ("name", [f"n{k}" for k in range(ROWS)], "its 200 values all differ"),
        (
            "remark",
            [f"n{k // 3 * 3 if k < 60 else k}" for k in range(ROWS)],
            "occur once (it is taken where data.features",
        ),
    ],
)
def test_what_names_the_rows_is_left_out(name: str, values: Any, told: str) -> None:
    column, notices = fitted(list(values), name)
    assert column is None
    assert len(notices) == 1
    assert notices[0].startswith(f"column {name!r} is left out: ")
    assert told in notices[0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("paid", np.random.default_rng(0).permutation(ROWS)),
        ("humid", np.random.default_rng(0).permutation(ROWS)),
        ("salary", np.cumsum(np.random.default_rng(0).integers(1, 9, ROWS))),
        ("id", np.arange(ROWS) // 2),
        ("id", np.arange(ROWS) / 7),
    ],
)
def test_numbers_that_only_look_alike_stay(name: str, values: Any) -> None:
    column, notices = fitted(values, name)
    assert column is not None
    assert notices == []


def test_a_column_that_is_named_stays_even_if_it_numbers_the_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"t": range(ROWS), "a": [k % 9 for k in range(ROWS)], "y": [k % 2 for k in range(ROWS)]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert [own["name"] for own in load(tmp_path / "t.csv").preprocessing["columns"]] == ["a"]
    assert [own["name"] for own in load(tmp_path / "t.csv", features=["t"]).preprocessing["columns"]] == ["t"]


# Categories of many levels


@pytest.fixture
def cities(tmp_path: Path) -> Path:
    """1,000 rows, a column of 120 levels and as many again that occur once, and what it says about the target."""
    draw = np.random.default_rng(0)
    level = draw.integers(0, 120, 1000)
    city = [f"once {k}" if k % 40 == 0 else f"city {own}" for k, own in enumerate(level)]
    frame = pd.DataFrame({"size": draw.normal(size=1000), "city": city, "y": (level % 2).astype(str)})
    frame["y"] = "c" + frame["y"]
    frame.insert(2, "height", draw.normal(size=1000))
    frame.to_csv(tmp_path / "cities.csv", index=False)
    return tmp_path / "cities.csv"


def test_a_category_of_many_levels_is_a_column_of_codes_behind_the_others(cities: Path) -> None:
    loaded = load(cities, embed=True)
    number, height, city = loaded.preprocessing["columns"]
    assert (number["name"], height["name"], city["kind"]) == ("size", "height", "code")
    assert loaded.categories == (len(city["levels"]) + 1,)
    assert loaded.features == (3,)
    assert not any(level.startswith("once") for level in city["levels"])
    frame = pd.DataFrame({"city": ["once 0", None, "nowhere", *city["levels"]]})
    assert table.encode(frame, [city])[:, 0].tolist() == [0, 0, 0, *range(1, len(city["levels"]) + 1)]


def test_a_model_that_cannot_embed_sees_the_commonest_levels(cities: Path) -> None:
    loaded = load(cities)
    city = loaded.preprocessing["columns"][1]
    assert (city["kind"], len(city["levels"]), loaded.categories) == ("category", 50, ())
    assert any("the 50 commonest are told apart" in notice for notice in loaded.notices)
    counts = pd.read_csv(cities)["city"].value_counts()
    assert counts[counts.index.isin(city["levels"])].mean() > counts[~counts.index.isin(city["levels"])].mean() + 3
    assert bool(torch.all(loaded.train.inputs[:, 1:52].sum(1) == 1))


@pytest.mark.parametrize("source", sorted(models.EMBEDDING))
def test_a_bundled_model_embeds_codes(source: str) -> None:
    model = models.build(source, {}, base=Path(), features=(4,), outputs=2, seed=0, categories=(60, 500))
    assert [tuple(own.weight.shape) for own in model.embed.tables] == [(60, 16), (500, 50)]
    samples = torch.tensor([[0.5, -1.0, 3, 499], [0.5, -1.0, 0, 7]])
    first, second = (own.weight for own in model.embed.tables)
    expected = torch.cat([samples[:, :2], first[[3, 0]], second[[499, 7]]], dim=1)
    assert torch.equal(model.embed(samples), expected)
    assert model(samples).shape == (2, 2)


def study_of(path: Path, **sections: Any) -> Study:
    document = {"data": {"source": path.name, "target": "y"}, **sections}
    document.setdefault("search", {"trials": 4, "window": 2})
    document.setdefault("model", {"source": "mlp", "hidden": [8]})
    document["train"] = {"epochs": 3} | document.get("train", {})
    return make_study(document, path.parent, "t", where="a test")


def test_models_that_embed_are_computed_at_once_and_learn(cities: Path) -> None:
    study = study_of(cities, space={"optimizer": "adam", "learning_rate": 0.03, "l1": 0, "l2": 0, "batch_size": 32})
    events = list(search(study, cities.parent / "t"))
    opened = next(event for event in events if isinstance(event, Opened))
    assert opened.looped_because is None
    assert events[-1].progress.best.value > 0.8  # half by chance, and all of it is in the codes


def test_slots_of_models_that_embed_do_not_see_each_other(cities: Path) -> None:
    study = study_of(cities)
    loaded = load_data(study)
    task = make_task(study, loaded)
    hparams = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "batch_size": 32}
    found = []
    for neighbours in (1, 5):
        engine = LocalEngine(task, choose_plan(10_000, window=8))
        for number in range(neighbours):
            engine.start(Run(number, 0, hparams, 2))
        engine.advance(float("inf"))
        found.append(engine.weights(Run(0, 0, hparams, 2)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# Files


@pytest.fixture
def frame() -> pd.DataFrame:
    draw = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "a": draw.normal(size=ROWS).round(6),
            "b": np.where(draw.random(ROWS) < 0.2, None, draw.choice(["x", "z, w", "tab"], ROWS)),
            "c": draw.random(ROWS) < 0.5,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 400, ROWS), unit="D"),
            "y": draw.choice(["no", "yes"], ROWS),
        }
    )


def test_one_table_in_any_format_is_one_data_set(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.assign(b=frame["b"].astype("category")).to_parquet(tmp_path / "u.parquet")
    found = [load(tmp_path / name) for name in ("t.csv", "t.tsv", "t.parquet", "u.parquet")]
    assert {own.fingerprint() for own in found} == {found[0].fingerprint()}
    assert {json.dumps(dict(own.preprocessing)) for own in found} == {json.dumps(dict(found[0].preprocessing))}


def test_parquet_columns_of_every_type_are_read_or_told(frame: pd.DataFrame, tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    frame["decimal"] = [decimal.Decimal(int(own)) / 4 for own in draw.integers(0, 90, ROWS)]
    frame["date"] = [datetime.date(2024, 1, 1) + datetime.timedelta(int(own)) for own in draw.integers(0, 99, ROWS)]
    frame["duration"] = pd.to_timedelta(draw.integers(0, 9000, ROWS), unit="s")
    frame["zoned"] = frame["day"].dt.tz_localize("Europe/Zurich")
    frame["nullable"] = pd.array([None if own < 20 else own for own in draw.integers(0, 90, ROWS)], dtype="Int64")
    frame["list"] = [[1, 2]] * ROWS
    frame.to_parquet(tmp_path / "t.parquet")
    loaded = load(tmp_path / "t.parquet")
    kinds = {own["name"]: own["kind"] for own in loaded.preprocessing["columns"]}
    assert kinds["decimal"] == kinds["duration"] == kinds["nullable"] == "number"
    assert kinds["date"] == kinds["zoned"] == kinds["day"] == "date"
    assert loaded.notices == ("column 'list' is left out: it holds ndarray values",)


def test_arrays_in_a_file_are_split_and_standardized_by_the_training_samples(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(5, [1, 10, 100], (300, 3)), draw.choice(["b", "a"], 300)
    np.savez(tmp_path / "t.npz", inputs=x, targets=y)
    np.savez_compressed(tmp_path / "u.npz", X=x, y=y)
    loaded, again = load(tmp_path / "t.npz", target=None), load(tmp_path / "u.npz", target=None)
    assert loaded.fingerprint() == again.fingerprint()
    assert [len(own) for own in (loaded.train, loaded.validation, loaded.test)] == [240, 30, 30]
    assert loaded.classes == ("a", "b")
    np.testing.assert_allclose(loaded.train.inputs.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(loaded.train.inputs.std(0, correction=0), 1, atol=1e-5)
    known = json.loads(json.dumps(dict(loaded.preprocessing)))
    np.savez(tmp_path / "new.npz", inputs=x + 3, targets=y)
    moved = load(tmp_path / "new.npz", target=None, fitted=known)
    np.testing.assert_allclose(moved.train.inputs, loaded.train.inputs + 3 / torch.tensor(known["scale"]), atol=1e-4)


def test_arrays_come_in_parts_and_bytes_are_pictures(tmp_path: Path) -> None:
    x, y = np.arange(60 * 16, dtype=np.uint8).reshape(60, 4, 4), np.arange(60) % 3
    np.savez(tmp_path / "t.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    loaded = load(tmp_path / "t.npz", target=None)
    assert [len(own) for own in (loaded.train, loaded.validation, loaded.test)] == [44, 6, 10]
    assert loaded.test.inputs.dtype == torch.uint8  # a quarter of what float32 takes
    assert torch.equal(loaded.test.take(slice(None)).inputs, torch.tensor(x[50:] / 255).float())
    parts = {"train": slice(0, 30), "val": slice(30, 50), "test": slice(50, 60)}
    arrays = {
        f"{name}_{part}": own[rows] for part, rows in parts.items() for name, own in (("inputs", x), ("targets", y))
    }
    np.savez(tmp_path / "u.npz", **arrays)
    whole = load(tmp_path / "u.npz", target=None)
    assert torch.equal(whole.validation.targets, torch.tensor(y[30:50]))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "bool"])
def test_small_integers_stay_as_they_are_until_samples_are_taken(tmp_path: Path, dtype: str) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 120, (60, 6)).astype(dtype), np.arange(60) % 3
    np.savez(tmp_path / "t.npz", inputs=x, targets=y)
    np.savez(tmp_path / "u.npz", inputs=x.astype("float32"), targets=y)
    small, wide = load(tmp_path / "t.npz", target=None), load(tmp_path / "u.npz", target=None)
    assert small.train.inputs.dtype == getattr(torch, dtype)
    index = torch.tensor([[3, 1], [0, 47]])
    if dtype == "uint8":  # pictures
        expected = small.train.inputs[index].float() / 255
    else:
        expected = wide.train.take(index).inputs
        assert small.fingerprint() == wide.fingerprint()
        assert small.preprocessing == wide.preprocessing
    assert torch.equal(small.train.take(index).inputs, expected)
    assert torch.equal(
        small.train.join(small.test).take(torch.tensor([48])).inputs, small.test.take(slice(0, 1)).inputs
    )


@pytest.mark.parametrize("kept_raw", [True, False])
def test_arrays_in_a_file_stay_as_they_are_where_that_is_asked_for(tmp_path: Path, kept_raw: bool) -> None:
    x, y = np.random.default_rng(0).integers(0, 50, (100, 6)), np.random.default_rng(1).normal(1000, 50, 100)
    x = x.astype("uint8") if kept_raw else x
    np.savez(tmp_path / "t.npz", inputs=x, targets=y)
    whole = load(tmp_path / "t.npz", target=None, as_is=True)
    found = [part.take(slice(None)).inputs for part in (whole.train, whole.validation, whole.test)]
    assert {own.dtype for own in found} == {torch.uint8 if kept_raw else torch.int64}
    assert sorted(torch.cat(found).tolist()) == sorted(x.tolist())
    assert whole.target_scale == pytest.approx(50, rel=0.3)
    again = load(tmp_path / "t.npz", target=None, fitted=json.loads(json.dumps(dict(whole.preprocessing))))
    assert again.fingerprint() == whole.fingerprint()
    # A bundled model reads float32 alone.
    bundled = load(tmp_path / "t.npz", target=None, as_is=True, scale_bytes=True)
    assert torch.equal(bundled.train.take(slice(None)).inputs, found[0].float())


def test_mean_and_scale_are_those_of_numpy_however_many_numbers_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = np.random.default_rng(0).normal([1e3, -3], [1, 10], (100, 2)), np.arange(100) % 2
    rest = {f"{name}_{part}": own[:9] for name, own in (("x", x), ("y", y)) for part in ("val", "test")}
    np.savez(tmp_path / "t.npz", x_train=x, y_train=y, **rest)
    for at_once in (1 << 20, 26, 2):
        monkeypatch.setattr(scaling, "LEARNED_AT_ONCE", at_once)
        found = load(tmp_path / "t.npz", target=None).preprocessing
        np.testing.assert_allclose(found["mean"], x.astype("float32").mean(0, dtype="float64"), rtol=1e-12)
        np.testing.assert_allclose(found["scale"], x.astype("float32").std(0, dtype="float64"), rtol=1e-12)


def test_a_regression_target_in_a_file_keeps_its_unit_beside(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(1000, 50, 100)
    np.savez(tmp_path / "t.npz", inputs=np.random.default_rng(1).normal(size=(100, 2)), targets=y)
    loaded = load(tmp_path / "t.npz", target=None)
    assert loaded.target_scale == pytest.approx(50, rel=0.3)
    restored = torch.cat([own.targets for own in (loaded.train, loaded.validation, loaded.test)])
    np.testing.assert_allclose(np.sort(restored * loaded.target_scale + loaded.target_mean), np.sort(y), rtol=1e-5)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def member(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inputs.npy", content)
        archive.writestr("targets.npy", content)
    return file.getvalue()


X, Y = np.ones((30, 2)) * np.arange(30)[:, None], np.arange(30) % 2
GOOD = npz(inputs=X, targets=Y)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.npz", b"", "cannot be read"),
        ("t.npz", b"a,b\n1,2\n", "no .npz file, or not a whole one"),
        ("t.npz", GOOD[: len(GOOD) // 2], "cannot be read"),
        ("t.npz", member(b"no array"), "cannot be read"),
        ("t.npz", npz(inputs=np.array([[1, "a"], [2, None]], dtype=object), targets=np.arange(2)), "never unpickled"),
        ("t.npz", npz(inputs=X), "holds no targets"),
        ("t.npz", npz(features=X, y=Y), "'features' that is neither inputs nor targets"),
        ("t.npz", npz(x=X, inputs=X, y=Y), "two arrays of inputs"),
        ("t.npz", npz(x=X[:, 0], y=Y), r"inputs of shape \(30,\)"),
        ("t.npz", npz(x=X, y=Y[:9]), "30 inputs and 9 targets"),
        ("t.npz", npz(x_train=X, y_train=Y), "holds train"),
        ("t.npz", npz(x=X, y=Y, x_test=X, y_test=Y), "samples without a part, test|test, samples"),
        ("t.npz", npz(x=X, y=Y * 0), "one class only"),
        ("t.npz", npz(x=np.full((30, 2), np.nan), y=Y), "NaN or an infinity in the inputs of 24 samples for train"),
        ("t.npz", npz(x=X, y=np.where(Y, np.inf, 1.5)), "NaN or an infinity"),
        ("t.npz", npz(x=X, y=Y, weights=Y[:4]), r"weights of shape \(4,\)"),
        ("t.npz", npz(x=X, y=Y, weights=Y - 1.0), "no number from 0 on"),
        ("t.npz", npz(x=X[:3], y=[0, 1, 0]), "too few for a split"),
        ("t.npz", npz(x=X.astype(str), y=Y), "inputs must be numbers"),
        ("t.parquet", b"", "cannot be read"),
        ("t.parquet", b"PAR1 but no more", "cannot be read"),
        ("t.tsv", b"", "is empty"),
        ("t.tsv", b"a,b,y\n1,2,0\n", "one column only"),
        ("t.tsv", b"a\tb\ty\n1\t2\n3\t4\t1\n", "fewer fields than in the header in line 2"),
        ("t.csv", "a,y\n" + "\n".join(f"{k % 7},text {k}" for k in range(60)), "60 classes in 60 samples"),
    ],
)
def test_what_can_be_wrong_with_a_file(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name, target=None if name.endswith("npz") else "y")
    assert caught.value.hint
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message


# Weights and the choice of columns


def weights(*parts: Any) -> list[Any]:
    return [None if own.weights is None else own.weights.tolist() for own in parts]


@pytest.fixture
def weighed(tmp_path: Path) -> Path:
    lines = [f"{k % 9},{k / 100},{'rare' if k % 5 == 0 else 'often'}" for k in range(100)]
    (tmp_path / "w.csv").write_text("\n".join(["a,w,y", *lines]))
    return tmp_path / "w.csv"


def test_a_column_of_weights_is_no_feature_and_goes_with_its_rows(weighed: Path) -> None:
    loaded = load(weighed, weight="w")
    assert [own["name"] for own in loaded.preprocessing["columns"]] == ["a"]
    found = [own.weights for own in (loaded.train, loaded.validation, loaded.test) if own.weights is not None]
    np.testing.assert_allclose(torch.cat(found).sort().values, np.arange(100) / 100, atol=1e-6)
    assert loaded.fingerprint() != load(weighed, features=["a"]).fingerprint()


def test_balanced_classes_weigh_as_in_scikit_learn_and_multiply_the_rows_own(weighed: Path) -> None:
    plain, own = load(weighed, features=["a"]), load(weighed, weight="w")
    expected = compute_class_weight("balanced", classes=np.arange(2), y=plain.train.targets.numpy())
    balanced = data.weigh(plain, "balanced")
    for part in ("train", "validation"):
        samples = getattr(balanced, part)
        np.testing.assert_allclose(samples.weights, expected[samples.targets], rtol=1e-6)
    assert balanced.test.weights is None
    both, times = data.weigh(own, {"rare": 4.0}), torch.tensor([1.0, 4.0])
    assert both.train.weights is not None
    assert own.train.weights is not None
    np.testing.assert_allclose(both.train.weights, own.train.weights * times[own.train.targets])


def test_class_weights_reach_the_training_of_a_study(weighed: Path) -> None:
    study = study_of(weighed, train={"class_weight": "balanced"})
    (weight,) = weights(make_task(study, load_data(study)).train)
    assert weight is not None
    assert sorted(set(weight)) == pytest.approx([100 / 160, 100 / 40], rel=0.05)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"weight": "v"}, "no weight column 'v'", "known"),
        ({"weight": "y"}, "both target and weight", "two columns"),
        ({"weight": "a"}, "the weight 'a' is missing in 1 of 100 rows, first in line 5", "fill"),
        ({"weight": "b"}, "the weight 'b' holds -1 in line 2", "from 0 on"),
        ({"weight": "t"}, "the weight 't' holds x in line 2", "from 0 on"),
        ({"weight": "z"}, "all weights of a part are zero", "counts"),
        ({"features": ["aa"]}, "no column 'aa'", "did you mean 'a'"),
        ({"features": ["a", "y"]}, "'y' is the target", "feature"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, options: dict[str, Any], message: str, hint: str) -> None:
    lines = [f"{'' if k == 3 else k % 9},{-1 if k == 0 else 1},x,0,{k % 2}" for k in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,t,z,y", *lines]))
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "t.csv", **options)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("sections", "messages"),
    [
        ({"train": {"class_weight": "balance"}}, ["train.class_weight: expected 'balanced' or a table"]),
        ({"train": {"class_weight": {"rare": -1, "often": True}}}, ["weight of 'rare'", "weight of 'often'"]),
        ({"data": {"source": "w.csv", "target": "y", "features": []}}, ["data.features names no column"]),
        ({"data": {"source": "w.csv", "target": "y", "features": ["y"]}}, ["'y' is the target"]),
        ({"data": {"source": "w.csv", "target": "y", "weight": "w", "features": ["w"]}}, ["'w' is the weight"]),
        ({"data": {"source": "iris", "as_is": True}}, ["data.as_is is for arrays in a .npz file, and 'iris' is none"]),
        ({"data": {"source": "iris", "weight": "w"}}, ["data.weight names columns of a table, and 'iris' is none"]),
    ],
)
def test_a_study_file_is_told_all_that_is_wrong_with_columns_and_weights(
    weighed: Path, sections: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(StudyFileError) as caught:
        study_of(weighed, **sections)
    assert all(message in caught.value.message for message in messages)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [({"rar": 3}, "no class 'rar'"), ({"rare": 0, "often": 0}, "no training sample a weight above zero")],
)
def test_weights_of_classes_are_checked_against_the_data(weighed: Path, class_weight: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(study_of(weighed, train={"class_weight": class_weight}))


def test_columns_of_bundled_data_can_be_chosen() -> None:
    loaded = data.load("wine", {}, base=Path(), seed=0, features=["alcohol", "hue"])
    assert loaded.features == (2,)


Tunecli = Callable[..., Any]


def test_everything_learned_is_in_the_checkpoint_and_predicts_what_never_was_seen(
    tmp_path: Path, cities: Path, tunecli: Tunecli
) -> None:
    frame = pd.read_csv(cities)
    frame["day"] = (pd.Timestamp("2024-01-01") + pd.to_timedelta(frame.index % 300, unit="D")).strftime("%Y-%m-%d")
    frame["open"] = np.where(frame.index % 3 == 0, "yes", "no")
    frame.to_csv(cities, index=False)
    home = ["--home", str(tmp_path / "studies")]
    setting = ["--set", "train.epochs=2", "--set", "model.hidden=[4]"]
    assert tunecli("search", str(cities), "--target", "y", "--trials", "3", *setting, *home).code == 0
    new = frame.drop(columns=["y", "height"]).head(5)
    new.loc[0, ["city", "day", "open"]] = ["Atlantis", "soon", "perhaps"]
    new.to_csv(tmp_path / "new.csv", index=False)
    done = tunecli("predict", "cities", str(tmp_path / "new.csv"), *home)
    assert done.code == 0
    assert len(done.out.splitlines()) == 6
    for notice in ("'height' is missing", "'Atlantis'", "no date ('soon')", "neither yes nor no ('perhaps')"):
        assert notice in done.err
