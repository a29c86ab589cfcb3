"""A checkpoint, trained on: on the study's own task with validation joined in, or on a new one.

The test split is read here, and each reading is recorded with its date.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli import checkpoint
from tunecli import data as data_room
from tunecli.errors import CheckpointError, InputError, NoUsableTrial, StorageError, UsageError
from tunecli.space import parse_value
from tunecli.store import Record, Store, hold, read
from tunecli.study import Study, read_study
from tunecli.trial import Hparams, Run, Trial, Value, best_trial, better, derive_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunecli.data import Data, Samples
    from tunecli.engine import Task

PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """What to train on, from where and how. None takes the study file's word, or the default.

    `trial` None is the best one. `data` is a new source, with `target` where it is a table and `data_keys` where it is
    a function. `checkpoint` is a file of weights to start from instead of the trial's. `hparams` replace the trial's.
    """

    trial: int | None = None
    data: str | None = None
    target: str | None = None
    data_keys: Mapping[str, Any] | None = None
    layers: tuple[str, ...] | None = None
    epochs: int | None = None
    checkpoint: Path | None = None
    save: Path | None = None
    hparams: Mapping[str, Any] | None = None
    device: str = "auto"

    @property
    def new_task(self) -> bool:
        return self.data is not None or self.checkpoint is not None


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch is done. `of` is "fine-tuning" or "from scratch"."""

    of: str
    epoch: int
    epochs: int
    train_loss: float


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What came of it: the metric on the test split before, after, and for the same model from scratch.

    `updates` were made by both; `updates_before` is what the checkpoint had seen already. `used` says whether it is
    not worse than before: else the starting checkpoint stays the one in use.
    """

    study: str
    trial: int
    data: str
    metric: str
    direction: str
    before: float
    after: float
    scratch: float
    updates: int
    updates_before: int
    epochs: int
    samples: int
    learning_rate: float
    trained: tuple[str, ...]
    new_head: bool
    reading: int
    used: bool
    checkpoint: Path
    saved: Path | None


def finetune(folder: Path, request: Request, stop: Callable[[], bool] = lambda: False) -> Iterator[Epoch | Finetuned]:
    """Train a checkpoint of the study in `folder` on; yields each epoch, then what came of it.

    Ends without a Finetuned where `stop()` said so; then nothing is written. Raises NoUsableTrial, CheckpointError,
    InputError, StorageError.
    """
    with hold(folder):
        yield from _Finetune(folder, request).events(stop)


class _Finetune:
    def __init__(self, folder: Path, request: Request) -> None:
        from tunecli.engine.task import make_task

        self.folder, self.request = folder, request
        self.record = read(folder / "study.db")
        self.study = read_study(folder / "study.toml")
        self.trial = choose_trial(self.record, request.trial)
        self.start, self.manifest = _starting_weights(folder, self.record, self.trial, request)
        self.data = _load_data(self.study, self.record, self.manifest, request)
        self.hparams = _hparams(self.trial, request)
        self.new_head = tuple(self.data.classes) != tuple(self.manifest["classes"])
        self.fitted_study = _fit_study(self.study, self.data)
        self.task = make_task(self.fitted_study, self.data)
        section = self.study.finetune
        by_default = self.study.train.epochs if request.new_task else max(1, self.study.train.epochs // 3)
        self.epochs = request.epochs or section.epochs or by_default
        patterns = request.layers or (tuple(section.layers) if section.layers else ("all",))
        self.trained = _trained_modules(self._fresh(0), patterns)

    def events(self, stop: Callable[[], bool]) -> Iterator[Epoch | Finetuned]:
        from tunecli.engine.batches import batch_length
        from tunecli.engine.task import evaluate

        joined = _join(self.data.train, self.data.validation)
        run = Run(
            self.trial.number,
            derive_seed(self.study.seed, self.trial.number, "finetune"),
            self.hparams,
            self.epochs,
            schedule="cosine",
        )
        test = self.data.test
        before = evaluate(self.task, self._prepared(run), test)
        found: list[dict[str, Tensor]] = []
        for of, build in (
            ("fine-tuning", self._prepared),
            ("from scratch", lambda own: self._fresh(own.seed("weights"))),
        ):
            task = replace(self.task, train=joined, validation=None, build=build)
            weights = yield from _train(task, run, of, self.request.device, stop)
            if weights is None:
                return
            found.append(weights)
        after, scratch = (evaluate(self.task, self._loaded(weights), test) for weights in found)
        updates = self.epochs * -(-len(joined) // batch_length(self.hparams["batch_size"], len(joined)))
        used = not better(before, after, self.task.metric.direction)
        yield self._write(found[0], before, after, scratch, updates, len(joined), used)

    def _write(
        self,
        weights: Mapping[str, Tensor],
        before: float,
        after: float,
        scratch: float,
        updates: int,
        samples: int,
        used: bool,
    ) -> Finetuned:
        """The checkpoint, then the record of the reading; only then the result is told."""
        place = _next_folder(self.folder / "finetuned")
        reading = (
            sum(own.split == "test" and own.values.get("data") == self.data.name for own in self.record.readings) + 1
        )
        result = Finetuned(
            study=self.study.name,
            trial=self.trial.number,
            data=self.data.name,
            metric=self.task.metric.name,
            direction=self.task.metric.direction,
            before=before,
            after=after,
            scratch=scratch,
            updates=updates,
            updates_before=0 if self.request.checkpoint else int(self.manifest["updates"]),
            epochs=self.epochs,
            samples=samples,
            learning_rate=float(self.hparams["learning_rate"]),  # type: ignore[arg-type]  # a number by the space
            trained=self.trained,
            new_head=self.new_head,
            reading=reading,
            used=used,
            checkpoint=place,
            saved=self.request.save,
        )
        manifest = {
            **self.manifest,
            "source": str(self.request.checkpoint or f"trial-{self.trial.number}"),
            "hparams": dict(self.hparams),
            "classes": list(self.data.classes),
            "features": list(self.data.features),
            "task": self.data.task,
            "preprocessing": dict(self.data.preprocessing),
            "finetuned": {
                "data": self.data.name,
                "before": before,
                "after": after,
                "scratch": scratch,
                "split": "test",
            },
            "used": used,
        }
        manifest["metric"], manifest["value"], manifest["split"] = self.task.metric.name, after, "test"
        checkpoint.save(place, weights, manifest)
        if self.request.save is not None:
            _save_state_dict(self.request.save, weights)
        store = Store(self.folder / "study.db", self.study.space)
        values = {"data": self.data.name, "metric": result.metric, "before": before, "after": after, "scratch": scratch}
        store.read_split("test", "finetune", self.trial.number, values)
        store.flush()
        store.close()
        return result

    def _fresh(self, seed: int) -> nn.Module:
        """The model with new weights, and with a new head where the classes are other ones."""
        from tunecli.engine.task import build_model

        module = build_model(self.study, self._original(), self.trial.hparams, seed)
        if self.new_head:
            _replace_head(module, self.task_outputs(), seed)
        return module

    def task_outputs(self) -> int:
        from tunecli.metrics import DEFAULT_LOSS, LOSSES

        return LOSSES[self.fitted_study.train.loss or DEFAULT_LOSS[self.data.task]].outputs(len(self.data.classes))

    def _original(self) -> Data:
        """The data's shape with the classes that the checkpoint was trained on, which its model was built for."""
        return replace(self.data, classes=tuple(self.manifest["classes"]), task=self.manifest["task"])

    def _prepared(self, run: Run) -> nn.Module:
        """The model with the starting weights, frozen but for what trains."""
        module = self._fresh(run.seed("head"))
        kept = dict(self.start)
        if self.new_head:
            own = head_name(module)
            kept = {name: tensor for name, tensor in kept.items() if not name.startswith(f"{own}.")}
        _load(module, kept, allow_missing=self.new_head, where=self.request.checkpoint)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(any(_within(name, part) for part in self.trained))
        return module

    def _loaded(self, weights: Mapping[str, Tensor]) -> nn.Module:
        module = self._fresh(0)
        module.load_state_dict(dict(weights))
        return module


