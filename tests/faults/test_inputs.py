"""Study files, tables and databases, mutated: a good answer or a clear error, never a traceback, nothing changed."""

import json
import random
import sqlite3
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from tests.conftest import Command
from tests.faults.conftest import Report
from tunecli import data
from tunecli.errors import InputError, UsageError
from tunecli.study import read_study

SECONDS = 5.0
"""What no input may take longer than."""

QUESTION = """
name = "digits"
seed = 0

[data]
source = "digits"
split = [8, 1, 1]

[model]
source = "mlp"
hidden = [128]

[train]
epochs = 30
metric = "accuracy"

[space]
optimizer = ["sgd", "adam"]
learning_rate = { low = 1e-4, high = 1.0, log = true }
batch_size = [16, 32, "full"]
l1 = 0
model.hidden = [[64], [128], [64, 64]]

[search]
trials = 100
sampler = "tpe"
pruner = "asha"

[finetune]
layers = ["head"]
"""

KEYS = [line.partition(" =")[0] for line in QUESTION.splitlines() if "=" in line]
KEYS += [
    "base",
    "target",
    "task",
    "loss",
    "decay_biases",
    "window",
    "keep",
    "min_ticks",
    "reduction_factor",
    "momentum",
]
KEYS += ["momentum", "beta1", "beta2", "l2", "model.x", "low", "high", "log", "step", "weight", "class_weight"]
KEYS += ["schedule", "x y"]
SECTIONS = ("data", "model", "train", "space", "search", "finetune", "space.model", "x", "data.source", "[train]")
VALUES = r"""
1
-1
0
-0.0
1e308
1e400
1e-320
nan
inf
99999999999999999999999
true
2024-01-01
""
"x"
"full"
"../x"
"a.py:b"
"\u0000"
[]
[1, 2]
[true, 1]
["a", 1, [2]]
[[64], [128]]
[[[]]]
{}
{ x = 3 }
{ low = 1, high = 2 }
{ low = nan, high = 1 }
{ low = "a", high = [] }
{ low = 2, high = 1, log = true }
""".strip().splitlines()


def mutated_question(rng: random.Random) -> str:
    lines = QUESTION.splitlines()
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        key, equals, value = lines[at].partition("=")
        how = rng.randrange(7)
        if how == 0 and len(lines) > 1:
            del lines[at]
        elif how == 1:
            lines.insert(at, rng.choice(lines))
        elif how == 2:
            lines.insert(at, f"{rng.choice(KEYS)} = {rng.choice(VALUES)}")
        elif how == 3 and equals:
            lines[at] = f"{key}= {rng.choice(VALUES)}"
        elif how == 4 and equals:
            lines[at] = f"{rng.choice(KEYS)} ={value}"
        elif how == 5:
            lines.insert(at, f"[{rng.choice(SECTIONS)}]")
        else:
            lines[at] = scribbled(lines[at], rng)
    return "\n".join(lines)


def scribbled(text: str, rng: random.Random) -> str:
    """The text with a few characters replaced by any."""
    characters = list(text)
    for _ in range(rng.randint(1, 3)):
        if characters:
            kinds = (rng.randrange(32, 127), rng.randrange(0, 32), rng.randrange(128, 0x3000), ord(rng.choice(',";\n')))
            characters[rng.randrange(len(characters))] = chr(rng.choice(kinds))
    return "".join(characters)


def mutated_table(rng: random.Random) -> bytes:
    rows = [[str(i % 7), f"{i * 0.37:.2f}", "abc"[i % 3], f"2024-01-{1 + i % 28:02d}", "uv"[i % 2]] for i in range(40)]
    cells = [["a", "b", "kind", "day", "y"], *rows]
    for _ in range(rng.randint(1, 6)):
        row = rng.choice(cells)
        strange = [
            "",
            "nan",
            "inf",
            "-1e400",
            "1e308",
            "x" * 300,
            '"',
            "a,b",
            "\x00",
            "=1",
            "ü",
            " ",
            "True",
            "1,5",
            "NA",
        ]
        how = rng.randrange(6)
        if how == 0 and row:
            row[rng.randrange(len(row))] = rng.choice(strange)
        elif how == 1 and row:
            del row[rng.randrange(len(row))]
        elif how == 2:
            row.append(rng.choice(strange))
        elif how == 3:
            column = rng.randrange(5)
            for own in cells[1:]:
                if column < len(own):
                    own[column] = rng.choice(strange)
        elif how == 4 and len(cells) > 1:
            del cells[rng.randrange(1, len(cells)) :]
        else:
            row[:] = [scribbled(cell, rng) for cell in row]
    text = "\n".join(",".join(row) for row in cells).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        text = bytes(byte if rng.random() > 0.01 else rng.randrange(256) for byte in text)
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.1 else text


