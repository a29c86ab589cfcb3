"""`tunecli init`: data looked at, and a study file drafted for them."""

import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Command
from tunecli.study import read_study

QUICK = ("--trials", "2", "--set", "train.epochs=1")


def write_answers(path: Path, target: str = "answer") -> None:
    """90 rows: a number, a category, a constant and a yes or no."""
    rows = [f"{x},{'abc'[x % 3]},1,{'yes' if x % 3 else 'no'}" for x in range(1, 91)]
    path.write_text("\n".join([f"x,kind,same,{target}", *rows]) + "\n")


def test_what_was_found_is_shown_and_the_file_is_searched_as_it_stands(tunecli: Command, tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.csv")
    done = tunecli("init", "answers.csv", "--target", "answer")
    assert done.code == 0
    assert "answers: 90 samples (72 train, 9 validation, 9 test)" in done.out
    assert "classification: answer has 2 classes: yes (60), no (30)" in done.out
    assert re.search(r"^kind +category +3 values: a, b, c", done.out, re.MULTILINE)
    assert "column 'same' is left out: one value only" in done.out
    assert done.err == "wrote answers.toml\nnext:\n  tunecli search answers.toml\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "answers.toml"]
    study = read_study(tmp_path / "answers.toml")
    assert (study.name, study.data.source, study.data.target) == ("answers", "answers.csv", "answer")
    assert tunecli("search", "answers.toml", *QUICK).code == 0
    # It is the very question that the table itself asks.
    again = tunecli("search", "answers.csv", "--target", "answer", *QUICK)
    assert (again.code, "all 2 trials were done already" in again.err) == (0, True)


def test_what_is_commented_out_is_what_holds_by_default(tunecli: Command, tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.csv")
    tunecli("init", "answers.csv", "--target", "answer")
    drafted = read_study(tmp_path / "answers.toml")
    lines = (tmp_path / "answers.toml").read_text().splitlines()
    commented = [number for number, line in enumerate(lines) if re.match(r"# [a-z_0-9.]+ = ", line)]
    assert len(commented) >= 12
    for number in commented:
        own = [line.removeprefix("# ") if at == number else line for at, line in enumerate(lines)]
        (tmp_path / "own.toml").write_text("\n".join(own))
        stated = read_study(tmp_path / "own.toml")
        if "an example" in lines[number]:
            assert any(getattr(stated, own) != getattr(drafted, own) for own in ("space", "data", "train", "search"))
            continue
        assert stated.space == drafted.space
        for section in ("data", "train", "search"):
            before, now = getattr(drafted, section), getattr(stated, section)
            changed = {key: (old, getattr(now, key)) for key, old in before if old != getattr(now, key)}
            assert all(old is None for old, _ in changed.values()), changed
    assert max(map(len, lines)) <= 110


def test_a_file_that_is_there_is_left_as_it_is(tunecli: Command, tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.csv")
    (tmp_path / "answers.toml").write_text("mine")
    done = tunecli("init", "answers.csv", "--target", "answer")
    assert (done.code, done.out) == (3, "")
    message, hint = done.complaint
    assert "answers.toml is there already" in message
    assert "tunecli search answers.toml" in hint
    assert (tmp_path / "answers.toml").read_text() == "mine"


def test_odd_names_are_written_so_that_they_are_read_back(tunecli: Command, tmp_path: Path) -> None:
    (tmp_path / "sub dir").mkdir()
    write_answers(tmp_path / "sub dir" / "my answers.csv", target='"ja, ""nein"" # ü\\"')
    done = tunecli("init", str(tmp_path / "sub dir" / "my answers.csv"), "--target", 'ja, "nein" # ü\\')
    assert done.code == 0
    study = read_study(tmp_path / "my-answers.toml")
    assert (study.name, study.data.target) == ("my-answers", 'ja, "nein" # ü\\')
    assert study.data.source == "sub dir/my answers.csv"
    assert tunecli("search", "my-answers.toml", *QUICK).code == 0


def test_numbers_are_shown_with_their_range_in_their_own_unit(tunecli: Command, tmp_path: Path) -> None:
    rows = [f"{x * 7 % 50},{1000 + x}" for x in range(60)]
    (tmp_path / "price.csv").write_text("\n".join(["area,price", *rows]) + "\n")
    done = tunecli("init", "price.csv", "--target", "price")
    assert "regression: price from 1000 to 1059" in done.out
    assert '# metric = "r2" ' in (tmp_path / "price.toml").read_text()


def test_bundled_data_and_functions_of_ones_own_can_be_begun_with(tunecli: Command, tmp_path: Path) -> None:
    done = tunecli("init", "iris")
    assert "setosa (50), versicolor (50), virginica (50)" in done.out
    assert read_study(tmp_path / "iris.toml").data.source == "iris"
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef load():\n    return np.random.rand(60, 4), np.arange(60) % 3\n"
    )
    done = tunecli("init", "mine.py:load")
    assert "each of shape (4,)" in done.out
    assert tunecli("search", "mine.toml", *QUICK).code == 0


def test_without_a_target_the_columns_are_named(tunecli: Command, tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.csv")
    for command in ("init", "search"):
        done = tunecli(command, "answers.csv")
        assert done.code == 3
        message, hint = done.complaint
        assert message == "which column of answers.csv is to be predicted?"
        assert hint.startswith("say it with --target COLUMN")
        assert hint.endswith("its columns: x, kind, same, answer")
    names = [f"c{number}" for number in range(50)]
    (tmp_path / "wide.csv").write_text("\n".join([",".join(names), *[",".join("0" * 50)] * 3]) + "\n")
    assert tunecli("init", "wide.csv").complaint[1].endswith("c17, c18, ..., c49")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "missing argument"),
        (["none.csv"], 3, "no such file: none.csv"),
        (["nonsense"], 3, "unknown data source 'nonsense'"),
        (["iris", "--target", "x"], 2, "iris is none"),
        (["answers.csv"], 3, "which column"),
        (["answers.csv", "--target", "anwser"], 3, "no column 'anwser'"),
        (["answers.csv", "--target", "same"], 3, "one class only"),
        (["mine.py:load"], 3, "no such file: mine.py"),
    ],
)
def test_mistakes_are_answered_and_nothing_is_written(
    tunecli: Command, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    write_answers(tmp_path / "answers.csv")
    done = tunecli("init", *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in done.complaint[0]
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]


def test_what_is_said_of_the_data_is_written(tunecli: Command, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (5 + number % 2, 5), 10 * number).save(tmp_path / "photos" / name / f"{number}.png")
    assert "--set data.size=[64,64]" in tunecli("init", "photos").complaint[1]
    done = tunecli("init", "photos", "--set", "data.size=[8,8]", "--set", "data.split=[6,2,2]")
    assert done.code == 0, done.err
    drafted = tomllib.loads((tmp_path / "photos.toml").read_text())
    assert drafted["data"] == {"source": "photos", "size": [8, 8], "split": [6, 2, 2]}
    assert "each of shape (1, 8, 8)" in done.out
    refused = tunecli("init", "iris", "--set", "train.epochs=3")
    assert (refused.code, refused.complaint[0]) == (2, "--set train.epochs=3: init takes keys of [data] alone")
