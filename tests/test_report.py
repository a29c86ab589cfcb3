"""A study explained: counted and ranked by hand, drawn as a person reads it, written as programs read it."""

import csv
import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from tunecli.report import formats, tables
from tunecli.report.advice import advice
from tunecli.report.console import VisibleConsole
from tunecli.report.summary import Summary, as_document, curve_bars, short, short_hparams, summarize, wrap
from tunecli.trial import Importance, Measurement, State, Trial

SGD = {"optimizer": "sgd", "learning_rate": 0.0123456, "momentum": 0.9, "batch_size": 32, "model.hidden": (64, 32)}
ADAM = {"optimizer": "adam", "learning_rate": 0.001, "beta1": 0.85, "beta2": 0.9999, "batch_size": "full", "l1": 1e-8}


def trial(
    number: int, state: State, metrics: list[float], hparams: dict[str, Any] | None = None, reason: str | None = None
) -> Trial:
    """A hand-made trial whose epochs took half a second each; its value is the first highest metric."""
    curve = tuple(
        Measurement(number, epoch, 1.0, 1.0, metric, 0.1, 0.5) for epoch, metric in enumerate(metrics, start=1)
    )
    value = max(metrics, default=None) if state is not State.FAILED else None
    return Trial(
        number=number,
        state=state,
        hparams=hparams or SGD,
        start_tick=1 + number,
        end_tick=number + len(metrics) if state.ended else None,
        value=value,
        best_tick=None if value is None else metrics.index(value) + 1,
        seconds=0.5 * len(metrics),
        reason=reason,
        curve=curve,
    )


TRIALS = (
    trial(0, State.COMPLETE, [0.25, 0.5, 0.75]),
    trial(1, State.PRUNED, [0.99], reason="rung 1"),
    trial(2, State.COMPLETE, [0.5, 0.875, 0.75], ADAM),
    trial(3, State.FAILED, [0.5, math.nan], reason="diverged: training loss is nan after 2 ticks"),
    trial(4, State.COMPLETE, [0.125, 0.5, 0.875]),
    trial(5, State.FAILED, [], ADAM, reason="own.py:make raised ValueError: called after close"),
    trial(6, State.FAILED, [math.nan], reason="diverged: training loss is nan after 1 tick"),
    trial(7, State.RUNNING, [0.9, 0.95]),
    trial(8, State.WAITING, []),
)


def summary(*trials: Trial, direction: str = "maximize", asked: int = 20) -> Summary:
    metric = "accuracy" if direction == "maximize" else "loss"
    return summarize(study="tiny", metric=metric, direction=direction, asked=asked, epochs=3, trials=trials)


# Numbers


def test_a_study_is_counted_ranked_and_added_up() -> None:
    found = summary(*TRIALS)
    assert {str(state): count for state, count in found.counts.items()} == {
        "waiting": 1,
        "running": 1,
        "complete": 3,
        "pruned": 1,
        "failed": 3,
    }
    assert found.ended == 7
    # Pruned, failed and running trials never compete; of two equals the lower number is first.
    assert found.best is TRIALS[2]
    assert [own.number for own in found.ranked] == [2, 4, 0]
    assert found.ties == 2
    assert found.seconds == 0.5 * (3 + 1 + 3 + 2 + 3 + 0 + 1 + 2 + 0)


def test_the_lowest_is_the_best_where_less_is_better() -> None:
    found = summary(*TRIALS, direction="minimize")
    assert found.best is TRIALS[0]
    assert [own.number for own in found.ranked] == [0, 2, 4]
    assert found.ties == 1


@pytest.mark.parametrize("trials", [(), TRIALS[1:2], TRIALS[3:4], TRIALS[5:]])
def test_without_a_complete_trial_there_is_no_best(trials: tuple[Trial, ...]) -> None:
    found = summary(*trials)
    assert found.best is None
    assert (found.ranked, found.ties) == ((), 0)
    assert as_document(found)["best"] is None


