"""Benchmarks are not run here; what keeps their figures is."""

from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution

from tests.benchmarks.plain import suggest
from tests.benchmarks.results import replace_section, table
from tunecli.space import Range, build_space, distribution_json


def test_a_section_is_replaced_where_it_stands_and_leaves_the_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for text in ("## Slots\n\nold", "## Search\n\nkept", "## Slots\n\nnew\n\n| a | b |"):
        replace_section(path, text)
    head, slots, search = path.read_text(encoding="utf-8").split("\n## ")
    assert head.startswith("# What was measured\n")
    assert slots == "Slots\n\nnew\n\n| a | b |\n"
    assert search == "Search\n\nkept\n"


def test_a_table_has_a_row_a_figure() -> None:
    assert table(["side", "ratio"], [["res", "8x"]]) == "| side | ratio |\n| --- | ---: |\n| res | 8x |"


def test_optuna_is_asked_for_the_default_space_by_the_same_names() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked: dict[str, BaseDistribution] = {}
    for _ in range(60):
        trial = study.ask()
        hparams = suggest(trial)
        asked |= trial.distributions
        assert build_space({}).encode(hparams).keys() == trial.params.keys()
    ours = {d.name: d.range for d in build_space({}).dimensions}
    assert asked == {n: json_to_distribution(distribution_json(r)) for n, r in ours.items() if isinstance(r, Range)}
