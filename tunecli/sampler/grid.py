"""Every point of a finite space, each once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tunecli.points import Key, all_points, key
from tunecli.space import Space
from tunecli.trial import Hparams, Trial, Value, derive_seed


class Grid:
    """The first point that no lower number has tried, in an order of the seed's, or in that of the space.

    What was given by hand is tried once more only where no other point fits it.
    """

    def __init__(self, space: Space, study_seed: int, *, shuffled: bool) -> None:
        self._space = space
        points = all_points(space)
        order: Iterable[int] = range(len(points))
        if shuffled:
            order = sorted(order, key=lambda place: derive_seed(study_seed, place, "grid"))
        self._left: dict[Key, dict[str, Value]] = {key(space, points[place]): points[place] for place in order}
        self._all = tuple(self._left.values())

    def add(self, trial: Trial) -> None:
        self._left.pop(key(self._space, trial.hparams), None)

    def hide(self, number: int) -> None:
        """A point of another space takes none from this one."""

    def end(self, trial: Trial) -> None:
        """Nothing is learned from it."""

    def expect(self, count: int) -> None:
        """They share nothing."""

    def prepare(self, number: int, start_tick: int, given: Mapping[str, Value]) -> None:
        """It is made in no time."""

    def propose(self, number: int, start_tick: int, given: Mapping[str, Value] | None = None) -> Hparams:
        wanted = (given or {}).items()
        matching = (point for points in (self._left.values(), self._all) for point in points if wanted <= point.items())
        point = next(matching)
        self._left.pop(key(self._space, point), None)
        return dict(point)

    @property
    def exhausted(self) -> bool:
        return not self._left
