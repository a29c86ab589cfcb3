"""Study files: what they may say, what is resolved, and how every fault is reported."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tunecli.errors import DataError, InputError, StudyFileError, UsageError
from tunecli.home import bundled_names, bundled_study, find_folder, find_study
from tunecli.space import DEFAULT_OPTIMIZERS, OPTIMIZERS, Choice, Float, Int
from tunecli.study import (
    Study,
    make_study,
    read_question,
    read_study,
    study_of_table,
)
from tunecli.study.overrides import differences

DIGITS = '[data]\nsource = "digits"\n'

FULL = """
name = "mine"
seed = 7

[data]
source = "own.py:read"
split = [6, 2, 2]
task = "classification"
folder = "pictures"
sizes = [8, 16]
crop = { top = 1, left = 2.5 }

[model]
source = "mlp"
activation = "tanh"
hidden = [32]

[train]
epochs = 12
loss = "cross_entropy"
metric = "f1"
decay_biases = false

[space]
optimizer = ["sgd", "adam"]
learning_rate = { low = 1e-3, high = 1.0, log = true }
momentum = 0.9
batch_size = [1, 16, "full"]
l1 = 0
model.hidden = [[64], [64, 64]]
model.dropout = { low = 0.0, high = 0.5 }

[search]
trials = 40
sampler = "random"
pruner = "hyperband"
window = 3
keep = 2
min_ticks = 2
reduction_factor = 3