@given(
    st.lists(st.tuples(st.sampled_from(list(State)), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=12),
    st.sampled_from(["maximize", "minimize"]),
)
def test_the_best_is_the_first_best_complete_trial(rows: list[tuple[State, float]], direction: str) -> None:
    found = summary(*(trial(n, state, [value]) for n, (state, value) in enumerate(rows)), direction=direction)
    values = [value for state, value in rows if state is State.COMPLETE]
    if not values:
        assert found.best is None
        return
    assert found.best is not None
    highest = max(values) if direction == "maximize" else min(values)
    assert found.best.number == rows.index((State.COMPLETE, highest))
    assert found.best is found.ranked[0]
    assert found.ties == values.count(highest)
    assert sum(found.counts.values()) == len(rows)


# For programs


def refuse(constant: str) -> None:
    raise ValueError(constant)


def test_json_has_what_was_promised_and_is_strict() -> None:
    wild = replace(trial(9, State.COMPLETE, [math.inf]), seconds=math.nan)
    document = json.loads(formats.as_json(summary(*TRIALS, wild)), parse_constant=refuse)
    assert document.keys() >= {"study", "metric", "direction", "counts", "best", "trials"}
    assert (document["study"], document["metric"], document["direction"]) == ("tiny", "accuracy", "maximize")
    assert document["split"] == "validation"
    assert document["counts"] == {"waiting": 1, "running": 1, "complete": 4, "pruned": 1, "failed": 3}
    assert [own["number"] for own in document["trials"]] == list(range(10))
    for own, original in zip(document["trials"], TRIALS, strict=False):
        assert own.keys() >= {"number", "state", "value", "hparams", "fidelity", "seconds"}
        assert own["state"] == original.state.value
        assert own["fidelity"] == len(original.curve)
        assert own["seconds"] == original.seconds
        assert ("reason" in own) == (original.state in (State.FAILED, State.PRUNED))
        assert own["value"] == (None if original.state is State.FAILED else original.value)
    assert document["trials"][0]["hparams"] == {**SGD, "model.hidden": [64, 32]}
    assert document["trials"][7]["value"] == 0.95
    assert (document["trials"][9]["value"], document["trials"][9]["seconds"]) == (None, None)
    document = json.loads(formats.as_json(summary(*TRIALS)), parse_constant=refuse)
    assert document["best"] == document["trials"][2]
    assert document["ties"] == 2


def test_csv_is_read_back_by_csv() -> None:
    text = formats.as_csv(summary(*TRIALS, trial(9, State.FAILED, [], reason='said "no",\nthen left')))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["number"] for row in rows] == [str(number) for number in range(10)]
    assert [row["state"] for row in rows] == [str(own.state) for own in TRIALS] + ["failed"]
    assert [float(row["value"]) for row in rows if row["value"]] == [0.75, 0.99, 0.875, 0.875, 0.95]
    assert float(rows[0]["learning_rate"]) == 0.0123456
    assert json.loads(rows[0]["model.hidden"]) == [64, 32]
    assert (rows[0]["beta1"], rows[2]["beta1"], rows[2]["momentum"]) == ("", "0.85", "")
    assert rows[2]["batch_size"] == "full"
    assert rows[9]["reason"] == 'said "no",\nthen left'
    assert not any(None in row or None in row.values() for row in rows)


def test_csv_of_no_trials_is_a_header() -> None:
    assert formats.as_csv(summary()).splitlines() == ["number,state,value,fidelity,best_tick,seconds,reason"]


def test_markdown_is_a_table_of_the_best() -> None:
    assert formats.as_markdown(summary(*TRIALS), 2) == (
        "**tiny**: accuracy on validation, maximized; 1 waiting, 1 running, 3 complete, 1 pruned, 3 failed.\n"
        "\n"
        "| trial | accuracy | epochs | seconds | hparams |\n"
        "|---:|---:|---:|---:|---|\n"
        "| 2 | 0.875 | 3 | 1.5 | optimizer adam, learning_rate 0.001, beta1 0.85, beta2 0.9999, batch_size full, "
        "l1 1e-08 |\n"
        "| 4 | 0.875 | 3 | 1.5 | optimizer sgd, learning_rate 0.0123, momentum 0.9, batch_size 32, "
        "model.hidden [64, 32] |\n"
    )


# For a person


def drawn(found: Summary, *, top: int = 5, width: int = 80) -> str:
    file = io.StringIO()
    tables.draw(found, top, Console(width=width, no_color=True, file=file))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return "\n".join(line.rstrip() for line in lines)