def choose_trial(record: Record, number: int | None) -> Trial:
    """The best complete trial, or trial `number`. Raises NoUsableTrial or InputError where it has no checkpoint."""
    if number is None:
        best = best_trial(list(record.trials), record.direction)
        if best is None:
            raise NoUsableTrial(f"{record.name} has no complete trial yet", hint=f"tunecli search {record.name}")
        return best
    if number >= len(record.trials):
        raise InputError(
            f"{record.name} has no trial {number}: it has {len(record.trials)} trials, counted from 0",
            hint=f"tunecli report {record.name} lists the best",
        )
    if number not in record.kept:
        kept = ", ".join(str(own) for own in sorted(record.kept)) or "none"
        raise InputError(f"trial {number} has no checkpoint; kept are those of {kept}", hint="choose one of these")
    return record.trials[number]


def head_name(module: nn.Module) -> str:
    """The name of the last module that has weights of its own."""
    return _parametrized(module)[-1]


def _train(
    task: Task, run: Run, of: str, device: str, stop: Callable[[], bool]
) -> Generator[Epoch, None, dict[str, Tensor] | None]:
    """Train one run to its end; returns its weights, or None where a signal came first."""
    from tunecli.engine import LocalEngine, choose_plan, resolve_device

    weights = sum(p.numel() for p in task.build(run).parameters() if p.requires_grad)
    engine = LocalEngine(task, choose_plan(weights, window=1), resolve_device(device))
    engine.start(run)
    while not stop():
        for measured in engine.advance(time.monotonic() + PAUSE_SECONDS):
            yield Epoch(of, measured.fidelity, run.epochs, measured.train_loss)
            if measured.failure is not None:
                raise NoUsableTrial(f"{of} {measured.failure}", hint="try a smaller rate: --set learning_rate=...")
            if measured.fidelity == run.epochs:
                return engine.weights(run)
    return None