[finetune]
layers = ["head", "layer*"]
epochs = 4
"""


def state(text: str = DIGITS, *overrides: str, base: Path = Path(), **replaced: Any) -> Study:
    """The study that a text states; `search__trials=3` replaces `search.trials`."""
    dotted = {key.replace("__", "."): value for key, value in replaced.items()}
    return make_study(tomllib.loads(text), base, "study", overrides, dotted, where="study.toml")


def faults(text: str, *overrides: str, base: Path = Path()) -> list[str]:
    """Each fault of a text, with its hint behind a semicolon."""
    with pytest.raises(StudyFileError) as caught:
        state(text, *overrides, base=base)
    first, *lines = caught.value.message.splitlines()
    assert first.startswith("study.toml")
    if not lines:
        assert " faults:" not in first
        return [first.removeprefix("study.toml: ") + (f"; {caught.value.hint}" if caught.value.hint else "")]
    assert first == f"study.toml has {len(lines)} faults:"
    assert caught.value.hint == "mend these and try again"
    return [line.strip() for line in lines]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text("def read(**keys):\n    raise AssertionError('a study file is checked unread')\n")
    (tmp_path / "mine.toml").write_text(FULL, encoding="utf-8")
    return tmp_path


def test_a_full_study_file_is_read_as_it_says(own: Path) -> None:
    study = read_study(own / "mine.toml")
    assert (study.name, study.seed, study.base) == ("mine", 7, own)
    assert (study.data.source, study.data.split, study.data.task) == ("own.py:read", [6, 2, 2], "classification")
    assert study.data.keys == {"folder": "pictures", "sizes": [8, 16], "crop": {"top": 1, "left": 2.5}}
    assert (study.model.source, study.model.keys) == ("mlp", {"activation": "tanh", "hidden": [32]})
    train, search, finetune = study.train, study.search, study.finetune
    assert (train.epochs, train.loss, train.metric, train.decay_biases) == (12, "cross_entropy", "f1", False)
    assert (search.trials, search.sampler, search.pruner, search.window) == (40, "random", "hyperband", 3)
    assert (search.keep, search.min_ticks, search.reduction_factor) == (2, 2, 3)
    assert (finetune.layers, finetune.epochs) == (["head", "layer*"], 4)
    ranges = {dimension.name: dimension.range for dimension in study.space.dimensions}
    assert ranges["optimizer"] == Choice(("sgd", "adam"))
    assert ranges["learning_rate"] == Float(1e-3, 1.0, log=True)
    assert (ranges["momentum"], ranges["l1"]) == (0.9, 0.0)
    assert ranges["batch_size"] == Choice((1, 16, "full"))
    assert ranges["model.hidden"] == Choice(((64,), (64, 64)))
    assert ranges["model.dropout"] == Float(0.0, 0.5)


def test_what_a_study_file_leaves_out_has_a_default(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(DIGITS)
    study = read_study(tmp_path / "small.toml")
    assert (study.name, study.seed, study.base) == ("small", 0, tmp_path)
    assert (study.data.split, study.data.target, study.data.task, study.data.keys) == ([8, 1, 1], None, None, {})
    assert (study.model.source, study.model.keys) == ("mlp", {})
    assert (study.train.epochs, study.train.loss, study.train.metric, study.train.decay_biases) == (
        30,
        None,
        None,
        True,
    )
    assert (study.search.trials, study.search.sampler, study.search.pruner) == (100, "tpe", "asha")
    assert (study.finetune.layers, study.finetune.epochs) == (None, None)
    ranges = {dimension.name: dimension.range for dimension in study.space.dimensions}
    assert ranges["optimizer"] == Choice(DEFAULT_OPTIMIZERS)
    assert ranges["batch_size"] == Choice((16, 32, 64, 128, 256))


@pytest.mark.parametrize(
    ("trials", "window"), [(1, 8), (60, 8), (64, 8), (72, 9), (100, 12), (512, 64), (520, 64), (10_000, 64)]
)
def test_the_window_is_an_eighth_of_the_trials_between_8_and_64(trials: int, window: int) -> None:
    assert state(search__trials=trials).window == window


def test_a_stated_window_is_the_window_and_more_trials_do_not_change_it() -> None:
    assert state(DIGITS + "[search]\nwindow = 3\ntrials = 1000\n").window == 3
    begun = state(search__trials=80).with_window(10)
    assert begun.window == 10
    assert begun.document()["search"]["window"] == 10


# Faults


def test_every_unknown_key_is_reported_at_once_with_the_nearest_known_one() -> None:
    text = """
    sed = 1
    [data]
    source = "digits"
    splitt = [8, 1, 1]
    [model]
    hiden = [8]
    [train]
    epoch = 3
    [space]
    learning_rte = 0.1
    model.drpout = [0.1, 0.2]
    [search]
    trails = 5
    [finetune]
    layer = ["head"]
    [serch]
    trials = 3
    """
    assert sorted(faults(text)) == sorted(
        [
            "unknown key 'sed' at the top; did you mean 'seed'?",
            "unknown key 'splitt' in [data]; did you mean 'split'?",
            "unknown key 'hiden' of model 'mlp'; did you mean 'hidden'?",
            "unknown key 'epoch' in [train]; did you mean 'epochs'?",
            "[space] unknown hyperparameter 'learning_rte'; did you mean 'learning_rate'?",
            "unknown key 'drpout' of model 'mlp'; did you mean 'dropout'?",
            "unknown key 'trails' in [search]; did you mean 'trials'?",
            "unknown key 'layer' in [finetune]; did you mean 'layers'?",
            "unknown key 'serch' at the top; did you mean 'search'?",
        ]
    )


def test_a_key_of_a_section_that_stands_at_the_top_is_told_whose_it_is() -> None:
    text = """
    epochs = 5
    trials = 10
    learning_rate = 0.1
    schedule = "cosine"
    colour = "red"
    [data]
    source = "iris"
    """
    told = [fault for fault in faults(text) if "colour" not in fault]
    assert sorted(told) == [
        "unknown key 'epochs' at the top; did you mean train.epochs or finetune.epochs?",
        "unknown key 'learning_rate' at the top; did you mean space.learning_rate?",
        "unknown key 'schedule' at the top; did you mean space.schedule?",
        "unknown key 'trials' at the top; did you mean search.trials?",
    ]


def test_faults_of_every_kind_are_reported_together(tmp_path: Path) -> None:
    text = """
    name = "../mine"
    seed = "0"
    [data]
    source = "digts"
    split = [8, 2]
    [model]
    source = "own.py:make"
    [train]
    metric = "acuracy"
    epochs = 0
    [space]
    optimizer = ["sgd", "adm"]
    learning_rate = { low = 1.0, high = 0.1 }
    [search]
    sampler = "bohb"
    """
    found = faults(text, base=tmp_path)
    assert len(found) == 10
    for expected in [
        "seed: expected a whole number, got '0'",
        "data.split: expected three numbers, train : validation : test, got [8, 2]",
        "train.epochs: must be at least 1, got 0",
        "search.sampler: must be 'tpe', 'random', 'grid', 'brute_force', 'qmc', 'gp' or 'nsga2', got 'bohb'",
        "a study's name has letters, digits, '.', '_' and '-' and no path, got '../mine'",
        "[space] optimizer: unknown optimizer 'adm'; did you mean 'adam'?",
        "[space] learning_rate: a range must have low below high, got 1 to 0.1",
        f"model.source: no such file: {tmp_path / 'own.py'}; paths in a study file are relative to it, here {tmp_path}",
        "unknown metric 'acuracy' in [train]; did you mean 'accuracy'?",
    ]:
        assert expected in found
    assert any(fault.startswith("data.source: unknown data source 'digts'; ") for fault in found)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "[data] is missing; a study needs [data] with source"),
        ("[data]\n", "'source' is missing in [data]"),
        ("[data]\nsource = 3\n", "data.source: expected a text, got 3"),
        ("data = 3\n", "data: expected a table, got 3"),
        ("train = 'x'\n" + DIGITS, "train: expected a table, got 'x'"),
        ("space = [1]\n" + DIGITS, "space: expected a table, got [1]"),
        ("space.model = 3\n" + DIGITS, "space.model: expected a table of the model's keys, got 3"),
        ("seed = -1\n" + DIGITS, "seed: must be at least 0, got -1"),
        ("seed = 4294967296\n" + DIGITS, "seed: must be below 4294967296, got 4294967296"),
        ("seed = 1.0\n" + DIGITS, "seed: expected a whole number, got 1.0"),
        ("seed = true\n" + DIGITS, "seed: expected a whole number, got True"),
        (DIGITS + "split = [8, 1, 1, 1]\n", "data.split: expected three numbers, train : validation : test"),
        (DIGITS + "split = [8, 1, 0]\n", "data.split.2: must be above 0, got 0"),
        (DIGITS + "split = [8, 1, inf]\n", "data.split.2: should be a finite number, got inf"),
        (DIGITS + "split = [8, 1, 'x']\n", "data.split.2: expected a number, got 'x'"),
        (DIGITS + "split = '8:1:1'\n", "data.split: expected a list, got '8:1:1'"),
        (DIGITS + "task = 'regresion'\n", "data.task: must be 'classification' or 'regression', got 'regresion'"),
        (DIGITS + "[train]\nepochs = '5'\n", "train.epochs: expected a whole number, got '5'"),
        (DIGITS + "[train]\ndecay_biases = 1\n", "train.decay_biases: expected true or false, got 1"),
        (DIGITS + "[train]\nloss = 'hinge'\n", "unknown loss 'hinge' in [train]; known: binary_cross_entropy, cross_"),
        (DIGITS + "[search]\nwindow = 0\n", "search.window: must be at least 1, got 0"),
        (DIGITS + "[search]\nreduction_factor = 1\n", "search.reduction_factor: must be at least 2"),
        (
            DIGITS + "[search]\npruner = 'halving'\n",
            "search.pruner: must be 'asha', 'hyperband', 'median', 'percentile', 'patient' or 'none', got",
        ),
        (DIGITS + "[finetune]\nlayers = 'head'\n", "finetune.layers: expected a list, got 'head'"),
        (
            DIGITS + "[model]\nsource = 'resnet'\n",
            "unknown model 'resnet', neither bundled nor \"file.py:function\"; kn",
        ),
        (DIGITS + "[model]\nsource = 'linear'\nhidden = 3\n", "unknown key 'hidden' of model 'linear'; it takes none"),
        (DIGITS + "[space]\nmomentum = 1.5\n", "[space] momentum: must "),
        ("[data]\nsource = 'none.csv'\n", f"data.source: no such file: {Path('none.csv')}; paths in a study file are"),
        ("[data]\nsource = 'none.py:read'\nkey = 3\n", "data.source: no such file: "),
    ],
)
def test_one_fault_is_one_line(text: str, fault: str) -> None:
    found = faults(text)
    assert len(found) == 1
    assert found[0].startswith(fault)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (
            "2024-01-31",
            'data.key: expected a text instead of a date or time, got 2024-01-31; write it in quotes, "2024',
        ),
        ("[1, [12:30:00]]", "data.key: expected a text instead of a date or time, got 12:30:00"),
        ("{ deep = nan }", "data.key.deep: expected a finite number, got nan"),
        ("-inf", "data.key: expected a finite number, got -inf"),
    ],
)
def test_values_that_the_record_of_a_study_cannot_keep_are_refused(own: Path, value: str, fault: str) -> None:
    assert faults(f'[data]\nsource = "own.py:read"\nkey = {value}\n', base=own)[0].startswith(fault)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../other", "a/b", "a\\b", "/tmp/x", "-x", ".hidden", "a b", "a\n", "ä"]
)
def test_names_that_are_no_plain_folder_are_refused(name: str) -> None:
    text = f"name = {json.dumps(name)}\n" + DIGITS
    assert faults(text) == [
        f"a study's name has letters, digits, '.', '_' and '-' and no path, got {name!r}; for example digits-2"
    ]


@pytest.mark.parametrize("name", ["digits", "A-1_b.c", "3", "x" * 100])
def test_plain_names_are_taken(name: str) -> None:
    assert state(f'name = "{name}"\n' + DIGITS).name == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "is no TOML: Invalid value"),
        (b"[data]\nsource = digits\n", "is no TOML: .* line 2"),
        (b"name = 'a'\nname = 'b'\n", "is no TOML: .* line 2"),
        ("name = 'é'".encode("latin-1"), "is not UTF-8"),
        (b"\xff\xfen\x00", "is not UTF-8"),
        (None, "no such study file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_input_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudyFileError, match=message) as caught:
        read_study(path)
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 3


def test_a_folder_is_no_study_file(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"cannot read .*: Is a directory"):
        read_study(tmp_path)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: value is not None)


@examples(100)
@given(
    st.dictionaries(
        st.sampled_from(["name", "seed", "base", "data", "model", "train", "space", "search", "finetune", "x"]),
        JUNK
        | st.dictionaries(
            st.sampled_from(["source", "split", "hidden", "epochs", "metric", "optimizer", "model", "l1", "layers"]),
            JUNK,
        ),
    )
)
def test_any_document_is_a_study_or_one_study_file_error(document: dict[str, Any]) -> None:
    before = repr(document)
    with suppress(StudyFileError):  # most are faulty, and none may raise anything else
        make_study(document, Path(), "study", where="study.toml")
    assert repr(document) == before


# Overrides


def test_set_overrides_the_file_and_bare_words_are_text() -> None:
    study = state(
        FULL.replace("own.py:read", "digits").replace('folder = "pictures"\nsizes = [8, 16]\ncrop =', "#"),
        "train.epochs=5",
        "train.metric = accuracy",
        "train.decay_biases=true",
        "data.split=[1, 1, 1]",
        "space.learning_rate.high=0.1",
        'space.optimizer=["adam", "nadam"]',
        "model.activation=gelu",
        "model.hidden=[5]",
        "search.sampler='tpe'",
        "name=other",
        "finetune.epochs=1",
    )
    assert (study.train.epochs, study.train.metric, study.train.decay_biases) == (5, "accuracy", True)
    assert study.data.split == [1, 1, 1]
    ranges = {dimension.name: dimension.range for dimension in study.space.dimensions}
    assert ranges["learning_rate"] == Float(1e-3, 0.1, log=True)
    assert ranges["optimizer"] == Choice(("adam", "nadam"))
    assert study.model.keys == {"activation": "gelu", "hidden": [5]}
    assert (study.search.sampler, study.name, study.finetune.epochs) == ("tpe", "other", 1)


def test_set_begins_a_section_that_the_file_leaves_out_and_the_last_of_two_counts() -> None:
    study = state(DIGITS, "space.batch_size={low = 8, high = 64, log = true}", "search.trials=3", "search.trials=4")
    assert {d.name: d.range for d in study.space.dimensions}["batch_size"] == Int(8, 64, log=True)
    assert study.search.trials == 4


def test_a_value_may_hold_an_equals_sign() -> None:
    with pytest.raises(UsageError, match=r"no such file: .*a=b\.csv"):
        state(DIGITS, "data.source=a=b.csv")


@pytest.mark.parametrize("override", ["train.epochs", "", "=", "=5", " =5"])
def test_an_override_without_key_and_value_is_a_usage_error(override: str) -> None:
    with pytest.raises(UsageError, match="--set takes KEY=VALUE, got") as caught:
        state(DIGITS, override)
    assert caught.value.hint == "for example --set train.epochs=5"
    assert caught.value.exit_code == 2


def test_an_override_cannot_reach_into_a_value() -> None:
    with pytest.raises(UsageError, match=r"'data\.source\.x' cannot be set: 'source' is a value, not a table"):
        state(DIGITS, "data.source.x=1")


def test_a_fault_that_was_typed_is_a_usage_error_that_names_the_option() -> None:
    def complaint(*overrides: str, **replaced: Any) -> tuple[str, str | None]:
        with pytest.raises(UsageError) as caught:
            state(DIGITS, "train.epochs=2", *overrides, **replaced)
        return caught.value.message, caught.value.hint

    assert complaint("train.epoch=5") == (
        "--set train.epoch=5: unknown key 'epoch' in [train]",
        "did you mean 'epochs'?",
    )
    assert complaint(seed=-1) == ("--seed -1: seed: must be at least 0, got -1", "for example seed = 0")
    assert complaint("search.patience=3") == (
        "--set search.patience=3: 'patience' in [search] is no key of the pruner 'asha'",
        "it reads min_ticks, reduction_factor",
    )
    both, _ = complaint("train.epochs=many", "seed=few")
    assert both.splitlines()[0] == "--set train.epochs=many --set seed=few has 2 faults:"
    # A file that has faults of its own is mended first.
    found = faults(DIGITS + "[train]\nepochs = 0\n", "seed=few")
    assert found == ["seed: expected a whole number, got 'few'", "train.epochs: must be at least 1, got 0"]


def test_a_pruner_takes_its_own_keys_and_refuses_those_of_others() -> None:
    def options(text: str) -> dict[str, float]:
        return state(f"{DIGITS}[search]\n{text}").search.pruner_options

    assert options("") == options("pruner = 'hyperband'") == {"min_ticks": 3, "reduction_factor": 3}
    assert options("pruner = 'median'\nmin_ticks = 1") == {"min_ticks": 1, "startup_trials": 5}
    percentile = options("pruner = 'percentile'\npercentile = 10\npatience = 2\nstartup_trials = 0")
    assert percentile == {"percentile": 10, "min_ticks": 3, "startup_trials": 0, "patience": 2}
    assert (options("pruner = 'patient'"), options("pruner = 'none'")) == ({"patience": 3}, {})
    text = DIGITS + "[search]\npruner = 'patient'\nmin_ticks = 2\npercentile = 30.0\n"
    expected = ["min_ticks", "percentile"]
    reads = "in [search] is no key of the pruner 'patient'; it reads patience"
    assert faults(text) == [f"{key!r} {reads}" for key in expected]
    # As it is recorded, it can be read again.
    for pruner in ("asha", "hyperband", "median", "percentile", "patient", "none"):
        study = state(f"{DIGITS}[search]\npruner = '{pruner}'")
        assert same_question(study, state(study.toml()))


def test_options_of_the_command_line_replace_the_file_where_they_are_given() -> None:
    study = state("seed = 3\n" + DIGITS, seed=None, search__trials=7, data__target="label")
    assert (study.seed, study.search.trials, study.data.target) == (3, 7, "label")


# The record of a study


def same_question(one: Study, other: Study) -> bool:
    return not differences(one.document(), other.document()) and not differences(other.document(), one.document())


def test_the_resolved_question_reads_back_as_an_equal_one(own: Path) -> None:
    study = read_study(own / "mine.toml")
    (own / "elsewhere").mkdir()
    (own / "elsewhere" / "study.toml").write_text(study.toml(), encoding="utf-8")
    again = read_study(own / "elsewhere" / "study.toml")
    assert again == study  # its name and its base folder, too
    assert again.toml() == study.toml()
    assert json.loads(json.dumps(study.document())) == study.document()


FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.dictionaries(TEXT.filter(lambda key: key not in ("source", "target", "split", "task")), VALUES, max_size=4)
SPACES = st.fixed_dictionaries(
    {},
    optional={
        "optimizer": st.lists(st.sampled_from(OPTIMIZERS), min_size=1, unique=True) | st.sampled_from(OPTIMIZERS),
        "learning_rate": st.fixed_dictionaries(
            {"low": st.floats(1e-9, 1e-3), "high": st.floats(1e-2, 1e3)}, optional={"log": st.booleans()}
        ),
        "batch_size": st.lists(st.integers(1, 512) | st.just("full"), min_size=1, max_size=4, unique=True),
        "momentum": st.floats(0, 0.99) | st.just(0),
        "nesterov": st.just([True, False]) | st.booleans(),
        "l1": st.just(0) | st.floats(0, 1),
        "model": st.dictionaries(
            TEXT, st.lists(st.lists(st.integers(1, 64), max_size=2), min_size=1, max_size=3, unique_by=str), max_size=2
        ),
    },
)


@settings(examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data_keys=KEYS,
    model_keys=KEYS,
    space=SPACES,
    seed=st.integers(0, 2**32 - 1),
    split=st.lists(st.integers(1, 9) | st.floats(1e-3, 1e3), min_size=3, max_size=3),
    target=st.none() | TEXT,
    search=st.fixed_dictionaries({}, optional={"trials": st.integers(1, 10**6), "window": st.integers(1, 99)}),
    finetune=st.fixed_dictionaries({}, optional={"layers": st.lists(TEXT), "epochs": st.integers(1, 9)}),
)
def test_every_question_survives_its_own_record(
    own: Path,
    data_keys: Mapping[str, Any],
    model_keys: Mapping[str, Any],
    space: dict[str, Any],
    seed: int,
    split: list[float],
    target: str | None,
    search: dict[str, Any],
    finetune: dict[str, Any],
) -> None:
    document = {
        "seed": seed,
        "data": {
            "source": "own.py:read",
            "split": split,
            **({} if target is None else {"target": target}),
            **data_keys,
        },
        "model": {"source": "own.py:read", **model_keys},
        "space": space,
        "search": search,
        "finetune": finetune,
    }
    study = make_study(document, own, "mine", where="study.toml")
    (own / "resolved").mkdir(exist_ok=True)
    (own / "resolved" / "study.toml").write_text(study.toml(), encoding="utf-8")
    again = read_study(own / "resolved" / "study.toml")
    assert same_question(study, again)
    assert (again.data.keys, again.model.keys) == (study.data.keys, study.model.keys)
    assert (again.space, again.window, again.name, again.base) == (study.space, study.window, "mine", own)
    assert again.finetune == study.finetune
    stored = json.loads(json.dumps(study.document()))
    assert not differences(stored, again.document())


def test_differences_name_each_contradiction_with_both_values() -> None:
    begun = state(DIGITS + "[model]\nhidden = [8]\n")
    asked = state(
        DIGITS + '[train]\nmetric = "f1"\nepochs = 5\n[space]\nlearning_rate = { low = 0.1, high = 1.0 }\n', seed=3
    )
    assert list(differences(begun.document(), asked.document()).values()) == [
        "model.hidden: [8] -> default",
        "seed: 0 -> 3",
        "space.learning_rate.high: default -> 1.0",
        "space.learning_rate.low: default -> 0.1",
        "train.epochs: 30 -> 5",
        'train.metric: default -> "f1"',
    ]


def test_more_trials_or_other_plans_for_afterwards_are_the_same_question() -> None:
    begun = state(search__trials=20).with_window(8)
    asked = state(
        'name = "renamed"\n' + DIGITS + '[search]\ntrials = 500\nkeep = 9\n[finetune]\nlayers = ["head"]\nepochs = 3\n'
    )
    assert same_question(begun, asked)


def test_every_key_that_changes_a_trial_makes_another_question(own: Path) -> None:
    study = read_study(own / "mine.toml")
    for override in (
        "seed=8", "data.split=[7, 2, 2]", "data.task=regression", "data.sizes=[8]", "model.hidden=[33]",
        "train.epochs=13", "train.metric=accuracy", "train.decay_biases=true", "space.momentum=0.8",
        "space.model.hidden=[[64]]", "search.sampler=tpe", "search.pruner=asha", "search.min_ticks=1",
    ):  # fmt: skip
        changed = differences(study.document(), read_question(own / "mine.toml", [override]).document())
        assert [line.split(":")[0] for line in changed] == [override.split("=")[0]]


def test_a_relative_base_is_relative_to_the_file(own: Path) -> None:
    (own / "sub").mkdir()
    (own / "sub" / "mine.toml").write_text('base = ".."\n' + FULL, encoding="utf-8")
    study = read_study(own / "sub" / "mine.toml")
    assert study.base.resolve() == own


# Where studies come from


def test_bundled_studies_are_valid_and_named_after_their_files() -> None:
    assert {"digits", "breast_cancer"} <= set(bundled_names())
    for name in bundled_names():
        path = bundled_study(name)
        assert path is not None
        assert read_study(path).name == name
    assert bundled_study("none") is None


@pytest.mark.parametrize(
    ("file", "name"),
    [("train.csv", "train"), ("My data (2).csv", "My-data-2"), ("äö.csv", "table"), ("a.b.CSV", "a.b")],
)
def test_a_table_is_a_study_named_after_it(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("x,y\n1,2\n")
    study = study_of_table(tmp_path / file, ["train.epochs=2"], {"data.target": "y"})
    assert (study.name, study.base) == (name, tmp_path)
    assert (study.data.source, study.data.target, study.train.epochs) == (file, "y", 2)


def test_a_table_that_does_not_exist_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        study_of_table(tmp_path / "none.csv")


def test_a_study_is_found_by_path_name_or_being_the_latest(own: Path) -> None:
    home = own / "studies"
    assert find_study(None, home, [], {}).name == "digits"
    assert find_study("breast_cancer", home, [], {}).name == "breast_cancer"
    assert find_study(str(own / "mine.toml"), home, ["seed=9"], {}).seed == 9
    home.mkdir()
    (home / "digits.toml").write_text('seed = 5\n[data]\nsource = "digits"\n')
    assert find_study("digits", home, [], {}).seed == 5  # a user's own comes before the bundled one
    (home / "begun").mkdir()
    (home / "begun" / "study.toml").write_text(read_study(own / "mine.toml").toml(), encoding="utf-8")
    (home / "begun" / "study.db").write_bytes(b"")
    # A copied folder is a study of its own, under its own name.
    begun = replace(read_study(own / "mine.toml"), name="begun")
    assert find_study(None, home, [], {}) == find_study("begun", home, [], {}) == begun
    assert find_study("wine", home, [], {}).data.source == "wine"  # bundled data are a question of their own
    assert find_folder(None, home) == find_folder("begun", home) == home / "begun"


@pytest.mark.parametrize(
    ("argument", "message", "hint"),
    [
        ("digts", "no study 'digts'", "did you mean 'digits'"),
        ("../digits", "no study '../digits'", None),
        ("none.toml", "no such study file", None),
        ("none.csv", "no such file", None),
    ],
)
def test_a_study_that_is_not_there_is_an_input_error(
    tmp_path: Path, argument: str, message: str, hint: str | None
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        find_study(argument, tmp_path / "studies", [], {})
    assert hint is None or hint in (caught.value.hint or "")
    with pytest.raises(InputError):
        find_folder(argument, tmp_path / "studies")


def test_a_study_file_is_checked_without_torch_or_optuna() -> None:
    code = (
        "import sys, tunecli.home as h, tunecli.study as s\n"
        "[s.read_study(h.bundled_study(name)) for name in h.bundled_names()]\n"
        "print(*{'torch', 'optuna', 'pandas', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "", "")


def test_a_table_whose_study_was_begun_needs_no_target_again(tmp_path: Path) -> None:
    table, home = tmp_path / "t.csv", tmp_path / "studies"
    table.write_text("a,y\n1,0\n2,1\n")
    begun = find_study(str(table), home, [], {"data.target": "y"})
    (home / "t").mkdir(parents=True)
    (home / "t" / "study.toml").write_text(begun.toml())
    assert not differences(begun.document(), find_study(str(table), home, [], {}).document())


@pytest.mark.parametrize("argument", ["digits", "wine", "data/t.csv", "data/"])
def test_what_was_begun_from_no_study_file_goes_on_as_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.csv").write_text("a,y\n1,0\n2,1\n")
    np.save(tmp_path / "data" / "inputs.npy", np.zeros((2, 1)))
    home, target = tmp_path / "studies", {"data.target": "y"} if argument.endswith(".csv") else {}
    shipped = find_study(argument, home, [], target)
    begun = find_study(argument, home, ["train.epochs=7"], target)
    (home / begun.name).mkdir(parents=True)
    (home / begun.name / "study.toml").write_text(begun.toml())
    assert find_study(argument, home, [], {}) == begun
    assert find_study(argument, home, ["train.epochs=8"], {}).train.epochs == 8
    # Begun anew, or another study, it is what it ships as.
    assert find_study(argument, home, [], {}, fresh=True) == shipped
    other = find_study(argument, home, ["name=other"], {})
    assert replace(other, name=shipped.name) == shipped


def test_what_an_earlier_version_did_not_state_is_no_change_where_it_is_the_default() -> None:
    asked = state("[data]\nsource = 'digits'").document()
    stored = {**asked, "train": {"epochs": asked["train"]["epochs"]}, "search": {"pruner": "asha"}}
    assert not differences(stored, {**asked, "search": {"pruner": "asha", "sampler": "tpe", "trials": 7}})
    other = state("[data]\nsource = 'digits'\n[train]\ndecay_biases = false").document()
    assert list(differences({**stored, "search": other["search"]}, other)) == ["train.decay_biases"]


def test_what_merely_follows_from_another_pruner_is_no_difference_of_its_own() -> None:
    def document(search: str) -> dict[str, Any]:
        return state(f"[data]\nsource = 'digits'\n[search]\n{search}").document()

    asha, none = document("pruner = 'asha'"), document("pruner = 'none'")
    assert list(differences(asha, none)) == list(differences(none, asha)) == ["search.pruner"]
    assert list(differences(asha, document("pruner = 'patient'"))) == ["search.pruner"]
    given = document("pruner = 'asha'\nmin_ticks = 5")
    assert list(differences(given, none)) == ["search.min_ticks", "search.pruner"]
    assert list(differences(asha, given)) == ["search.min_ticks"]
