"""The training itself: a trial chosen, its model made ready, trained on beside the same model from scratch."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunecli import checkpoint
from tunecli import data as data_room
from tunecli.data import Data
from tunecli.data.samples import stored_features
from tunecli.engine import LocalEngine, Plan, choose_plan, resolve_device
from tunecli.engine.task import build_model, check_metric, evaluate, make_task, outputs_of
from tunecli.errors import InputError, NoUsableTrial, SpaceError, UsageError, did_you_mean
from tunecli.finetune import Epoch, Event, Finetuned, Notice, Request
from tunecli.finetune.weights import freeze, read_weights, save_state_dict, trained_layers
from tunecli.metrics import LOSSES, METRICS
from tunecli.models.head import has_other_head, head_name, load_weights, replace_head
from tunecli.snapshots import Kept, Snapshots, code_of
from tunecli.space import OPTIMIZERS, Space, parse_value, settings_of
from tunecli.store import Record, Store, load_kept, read
from tunecli.study import Study, load_data, read_study, targets_of
from tunecli.trial import Hparams, Run, Trial, Value, better, derive_seed

PAUSE_SECONDS = 0.1
"""How long the engine works before signals are looked at."""


class Training:
    """One fine-tuning of one trial."""

    def __init__(self, folder: Path, request: Request) -> None:
        if request.save is not None and not request.save.absolute().parent.is_dir():
            # Said now: training would be in vain.
            raise UsageError(f"cannot write {request.save}: its folder does not exist", hint="choose another --save")
        self.folder, self.request = folder, request
        self.record = read(folder / "study.db")
        self.study = read_study(folder / "study.toml")
        kept = load_kept(folder, self.record, request.trial)
        self.trial, self.manifest = kept.trial, kept.manifest
        self.start = kept.weights if request.checkpoint is None else read_weights(request.checkpoint)
        self.data = _load_data(self.study, self.record, self.manifest, request)
        # What there is to know of the study's own data was said when it was searched.
        self.notices = kept.notices if request.data is None else (*kept.notices, *self.data.notices)
        self.hparams = _hparams(self.trial, request, self.data)
        self.new_head = list(self.data.classes) != self.manifest["classes"]
        self.fitted_study = _fit_study(self.study, self.data)
        self.task = make_task(self.fitted_study, self.data)
        check_metric(self.task.metric, self.data.test, self.data, "test")
        section = self.study.finetune
        by_default = self.study.train.epochs if request.new_task else max(1, self.study.train.epochs // 3)
        self.epochs = request.epochs or section.epochs or by_default
        patterns = request.layers or (tuple(section.layers) if section.layers else ("all",))
        self.trained = trained_layers(self._fresh(0), patterns)
        # Weights of the user's own may bring the head for these classes, or one for others.
        own = request.checkpoint is not None
        self.fresh_head = has_other_head(self._fresh(0), self.start) if own else self.new_head

    def events(self, stop: Callable[[], bool]) -> Iterator[Event]:
        yield from map(Notice, self.notices)
        joined = data_room.joined(self.data.train, self.data.validation)
        run = Run(
            self.trial.number,
            derive_seed(self.study.seed, self.trial.number, "finetune"),
            self.hparams,
            self.epochs,
            # Down to zero over the epochs of this training, whatever the search did.
            settings={**self.study.train.settings, "schedule": "cosine"},
        )
        test = self.data.test
        found: list[dict[str, Tensor]] = []
        every = []
        for of, build in (
            ("fine-tuning", self._prepared),
            ("from scratch", lambda own: self._fresh(own.seed("weights"))),
        ):
            task = replace(self.task, train=joined, validation=None, build=build, trial_seconds=None)
            trainable = sum(p.numel() for p in build(run).parameters() if p.requires_grad)
            plan = choose_plan(trainable, window=1)
            engine = LocalEngine(task, plan, resolve_device(self.request.device))
            every.append(snapshots := self._snapshots(of, plan))
            weights = yield from _train(engine, run, of, snapshots, stop)
            if weights is None:
                return
            updates = run.epochs * engine.epoch_updates(run)
            found.append(weights)
        # The test split is read here, all at once and after all training: a stop before has not read it.
        settings = settings_of(self.study.train.settings, self.trial.hparams)  # as the search measured
        before = evaluate(self.task, self._prepared(run), test, settings)
        after, scratch = (
            evaluate(self.task, self._loaded(weights), test, settings) if weights else math.nan for weights in found
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
            samples=len(joined),
            schedule=str(self.hparams.get("schedule", "cosine")),
            learning_rate=float(self.hparams["learning_rate"]),  # type: ignore[arg-type]  # a number by the space
            trained=self.trained,
            new_head=self.fresh_head,
            start=str(self.request.checkpoint or f"trial {self.trial.number}"),
            reading=1 + sum(own.values.get("samples") == self.data.fingerprint() for own in self.record.readings),
            used=math.isfinite(after) and not better(before, after, self.task.metric.direction),
            checkpoint=_next_folder(self.folder / "finetuned"),
            saved=self.request.save,
        )
        self._write(result, found[0])
        for snapshots in every:
            snapshots.remove(self.trial.number)  # an interrupted training of another trial has its own there
        yield result

    def _snapshots(self, of: str, plan: Plan) -> Snapshots:
        document = self.fitted_study.document()
        start = hashlib.sha256()
        for name, tensor in sorted(self.start.items()):
            start.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            start.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        made_by = {name: document[name] for name in ("model", "train")}
        made_by |= {"of": of, "plan": plan.as_dict(), "samples": self.data.fingerprint(), "start": start.hexdigest()}
        made_by |= {"trained": self.trained, "head": self.fresh_head, "code": code_of(document, self.study.base)}
        return Snapshots(self.folder / "snapshots" / of.replace(" ", "-"), made_by)

    def _write(self, result: Finetuned, weights: Mapping[str, Tensor]) -> None:
        """The checkpoint, then the record of the reading; only then the result is told."""
        read_now: dict[str, Any] = {
            "data": result.data,
            "samples": self.data.fingerprint(),
            "metric": result.metric,
            "split": "test",
        }
        read_now |= {"before": result.before, "after": result.after, "scratch": result.scratch}
        manifest = {
            **self.manifest,
            "source": str(self.request.checkpoint or f"trial-{self.trial.number}"),
            "updates": result.updates_before + result.updates,
            "hparams": dict(self.hparams),
            "classes": list(self.data.classes),
            "features": self.data.features,
            "model": {**self.manifest["model"], "outputs": self._outputs()},
            "task": self.data.task,
            "preprocessing": dict(self.data.preprocessing),
            "metric": result.metric,
            "value": result.after,
            "split": "test",
            "finetuned": read_now,
            "used": result.used,
        }
        checkpoint.save(result.checkpoint, weights, manifest)
        store = Store(self.folder / "study.db", self.study.space)
        store.read_split("test", "finetune", self.trial.number, read_now)
        store.flush()
        store.close()
        if self.request.save is not None:
            save_state_dict(self.request.save, weights)

    def _fresh(self, seed: int) -> nn.Module:
        """The model with new weights, and with a new head where the classes are other ones."""
        module = build_model(self.study, self._original(), self.trial.hparams, seed)
        if self.new_head:
            replace_head(module, self._outputs(), seed)
        return module

    def _outputs(self) -> int:
        return outputs_of(self.fitted_study, self.data, self.hparams)

    def _original(self) -> Data:
        """The data's shape with the classes that the checkpoint was trained on, which its model was built for."""
        return replace(self.data, classes=tuple(self.manifest["classes"]), task=self.manifest["task"])

    def _prepared(self, run: Run) -> nn.Module:
        """The model with the starting weights, frozen but for what trains."""
        module = self._fresh(run.seed("head"))
        fresh = head_name(module) if self.fresh_head else None
        load_weights(module, self.start, fresh=fresh, where=self.request.checkpoint)
        freeze(module, self.trained)
        return module

    def _loaded(self, weights: Mapping[str, Tensor]) -> nn.Module:
        module = self._fresh(0)
        module.load_state_dict(dict(weights))
        return module


