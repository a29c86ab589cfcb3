"""Every mistake a user can make: one message, a hint, the exit code of the design, and everything left as it was."""

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunecli.errors import did_you_mean
from tunecli.store import hold, read

Command = Callable[..., Any]

STUDY = """
[data]
source = "own.py:load"

[model]
source = "own.py:make"

[train]
epochs = 2

[space]
batch_size = [16]
model.width = [3, 4]

[search]
trials = 3
"""

OWN = """
import torch

def load():
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()

def make(width):
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 3))
"""


def write_study(folder: Path, *, study: str = STUDY, own: str = OWN) -> None:
    (folder / "own.toml").write_text(study)
    (folder / "own.py").write_text(own)


def tree(folder: Path) -> dict[str, bytes]:
    """Every folder and file below a folder, each with its content, but for what Python leaves. A lock has none."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and path.name != "lock" else b""
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


@pytest.fixture
def refused(tunecli: Command, tmp_path: Path) -> Callable[..., str]:
    """Type a command that is a mistake; returns its message and its hint, after it was seen to change nothing."""

    def run(code: int, *arguments: str) -> str:
        before = tree(tmp_path)
        done = tunecli(*arguments)
        assert done.code == code, done.err
        assert done.out == ""
        message, hint = done.complaint
        assert done.err.count("error: ") == 1
        assert tree(tmp_path) == before
        return f"{message}\n{hint}"

    return run


# Study files


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.widht=3", "unknown key 'widht' in [model], which own.py:make does not take\ndid you mean 'width'?"),
        (
            "space.model.dpeth=[1,2]",
            "unknown key 'dpeth' in [model], which own.py:make does not take\nknown: source, width",
        ),
        ("data.taget='y'", "unknown key 'taget' in [data], which own.py:load does not take\ndid you mean 'target'?"),
    ],
)
def test_keys_that_a_function_does_not_take_whether_a_study_was_begun_or_not(
    refused: Callable[..., str], tunecli: Command, tmp_path: Path, setting: str, said: str, begun: bool
) -> None:
    write_study(tmp_path)
    if begun:
        assert tunecli("search", "own.toml").code == 0
    assert refused(2, "search", "own.toml", "--set", setting) == f"--set {setting}: {said}"


@pytest.mark.parametrize("how", ["def make(**keys)", "@functools.cache\ndef make(*keys)", "make = lambda width:"])
def test_keys_that_a_function_may_take_are_left_to_it(tunecli: Command, tmp_path: Path, how: str) -> None:
    body = "torch.nn.Linear(4, 3)"
    own = f"{how} {body}\n" if how.endswith(":") else f"{how}:\n    return {body}\n"
    write_study(tmp_path, own=OWN[: OWN.index("def make")].replace("import torch", "import functools, torch") + own)
    done = tunecli("search", "own.toml")
    assert ("unknown key" not in done.err, done.code) == (True, 3 if "cache" in how else 0)


def test_unknown_keys_all_at_once_each_with_the_nearest_known_one(refused: Callable[..., str], tmp_path: Path) -> None:
    text = STUDY.replace("epochs", "epoch").replace("trials", "trails").replace("batch_size", "batchsize")
    write_study(tmp_path, study=f"sede = 3\n{text}")
    said = refused(3, "search", "own.toml")
    assert "own.toml has 4 faults:" in said
    for unknown, near in (("sede", "seed"), ("epoch", "epochs"), ("trails", "trials"), ("batchsize", "batch_size")):
        assert f"did you mean {near!r}?" in next(line for line in said.splitlines() if repr(unknown) in line)


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("space.batch_size=0", 'for example batch_size = { low = 8, high = 256 }, [16, 32, "full"] or 32'),
        ("space.momentum=2", "for example momentum = { low = 0.1, high = 0.9 }, [0.5, 0.9] or 0.9"),
        ("space.l1=-1", "for example l1 = { low = 1e-4, high = 1e-1, log = true }, [1e-3, 1e-2] or 1e-3"),
        ("space.model.width={}", "for example model.width = { low = 1, high = 16 }, [4, 8] or 4"),
    ],
)
def test_the_example_is_of_the_hparam_that_is_wrong(
    refused: Callable[..., str], tmp_path: Path, setting: str, hint: str
) -> None:
    write_study(tmp_path)
    assert refused(2, "search", "own.toml", "--set", setting).endswith(f"\n{hint}")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epochs=ten", "train.epochs: expected a whole number, got 'ten'"),
        ("train.epochs=2.5", "train.epochs: expected a whole number, got 2.5"),
        ("train=3", "train: expected a table, got 3"),
        ("space.learning_rate=fast", "learning_rate: expected a number, got 'fast'"),
        ("space.learning_rate={ low = 0.1, high = 0.01 }", "a range must have low below high, got 0.1 to 0.01"),
        ("space.learning_rate={ low = 0.1, high = 0.1 }", "a range must have low below high, got 0.1 to 0.1"),
        ("space.learning_rate={ low = 0, high = 1, log = true }", "a log range must stay above zero, got 0 to 1"),
        ("space.batch_size=[]", "a list of choices must not be empty"),
        ("space.batch_size=0", "a batch size is a whole number above zero"),
        ("space.optimizer=adm", "unknown optimizer 'adm'"),
        ("data.source=owm.py:load", "no such file"),
        ("name=../other", "no path, got '../other'"),
        ("name=a/b", "no path, got 'a/b'"),
    ],
)
def test_wrong_types_empty_ranges_and_names_with_a_path(
    refused: Callable[..., str], tmp_path: Path, setting: str, said: str
) -> None:
    write_study(tmp_path)
    assert said in refused(2, "search", "own.toml", "--set", setting)


# Tables


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"a,y\n", "has a header and no rows"),
        (b"a,y\n1,x\n2,x\n3,x\n" * 1, "too few|one class only"),
        ("\n".join(["a,y", *(f"{i},same" for i in range(50))]).encode(), "one class only, 'same'"),
        ("\n".join(["a,y", *(f"{i},{'pq'[i % 2]}" for i in range(2))]).encode(), "2 samples are too few for a split"),
        ("\n".join(["a,b,y", *(f"{i},{i % 2}" for i in range(50))]).encode(), "line 2"),
        ("\n".join(["a,y", *(f"{i},{i % 2},9" for i in range(50))]).encode(), "more fields than the header|line 2"),
        ("\n".join(["a,y", *(f"{i},caf\xe9" for i in range(50))]).encode("latin-1"), "is not UTF-8, first in line 2"),
        ("\n".join(["a,x", *(f"{i},{i % 2}" for i in range(50))]).encode(), "has no column 'y'"),
        ("\n".join(["a,y", *(f"{i},{i % 2 if i else ''}" for i in range(50))]).encode(), "missing in 1 of 50 rows"),
        (b"\x00\x01\x02\x03" * 50, "own.csv"),
    ],
    ids=[
        "empty",
        "no rows",
        "3 rows",
        "one class",
        "too few",
        "short",
        "long",
        "latin-1",
        "no column",
        "nan",
        "binary",
    ],
)
def test_what_can_be_wrong_with_a_table(refused: Callable[..., str], tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    assert re.search(said, refused(3, "search", "own.csv", "--target", "y"))


# A user's own model and data


def test_a_model_whose_output_does_not_fit_the_classes(refused: Callable[..., str], tmp_path: Path) -> None:
    write_study(tmp_path, own=OWN.replace("width, 3)", "width, 2)"))
    said = refused(3, "search", "own.toml")
    assert "the model gives 2 outputs a sample, the data have 3 classes" in said
    assert "last layer" in said


def test_one_output_for_two_classes_is_told_of_its_loss(refused: Callable[..., str], tmp_path: Path) -> None:
    two_classes = OWN.replace(" + (inputs[:, 1] > 0).long()", "")
    write_study(tmp_path, own=two_classes.replace("width, 3)", "width, 1)"))
    assert 'train.loss = "binary_cross_entropy"' in refused(3, "search", "own.toml")


@pytest.mark.parametrize("kind", ["half", "double"])
def test_a_model_of_another_type_than_the_data(refused: Callable[..., str], tmp_path: Path, kind: str) -> None:
    write_study(tmp_path, own=OWN.replace("width, 3))", f"width, 3)).{kind}()"))
    assert refused(3, "search", "own.toml").endswith("the data are float32: make the model so, by model.float()")


def test_tensors_of_float64_meet_a_model_of_float32(refused: Callable[..., str], tmp_path: Path) -> None:
    write_study(tmp_path, own=OWN.replace("return inputs,", "return inputs.double(),"))
    assert "inputs.float()" in refused(3, "search", "own.toml")


def test_a_function_that_raises_is_named_with_file_line_and_what_it_was_called_with(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    write_study(
        tmp_path, own=OWN.replace("    return torch.nn", "    raise ValueError('not today')\n    return torch.nn")
    )
    said = refused(3, "search", "own.toml")
    assert "own.py:make raised ValueError: not today (own.py, line 9)" in said
    assert "width=3" in said


def test_where_every_trial_raises_the_search_says_what_and_exits_3(tunecli: Command, tmp_path: Path) -> None:
    body = "class Net(torch.nn.Linear):\n    calls = 0\n    def forward(self, x):\n        Net.calls += 1\n"
    body += "        if Net.calls > 40:\n            raise RuntimeError('tired')\n        return super().forward(x)\n"
    make = "def make(width):\n    return torch.nn.Sequential(torch.nn.LSTM(4, width), Last(), Net(width, 3))\n"
    last = "class Last(torch.nn.Module):\n    def forward(self, x):\n        return x[0]\n"
    write_study(tmp_path, own=OWN[: OWN.index("def make")] + body + last + make)
    done = tunecli("search", "own.toml", "--set", "train.epochs=50", "--pruner", "none")
    assert done.code == 3
    message, hint = done.complaint
    assert "all 3 trials failed" in message
    assert "the model raised RuntimeError: tired (own.py, line 13)" in message
    assert "batch_size 16" in hint
    assert "tunecli report own" in hint
    assert "model.width" in tunecli("report", "own").out


# Studies


def test_no_trial_yet(refused: Callable[..., str], tunecli: Command, tmp_path: Path) -> None:
    for command in (("report",), ("finetune", "--best"), ("report", "digits")):
        assert "tunecli search" in refused(3, *command)
    assert tunecli("search", "iris", "--timeout", "0s").code == 0
    assert "no complete trial" in refused(4, "finetune", "--best")


@pytest.mark.parametrize("content", [b"hello, world\n" * 99, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_file_that_is_no_database(refused: Callable[..., str], home: Path, content: bytes) -> None:
    (home / "tiny" / "study.db").write_bytes(content)
    for command in (("report", "tiny"), ("search", "tiny"), ("finetune", "tiny", "--best")):
        assert "study.db" in refused(3, *command)


def test_a_database_of_something_else(refused: Callable[..., str], home: Path) -> None:
    (home / "tiny" / "study.db").unlink()
    with sqlite3.connect(home / "tiny" / "study.db") as connection:
        connection.execute("create table birds (name text)")
    for command in (("report", "tiny"), ("search", "tiny"), ("finetune", "tiny", "--best")):
        assert "no study of tunecli" in refused(3, *command)


def test_a_second_search_on_one_study(refused: Callable[..., str], home: Path) -> None:
    with hold(home / "tiny"):
        assert "held by another tunecli" in refused(5, "search", "tiny", "--trials", "99")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--target", "pric"), "houses.csv has no column 'pric'"),
        (("--set", "data.weight=rom"), "houses.csv has no weight column 'rom'"),
        (("--set", "data.features=[rom]"), "houses has no column 'rom'"),
    ],
)
def test_a_mistyped_column_of_a_study_that_was_begun_is_no_other_question(
    refused: Callable[..., str], tunecli: Command, tmp_path: Path, option: tuple[str, str], said: str
) -> None:
    rows = "".join(f"{number},{number * 0.5 + 0.25},{number * 2.0}\n" for number in range(60))
    (tmp_path / "houses.csv").write_text(f"room,area,price\n{rows}")
    quick = ("--trials", "1", "--set", "train.epochs=1")
    assert tunecli("search", "houses.csv", "--target", "price", *quick).code == 0
    told = refused(3, "search", "houses.csv", *option)
    assert said in told
    assert "did you mean" in told
    assert "another question" not in told
    assert "another question" in refused(3, "search", "houses.csv", "--target", "area")


def test_a_study_file_that_contradicts_its_database(refused: Callable[..., str], home: Path) -> None:
    said = refused(3, "search", "tiny", "--seed", "7", "--set", "train.epochs=9", "--set", "space.l1=0")
    for line in ("seed: 0 -> 7", "train.epochs: 4 -> 9"):
        assert line in said
    assert "space.l1" not in said, "that alone could change"
    assert "--fresh" in said
    assert len(read(home / "tiny" / "study.db").trials) == 10


@pytest.mark.parametrize(
    ("options", "back"),
    [
        (("--set", "train.epochs=9"), "--set train.epochs=4 goes on with it; or give"),
        (("--seed", "7", "--set", "train.epochs=9"), "--seed 0 --set train.epochs=4 goes on with it; or"),
        (("--set", "model.hidden=[9]"), None),
        (("--set", "train.loss=mse", "--seed", "7"), None),
    ],
)
@pytest.mark.usefixtures("home")
def test_a_contradiction_names_the_way_back_where_it_is_short(
    refused: Callable[..., str], tunecli: Command, options: tuple[str, ...], back: str | None
) -> None:
    said = refused(3, "search", "tiny", "--trials", "10", *options)
    if back is None:
        assert "goes on with it" not in said
        return
    assert back in said
    again = back.partition(" goes on")[0].split()
    assert tunecli("search", "tiny", "--trials", "10", *options, *again).code == 0


@pytest.mark.parametrize(
    ("body", "said", "of_layers"),
    [
        ("raise ValueError('not today')", "the model's forward raised ValueError: not today (own.py, line 15)", False),
        ("exit(3)", "the model's forward raised SystemExit: 3 (own.py, line 15)", False),
        ("return self.layer(x[:, :2])", "the model cannot read samples of shape (4,)", True),
    ],
)
def test_a_forward_that_raises_says_what_and_where(
    tunecli: Command, tmp_path: Path, body: str, said: str, of_layers: bool
) -> None:
    own = OWN.replace(
        "def make(width):",
        """
