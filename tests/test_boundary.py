"""What a study is made of is data: it is private, it stays in its folder, and it runs no code that it names."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import forbidden
from tests.conftest import Command, Question
from tunecli.errors import InputError, TunecliError
from tunecli.finetune import Request, finetune
from tunecli.home import find_folder, find_study
from tunecli.search import search
from tunecli.store import hold, read

# Files are the owner's alone


@pytest.fixture(params=[0o000, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> set[tuple[str, int]]:
    found = set()
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):  # SQLite's journal, gone meanwhile
            found.add(("folder" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode)))
    return found


@pytest.mark.usefixtures("umask")
def test_files_are_0600_and_folders_0700_whatever_the_umask(question: Question, tmp_path: Path) -> None:
    home = tmp_path / "deep" / "studies"
    only = {("folder", 0o700), ("file", 0o600)}
    for _ in search(question(trials=4), home / "tiny"):
        assert modes(home.parent) <= only  # while it runs, too: the database's journal, what is not finished
    list(search(question(trials=5), home / "tiny"))
    list(finetune(home / "tiny", Request(epochs=1)))
    assert (home / "tiny" / "finetuned" / "1" / "manifest.json").exists()
    list(search(question(trials=2), home / "tiny", fresh=True))
    assert len(list(home.iterdir())) == 2
    assert modes(home.parent) == only


# Names stay in the home

OUTSIDE = ("../x", "/tmp/x", "a/b", "..", ".", "", "a\\b", "~x", "a\n", "-x", "x\0y", "é", "x" * 101, "a b")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_the_home_is_refused(
    tunecli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # ".." is a folder of whatever lies beside the project
    (tmp_path / "own.toml").write_text(f'name = {json.dumps(name)}\n[data]\nsource = "iris"\n')
    with pytest.raises(TunecliError, match="a study's name has"):
        find_study("own.toml", tmp_path / "home", (), {})
    with pytest.raises(TunecliError, match="a study's name has"):
        find_study("digits", tmp_path / "home", [f"name={json.dumps(name)}"], {})
    for argument in (name, f"{name}/"):
        with pytest.raises(InputError, match=r"no study|holds neither folders of pictures"):
            find_study(argument, tmp_path / "home", (), {})
        with pytest.raises(InputError, match=r"is no study's name|no study .* yet"):
            find_folder(argument, tmp_path / "home")
    done = tunecli("search", "own.toml", "--home", "home")
    assert done.code == 3
    assert not (tmp_path / "home").exists()


def test_a_study_toml_edited_by_hand_names_no_other_folder(tunecli: Command, home: Path) -> None:
    question = home / "tiny" / "study.toml"
    question.write_text(question.read_text().replace('name = "tiny"', 'name = "../../elsewhere"'))
    assert tunecli("search", "tiny").code == 0  # it is what its folder is called
    assert tunecli("search", "studies/tiny/study.toml").code == 3
    done = tunecli("finetune", "tiny", "--best", "--epochs", "1")
    assert done.code == 3
    assert "a study's name has" in done.complaint[0]
    assert sorted(path.name for path in home.parent.iterdir()) == ["studies"]


def test_a_trial_whose_number_is_a_path_is_refused(tunecli: Command, home: Path) -> None:
    precious = home.parent / "precious"
    precious.mkdir()
    (home / "tiny" / "checkpoints" / "trial-..").mkdir()
    with sqlite3.connect(home / "tiny" / "study.db") as database:
        database.execute("UPDATE trials SET number = '../../../../precious' WHERE number = 3")
    for command in (["search", "tiny", "--trials", "12"], ["finetune", "tiny", "--best"], ["report", "tiny"]):
        done = tunecli(*command)
        assert done.code == 3
        assert "trial 3 is missing" in done.complaint[0]
    assert precious.exists()


@pytest.mark.parametrize(
    "inside", ["checkpoints", "checkpoints/trial-99", "study.toml", "study.db", "lock", "finetuned"]
)
def test_what_a_study_writes_to_is_never_a_link(tunecli: Command, home: Path, inside: str) -> None:
    other = home.parent / "other"
    path = home / "tiny" / inside
    if path.exists():
        path.rename(other)
    elif inside == "lock":
        other.write_text("precious")
    else:
        other.mkdir()
    path.symlink_to(other)
    before = {p: p.read_bytes() for p in (other, *other.rglob("*")) if p.is_file()}
    for command in (
        ["search", "tiny", "--trials", "12"],
        ["finetune", "tiny", "--best"],
        ["search", "tiny", "--fresh"],
    ):
        done = tunecli(*command)
        assert done.code == 3
        assert done.complaint == (
            f"studies/tiny/{inside} is a link, and what a study writes to must be its own",
            "put a copy in its place",
        )
    assert tunecli("report", "tiny").code == 0  # a reader may follow it
    assert {p: p.read_bytes() for p in (other, *other.rglob("*")) if p.is_file()} == before


def test_a_study_s_folder_may_lie_on_another_disk(tunecli: Command, home: Path) -> None:
    (home / "tiny").rename(home.parent / "disk")
    (home / "tiny").symlink_to(home.parent / "disk")
    assert tunecli("search", "tiny", "--trials", "11").code == 0
    assert len(read(home.parent / "disk" / "study.db").trials) == 11


def test_a_file_that_is_left_over_is_replaced_and_a_link_in_its_place_is_not_followed(
    question: Question, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "studies" / "tiny"
    with hold(folder):
        (folder / "study.toml.new").symlink_to(tmp_path / "precious")
        from tunecli.home import write_question

        write_question(folder, question())
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (folder / "study.toml").is_symlink()


# What data name is not run

EVIL = (
    "open('executed', 'w').close()\ndef make(**keys):\n    raise SystemExit\ndef load(**keys):\n    raise SystemExit\n"
)


@pytest.fixture
def evil(home: Path) -> Path:
    """A study whose database says that its data and its model are code; its study.toml does not."""
    (home.parent / "evil.py").write_text(EVIL)
    with sqlite3.connect(home / "tiny" / "study.db") as database:
        (text,) = database.execute("SELECT document FROM tunecli_studies").fetchone()
        document = json.loads(text)
        document["base"] = str(home.parent)
        document["model"] = {"source": "evil.py:make"}
        document["data"]["source"] = "evil.py:load"
        database.execute("UPDATE tunecli_studies SET document = ?", (json.dumps(document),))
    return home


def test_report_and_ls_run_nothing_that_a_database_names(tunecli: Command, evil: Path) -> None:
    for form in ("text", "json", "csv", "markdown"):
        assert tunecli("report", "tiny", "--format", form).code == 0
    assert tunecli("ls").code == 0
    assert not (evil.parent / "executed").exists()
    assert not [name for name in sys.modules if "evil" in name]


def test_search_finetune_and_predict_take_code_from_study_toml_alone(tunecli: Command, evil: Path) -> None:
    done = tunecli("search", "tiny", "--trials", "12")  # the question is another one than was recorded
    assert done.code == 3
    assert "evil.py:make" in done.complaint[0]
    assert tunecli("finetune", "tiny", "--best", "--epochs", "1").code == 0
    (evil.parent / "iris.csv").write_text("a,b,c,d\n1,2,3,4\n")
    tunecli("predict", "tiny", "iris.csv")
    assert not (evil.parent / "executed").exists()


def test_a_base_that_a_database_names_is_not_where_code_is_taken_from(
    tunecli: Command, question: Question, tmp_path: Path
) -> None:
    good = "from torch import nn\ndef make():\n    return nn.Linear(4, 3)\n"
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "model.py").write_text(good)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.py").write_text(EVIL + good)
    home = tmp_path / "studies"
    list(search(question(base=tmp_path / "good", model={"source": "model.py:make"}, trials=3), home / "tiny"))
    with sqlite3.connect(home / "tiny" / "study.db") as database:
        (text,) = database.execute("SELECT document FROM tunecli_studies").fetchone()
        text = text.replace(json.dumps(str(tmp_path / "good")), json.dumps(str(tmp_path / "bad")))
        database.execute("UPDATE tunecli_studies SET document = ?", (text,))
    assert tunecli("search", "tiny", "--trials", "4").code == 0
    assert tunecli("finetune", "tiny", "--best", "--epochs", "1").code == 0
    assert tunecli("report", "tiny").code == 0
    assert not (tmp_path / "executed").exists()


def test_a_name_of_a_file_writes_no_line_of_a_drafted_study_file(tunecli: Command, tmp_path: Path) -> None:
    name = 'x\n[finetune]\nlayers = ["own"]\n\x1b[2J\u202e.csv'
    (tmp_path / name).write_text("a,y\n" + "".join(f"{i % 7},{i % 2}\n" for i in range(60)))
    assert tunecli("init", name, "--target", "y").code == 0
    (path,) = tmp_path.glob("*.toml")
    assert "finetune" not in tomllib.loads(path.read_text())
    assert "\x1b" not in path.read_text()


def test_a_folder_whose_name_is_no_utf_8_is_an_error_and_no_traceback(tunecli: Command, tmp_path: Path) -> None:
    place = tmp_path / "caf\udce9"
    place.mkdir()
    (place / "t.csv").write_text("a,y\n" + "".join(f"{i % 7},{i % 2}\n" for i in range(60)))
    done = tunecli("search", str(place / "t.csv"), "--target", "y", "--trials", "1")
    assert done.code == 3
    assert "a study file is UTF-8" in done.complaint[0]


# make check refuses what would execute data

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("rule", "lines"),
    [
        ("S102", "exec(text)"),
        ("S307", "eval(text)"),
        ("S301", "import pickle\npickle.loads(data)"),
        ("S301", "import pandas\npandas.read_pickle(path)"),
        ("S302", "import marshal\nmarshal.loads(data)"),
        ("S506", "import yaml\nyaml.load(text)"),
        ("S602", "import subprocess\nsubprocess.run(text, shell=True)"),
        ("S605", "import os\nos.system(text)"),
        ("S608", "connection.execute(f'SELECT * FROM trials WHERE name = {name}')"),
        ("S608", "connection.execute('DELETE FROM trials WHERE number = ' + number)"),
    ],
)
def test_ruff_refuses_a_planted_danger(rule: str, lines: str) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "check", "--output-format", "concise", "--no-cache", "--stdin-filename", "tunecli/planted.py", "-"]
    done = subprocess.run(command, input=lines, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f" {rule} " in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "lightning.load(path, weights_only=False)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "read(path, allow_pickle=yes)",
        "import pickle",
        "import os, pickle",
        "import cloudpickle.compat",
        "from pickle import loads",
        "from pickle import UnpicklingError, loads",
        "from joblib import load",
        "connection.exec_driver_sql(f'PRAGMA user_version={version}')",
        "connection.execute('PRAGMA table_info(%s)' % name)",
        "connection.execute('PRAGMA ' + name + ';')",
        "connection.execute(text('PRAGMA {}'.format(name)))",
        "cursor.executescript('; '.join(statements))",
    ],
)
def test_what_ruff_has_no_rule_for_is_refused(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "planted.py").write_text(f"import torch\n{line}\n")
    assert forbidden.main([tmp_path / "planted.py"]) == 1
    assert f"{tmp_path / 'planted.py'}:2: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, 'cpu', weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "from pickle import UnpicklingError",
        "connection.execute(select(trials).where(trials.c.number == number))",
        "connection.exec_driver_sql('BEGIN IMMEDIATE' if write else 'BEGIN')",
        "Text(f'{name}')",
    ],
)
def test_what_executes_nothing_passes(line: str) -> None:
    assert list(forbidden.found(line)) == []


def test_nothing_of_ours_lets_data_execute() -> None:
    assert forbidden.main(sorted((ROOT / "tunecli").rglob("*.py"))) == 0