def _train(
    engine: LocalEngine, run: Run, of: str, snapshots: Snapshots, stop: Callable[[], bool]
) -> Generator[Event, None, dict[str, Tensor] | None]:
    """Train one run to its end, from its snapshot where there is one; returns its weights (none of a run from scratch
    that failed), or None on a signal."""
    kept, note = snapshots.load(run)
    if note is not None:
        yield Notice(note)
    done = 0 if kept is None else kept.snapshot.fidelity
    if kept is None:
        engine.start(run)
    else:
        engine.restore(run, kept.snapshot)

    def take(own: Run) -> Kept | None:
        snapshot = engine.snapshot(own)
        return None if snapshot is None else Kept(snapshot)

    while done < run.epochs:
        if stop():
            yield from map(Notice, snapshots.write([run], take))
            return None
        for measured in engine.advance(time.monotonic() + PAUSE_SECONDS):
            done = measured.fidelity
            yield Epoch(of, done, run.epochs, measured.train_loss)
            if measured.failure is not None and of == "from scratch":
                return {}  # what it is compared with has nothing to show; the fine-tuning has
            if measured.failure is not None:
                raise NoUsableTrial(f"{of} {measured.failure}", hint="try a smaller rate: --set learning_rate=...")
        if snapshots.due or done == run.epochs:
            # At its end too: a kill in what comes after must not have it trained again.
            yield from map(Notice, snapshots.write([run], take))
    return engine.weights(run)