NARROW = """
tiny  accuracy on validation, higher is better
7 of 20 trials: 1 waiting, 1 running, 3 complete, 1 pruned, 3 failed;
  7.5 s of training

Best: trial 2, accuracy 0.8750 on validation, after epoch 2 of 3
  2 trials tie, the lowest number goes first
  optimizer adam, learning_rate 0.001, beta1 0.85, beta2 0.9999,
  batch_size full, l1 1e-08

Top 3 of 3 complete trials
trial  accuracy  epochs  seconds  optimizer  rate    batch  other hparams
    2    0.8750       3      1.5  adam       0.001   full   beta1 0.85,
                                                            beta2 0.9999,
                                                            l1 1e-08
    4    0.8750       3      1.5  sgd        0.0123  32     momentum 0.9,
                                                            model.hidden [64,
                                                            32]
    0    0.7500       3      1.5  sgd        0.0123  32     momentum 0.9,
                                                            model.hidden [64,
                                                            32]

Learning curves: accuracy on validation, epoch by epoch
trial   first         last
    2  0.5000  ▁█▆  0.7500
    4  0.1250  ▁▅█  0.8750
    0  0.2500  ▁▅█  0.7500

No importance of hparams: it takes 20 complete or pruned trials, and there are 4

Failed
  2 x diverged: training loss is nan (trials 3, 6)
      trial 3 had optimizer sgd, learning_rate 0.0123, momentum 0.9,
      batch_size 32, model.hidden [64, 32]
  1 x own.py:make raised ValueError: called after close (trial 5)
      trial 5 had optimizer adam, learning_rate 0.001, beta1 0.85, beta2 0.9999,
      batch_size full, l1 1e-08
"""

WIDE = """
tiny  accuracy on validation, higher is better
7 of 20 trials: 1 waiting, 1 running, 3 complete, 1 pruned, 3 failed; 7.5 s of training

Best: trial 2, accuracy 0.8750 on validation, after epoch 2 of 3
  2 trials tie, the lowest number goes first
  optimizer adam, learning_rate 0.001, beta1 0.85, beta2 0.9999, batch_size full, l1 1e-08

Top 3 of 3 complete trials
trial  accuracy  epochs  seconds  optimizer  rate    batch  other hparams
    2    0.8750       3      1.5  adam       0.001   full   beta1 0.85, beta2 0.9999, l1 1e-08
    4    0.8750       3      1.5  sgd        0.0123  32     momentum 0.9, model.hidden [64, 32]
    0    0.7500       3      1.5  sgd        0.0123  32     momentum 0.9, model.hidden [64, 32]

Learning curves: accuracy on validation, epoch by epoch
trial   first         last
    2  0.5000  ▁█▆  0.7500
    4  0.1250  ▁▅█  0.8750
    0  0.2500  ▁▅█  0.7500

No importance of hparams: it takes 20 complete or pruned trials, and there are 4

Failed
  2 x diverged: training loss is nan (trials 3, 6)
      trial 3 had optimizer sgd, learning_rate 0.0123, momentum 0.9, batch_size 32, model.hidden [64, 32]
  1 x own.py:make raised ValueError: called after close (trial 5)
      trial 5 had optimizer adam, learning_rate 0.001, beta1 0.85, beta2 0.9999, batch_size full, l1 1e-08
"""


@pytest.mark.parametrize(("width", "expected"), [(80, NARROW), (120, WIDE)])
def test_a_study_is_drawn_in_the_width_there_is(width: int, expected: str) -> None:
    assert drawn(summary(*TRIALS), width=width) == expected.strip("\n")


def test_a_study_of_failures_says_so() -> None:
    assert drawn(summary(*TRIALS[5:7], asked=2)) == (
        "tiny  accuracy on validation, higher is better\n"
        "2 of 2 trials: 2 failed; 0.5 s of training\n"
        "\n"
        "No trial is complete, so none is the best.\n"
        "\n"
        "Failed\n"
        "  1 x own.py:make raised ValueError: called after close (trial 5)\n"
        "      trial 5 had optimizer adam, learning_rate 0.001, beta1 0.85, beta2 0.9999,\n"
        "      batch_size full, l1 1e-08\n"
        "  1 x diverged: training loss is nan (trial 6)\n"
        "      trial 6 had optimizer sgd, learning_rate 0.0123, momentum 0.9,\n"
        "      batch_size 32, model.hidden [64, 32]"
    )