def _starting_weights(
    folder: Path, record: Record, trial: Trial, request: Request
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    place = folder / "checkpoints" / f"trial-{trial.number}"
    if request.checkpoint is not None:
        return _read_weights(request.checkpoint), checkpoint.load_manifest(place)
    weights, manifest = checkpoint.load(place)
    if record.kept.get(trial.number) != manifest["sha256"]:
        raise CheckpointError(f"damaged checkpoint: {place} is not the one that the study recorded")
    return weights, manifest


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch.save or as safetensors; nothing in the file is executed."""
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not theirs
        raise CheckpointError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0]}",
            hint="save it with torch.save(model.state_dict(), FILE)",
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no state dict", hint="save it with torch.save(model.state_dict(), FILE)")
    return dict(found)


def _load(module: nn.Module, weights: Mapping[str, Tensor], *, allow_missing: bool, where: Path | None) -> None:
    own = module.state_dict()
    unknown = [name for name in weights if name not in own]
    missing = [] if allow_missing else [name for name in own if name not in weights]
    other = [
        f"{name} is {tuple(weights[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in weights
        if name in own and weights[name].shape != own[name].shape
    ]
    faults = other + [f"{name} is not in the model" for name in unknown] + [f"{name} is missing" for name in missing]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{where or 'the checkpoint'} does not fit the model: {'; '.join(faults[:3])}{more}",
            hint="the model must be the one whose weights were saved",
        )
    module.load_state_dict(dict(weights), strict=not allow_missing)


def _load_data(study: Study, record: Record, manifest: Mapping[str, Any], request: Request) -> Data:
    section = study.data
    if request.data is None:
        return data_room.load(
            section.source,
            section.keys,
            base=study.base,
            seed=study.seed,
            split=tuple(section.split),
            target=section.target,
            task=section.task,
        )
    data = data_room.load(
        request.data,
        request.data_keys or {},
        base=Path.cwd(),
        seed=study.seed,
        split=tuple(section.split),
        target=request.target or section.target,
        fitted=manifest["preprocessing"],
    )
    if list(data.features) != list(manifest["features"]):
        raise InputError(
            f"{data.name} has samples of shape {data.features}, the checkpoint was trained on "
            f"{tuple(manifest['features'])}",
            hint="a model can be trained on with samples of the same features only",
        )
    return data


def _fit_study(study: Study, data: Data) -> Study:
    """The study with loss and metric left to their defaults where the new data are of another kind."""
    from tunecli.metrics import LOSSES, METRICS

    loss, metric = study.train.loss, study.train.metric
    if loss is not None and (
        LOSSES[loss].task != data.task or (loss == "binary_cross_entropy" and len(data.classes) != 2)
    ):
        loss = None
    if metric is not None and METRICS[metric].task not in (None, data.task):
        metric = None
    return replace(study, train=study.train.model_copy(update={"loss": loss, "metric": metric}))


def _hparams(trial: Trial, request: Request) -> Hparams:
    """The trial's hparams with the given ones laid over; a tenth of the learning rate on the study's own task."""
    hparams: dict[str, Value] = dict(trial.hparams)
    if not request.new_task:
        hparams["learning_rate"] = float(hparams["learning_rate"]) / 10  # type: ignore[arg-type]  # a number by the space
    for name, raw in (request.hparams or {}).items():
        if name.startswith("model."):
            raise UsageError(f"{name} cannot change: the checkpoint's model has the shape it has")
        hparams[name] = parse_value(name, raw)
    return hparams


def _trained_modules(module: nn.Module, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the modules that train, by globs over module names; "head" is the last one, "all" is all."""
    names = _parametrized(module)
    found: list[str] = []
    for pattern in patterns:
        if pattern == "all":
            matched = names
        elif pattern == "head" and "head" not in names:
            matched = [names[-1]]
        else:
            matched = [name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not matched:
            raise UsageError(
                f"no layer of the model matches {pattern!r}", hint=f"its layers: {', '.join(names)}; or head, all"
            )
        found += [name for name in matched if name not in found]
    return tuple(found)


def _parametrized(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if next(part.parameters(recurse=False), None) is not None]


def _within(parameter: str, module: str) -> bool:
    return parameter.startswith(f"{module}.") if module else "." not in parameter


def _replace_head(module: nn.Module, outputs: int, seed: int) -> None:
    """Put a new last layer with `outputs` outputs in the place of the old one, its weights drawn from `seed`."""
    import torch
    from torch import nn

    name = head_name(module)
    old = module.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise InputError(
            f"the last layer {name!r} is a {type(old).__name__}: other classes need a Linear to replace",
            hint="end the model with nn.Linear",
        )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 0, "head"))
        head = nn.Linear(old.in_features, outputs, bias=old.bias is not None, dtype=old.weight.dtype)
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, head)


def _join(first: Samples, second: Samples) -> Samples:
    import torch

    from tunecli.data import Samples

    return Samples(torch.cat([first.inputs, second.inputs]), torch.cat([first.targets, second.targets]))


def _save_state_dict(path: Path, weights: Mapping[str, Tensor]) -> None:
    import torch

    try:
        torch.save(dict(weights), path)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot write {path}: {error}", hint="choose another file with --save") from error


def _next_folder(parent: Path) -> Path:
    taken = [int(own.name) for own in parent.glob("*") if own.name.isdigit()]
    return parent / str(max(taken, default=0) + 1)
