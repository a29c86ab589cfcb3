"""Benchmarks are not run here; what keeps their figures is."""

from pathlib import Path

from tests.benchmarks.results import replace_section, table


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