class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        BODY

def make(width):
    return Own()
""".replace("BODY", body),
    )
    write_study(tmp_path, own=own)
    done = tunecli("search", "own.toml")
    assert done.code == 3
    assert said in done.err
    assert ("first layer" in done.err) == of_layers


LAYERS = """
class Own(torch.nn.Module):
    def __init__(self, first, last):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(first, 6), torch.nn.ReLU())
        self.head = torch.nn.Linear(last, 3)

    def forward(self, x):
        x = self.body(x)
        return self.head(x)

"""


@pytest.mark.parametrize(
    ("make", "layer", "hint"),
    [
        (
            "Own(4, 7)",
            "in layer head, Linear(in_features=7, out_features=3, bias=True) (own.py, line 17)",
            "check what layer head takes against what comes before it",
        ),
        (
            "Own(5, 6)",
            "in layer body.0, Linear(in_features=5, out_features=6, bias=True) (own.py, line 16)",
            "check the model's first layer against the data's features",
        ),
        (
            "torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(7, 3))",
            "in layer 1, Linear(in_features=7, out_features=3, bias=True)",
            "check what layer 1 takes against what comes before it",
        ),
    ],
)
def test_layers_that_do_not_fit_are_named(
    refused: Callable[..., str], tmp_path: Path, make: str, layer: str, hint: str
) -> None:
    write_study(tmp_path, own=OWN[: OWN.index("def make")] + f"{LAYERS}def make(width):\n    return {make}\n")
    message, said = refused(3, "search", "own.toml").split("\n")
    assert message.startswith("the model cannot read samples of shape (4,): RuntimeError: mat1 and mat2 shapes")
    assert message.endswith(f") {layer}")
    assert said == hint


@pytest.mark.parametrize("look_up", ["x", "x.long()"])
def test_numbers_that_a_table_cannot_be_looked_up_by(refused: Callable[..., str], tmp_path: Path, look_up: str) -> None:
    own = f"""
