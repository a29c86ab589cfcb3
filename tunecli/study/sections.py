"""The sections of a study file and what each key takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, Field

from tunecli.space import PRUNERS, SAMPLERS, parse_settings
from tunecli.study.duration import read_seconds
from tunecli.trial import Value

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Open(_Section):
    """A section whose other keys go to a function or a bundled model, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @property
    def keys(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class DataSection(_Open):
    source: str
    target: str | None = None
    split: Annotated[list[Share], Field(min_length=3, max_length=3)] = [8, 1, 1]
    task: Literal["classification", "regression"] | None = None
    cache: bool = False
    stream: bool | None = None
    as_is: bool | None = None
    workers: Annotated[int, Field(ge=0)] | None = None
    features: list[str] | None = None
    weight: str | None = None


class ModelSection(_Open):
    source: str = "mlp"


class TrainSection(_Open):
    """Beside these the keys that may be searched as well, by the table of hparams in tunecli.space."""

    epochs: Positive = 30
    loss: str | None = None
    metric: str | None = None
    step: str | None = None
    per_batch: bool = False
    direction: Literal["maximize", "minimize"] | None = None
    decay_biases: bool = True
    class_weight: Any = None
    """"balanced", or a table of class -> weight."""

    @property
    def settings(self) -> dict[str, Value]:
        return parse_settings(self.keys)


class SearchSection(_Section):
    trials: Positive = 100
    sampler: Literal["tpe", "random", "grid", "brute_force", "qmc", "gp", "nsga2"] = "tpe"
    pruner: Literal["asha", "hyperband", "median", "percentile", "patient", "none"] = "asha"
    window: Positive | None = None
    keep: Positive = 5
    trial_timeout: Any = None
    """Seconds, or a text as `duration` reads it."""
    max_failures: Positive = 50
    # The pruner's own; which it reads, and what they are if nobody says, is in PRUNER_KEYS.
    min_ticks: Positive | None = None
    reduction_factor: Annotated[int, Field(ge=2)] | None = None
    startup_trials: Annotated[int, Field(ge=0)] | None = None
    percentile: Annotated[float, Field(gt=0, lt=100)] | None = None
    patience: Annotated[int, Field(ge=0)] | None = None

    def resolved(self) -> SearchSection:
        """The same with its pruner's keys filled in."""
        defaults = PRUNER_KEYS[self.pruner].items()
        return self.model_copy(update={key: own for key, own in defaults if getattr(self, key) is None})

    @property
    def trial_seconds(self) -> float | None:
        """The seconds of its own that a trial may take; None for no limit."""
        return None if self.trial_timeout is None else read_seconds(str(self.trial_timeout))

    @property
    def pruner_options(self) -> dict[str, float]:
        """The keys that the pruner reads, and their values."""
        given = {key: getattr(self, key) for key in PRUNER_KEYS[self.pruner]}
        return {key: value for key, value in given.items() if value is not None}


PRUNER_KEYS: Mapping[str, Mapping[str, float | None]] = MappingProxyType(
    {
        "asha": {"min_ticks": 3, "reduction_factor": 3},
        "hyperband": {"min_ticks": 3, "reduction_factor": 3},
        "median": {"min_ticks": 3, "startup_trials": 5, "patience": None},
        "percentile": {"percentile": 25.0, "min_ticks": 3, "startup_trials": 5, "patience": None},
        "patient": {"patience": 3},
        "none": {},
    }
)
"""The keys of [search] that each pruner reads, with their defaults."""


class FinetuneSection(_Section):
    layers: list[str] | None = None
    epochs: Positive | None = None


class StudyFile(_Section):
    name: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    base: str | None = None
    data: DataSection
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    space: dict[str, Any] = {}
    search: SearchSection = SearchSection()
    finetune: FinetuneSection = FinetuneSection()


class ProgramSection(_Section):
    """One of the two: an objective as Optuna calls it, or a command with placeholders."""

    objective: str | None = None
    command: str | None = None
    direction: Literal["minimize", "maximize"] | None = None


class ProgramTrainSection(_Section):
    metric: str | None = None


class ProgramFile(_Section):
    name: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    base: str | None = None
    program: ProgramSection = ProgramSection()
    train: ProgramTrainSection = ProgramTrainSection()
    space: dict[str, Any] = {}
    search: SearchSection = SearchSection()


def as_toml(document: Mapping[str, Any]) -> str:
    """A question as its study.toml states it."""
    head = "# The question as it was resolved when this study began. Later commands take code from here.\n"
    return head + tomlkit.dumps({key: value for key, value in document.items() if value != {}})


assert get_args(SearchSection.model_fields["sampler"].annotation) == SAMPLERS
assert get_args(SearchSection.model_fields["pruner"].annotation) == PRUNERS == tuple(PRUNER_KEYS)