def test_a_long_reason_of_a_failure_is_broken_under_itself() -> None:
    reason = "own.py:make raised RuntimeError: a width of 32 is not supported by this model, try 64 (own.py, line 7)"
    found = summary(
        *(trial(number, State.FAILED, [], reason=reason) for number in range(12)), trial(12, State.COMPLETE, [0.5])
    )
    assert drawn(found).partition("\n\nFailed\n")[2] == (
        "  12 x own.py:make raised RuntimeError: a width of 32 is not supported by\n"
        "      this model, try 64 (own.py, line 7) (trials 0, 1, 2, 3, 4, 5, 6, 7, ...)\n"
        "      trial 0 had optimizer sgd, learning_rate 0.0123, momentum 0.9,\n"
        "      batch_size 32, model.hidden [64, 32]"
    )
    program = replace(found, epochs=None)
    assert "Failed; what each printed is in logs/ of the study's folder\n" in drawn(program)


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "0.0"), (0.0002, "0.001"), (0.0421, "0.042"), (0.26, "0.3")])
def test_a_short_training_took_some_time(seconds: float, shown: str) -> None:
    quick = summary(replace(trial(0, State.COMPLETE, [0.5, 0.5, 0.75]), seconds=seconds))
    assert re.search(rf"0.7500 +3 +{re.escape(shown)} ", drawn(quick))
    assert f"| 3 | {shown} |" in formats.as_markdown(quick, 1)


def test_what_was_computed_without_a_compiler_is_said() -> None:
    found = replace(summary(*TRIALS), environment={"torch": "2.13", "compiler": "none"})
    assert ";\n  7.5 s of training, without a C compiler\n" in drawn(found)
    assert as_document(found)["environment"] == {"torch": "2.13", "compiler": "none"}


def study_of(complete: int, pruned: int, learned: int | None, asked: int | None = None) -> Summary:
    states = [State.COMPLETE] * complete + [State.PRUNED] * pruned
    trials = [trial(number, state, [0.5]) for number, state in enumerate(states)]
    search = {"pruner": "asha", "sampler": "tpe", "window": 8}
    return replace(summary(*trials, asked=asked or len(trials)), search=search, learned=learned)


def test_where_few_trials_completed_or_most_are_random_it_is_said_what_to_type() -> None:
    assert drawn(study_of(1, 29, 0)).partition("\n\nWorth a try, ")[2] == (
        "with tunecli search tiny\n"
        "  only one trial of 30 trained to the end: asha pruned 29, what learns slowly\n"
        "    first; --pruner median --trials 60 prunes later\n"
        "  all 30 trials are random: tpe chooses by what others came to once 10 of them\n"
        "    have ended, with 8 in flight at a time; --trials 90 goes on with that"
    )
    assert "24 of the 30 trials are random: tpe" in drawn(study_of(3, 27, 6))
    for as_it_should_be in (
        study_of(3, 27, 10),
        study_of(3, 27, None),
        study_of(2, 10, 0, asked=40),
        study_of(1, 3, 0),
    ):
        assert advice(as_it_should_be) == []


def test_where_all_trials_diverged_it_is_said_where_to_look() -> None:
    nan = "diverged: training loss is nan after 1 tick"
    diverged = [trial(0, State.FAILED, [], ADAM, reason=nan), trial(1, State.FAILED, [], SGD, reason=nan)]
    said = drawn(summary(*diverged))
    assert "No trial is complete yet, so none is the best.\n" in said
    assert said.endswith(
        "\n\nall diverged, at learning rates from 0.001 to 0.0123: where smaller ones do too,\n"
        "  look for numbers too large, or none, in the data, the model or its loss"
    )
    assert "diverged, at" not in drawn(summary(*diverged, *TRIALS[5:6]))


def test_a_trial_by_hand_that_was_pruned_says_why() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        tables.draw_tried(summary(*TRIALS), TRIALS[1:2], console)
    assert captured.get().splitlines()[:2] == [
        "Tried: trial 1, accuracy 0.9900 on validation, after epoch 1 of 3, pruned",
        "  rung 1",
    ]


