"""How much each hparam had to do with a trial being among the best: PED-ANOVA, over what was tried.

It is Optuna's (Watanabe et al. 2023, and the form for conditional spaces, in which each range of an hparam, and its
absence, is a regime of its own). Optuna's own is loaded with scikit-learn's forests: seconds at the end of a search.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunecli.space import Range, Space, distribution_json
from tunecli.trial import LEAST_COMPARED, Hparams, Importance, State, Trial

Asked = Mapping[str, tuple[str, float]]
"""Name -> (Optuna's distribution as JSON, its internal value)."""

Array = NDArray[np.float64]

BEST = 0.1
"""The share of the trials that are compared with all."""

CELLS = 50
"""Into so many cells a range of numbers is cut, at most."""


def asked_by_hparam(space: Space, hparams: Hparams) -> dict[str, tuple[str, float]]:
    """A point under the names that a user knows: `learning_rate` is one hparam, whatever range it has for whom."""
    return {
        dimension.hparam: (distribution_json(dimension.range), dimension.range.internal(hparams[dimension.hparam]))
        for dimension in space.dimensions
        if isinstance(dimension.range, Range) and dimension.applies(hparams)
    }


def importance(trials: Sequence[Trial], asked: Mapping[int, Asked], direction: str) -> Importance | None:
    """The share of each hparam in what sets the best tenth of the trials apart.

    Pruned trials count, with the best value that they reached: leaving them out would hide what they were pruned for.
    None for too few trials.
    """
    sign = -1.0 if direction == "maximize" else 1.0
    loss = {
        trial.number: sign * trial.value
        for trial in trials
        if trial.state in (State.COMPLETE, State.PRUNED) and trial.value is not None and math.isfinite(trial.value)
    }
    if len(loss) < LEAST_COMPARED:
        return None
    worst = sorted(loss.values())[math.ceil(BEST * len(loss)) - 1]
    best = {number for number, own in loss.items() if own <= worst}
    found = {
        name: sum(_weighed(own, best, len(loss)) for own in regimes.values())
        for name, regimes in _regimes({number: asked[number] for number in sorted(loss)}).items()
    }
    total = sum(found.values())
    shares = {name: own / total for name, own in found.items()} if total > 0 else {}
    ranked = dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
    return Importance(
        len(loss), ranked, len(best), {name: sum(name in asked[number] for number in best) for name in ranked}
    )


@dataclass(frozen=True, slots=True)
class Regime:
    """The trials that had an hparam in one range, and its internal value in each."""

    cells: Cells
    value_of: dict[int, float]


def _regimes(asked: Mapping[int, Asked]) -> dict[str, dict[str, Regime]]:
    """The regimes of each hparam, by its distribution."""
    found: dict[str, dict[str, Regime]] = {}
    for number, point in asked.items():
        for name, (distribution, internal) in point.items():
            of_name = found.setdefault(name, {})
            if distribution not in of_name:
                of_name[distribution] = Regime(Cells.of(distribution), {})
            of_name[distribution].value_of[number] = internal
    return found


def _weighed(regime: Regime, best: set[int], count: int) -> float:
    """What a regime adds to its hparam's importance: how far its best trials lie from all of it, by their shares."""
    values = np.array(list(regime.value_of.values()))
    among = np.array([number in best for number in regime.value_of])
    if regime.cells.count == 1 or len(values) < 2 or not among.any():
        return 0.0
    good, all_ = (regime.cells.density(own) + 1e-12 for own in (values[among], values))
    divergence = float(all_ @ np.square(good / all_ - 1))
    return float((among.sum() / len(best)) ** 2 / (len(values) / count) * divergence)


@dataclass(frozen=True, slots=True)
class Cells:
    """A range cut into cells; `low` and `high` are the middles of the outermost, by the logarithm where `log` is."""

    count: int
    choices: bool = False
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @classmethod
    def of(cls, distribution: str) -> Cells:
        document = json.loads(distribution)
        own: dict[str, Any] = document["attributes"]
        if document["name"] == "CategoricalDistribution":
            return cls(len(own["choices"]), choices=True)
        low, high, log, step = own["low"], own["high"], bool(own["log"]), own["step"]
        if low == high:
            return cls(1)
        count = CELLS
        if log and document["name"] == "IntDistribution":
            count = min(math.ceil(math.log(high - low + 1) / math.log(2)) + 1, CELLS)
        elif step is not None:
            count = min(round((high - low) / step) + 1, CELLS)
        low, high = (math.log(low), math.log(high)) if log else (low, high)
        return cls(count, low=low, high=high, log=log)

    def density(self, values: Array) -> Array:
        """The probability of each cell after these internal values: a kernel for each, and a prior that weighs as
        much as one."""
        places = values.astype(np.intp) if self.choices else self._places(values)
        counts = np.bincount(places, minlength=self.count)
        seen = np.flatnonzero(counts)
        weights = np.append(counts[seen], 1.0) / (len(values) + 1)
        shares = self._choices(seen) if self.choices else self._bells(seen, counts[seen])
        return weights @ shares

    def _places(self, values: Array) -> NDArray[np.intp]:
        width = (self.high - self.low) / (self.count - 1)
        places = np.ceil(((np.log(values) if self.log else values) - self.low) / width - 0.5)
        return np.clip(places.astype(np.intp), 0, self.count - 1)

    def _choices(self, seen: NDArray[np.intp]) -> Array:
        """The share of each choice in each kernel: (kernels, choices)."""
        shares = np.full((len(seen) + 1, self.count), 1.0 / (len(seen) + 1))
        shares[np.arange(len(seen)), seen] += 1
        return shares / shares.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    def _bells(self, seen: NDArray[np.intp], counts: NDArray[np.intp]) -> Array:
        """The share of each cell in each kernel, a normal distribution truncated to the range: (kernels, cells)."""
        count = self.count
        mus = np.append(seen, (count - 1) / 2.0)
        sigmas = np.append(np.full(len(seen), max(scott(seen, counts), 0.5 / 1.64)), float(count))
        edges = (np.arange(count + 1) - 0.5 - mus[:, None]) / sigmas[:, None]
        below = np.array([math.erf(edge) for edge in (edges / math.sqrt(2)).ravel()]).reshape(edges.shape)
        return np.diff(below) / (below[:, -1:] - below[:, :1])  # type: ignore[no-any-return]


def scott(seen: NDArray[np.intp], counts: NDArray[np.intp]) -> float:
    """The width of kernels by Scott's rule (1992), from the spread of these places or their quartiles."""
    total, cumulated = counts.sum(), counts.cumsum()
    mean = (seen @ counts) / total
    spread = math.sqrt(((seen - mean) ** 2 @ counts) / max(1, total - 1))
    first = seen[np.searchsorted(cumulated, total // 4, side="left")]
    third = seen[min(len(seen) - 1, np.searchsorted(cumulated, total * 3 // 4, side="right"))]
    return float(1.059 * min((third - first) / 1.34, spread) * float(total) ** -0.2)