def _load_data(study: Study, record: Record, manifest: Mapping[str, Any], request: Request) -> Data:
    if request.data is None:
        data = load_data(study)
        if data.fingerprint() != record.data_hash:
            raise InputError(
                f"{data.name} holds other samples than when the study was searched",
                hint="restore them, or name them as --data",
            )
        return data
    data = data_room.load(
        request.data,
        request.data_keys or {},
        base=Path.cwd(),
        seed=study.seed,
        split=tuple(study.data.split),
        target=request.target or study.data.target,
        fitted=manifest["preprocessing"],
        targets=targets_of(study),
        cache=study.data.cache,
        workers=study.data.workers,
        scale_bytes=manifest["preprocessing"]["kind"] == "bytes",
    )
    features = stored_features(manifest["features"])
    if data.features != features:
        raise InputError(
            f"{data.name} has samples of shape {data.features}, the checkpoint was trained on {features}",
            hint="a model can be trained on with samples of the same features only",
        )
    return _weighed(data, study)


def _weighed(data: Data, study: Study) -> Data:
    """New data with their classes weighed as the study's are, where they are the same, or a notice that they are not;
    rows with weights are the study's own."""
    notices: list[str] = []
    class_weight = study.train.class_weight
    if class_weight is not None:
        named = class_weight if isinstance(class_weight, Mapping) else ()
        if data.task == "classification" and set(named) <= set(data.classes):
            data = data_room.weigh(data, class_weight)
        else:
            notices.append(f"class_weight is left out: {data.name} has other classes")
    if study.data.weight is not None:
        notices.append(f"each row of {data.name} counts alike: data.weight is for the study's own data")
    return replace(data, notices=(*data.notices, *notices))


def _fit_study(study: Study, data: Data) -> Study:
    """The study with loss and metric left to their defaults where the new data are of another kind; the user's own
    functions stay."""
    train: dict[str, Any] = {}
    if study.train.loss is not None and not _loss_fits(study.train.loss, data):
        train["loss"] = None
    metric = METRICS.get(study.train.metric or "")
    if metric is not None and (metric.task not in (None, data.task) or (metric.binary and len(data.classes) != 2)):
        train["metric"] = None
    if data.task == "regression":
        train["label_smoothing"] = 0.0
    # What the trials searched of the loss is among the hparams, where it still fits.
    dimensions = tuple(own for own in study.space.dimensions if own.hparam not in ("loss", "label_smoothing"))
    return replace(study, train=study.train.model_copy(update=train), space=Space(dimensions))


def _loss_fits(loss: str, data: Data) -> bool:
    if loss not in LOSSES:
        return True  # a user's own
    return LOSSES[loss].task == data.task and (loss != "binary_cross_entropy" or len(data.classes) == 2)


def _hparams(trial: Trial, request: Request, data: Data) -> Hparams:
    """The trial's hparams with the given ones laid over; a tenth of the learning rate on the study's own task."""
    hparams: dict[str, Value] = {name: value for name, value in trial.hparams.items() if name != "schedule"}
    if "loss" in hparams and not _loss_fits(str(hparams["loss"]), data):
        del hparams["loss"]
    if not request.new_task:
        hparams["learning_rate"] = float(hparams["learning_rate"]) / 10  # type: ignore[arg-type]  # a number by the space
    for name, raw in (request.hparams or {}).items():
        if name.startswith("model."):
            raise UsageError(f"{name} cannot change: the checkpoint's model has the shape it has")
        try:
            hparams[name] = parse_value(name, raw)
        except SpaceError as error:
            raise UsageError(f"--set {name}: {error.message}", hint=error.hint or "--set learning_rate=0.01") from error
        if hparams.get("schedule") == "plateau":
            raise UsageError("plateau goes by validation, which fine-tuning trains on", hint="--set schedule=cosine")
        if name == "optimizer" and raw not in OPTIMIZERS:
            # Code is taken from the study file only, which named it when the study began.
            raise UsageError(f"{raw} is no optimizer of tunecli's own", hint=did_you_mean(str(raw), OPTIMIZERS))
    return hparams


def _next_folder(parent: Path) -> Path:
    taken = [int(own.name) for own in parent.glob("*") if own.name.isdigit()]
    return parent / str(max(taken, default=0) + 1)