@pytest.mark.parametrize(("best", "hint"), [(2, True), (4, True), (5, False), (0, False)])
def test_importance_of_few_best_trials_is_called_a_hint(best: int, hint: bool) -> None:
    had = {"learning_rate": best} if best else {}
    found = replace(summary(*TRIALS), importance=Importance(20, {"learning_rate": 1.0}, best=best, among_best=had))
    assert ("(of so few it is a hint at most, more trials tell)" in drawn(found)) == hint


@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_ends_in_blanks_where_no_terminal_is(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    monkeypatch.setenv("NO_COLOR", "1")
    console = VisibleConsole()
    tables.draw(summary(*TRIALS), 3, console)
    console.print(Text("two words "), Text("and more  \n  "), "end")
    *lines, last = capsys.readouterr().out.splitlines()
    if not terminal:
        assert [line for line in lines if line != line.rstrip()] == []
        assert "\n".join(lines).startswith(NARROW.strip("\n"))
    assert lines[-1].rstrip() == "two words  and more"
    assert last == "   end"


def test_an_empty_study_is_drawn() -> None:
    assert "0 of 20 trials" in drawn(summary())


@pytest.mark.parametrize("width", [24, 40, 80, 100, 200])
def test_no_hparam_is_parted_from_its_value_in_a_usual_width(width: int) -> None:
    text = drawn(summary(*TRIALS), width=width)
    if width >= 80:
        for item in ("beta1 0.85", "beta2 0.9999", "momentum 0.9", "l1 1e-08"):
            assert item in text.partition("Top")[2]


@pytest.mark.parametrize("width", [40, 50, 60, 64, 66])
def test_what_is_said_of_the_best_is_broken_between_what_belongs_together(width: int) -> None:
    best = drawn(summary(*TRIALS), width=width).partition("Best: ")[2].partition("\n  2 trials tie")[0]
    assert best.replace("\n  ", " ") == "trial 2, accuracy 0.8750 on validation, after epoch 2 of 3"
    assert all(part.endswith(",") for part in best.split("\n")[:-1])


def test_only_the_best_are_shown() -> None:
    text = drawn(summary(*TRIALS), top=1)
    assert "Top 1 of 3 complete trials" in text
    assert "0.0123" not in text.partition("Failed")[0]


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    tables.draw(summary(*TRIALS), 5, Console(width=80, force_terminal=True, file=file))
    # NO_COLOR is about colours; bold and dim may stay.
    assert not any(f"\x1b[{code}m" in file.getvalue() for code in range(30, 48))


FINITE = st.floats(-1e30, 1e30, allow_nan=False)
DIRECTIONS = st.sampled_from(["maximize", "minimize"])


@given(st.lists(st.floats(width=32), max_size=60), st.integers(1, 50), DIRECTIONS)
def test_bars_are_at_most_as_wide_as_asked(values: list[float], width: int, direction: str) -> None:
    bars = curve_bars(values, width, direction)
    assert len(bars) == min(width, sum(math.isfinite(value) for value in values))
    assert set(bars) <= set("▁▂▃▄▅▆▇█")


@given(st.lists(FINITE, min_size=1, max_size=60), st.integers(1, 50), DIRECTIONS)
def test_a_curve_that_only_rises_has_bars_that_only_rise(values: list[float], width: int, direction: str) -> None:
    rising = curve_bars(sorted(values), width, direction)
    assert list(rising) == sorted(rising)
    falling = curve_bars(sorted(values, reverse=True), width, direction)
    assert list(falling) == sorted(falling, reverse=True)


@given(st.lists(FINITE, min_size=2, max_size=60), st.integers(2, 60), DIRECTIONS)
def test_bars_reach_from_the_lowest_to_the_highest(values: list[float], width: int, direction: str) -> None:
    bars = curve_bars(values, width, direction)
    if len(values) <= width and max(values) > min(values):
        assert bars[values.index(max(values))] == "█"
        assert bars[values.index(min(values))] == "▁"


def test_the_best_of_each_stretch_is_shown() -> None:
    assert curve_bars([0, 8, 0, 0, 4, 0], 2, "maximize") == "█▁"
    assert curve_bars([8, 0, 8, 8, 4, 8], 2, "minimize") == "▁█"
    assert curve_bars([1.0, 1.0], 5, "maximize") == "▁▁"
    assert curve_bars([], 5, "maximize") == curve_bars([math.nan], 5, "maximize") == ""


ITEMS = st.lists(st.from_regex(r"[a-z.]{1,12} [0-9.\[\], ]{0,8}[0-9\]]", fullmatch=True), max_size=12)


@given(ITEMS, st.integers(1, 60))
def test_wrapping_parts_no_name_from_its_value(items: list[str], width: int) -> None:
    lines = wrap(items, width).split("\n")
    assert " ".join(lines) == ", ".join(items)
    for line in lines:
        # Only what cannot be broken is too long.
        assert len(line) <= width or line.removesuffix(",") in items


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0123456, "0.0123"),
        (1.0, "1"),
        (0.9999, "0.9999"),
        (1.0001, "1"),
        (1e-8, "1e-08"),
        (12345.678, "1.23e+04"),
        (-0.5, "-0.5"),
        (64, "64"),
        (100000, "100000"),
        (True, "true"),
        ("adam", "adam"),
        ((64, 32), "[64, 32]"),
        ([0.12345], "[0.123]"),
        (("relu", "tanh"), "[relu, tanh]"),
    ],
)
def test_a_value_is_short(value: object, expected: str) -> None:
    assert short(value) == expected


