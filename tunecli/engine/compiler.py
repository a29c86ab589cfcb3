"""C of our own: built by the machine's own compiler, once, and kept in the user's cache.

torch.compile would need the same compiler, eight seconds for each shape, and a second to import; this takes half a
second for all of them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ctypes import c_int, c_ssize_t, c_void_p
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tunecli.files import cache_folder, make_folder
from tunecli.machine import processor

HERE = Path(__file__).parent
SOURCES = (
    HERE / "update.c",
    *(HERE / "rowwise" / f"{name}.c" for name in ("images", "losses", "products", "elementwise", "lanes", "network")),
)
HEADERS = HERE / "update.h", *(HERE / "rowwise" / f"{name}.h" for name in ("parts", "functions", "layers", "products"))
FUNCTIONS = {
    "update": (c_void_p, c_ssize_t, c_void_p, c_void_p, c_int),
    "unfold": (c_void_p, c_ssize_t, c_void_p, c_void_p),
    "fold": (c_void_p, c_ssize_t, c_void_p, c_void_p),
    "largest": (c_void_p, c_ssize_t, c_void_p, c_void_p),
    "cross_entropy": (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "to_largest": (c_void_p, c_ssize_t, c_void_p, c_void_p, c_void_p, c_void_p),
    "learn_step": (c_void_p, c_void_p, c_void_p, c_void_p, c_int),
    "evaluate": (c_void_p, c_void_p, c_ssize_t, c_void_p, c_void_p),
    "train": (c_void_p, c_void_p, c_void_p, c_void_p, c_ssize_t, c_ssize_t, c_int),
}
"""What the sources define, and what it is given; it returns nothing."""

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
"""None of them changes what is computed: no product is contracted with a sum, and nothing is reordered."""

_KINDS = {torch.float32: "float", torch.float64: "double"}


def can_compile(device: str) -> bool:
    """Whether a plan may compute in C here, with weights in float32."""
    return is_compiled(torch.float32, torch.device(device))


def is_compiled(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether such tensors are computed with in C where a plan says so. It takes a moment the first time."""
    return device.type == "cpu" and has_functions(dtype)


def has_functions(dtype: torch.dtype) -> bool:
    """Whether there are functions for numbers of this kind."""
    return dtype in _KINDS and library(dtype) is not None


@cache
def library(dtype: torch.dtype) -> Any:
    """The functions of `SOURCES` for such tensors; None where there is no compiler, or none whose work can be loaded.

    `CC` says which compiler, as everywhere; where that one does not work no other is tried.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with suppress(OSError, ValueError, subprocess.SubprocessError, AttributeError):
        found = _loaded([*shlex.split(compiler), *FLAGS, f"-DREAL={_KINDS[dtype]}"])
        for name, arguments in FUNCTIONS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, None
        return found
    return None


def _loaded(command: list[str]) -> ctypes.CDLL:
    """What a compiler makes of the sources, kept for the next time where it can be. Raises OSError, SubprocessError.

    What is kept has its own digest in its name: half of a library can be loaded, and then ends the process.
    """
    made_of = repr((command, _instructions(), [own.read_text() for own in (*SOURCES, *HEADERS)]))
    name = _digest(made_of.encode())
    with suppress(OSError):
        for kept in cache_folder("compiled").glob(f"{name}-*.so"):
            if kept.stem == f"{name}-{_digest(kept.read_bytes())}":
                return ctypes.CDLL(str(kept))
    with _scratch() as scratch:
        built = Path(scratch, "library.so")
        objects = [str(Path(scratch, f"{own.stem}.o")) for own in SOURCES]
        told = [[*command, "-c", "-o", name, str(own)] for name, own in zip(objects, SOURCES, strict=True)]
        with ThreadPoolExecutor() as pool:  # a second and a half, by one after the other
            list(pool.map(_run, told))
        _run([*command, "-shared", "-o", str(built), *objects, "-lm"])
        with suppress(OSError):
            built = built.rename(cache_folder("compiled") / f"{name}-{_digest(built.read_bytes())}.so")
        return ctypes.CDLL(str(built))


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _scratch() -> TemporaryDirectory[str]:
    """A folder to build in, for a moment: beside what is kept, for not every /tmp allows that programs are loaded."""
    with suppress(OSError):
        make_folder(cache_folder("compiled"))
        return TemporaryDirectory(dir=cache_folder("compiled"))
    return TemporaryDirectory()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _instructions() -> str:
    """What a CPU can do: one that only has the same name may not know all instructions of what was built here."""
    with suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        lines = {line.partition(":")[0].strip(): line for line in first.splitlines()}
        return "\n".join(lines[key] for key in _TELLING if key in lines)
    return processor()


_TELLING = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of /proc/cpuinfo, of x86 and of ARM."""
