"""The examples: every command that examples/README.md shows runs, with fewer trials and epochs than there."""

import filecmp
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Command

EXAMPLES = Path(__file__).parent.parent / "examples"

TEXT = (EXAMPLES / "README.md").read_text()

SECTIONS = {match[1]: match[2] for match in re.finditer(r"^## (\w+): .+?$(.*?)(?=^## |\Z)", TEXT, re.M | re.S)}
"""Folder -> what is written about it."""


def commands(text: str) -> list[list[str]]:
    """The commands of tunecli in a text, in order; an indented line each, which a backslash continues."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("    tunecli ")]


def shortened(command: list[str]) -> list[str]:
    """The same command with two trials or one epoch; the last of an option given twice counts."""
    if command[0] == "search":
        is_study = any(word.endswith((".toml", ".csv", ".parquet", ".npz")) for word in command)
        return [*command, "--trials", "2", *(["--set", "train.epochs=1"] if is_study else [])]
    return [*command, "--epochs", "1"] if command[0] == "finetune" else command


def test_each_example_has_its_section_with_commands_to_type() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert SECTIONS.keys() == folders
    assert all(commands(text) for text in SECTIONS.values())


@pytest.mark.parametrize("name", SECTIONS)
def test_an_example_runs_as_it_is_written(
    tunecli: Command, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "fashion" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("its pictures are not installed: apt-get install dataset-fashion-mnist")
    # As in an activated environment: `python` is the one that has what the examples import.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__", "studies"))
    for command in commands(SECTIONS[name]):
        done = tunecli(*shortened(command))
        assert done.code == 0, (command, done.err)
        assert done.out


def test_the_table_is_what_its_script_writes(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "table", tmp_path / "table")
    (tmp_path / "table" / "houses.csv").unlink()
    subprocess.run([sys.executable, "houses.py"], cwd=tmp_path / "table", check=True, capture_output=True)
    assert filecmp.cmp(tmp_path / "table" / "houses.csv", EXAMPLES / "table" / "houses.csv", shallow=False)