def test_hparams_are_named_in_the_order_of_the_space() -> None:
    assert short_hparams(ADAM, leave_out=("optimizer", "batch_size")) == [
        "learning_rate 0.001",
        "beta1 0.85",
        "beta2 0.9999",
        "l1 1e-08",
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (0.0, "0.0 s"),
        (0.0002, "1 ms"),
        (0.04, "40 ms"),
        (9.96, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60, "1 min 0 s"),
        (89.6, "1 min 30 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7325, "2 h 2 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_a_length_of_time_is_told_in_two_units(seconds: float, expected: str) -> None:
    assert tables.duration(seconds) == expected


EXPLAINED = """
Importance of hparams
What sets the best tenth of 57 complete and pruned trials apart, PED-ANOVA:
learning_rate  63%  ████████████████████████████████████████
model.hidden   25%  ████████████████
l1             12%  ████████
momentum        0%

Failed"""


SHARED = """
What sets the best 6 of 57 complete and pruned trials apart, PED-ANOVA:
learning_rate  25%  ███████████████
l1             12%  ███████
and hparams that not every trial has:
momentum       46%  ████████████████████████████  1 of the 6 has it
beta1          17%  ██████████                    5 of the 6 have it
nesterov        0%                                none of the 6 has it

Failed"""


def test_what_some_of_the_best_alone_have_comes_after_what_all_have_and_says_so() -> None:
    shares = {"momentum": 0.46, "learning_rate": 0.25, "beta1": 0.17, "l1": 0.12, "nesterov": 0.0}
    had = {"momentum": 1, "learning_rate": 6, "beta1": 5, "l1": 6, "nesterov": 0}
    found = replace(summary(*TRIALS), importance=Importance(57, shares, best=6, among_best=had))
    assert SHARED in drawn(found)
    assert json.loads(formats.as_json(found))["importance"] == shares


def test_importance_is_drawn_as_bars_and_written_as_shares() -> None:
    shares = {"learning_rate": 0.63, "model.hidden": 0.25, "l1": 0.12, "momentum": 0.0}
    found = replace(summary(*TRIALS), importance=Importance(57, shares))
    assert EXPLAINED in drawn(found)
    assert json.loads(formats.as_json(found))["importance"] == shares
    assert json.loads(formats.as_json(summary(*TRIALS)))["importance"] is None
    equal = replace(found, importance=Importance(57, {}))
    assert "\nNo importance of hparams: all trials are equally good\n" in drawn(equal)
    many = summary(*(trial(number, State.COMPLETE, [0.5]) for number in range(20)))
    said = " ".join(drawn(many).split())
    assert (
        "No importance of hparams: it is computed when a search ends, of 20 trials or more in the space as it is"
        in said
    )
