"""What a search trains on: its data loaded and compared with those that it began with, its model tried with them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tunecli.data import Data, Samples
from tunecli.data.samples import Inputs
from tunecli.engine import resolve_device
from tunecli.errors import ModelError, OutOfMemory
from tunecli.search.fit import Fitted, fit
from tunecli.search.resume import contradiction
from tunecli.source import is_function
from tunecli.store import Record
from tunecli.study import Study, load_data


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A study that states how its data are read, the data with their fingerprint, and what was found of its model."""

    study: Study
    data: Data
    fingerprint: str
    fitted: Fitted


def make_ready(study: Study, record: Record | None, folder: Path, device: str) -> Ready:
    """Load the data and try the model. One that cannot read the numbers of a file of arrays but as they are, tokens
    that it looks up, gets them so: that is found out where a study begins, and stated from then on.

    Raises InputError where the study in `folder` was begun with other samples, and what `fit` raises.
    """
    study, data = _load(study)
    fingerprint = data.fingerprint()
    if record is not None and record.data_hash != fingerprint:
        raise contradiction(folder, [f"data.source: {data.name} holds other samples than it did"])
    device = resolve_device(device)
    scaled = is_function(study.model.source) and data.preprocessing.get("kind") == "array"
    try:
        fitted = fit(study, data, device, record)
    except OutOfMemory:
        raise
    except ModelError:
        found = _as_it_is(study, device) if scaled and record is None and study.data.as_is is None else None
        if found is None:
            raise
        return found
    return Ready(study, _noting(data, _scaled(data)) if scaled else data, fingerprint, fitted)


def _as_it_is(study: Study, device: str) -> Ready | None:
    """A new study whose model reads the whole numbers of its file as they are; None where they are none, or it does
    not."""
    study, data = _load(study.with_data(as_is=True))
    inputs = _first(data)
    if isinstance(inputs, tuple | dict) or inputs.is_floating_point():
        return None
    with suppress(ModelError):
        fitted = fit(study, data, device, None)
        told = f"{data.name}: its whole numbers are left as they are, for the model reads them only so"
        return Ready(study, _noting(data, told), data.fingerprint(), fitted)
    return None


def _load(study: Study) -> tuple[Study, Data]:
    """The data of a study, which then says whether they stream."""
    data = load_data(study)
    return study.with_data(stream=True) if data.streamed else study, data


def _noting(data: Data, told: str) -> Data:
    return replace(data, notices=(*data.notices, told))


def _scaled(data: Data) -> str:
    """What a model of the user's own, which may do the same once more, should know of a file of arrays."""
    done = (
        "0 to 255 become 0 to 1" if getattr(_first(data), "dtype", None) == torch.uint8 else "inputs are standardized"
    )
    return f"{data.name}: {done}; data.as_is = true leaves them as they are"


def _first(data: Data) -> Inputs:
    """The inputs of a sample of a file of arrays, as they lie there."""
    assert isinstance(data.train, Samples)
    return data.train.raw(slice(0, 1)).inputs
