"""Text that came from data reaches no terminal as anything but text, and no spreadsheet as a formula."""

import csv
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Command, Done
from tunecli.output import broken, csv_line, visible
from tunecli.report.console import VisibleConsole

ROOT = Path(__file__).parent.parent

TITLE = "\x1b]0;owned\x07"
HOSTILE = f"{TITLE}\x1b[2J\x9b31m\u202eevil\x08\r"
"""Sets the terminal's title, clears it, turns it red by a C1 code, turns the direction of writing, goes back."""

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OWN = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|\r")
"""What rich sends to a terminal: colours and cursor."""


def assert_harmless(done: Done) -> None:
    for text in (done.out, done.err):
        assert not OBEYED.search(text), repr(text)


@given(st.text())
def test_whatever_a_terminal_would_obey_is_shown_instead_and_all_else_stays(text: str) -> None:
    shown = visible(text)
    assert not OBEYED.search(shown)
    assert len(shown) == len(text)
    assert all(now in (before, "\ufffd") for now, before in zip(shown, text, strict=True))
    assert visible(shown) == shown
    shown.encode()


def test_what_people_write_is_left_alone() -> None:
    for text in ("größe", "年齢", "\ttab\nline", "נפש", "👩‍🔬", "a | b", "C:\\temp", "\x1b[0m"[1:]):
        assert visible(text) == text


def test_half_a_character_can_be_printed() -> None:
    assert visible("caf\udce9.csv") == "caf\ufffd.csv"


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=", "--"])
def test_a_formula_is_text_in_csv(text: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_line([text, "b"])))
    assert row[0].startswith("'")
    assert row == [visible(f"'{text}"), "b"]


def test_a_number_stays_a_number_in_csv() -> None:
    assert csv_line([-1.5, "-1.5", "+3", -2, "-inf", "5"]) == "-1.5,-1.5,+3,-2,-inf,5\n"


def test_a_terminal_gets_rich_s_own_codes_and_none_of_the_data_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    console = VisibleConsole()
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE, style="red"))
    for thing in (HOSTILE, Text(HOSTILE, style="bold"), table):
        console.print(thing)
    with Live(Text(HOSTILE), console=console, auto_refresh=False) as live:
        live.update(table, refresh=True)
        live.console.print(HOSTILE)
    text = out.getvalue()
    assert "\x1b[1m" in text
    assert "\x1b[31m" in text
    assert not OBEYED.search(OWN.sub("", text))
    assert "owned" in text


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table whose columns and labels hold escape sequences."""
    with (tmp_path / "evil.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f"a{HOSTILE}", f"constant{HOSTILE}", "size", "label"])
        for row in range(90):
            writer.writerow([row % 7, 1, row % 11, (f"=cmd{HOSTILE}", "good")[row % 2]])
    return "evil.csv"


SMALL = ("--trials", "3", "--set", "train.epochs=2", "--set", "search.window=2", "--set", "model.hidden=[4]")


@pytest.mark.parametrize("colour", [False, True])
def test_columns_and_labels_that_hold_escape_sequences_are_only_ever_shown(
    tunecli: Command, table: str, monkeypatch: pytest.MonkeyPatch, colour: bool
) -> None:
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    done = tunecli("search", table, "--target", "label", *SMALL)
    assert done.code == 0
    assert "constant" in done.err  # the notice names the column
    every = [done, tunecli("search", table, "--target", f"no{HOSTILE}"), tunecli("finetune", "--best", "--epochs", "1")]
    every += [tunecli("report", "--format", own) for own in ("text", "csv", "markdown", "json")]
    every += [tunecli("predict", table), tunecli("predict", f"{HOSTILE}.csv")]
    every += [tunecli("search", f"{HOSTILE}.toml"), tunecli("report", HOSTILE), tunecli("--debug", "report", HOSTILE)]
    every += [tunecli("search", f"--{HOSTILE}"), tunecli("search", table, "--set", f"model.{HOSTILE}=1")]
    for own in every:
        assert_harmless(Done(own.code, OWN.sub("", own.out), OWN.sub("", own.err)) if colour else own)
    assert [own.code for own in every] == [0, 3, 0, 0, 0, 0, 0, 0, 3, 3, 3, 3, 2, 2]
    assert not colour or "\x1b[" in every[0].out


MODEL = f"""
from torch import nn

