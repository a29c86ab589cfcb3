"""C of our own: built by the machine's own compiler, once, and kept in the user's cache.

torch.compile would need the same compiler, eight seconds for each shape, and a second to import; this takes two
seconds of a core for all of them.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tunecli.files import cache_folder, make_folder
from tunecli.machine import cores, processor

HERE = Path(__file__).parent / "engine" / "c"
SOURCES, HEADERS = (sorted(HERE.glob(own), key=lambda path: -path.stat().st_size) for own in ("*.c", "*.h"))
"""The longest first, for some are built at a time."""

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-pthread")
"""None of them changes what is computed: no product is contracted with a sum, and nothing is reordered."""


def load(real: str) -> ctypes.CDLL | None:
    """The library of `SOURCES` for numbers of a kind of C's, as it is kept, or built now, which takes a moment.

    None where there is no compiler, or none whose work can be loaded. `CC` says which, as everywhere; where that one
    does not work no other is tried. Where another process builds already, it is waited for.
    """
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        command = _command(real)
        if command is None:
            return None
        name = _name(command)
        kept = _kept(name)
        if kept is None:
            with _alone():
                kept = _kept(name)
                if kept is None:
                    return _build(command, name)
        return ctypes.CDLL(str(kept))
    return None


def begin(real: str = "float") -> subprocess.Popen[bytes] | None:
    """Have another process build what `load` will be asked for, while this one does other things, before which it does
    not push: on two cores a search then begins three quarters of a second sooner. It ends by itself.

    None where nothing is to be built, or no core is left for it.
    """
    with suppress(OSError, ValueError):
        command = _command(real)
        if command is not None and _kept(_name(command)) is None and cores() > 1:
            own = f"sys.path[:] = {sys.path!r}; from tunecli.building import load; load({real!r})"
            program = f"import os, sys; os.nice(10); {own}"
            nothing = subprocess.DEVNULL
            return subprocess.Popen([sys.executable, "-c", program], stdin=nothing, stdout=nothing, stderr=nothing)
    return None


def _command(real: str) -> list[str] | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return None if compiler is None else [*shlex.split(compiler), *FLAGS, f"-DREAL={real}"]


def _name(command: list[str]) -> str:
    """Of what the compiler makes of the sources here."""
    made_of = command, _instructions(), [own.read_text() for own in (*SOURCES, *HEADERS)]
    return _digest(repr(made_of).encode())


def _kept(name: str) -> Path | None:
    """The library of that name, if it is in the cache, and whole: half of one can be loaded, and then ends the process.
    So its own digest is in its name."""
    with suppress(OSError):
        for kept in cache_folder("compiled").glob(f"{name}-*.so"):
            if kept.stem == f"{name}-{_digest(kept.read_bytes())}":
                return kept
    return None


@contextmanager
def _alone() -> Iterator[None]:
    """While no other process of the user's builds, where that can be told."""
    descriptor = None
    with suppress(OSError):
        make_folder(cache_folder("compiled"))
        descriptor = os.open(cache_folder("compiled"), os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _build(command: list[str], name: str) -> ctypes.CDLL:
    """Build the library, and keep it for the next time where it can be. Raises OSError, SubprocessError."""
    with _scratch() as scratch:
        built = Path(scratch, "library.so")
        objects = [str(Path(scratch, f"{own.stem}.o")) for own in SOURCES]
        told = [[*command, "-c", "-o", name, str(own)] for name, own in zip(objects, SOURCES, strict=True)]
        with ThreadPoolExecutor() as pool:  # two seconds, by one after the other
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
