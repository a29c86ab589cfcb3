"""Our own C is built once, whatever state the cache is in, and nobody needs a compiler."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Command, Question
from tunecli import building
from tunecli.engine.compiled import NUMBERS
from tunecli.engine.compiler import can_compile, library
from tunecli.engine.rules import RULES
from tunecli.errors import InputError
from tunecli.search import Noticed, search
from tunecli.store import read

needs_compiler = pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing known of what was compiled before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    yield tmp_path / "cache" / "tunecli" / "compiled"
    library.cache_clear()


def test_only_what_has_a_rule_of_its_own_shape_is_left_to_torch() -> None:
    assert {name for name, rule in RULES.items() if rule.compiled < 0} == {"muon"}
    assert RULES["adamw"].compiled == NUMBERS["adam"]


@needs_compiler
def test_what_was_built_is_kept(cache: Path) -> None:
    assert can_compile("cpu")
    (kept,) = cache.iterdir()
    built = kept.stat().st_mtime_ns
    library.cache_clear()
    assert can_compile("cpu")
    assert kept.stat().st_mtime_ns == built, "it is not built twice"


@needs_compiler
def test_what_another_process_builds_is_waited_for(cache: Path) -> None:
    builder = building.begin()
    if builder is None:
        pytest.skip("there is one core")
    assert can_compile("cpu")
    assert builder.wait(60) == 0
    assert len(list(cache.iterdir())) == 1
    assert building.begin() is None, "there is nothing left to build"


@needs_compiler
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_what_was_spoilt_is_built_anew(
    cache: Path, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half of a library ends the process that loads it."""
    assert can_compile("cpu")
    (kept,) = cache.iterdir()
    # In another folder: a process that has loaded a library does not look at its file again.
    spoilt, whole = tmp_path / "other" / "tunecli" / "compiled" / kept.name, kept.read_bytes()
    spoilt.parent.mkdir(parents=True)
    spoilt.write_bytes(whole[: int(share * len(whole))])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    library.cache_clear()
    assert can_compile("cpu")
    assert spoilt.read_bytes() == whole


@needs_compiler
def test_a_user_without_a_home_needs_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert can_compile("cpu")


@needs_compiler
def test_a_cache_that_cannot_be_written_hinders_nothing(cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("no folder")
    assert can_compile("cpu")


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false", "'"])
def test_without_a_compiler_nothing_is_compiled(cache: Path, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    assert not can_compile("cpu")
    assert not can_compile("meta")


@needs_compiler
def test_a_study_without_a_compiler_says_so_and_how_it_would_be_faster(
    tunecli: Command, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    first = tunecli("search", "iris", "--trials", "2")
    assert (
        "note   no C compiler works here (cc, or CC), so torch trains the models,\n"
        "       more slowly: install gcc or clang\n" in first.err
    )
    assert " of training, without a C compiler\n" in tunecli("report", "iris").out
    assert tunecli("report", "iris", "--format", "json").document["environment"]["compiler"] == "none"
    assert "compiler" not in tunecli("search", "iris", "--trials", "3").err, "said once"
    monkeypatch.delenv("CC")
    library.cache_clear()
    later = tunecli("search", "iris", "--trials", "4")
    assert "--fresh begins anew with the one that works here now" in " ".join(later.err.split())
    tunecli("search", "iris", "--trials", "2", "--fresh")
    assert "compiler" not in tunecli("report", "iris").out


@needs_compiler
def test_trials_in_flight_wait_for_a_compiler(
    question: Question, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one they would come to other values than their checkpoints are recorded with."""
    list(search(question(trials=6), tmp_path / "whole"))
    ticks = [0]
    for event in search(question(trials=6), tmp_path / "tiny", stop=lambda: ticks[-1] >= 2):
        ticks.append(getattr(event, "tick", 0))
    monkeypatch.setenv("CC", "false")
    library.cache_clear()
    with pytest.raises(InputError, match="the trials in flight were trained with one"):
        list(search(question(trials=6), tmp_path / "tiny"))
    monkeypatch.delenv("CC")
    library.cache_clear()
    list(search(question(trials=6), tmp_path / "tiny"))
    values = [[t.value for t in read(tmp_path / name / "study.db").trials] for name in ("whole", "tiny")]
    assert values[0] == values[1]


@needs_compiler
def test_a_study_goes_on_without_the_compiler_it_began_with(
    question: Question, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(search(question(trials=3), tmp_path / "tiny"))
    assert read(tmp_path / "tiny" / "study.db").plan["compiled"]
    monkeypatch.setenv("CC", "false")
    library.cache_clear()
    told = [event.text for event in search(question(trials=6), tmp_path / "tiny") if isinstance(event, Noticed)]
    assert told == ["no C compiler (cc, or CC) works any more: torch computes all, and last bits differ"]
    record = read(tmp_path / "tiny" / "study.db")
    assert len(record.trials) == 6
    assert not record.plan["compiled"]
    assert not any(isinstance(event, Noticed) for event in search(question(trials=7), tmp_path / "tiny")), "said once"