class Own(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.head = kind, nn.Linear(4, 3)

    def forward(self, inputs):
        if "worse" in self.kind:
            raise type("=Error", (Exception,), {{}})({HOSTILE + "second"!r})
        return self.head(inputs)

def make(kind):
    return Own(kind)

def load():
    raise ValueError({HOSTILE!r})
"""


def test_choices_and_error_texts_of_the_user_s_code_are_only_ever_shown(tunecli: Command, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    kinds = json.dumps([f"=good|{HOSTILE}", f"-worse{HOSTILE}"])
    (tmp_path / "own.toml").write_text(
        '[data]\nsource = "iris"\n[model]\nsource = "model.py:make"\n[train]\nepochs = 1\n'
        f'[space]\nmodel.kind = {kinds}\n[search]\nsampler = "random"\ntrials = 8\nwindow = 4\n'
    )
    every = [tunecli("search", "own.toml")]
    every += [tunecli("report", "own", "--format", own) for own in ("text", "csv", "markdown", "json")]
    every += [
        tunecli("finetune", "own", "--best"),
        tunecli("search", "own.toml", "--set", "data.source=model.py:load", "--set", "name=x"),
    ]
    for own in every:
        assert_harmless(own)
        assert "evil" in own.out + own.err or own is every[5]
    assert [own.code for own in every] == [0, 0, 0, 0, 0, 0, 3]
    table = list(csv.DictReader(io.StringIO(every[2].out)))
    assert {row["model.kind"][:6] for row in table} == {"'=good", "'-wors"}
    assert any(row["state"] == "failed" for row in table)
    rows = [line for line in every[3].out.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}  # a bar in a value ends no cell


def test_a_study_s_name_written_into_its_database_by_hand_is_only_ever_shown(tunecli: Command, home: Path) -> None:
    with sqlite3.connect(home / "tiny" / "study.db") as database:
        database.execute("UPDATE studies SET study_name = ?", (HOSTILE,))
        database.execute("UPDATE tunecli_studies SET metric = ?", (HOSTILE,))
        database.execute("UPDATE tunecli_trials SET reason = ?", (HOSTILE,))
    for form in ("text", "csv", "markdown", "json"):
        done = tunecli("report", "tiny", "--format", form)
        assert done.code == 0
        assert_harmless(done)
    for done in (tunecli("ls"), tunecli("search", "tiny"), tunecli("finetune", "tiny", "--trial", "99")):
        assert_harmless(done)


def test_a_terminal_that_knows_only_ascii_gets_question_marks(home: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "tunecli", "report", "tiny", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"???" in done.stdout  # the learning curves


@given(st.text(alphabet="ab /-\n", max_size=200), st.integers(20, 60))
def test_a_message_is_broken_between_words_and_what_is_set_in_stays_whole(text: str, width: int) -> None:
    lines = broken(text, width).splitlines()
    assert all(len(line) <= width or line.startswith(" ") or " " not in line for line in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    command = "  tunecli search " + "--set key=value " * 9 + "x"
    assert broken(f"to go on:\n{command}", width) == f"to go on:\n{command}"


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_an_error_in_a_terminal_has_whole_words_and_in_a_pipe_whole_lines(tmp_path: Path, columns: int) -> None:
    name = "a-rather-long-name-of-a-study-that-nobody-has/" * 2 + "and of more words than fit into a line.toml"
    command = [sys.executable, "-m", "tunecli", "search", name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    piped = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert piped.returncode == 3
    assert len(piped.stderr.splitlines()) == 2
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    done = subprocess.run(command, stderr=theirs, env=environment, cwd=tmp_path, check=False)
    os.close(theirs)
    shown = os.read(ours, 65536).decode().replace("\r\n", "\n")
    os.close(ours)
    assert done.returncode == 3
    assert " ".join(shown.split()) == " ".join(piped.stderr.split())
    assert all(len(line) <= columns or " " not in line.strip() for line in shown.splitlines())