class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(2, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.table({look_up}).mean(1))

def make(width):
    return Own()
"""
    write_study(tmp_path, own=OWN[: OWN.index("def make")] + own)
    message, said = refused(3, "search", "own.toml").split("\n")
    assert " in layer table, Embedding(2, 4)" in message
    assert said == "a table is looked up by integers: a .npz file, or a function of your own, can give the model such"


def test_a_line_of_a_trial_that_raises_in_torch_is_the_users_own(tunecli: Command, tmp_path: Path) -> None:
    """A model is tried with a few samples, and may meet others that it cannot read."""
    body = "        x = self.body(x)\n        return self.head(x if len(x) < 12 else x[:, :2])"
    own = LAYERS.replace("        x = self.body(x)\n        return self.head(x)", body)
    write_study(tmp_path, own=OWN[: OWN.index("def make")] + f"{own}def make(width):\n    return Own(4, 6)\n")
    done = tunecli("search", "own.toml", "--set", "search.window=1")
    assert done.code == 3
    assert "(own.py, line 17)" in done.complaint[0]


# The command line


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("serch",), 2, "search"),
        (("search", "--trails", "3"), 2, "--trials"),
        (("search", "--trials", "0"), 2, "--trials"),
        (("search", "--trials", "many"), 2, "--trials"),
        (("search", "--set", "epochs"), 2, "KEY=VALUE"),
        (("search", "--timeout", "soon"), 2, "10m"),
        (("search", "iris", "--set", "search.trial_timeout=true"), 2, "search.trial_timeout takes a time, got True\n"),
        (("search", "a", "b"), 2, "b"),
        (("search", "missing.toml"), 3, "missing.toml"),
        (("search", "missing.csv", "--target", "y"), 3, "missing.csv"),
        (("search", "missing"), 3, "missing"),
        (("search", "../up"), 3, "../up"),
        (("search", "digits", "--device", "tpu"), 2, "tpu"),
        (("report", "--top", "0"), 2, "--top"),
        (("report", "--format", "xml"), 2, "xml"),
        (("report", "missing"), 3, "missing"),
        (("finetune",), 2, "--best"),
        (("finetune", "--best", "--trial", "3"), 2, "--best"),
        (("finetune", "--best"), 3, "tunecli search"),
    ],
)
def test_what_can_be_typed_wrong(refused: Callable[..., str], arguments: tuple[str, ...], code: int, said: str) -> None:
    assert said in refused(code, *arguments)


def test_a_study_of_a_table_is_found_by_the_tables_own_name(tunecli: Command, tmp_path: Path) -> None:
    rows = "".join(f"{x / 4},{x % 2}\n" for x in range(60))
    (tmp_path / "häuser 1.csv").write_text("x,y\n" + rows)
    quick = ("--trials", "2", "--set", "train.epochs=1")
    assert tunecli("search", "häuser 1.csv", "--target", "y", *quick).code == 0
    for name in ("häuser 1", "h-user-1", "häuser 1.csv"):
        assert tunecli("report", name, "--format", "json").document["study"] == "h-user-1"


def test_a_metric_of_ones_own_whose_direction_nobody_said_is_told(tunecli: Command, tmp_path: Path) -> None:
    metric = "def quality(outputs, targets):\n    return (outputs.argmax(1) == targets).float().mean()\n"
    write_study(tmp_path, own=OWN + metric)
    own = ("search", "own.toml", "--set", "train.metric=own.py:quality", "--trials", "2", "--fresh")
    assert "nothing says which way the metric is better" in tunecli(*own).err
    said = tunecli(*own, "--set", "train.direction=maximize").err
    assert "quality on validation is maximized" in said
    assert "which way" not in said


def test_a_search_without_hope_ends_well_but_for_its_code(tunecli: Command, tmp_path: Path) -> None:
    """There is a best trial, and what is left of the search has no time left any more."""
    own = OWN + "\nclass Own(torch.nn.Linear):\n    def forward(self, x):\n"
    own += "        if self.training and len(x) == 16:\n            raise ValueError('sixteen')\n"
    own += "        return super().forward(x)\n\ndef make(width):\n    return Own(4, 3)\n"
    study = STUDY.replace("[16]", "[8, 12, 16, 24]").replace("trials = 3", "trials = 40\nmax_failures = 2\nwindow = 2")
    write_study(tmp_path, study=study + 'pruner = "none"\n', own=own)
    done = tunecli("search", "own.toml", "--home", "h")
    assert done.code == 4
    assert "Best: trial" in done.out
    assert "2 in flight, no pruner," in done.err
    assert " left" not in done.err[: done.err.index("error: ")].splitlines()[-1]
    message, hint = done.complaint
    assert re.fullmatch(
        r"2 trials in a row failed, the search\.max_failures; (\d+) of \d+: "
        r"the model raised ValueError: sixteen \(own\.py, line \d+\)",
        message,
    )
    assert hint == (
        "tunecli report own --home h tells more; mend it and go on, or with --set search.max_failures=4:\n"
        "  tunecli search own.toml --home h"
    )


def test_a_file_without_its_function_is_told_how_to_name_one(refused: Callable[..., str], tmp_path: Path) -> None:
    write_study(tmp_path, study=STUDY.replace("own.py:make", "own.py"))
    assert "own.py:FUNCTION" in refused(3, "search", "own.toml")


@pytest.mark.parametrize(
    ("function", "taken"),
    [
        ("def load():", "nothing"),
        ("def load(trial, folder):", "trial, folder"),
        ("def load(*, seed=0):", "nothing"),
        ("def load(folder='data'):", "folder"),
        ("def load(rows=9, columns=4):", "rows, columns"),
    ],
)
def test_a_function_that_is_no_objective_is_said_before_any_trial(
    refused: Callable[..., str], tmp_path: Path, function: str, taken: str
) -> None:
    (tmp_path / "own.py").write_text(f"{function}\n    return 1.0\n")
    said = refused(3, "search", "own.py:load")
    assert f"an objective takes a trial, this function takes {taken}\n" in said
    assert "tunecli init own.py:load" in said


@pytest.mark.parametrize(
    "returned", ["np.array([x, x])", "(torch.tensor(x), torch.tensor(x))", "{'loss': np.array(x)}"]
)
def test_an_objective_that_returns_no_number_fails_trial_by_trial(
    tunecli: Command, tmp_path: Path, returned: str
) -> None:
    """It has asked for an hparam, and so is an objective, whatever it returns now and then."""
    (tmp_path / "own.py").write_text(
        "import numpy as np, torch\n"
        "def objective(trial):\n"
        "    x = trial.suggest_float('x', 0, 1)\n"
        f"    return x if trial.number else {returned}\n"
    )
    done = tunecli("search", "own.py:objective", "--trials", "3", "--window", "1")
    assert done.code == 0
    assert "2 complete, 1 failed" in tunecli("report").out


def test_an_earlier_study_has_its_name_back_where_the_new_one_was_a_mistake(tunecli: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def objective(trial): return trial.suggest_float('x', 0, 1)\n"
        "def load(size): return np.zeros((9, 2)), np.zeros(9)\n"
    )
    assert tunecli("search", "own.py:objective", "--trials", "2").code == 0
    assert tunecli("search", "own.py:load", "--fresh").code == 3
    assert "2 of 2" in tunecli("ls").out


@pytest.mark.parametrize(
    ("returned", "said", "way"),
    [
        ("np.zeros((9, 2)), np.zeros(9)", "returns data", "tunecli init own.py:load drafts one"),
        ("{'train': (np.zeros((9, 2)), np.zeros(9))}", "returns data", "tunecli init own.py:load drafts one"),
        ("torch.utils.data.TensorDataset(torch.zeros(9, 2))", "returns data", "tunecli init own.py:load drafts one"),
        ("torch.nn.Sequential(torch.nn.Linear(2, 2))", "returns a model", '[model] source = "own.py:load"'),
    ],
)
def test_a_function_of_data_or_of_a_model_is_told_after_one_call(
    refused: Callable[..., str], tunecli: Command, tmp_path: Path, returned: str, said: str, way: str
) -> None:
    (tmp_path / "own.py").write_text(f"import numpy as np, torch\ndef load(size): return {returned}\n")
    told = refused(3, "search", "own.py:load")
    assert f"own.py:load {said}, an objective returns a number\n" in told
    assert way in told
    assert not (tmp_path / "studies").exists()


def test_a_function_that_returns_data_after_it_returned_numbers_is_an_objective(
    tunecli: Command, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text("def load(trial): return trial.number or [range(3)]\n")
    done = tunecli("search", "own.py:load", "--trials", "3", "--window", "1")
    assert (done.code, "returns data" in done.err) == (3, True)
    (tmp_path / "own.py").write_text("def load(trial): return [range(3)] if trial.number else 1\n")
    done = tunecli("search", "own.py:load", "--trials", "3", "--window", "1")
    assert done.code == 0
    assert "note: trial 1 failed: the objective returned [range(0, 3)], which is no number" in done.err


def test_a_class_is_no_objective(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Net:\n    def __init__(self, width): pass\n")
    told = refused(3, "search", "own.py:Net")
    assert "own.py:Net: an objective is a function, Net is a class\n" in told
    assert '[model] source = "own.py:Net"' in told


def test_an_objective_that_fails_before_it_asks_for_anything_is_not_tried_fifty_times(
    tunecli: Command, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text("def make(width): return [0] * width\n")
    done = tunecli("search", "own.py:make", "--window", "1")
    message, hint = done.complaint
    assert done.code == 3
    assert message.startswith("all 5 trials failed, whatever was sampled: TypeError: ")
    assert hint.startswith("an objective asks the trial that it is given")
    (tmp_path / "train.py").write_text('print(\'{"epoch": 1, "accuracy": 0.5, "done": true}\')\n')
    done = tunecli("search", "--command", "python train.py {learning_rate}", "--window", "1")
    assert done.code == 3
    said = "it printed no line of JSON with a number under 'value' or 'loss', but under 'epoch', 'accuracy'"
    message, hint = done.complaint
    assert message == f"all 5 trials failed, whatever was sampled: {said}"
    assert "--set train.metric=NAME names what it prints" in hint
    # What was sampled may be why: then it is the search.max_failures that count.
    (tmp_path / "other.py").write_text("def f(trial): raise ValueError(trial.suggest_int('x', 1, 99) > 0)\n")
    done = tunecli("search", "other.py:f", "--trials", "20", "--set", "search.max_failures=7")
    assert (done.code, "7 trials in a row failed" in done.err) == (4, True)


@pytest.mark.parametrize("written", ["own:make", "own.make"])
def test_a_model_written_as_python_imports_it(refused: Callable[..., str], tmp_path: Path, written: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    told = refused(2, "search", "iris", "--set", f"model.source={written}")
    assert f"unknown model '{written}'" in told
    assert told.endswith("did you mean own.py:make?")


def test_the_functions_of_a_script_are_named_where_the_script_alone_was(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(f"raise SystemExit  # never run\n{OWN}\ndef _more(): pass\n")
    for command in ("search", "init"):
        told = refused(3, command, "own.py")
        assert "own.py is a script: which function of it?\n" in told
        assert told.endswith(f"tunecli {command} own.py:load" + (" or :make" if command == "search" else ""))


def test_a_file_that_is_none_to_search(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    told = refused(3, "search", "sheet.xlsx")
    assert "sheet.xlsx is no file to search" in told
    assert "a table is .csv, .tsv, .parquet, .npz: save it so" in told


def test_a_study_all_of_whose_trials_failed_makes_way_for_another_question(tunecli: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def objective(trial): raise ValueError('no')\n")
    assert tunecli("search", "own.py:objective", "--trials", "1").code == 3
    (tmp_path / "own.toml").write_text('[data]\nsource = "iris"\n[train]\nepochs = 1\n[search]\ntrials = 1\n')
    done = tunecli("search", "own.toml")
    assert done.code == 0
    (aside,) = (own.name for own in (tmp_path / "studies").glob("own-*"))
    assert f"note: the earlier study is now studies/{aside}: none of its trials came to a value\n" in done.err
    assert [own["study"] for own in tunecli("ls", "--format", "json").document["studies"]] == ["own"]
    assert [own["study"] for own in tunecli("ls", "--all", "--format", "json").document["studies"]] == ["own", aside]
    assert tunecli("ls").err == "1 set aside for another: tunecli ls --all lists all\n"
    assert tunecli("report", aside).code == 0


@pytest.mark.parametrize(
    "function",
    ["def load(trial, folder='.'):", "def load(trial=None):", "def load(*all):", "@staticmethod\ndef load():"],
)
def test_a_function_that_may_be_an_objective_is_tried(tunecli: Command, tmp_path: Path, function: str) -> None:
    (tmp_path / "own.py").write_text(f"{function}\n    raise ValueError('no')\n")
    done = tunecli("search", "own.py:load", "--trials", "1")
    assert done.code == 3
    message, hint = done.complaint
    assert message.startswith("all 1 trials failed: ")
    assert hint == "tunecli report own tells more"  # it had no hparams


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("acc", "did you mean 'accuracy'?"),  # it begins one
        ("ACCURACY", "did you mean 'accuracy'?"),
        ("acuracy", "did you mean 'accuracy'?"),
        ("pre", "known: accuracy, auroc, precision, precision_micro"),  # two begin like this
        ("bayes", "known: accuracy, auroc, precision, precision_micro"),
        ("aurok", "did you mean 'auroc'?"),
    ],
)
def test_only_what_is_near_is_suggested(word: str, hint: str) -> None:
    assert did_you_mean(word, ["precision", "auroc", "accuracy", "precision_micro"]) == hint


@pytest.mark.parametrize("command", [("search", "iris"), ("report",), ("finetune", "--best"), ("ls",)])
def test_a_home_that_is_a_file(tunecli: Command, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    done = tunecli(*command, "--home", str(tmp_path / "file"))
    assert done.code == 3
    assert done.complaint[0] == f"{tmp_path / 'file'} is no folder"
