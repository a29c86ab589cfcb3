"""The training itself: a trial chosen, its model made ready, trained on beside the same model from scratch."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunecli import data as data_room
from tunecli.data import Data
from tunecli.engine import LocalEngine, choose_plan, resolve_device
from tunecli.engine.compiler import can_compile
from tunecli.engine.gradients import filters
from tunecli.engine.plan import TRIED
from tunecli.engine.task import build_model, check_metric, evaluate, make_task, outputs_of
from tunecli.errors import CheckpointError, NoUsableTrial, UsageError
from tunecli.finetune import Epoch, Event, Finetuned, Notice, Request, finished
from tunecli.finetune.fitting import data_of, fit_study, hparams_of, recipe_of
from tunecli.finetune.weights import freeze, read_weights, save_state_dict, trained_layers
from tunecli.models.head import has_other_head, head_name, load_weights, replace_head
from tunecli.patience import PAUSE_SECONDS
from tunecli.snapshots import Kept, Snapshots, code_of, key_of
from tunecli.space import settings_of
from tunecli.storage import Database
from tunecli.store import Store, load_kept, read
from tunecli.study import read_study
from tunecli.study.code import MADE_NOW, changed_code, code_of_model
from tunecli.trial import Run, better, derive_seed


class Training:
    """One fine-tuning of one trial."""

    def __init__(self, folder: Path, database: Database, request: Request) -> None:
        if request.save is not None and not request.save.absolute().parent.is_dir():
            # Said now: training would be in vain.
            raise UsageError(f"cannot write {request.save}: its folder does not exist", hint="choose another --save")
        self.folder, self.database, self.request = folder, database, request
        self.record = read(database)
        self.study = read_study(folder / "study.toml")
        kept = load_kept(folder, self.record, request.trial)
        self.trial, self.manifest = kept.trial, kept.manifest
        self.start = kept.weights if request.checkpoint is None else read_weights(request.checkpoint)
        self.data = data_of(self.study, self.record, self.manifest, request)
        # What there is to know of the study's own data was said when it was searched.
        self.notices = kept.notices if request.data is None else (*kept.notices, *self.data.notices)
        self.hparams = hparams_of(self.trial, request, self.data)
        # From scratch by the trial's own recipe: the small learning rate of fine-tuning would leave it half trained.
        self.scratch_hparams = {**recipe_of(self.trial, self.data), "batch_size": self.hparams["batch_size"]}
        self.new_head = list(self.data.classes) != self.manifest["classes"]
        self.fitted_study = fit_study(self.study, self.data)
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
        changed = changed_code(self.manifest, self.study.base)
        if changed is not None and self.request.checkpoint is None:
            yield Notice(f"{changed}: {MADE_NOW}")
        run = Run(
            self.trial.number,
            derive_seed(self.study.seed, self.trial.number, "finetune"),
            self.hparams,
            self.epochs,
            # Down to zero over the epochs of this training, whatever the search did.
            settings={**self.study.train.settings, "schedule": "cosine"},
        )
        from_scratch = replace(run, hparams=self.scratch_hparams)
        made_by = self._made_by()
        key = key_of(made_by, run)
        earlier = finished.places_of(self.folder / "finetuned", key)
        # A snapshot belongs to one training alone: what an earlier one of the same key left says nothing of the next.
        made_by["earlier"] = len(earlier)
        asked = [
            ("fine-tuning", self._prepared, run),
            ("from scratch", lambda own: self._fresh(own.seed("weights")), from_scratch),
        ]
        # One at a time: each has the samples on its device.
        legs = (self._leg(of, build, own, made_by) for of, build, own in asked)
        first = next(legs)
        if self.request.fresh:
            self._remove_snapshots()
        elif earlier and first.snapshots.load(run)[0] is None:
            try:
                result, weights, manifest = finished.load(earlier[-1], self.study.name, self.request.save)
            except CheckpointError as error:
                yield Notice(f"{error.message}: it is trained anew")
            else:
                yield self._finish(result, weights, manifest)
                return
        trained: list[dict[str, Tensor]] = []
        for leg in chain((first,), legs):
            leg_weights = yield from _train(leg, stop)
            leg.engine.close()
            if leg_weights is None:
                return
            trained.append(leg_weights)
        result = self._result(run, trained, updates=run.epochs * first.engine.epoch_updates(run))
        manifest = self._manifest(result)
        finished.save(result, trained[0], manifest, key)
        yield self._finish(result, trained[0], manifest)

    def _leg(self, of: str, build: Callable[[Run], nn.Module], run: Run, made_by: Mapping[str, Any]) -> _Leg:
        joined = data_room.joined(self.data.train, self.data.validation)
        task = replace(self.task, train=joined, validation=None, build=build, trial_seconds=None)
        module = build(run)
        trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
        device = resolve_device(self.request.device)
        can = can_compile(device)
        engine = LocalEngine(task, TRIED.with_compiled(can), device)
        native = engine.traits(run).native
        batch = run.hparams["batch_size"]
        smallest = batch if isinstance(batch, int) else len(joined)
        plan = choose_plan(trainable, 1, smallest, convolves=bool(filters(module)), native=native).with_compiled(can)
        engine.plan_by(plan)
        return _Leg(of, run, engine, self._snapshots(of, {**made_by, "of": of, "plan": plan.as_dict()}))

    def _snapshots(self, of: str, made_by: Mapping[str, Any]) -> Snapshots:
        return Snapshots(self.folder / "snapshots" / of.replace(" ", "-"), made_by)

    def _remove_snapshots(self) -> None:
        """Those of this trial: an interrupted training of another one has its own there."""
        for of in ("fine-tuning", "from scratch"):
            self._snapshots(of, {}).remove(self.trial.number)

    def _made_by(self) -> dict[str, Any]:
        """What the weights depend on beside their run."""
        document = self.fitted_study.document()
        start = hashlib.sha256()
        for name, tensor in sorted(self.start.items()):
            start.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            start.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        made_by = {name: document[name] for name in ("model", "train")}
        made_by |= {"samples": self.data.fingerprint(), "start": start.hexdigest(), "trained": self.trained}
        made_by |= {"head": self.fresh_head, "scratch": self.scratch_hparams}
        return made_by | {"code": code_of(document, self.study.base)}

    def _result(self, run: Run, trained: Sequence[Mapping[str, Tensor]], updates: int) -> Finetuned:
        """What came of it. The test split is read here, all at once and after all training: a stop before has not
        read it."""
        settings = settings_of(self.study.train.settings, self.trial.hparams)  # as the search measured
        before = evaluate(self.task, self._prepared(run), self.data.test, settings)
        after, scratch = (
            evaluate(self.task, self._loaded(weights), self.data.test, settings) if weights else math.nan
            for weights in trained
        )
        samples = self.data.fingerprint()
        return Finetuned(
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
            samples=len(self.data.train) + len(self.data.validation),
            schedule=str(self.hparams.get("schedule", "cosine")),
            learning_rate=float(self.hparams["learning_rate"]),  # type: ignore[arg-type]  # a number by the space
            scratch_learning_rate=float(self.scratch_hparams["learning_rate"]),  # type: ignore[arg-type]  # as above
            trained=self.trained,
            new_head=self.fresh_head,
            start=str(self.request.checkpoint or f"trial {self.trial.number}"),
            reading=1 + sum(own.values.get("samples") == samples for own in self.record.readings),
            used=math.isfinite(after) and not better(before, after, self.task.metric.direction),
            checkpoint=finished.next_place(self.folder / "finetuned"),
            saved=self.request.save,
        )

    def _manifest(self, result: Finetuned) -> dict[str, Any]:
        return {
            **self.manifest,
            "source": str(self.request.checkpoint or f"trial-{self.trial.number}"),
            "updates": result.updates_before + result.updates,
            "hparams": dict(self.hparams),
            "classes": list(self.data.classes),
            "features": self.data.features,
            "model": {**self.manifest["model"], "outputs": self._outputs()},
            "code": code_of_model(self.study),
            "task": self.data.task,
            "preprocessing": dict(self.data.preprocessing),
            "metric": result.metric,
            "value": result.after,
            "split": "test",
            "finetuned": {
                "data": result.data,
                "samples": self.data.fingerprint(),
                "metric": result.metric,
                "split": "test",
                "before": result.before,
                "after": result.after,
                "scratch": result.scratch,
                "checkpoint": result.checkpoint.name,
            },
            "used": result.used,
        }

    def _finish(self, result: Finetuned, weights: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Finetuned:
        """What follows the checkpoint, and does nothing twice: the reading recorded, and only then the result told."""
        reading = json.loads(json.dumps(manifest["finetuned"]))  # as it comes back from a database
        if not any(own.values == reading for own in self.record.readings):
            store = Store(self.database, self.study.space)
            store.read_split("test", "finetune", self.trial.number, manifest["finetuned"])
            store.flush()
            store.close()
        if self.request.save is not None:
            save_state_dict(self.request.save, weights)
        self._remove_snapshots()
        return result

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


@dataclass(frozen=True, slots=True)
class _Leg:
    """One of the two trainings of equal length: from the checkpoint on, and from scratch."""

    of: str
    run: Run
    engine: LocalEngine
    snapshots: Snapshots


def _train(leg: _Leg, stop: Callable[[], bool]) -> Generator[Event, None, dict[str, Tensor] | None]:
    """Train one run to its end, from its snapshot where there is one; returns its weights (none of a run from scratch
    that failed), or None on a signal."""
    of, run, engine, snapshots = leg.of, leg.run, leg.engine, leg.snapshots
    kept, note = snapshots.load(run)
    if note is not None:
        yield Notice(note)
    done = 0 if kept is None else kept.snapshot.fidelity
    if kept is not None:
        goes_on = f"goes on after epoch {done} of {run.epochs}" if done else "goes on in its first epoch"
        yield Notice(f"{of} {'was through' if done == run.epochs else goes_on}")
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
                key = "batch_size" if measured.failure.startswith("out of memory") else "learning_rate"
                raise NoUsableTrial(f"{of} {measured.failure}", hint=f"try a smaller one: --set {key}=...")
        if snapshots.due or done == run.epochs:
            # At its end too: a kill in what comes after must not have it trained again.
            yield from map(Notice, snapshots.write([run], take))
    return engine.weights(run)
