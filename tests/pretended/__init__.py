"""A device that is none: it computes on the CPU, and refuses what a GPU refuses.

A tensor there holds one of the CPU, and every call of torch goes to that. A call that gets tensors of both, other than
numbers without dimensions, is an error, as on a GPU; and what the host reads of the device, and so waits for, is
counted. So it shows without a GPU that no path assumes a CPU, and where a tick waits.

To import it is to register it with torch, for a whole process: `tests/test_device.py` has one for it.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
HOST = torch.device("cpu")
aten = torch.ops.aten

calls: Counter[str] = Counter()
"""How often each operation was called for the device."""

waits: Counter[str] = Counter()
"""How often the host read something of the device, by who asked: the innermost line of ours."""


class There(Tensor):
    """A tensor on the device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        found: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=f"{NAME}:0",
        )
        found.held = held
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: There) -> None:
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.held = new.held

    def tolist(self) -> Any:
        _wait()
        return self.held.tolist()

    def data_ptr(self) -> int:
        raise RuntimeError("C of our own cannot read what is on a device")

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")


class Pretending(TorchDispatchMode):
    """Within, tensors are made on the device and sent there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [own for own in tree_leaves((args, kwargs)) if isinstance(own, Tensor)]
    there = [own for own in tensors if isinstance(own, There)]
    device = kwargs.get("device")
    if not there and not _is_there(device):
        return func(*args, **kwargs)
    calls[str(func)] += 1
    if func in (aten._to_copy.default, aten.copy_.default):
        return _copy(func, args, kwargs)
    if any(not isinstance(own, There) and own.dim() > 0 for own in tensors):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {NAME}:0 and cpu")
    if func in _READ:
        _wait()
    told = {**kwargs, "device": HOST} if "device" in kwargs else kwargs
    found = func(*_held(args), **_held(told))
    known = {id(own.held): own for own in there}  # what was written in place is itself
    return tree_map(lambda own: known.get(id(own), _there(own)), found)


def _copy(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is aten.copy_.default:
        to, own = args[:2]
        if isinstance(own, There) and not isinstance(to, There):
            _wait()
        _held(to).copy_(_held(own))
        return to
    (own,), device = args, kwargs.get("device", args[0].device)
    if isinstance(own, There) and not _is_there(device):
        _wait()
    found = func(_held(own), **{**kwargs, "device": HOST})
    return There(found) if _is_there(device) else found


_READ = (
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
)
"""What a host cannot go on without: its result, or how large that is."""


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _held(given: Any) -> Any:
    return tree_map_only(There, lambda own: own.held, given)


def _there(found: Any) -> Any:
    return There(found) if isinstance(found, Tensor) else found


def _wait() -> None:
    ours = [own for own in traceback.extract_stack() if "/tunecli/" in own.filename]
    waits[f"{ours[-1].filename.rpartition('/')[2]}: {ours[-1].line}" if ours else "a test"] += 1


class _Module:
    """What torch asks of `torch.NAME`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
_library = torch.library.Library("aten", "IMPL")  # where torch asks the device itself, past every mode


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return There(torch.empty_strided(size, stride, dtype=dtype, device=HOST))


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return There(torch.empty(size, dtype=dtype, device=HOST))


def _copy_from(own: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(own, There) and not isinstance(to, There):
        _wait()
    _held(to).copy_(_held(own))
    return to


_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
