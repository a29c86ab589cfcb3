"""What several rooms' tests need: tiny questions to search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunecli.search import search
from tunecli.study import Study, make_study

Question = Callable[..., Study]


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
        document: dict[str, Any] = {
            "name": name,
            "seed": seed,
            "data": data or {"source": "iris"},
            "model": model or {"source": "mlp", "hidden": [8]},
            "train": {"epochs": 4, "metric": "accuracy"} | (train or {}),
            "space": {"batch_size": [32, "full"]} | (space or {}),
            "search": {"trials": 10, "window": 3, "keep": 2, "min_ticks": 1, "reduction_factor": 2} | search,
        }
        return make_study(document, base.resolve(), name, where="a test")

    return make


@pytest.fixture(scope="session")
def searched(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished study, `tiny`; to be copied before anything is written to it."""
    home = tmp_path_factory.mktemp("searched") / "studies"
    list(search(question(), home / "tiny"))
    return home
