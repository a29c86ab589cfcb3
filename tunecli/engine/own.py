"""An optimizer of the user's own: any subclass of torch.optim.Optimizer, as the rule of one run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunecli.engine.gradients import Layout
from tunecli.engine.rules import DEFAULTS, Rule, rate_alone
from tunecli.errors import SourceError
from tunecli.source import describe, load_function
from tunecli.trial import Run

OwnOptimizer = type[torch.optim.Optimizer]


def load_optimizer(source: str, base: Path) -> OwnOptimizer:
    """The class that `file.py:Class` names. Raises SourceError where it is no optimizer of torch's kind."""
    found = load_function(source, base)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise SourceError(
            f"{source} is no subclass of torch.optim.Optimizer", hint="class NAME(torch.optim.Optimizer): ..."
        )
    return found


def own_rule(kind: OwnOptimizer, run: Run, module: nn.Module, layout: Layout, *, decay_biases: bool) -> Rule:
    """The rule that steps one run's module by an optimizer of its own.

    It is built with those of lr, momentum, betas and weight_decay that its signature takes; what it does not take of
    l2 is added to its gradient, as l1 is. Raises SourceError where it cannot be built.
    """
    source, file = str(run.hparams["optimizer"]), Path(inspect.getfile(kind)).resolve()
    taken = _signature(kind)
    parameters = {name: p for name, p in module.named_parameters() if name in layout.names}
    groups: list[dict[str, Any]] = [{"params": list(parameters.values())}]
    if not decay_biases and "weight_decay" in taken:
        # As torch's users spare them: in a group of their own.
        matrices = [p for p in parameters.values() if p.dim() > 1]
        others = [p for p in parameters.values() if p.dim() <= 1]
        groups = [own for own in ({"params": matrices}, {"params": others, "weight_decay": 0.0}) if own["params"]]
    try:
        optimizer = kind(groups, **{name: value for name, value in _keys(run).items() if name in taken})
    except Exception as error:
        raise SourceError(f"{source} raised {describe(error, file)}", hint="it is built as torch's own are") from error
    return Rule(rate_alone, OwnStep(optimizer, run, parameters, layout, file), takes_l2="weight_decay" in taken)


class OwnStep:
    """One update by an optimizer of the user's own, as a Rule's `step`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        run: Run,
        parameters: Mapping[str, nn.Parameter],
        layout: Layout,
        file: Path,
    ) -> None:
        self._optimizer, self._run, self._parameters = optimizer, run, parameters
        self._layout, self._file = layout, file
        self._steps = 0

    def __call__(self, w: Tensor, g: Tensor, first: Tensor, second: Tensor, rate: Tensor) -> None:
        self._steps += 1
        parameters, run = self._parameters, self._run
        sums = [parameter.grad for parameter in parameters.values()]
        for name, mean in self._layout.views(g).items():
            parameters[name].grad = mean[0].clone()  # an optimizer may keep it, ours is used up
        for group in self._optimizer.param_groups:
            group["lr"] = float(rate)
        try:
            # What it draws is the run's own as well.
            with torch.random.fork_rng(enabled=True):
                torch.manual_seed(run.seed("optimizer", self._steps))
                self._optimizer.step()
        except (Exception, SystemExit) as error:
            raise SourceError(f"{run.hparams['optimizer']} raised {describe(error, self._file)}") from error
        for parameter, summed in zip(parameters.values(), sums, strict=True):
            parameter.grad = summed

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._steps = state["steps"]
        self._optimizer.load_state_dict(state["optimizer"])


def _keys(run: Run) -> dict[str, Any]:
    hparams = run.hparams
    keys: dict[str, Any] = {"lr": hparams["learning_rate"], "weight_decay": hparams.get("l2", 0.0)}
    if "momentum" in hparams:
        keys["momentum"] = hparams["momentum"]
    if "beta1" in hparams or "beta2" in hparams:
        keys["betas"] = tuple(hparams.get(name, DEFAULTS[name]) for name in ("beta1", "beta2"))
    return keys


def _signature(kind: type) -> set[str]:
    """The names that its constructor takes; those of the class above too where it hands its keywords on."""
    names: set[str] = set()
    for own in kind.__mro__:
        if "__init__" in vars(own):
            parameters = inspect.signature(vars(own)["__init__"]).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names