CELLS = [None, "", "x", "../x", -1, 0, 2**62, 1e308, float("inf"), b"\xff\x00", "NaN", "[]", "{}", "null", '{"a": 1}']
CELLS += ["1", "\x1b[2J", '{"search": {}, "train": {}}', '{"search": {"trials": "x"}, "train": {"epochs": []}}']


def mutate_database(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.35:
        content = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)
        return
    with closing(sqlite3.connect(path)) as database:
        tables = sorted(
            row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        )
        for _ in range(rng.randint(1, 3)):
            table = rng.choice(tables)
            columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")').fetchall()] or ["x"]
            some = f'rowid IN (SELECT rowid FROM "{table}" LIMIT 1 OFFSET {rng.randrange(3)})'
            statements: list[tuple[str, list[object]]] = [
                (f'DROP TABLE "{table}"', []),
                (f'DELETE FROM "{table}" WHERE {some}', []),
                (f'ALTER TABLE "{table}" RENAME COLUMN "{rng.choice(columns)}" TO "other"', []),
                (f'UPDATE "{table}" SET "{rng.choice(columns)}" = ? WHERE {some}', [rng.choice(CELLS)]),
            ]
            with suppress(sqlite3.Error):
                database.execute(*rng.choices(statements, [1, 2, 1, 6])[0])
            database.commit()


def counted(answer: Callable[[], object]) -> str:
    """What came of an input: any other exception than ours goes on, and is the traceback that a user would see."""
    began = time.monotonic()
    try:
        answer()
        outcome = "good"
    except (InputError, UsageError):
        outcome = "refused"
    assert time.monotonic() - began < SECONDS
    return outcome


def told(outcomes: Counter[str]) -> str:
    return f"0 tracebacks, input unchanged; {outcomes['good']:,} good answers, {outcomes['refused']:,} clear errors"


def test_mutated_study_files(tmp_path: Path, full: bool, report: Report) -> None:
    path, outcomes, often = tmp_path / "digits.toml", Counter[str](), 20_000 if full else 500

    def answer() -> None:
        study = read_study(path)
        # What is accepted can be written down and asked again.
        written = tmp_path / "study.toml"
        written.write_text(study.toml(), encoding="utf-8")
        again = read_study(written).document()
        assert json.dumps(again, sort_keys=True) == json.dumps(study.document(), sort_keys=True)
        assert tomllib.loads(study.toml())["name"] == study.name

    for seed in range(often):
        text = mutated_question(random.Random(seed)).encode()
        path.write_bytes(text)
        outcomes[counted(answer)] += 1
        assert path.read_bytes() == text
    report(f"{often:,} mutated study files", told(outcomes))
    assert min(outcomes["good"], outcomes["refused"]) > often / 50


def test_mutated_tables(tmp_path: Path, full: bool, report: Report) -> None:
    path, outcomes, often = tmp_path / "t.csv", Counter[str](), 5_000 if full else 60
    data.load("digits", {}, base=tmp_path, seed=0)  # so that no time is spent on imports below
    for seed in range(often):
        text = mutated_table(random.Random(seed))
        path.write_bytes(text)
        outcomes[counted(lambda: data.load("t.csv", {}, base=tmp_path, seed=0, target="y"))] += 1
        assert path.read_bytes() == text
    report(f"{often:,} mutated CSV files", told(outcomes))
    assert min(outcomes["good"], outcomes["refused"]) > often / 50


def test_mutated_databases(tunecli: Command, home: Path, full: bool, report: Report) -> None:
    path, outcomes, often = home / "tiny" / "study.db", Counter[str](), 500 if full else 25
    whole = path.read_bytes()
    for seed in range(often):
        path.unlink()
        path.write_bytes(whole)
        mutate_database(path, random.Random(seed))
        before, began = path.read_bytes(), time.monotonic()
        codes = [tunecli("report", "tiny", "--format", own).code for own in ("text", "json")]
        assert tunecli("ls").code == 0
        assert codes in ([0, 0], [3, 3]), seed
        assert time.monotonic() - began < 3 * SECONDS
        assert path.read_bytes() == before
        outcomes["refused" if codes[0] else "good"] += 1
    report(f"{often:,} mutated databases, reported and listed", told(outcomes))
    assert min(outcomes["good"], outcomes["refused"]) > often / 50
