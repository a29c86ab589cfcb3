"""A user's own code, named by a study file as `file.py:function`, loaded and called."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunecli.errors import SourceError, did_you_mean


def is_function(source: str) -> bool:
    """Whether `source` is written as `file.py:function`."""
    path, colon, name = source.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def function_name(source: str) -> str:
    """`function` of `file.py:function`."""
    return source.rpartition(":")[2]


def source_file(source: str, base: Path) -> Path:
    """The file that `file.py:function` names, relative to `base`."""
    return (base / source.rpartition(":")[0]).expanduser().resolve()


def which_function(path: Path, example: str) -> str:
    """How a function of a script is named, where the script alone was: its functions are read, nothing is run."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        body = []
    known = [own.name for own in body if isinstance(own, ast.FunctionDef) and not own.name.startswith("_")]
    return f"{path}:{example if example in known or not known else ' or :'.join(known)}"


def keys_of(source: str, base: Path) -> list[str] | None:
    """The names that the function named by `source` takes, read in its file, which is not executed; None where
    that does not say: it takes any, is made by another, or is not written there.
    """
    try:
        body = ast.parse(source_file(source, base).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None  # which is said when it is loaded
    named = [own for own in body if isinstance(own, ast.FunctionDef) and own.name == function_name(source)]
    if len(named) != 1 or named[0].decorator_list or named[0].args.kwarg is not None:
        return None
    return [own.arg for own in (*named[0].args.args, *named[0].args.kwonlyargs)]


def load_function(source: str, base: Path) -> Callable[..., Any]:
    """The function that `file.py:function` names; its file is executed. Raises SourceError."""
    path, name = source_file(source, base), source.rpartition(":")[2]
    if not path.is_file():
        raise SourceError(f"no such file: {path}", hint=f"paths in a study file are relative to it, here {base}")
    module_name = f"tunecli_user_{path.stem}_{hashlib.blake2b(bytes(path), digest_size=8).hexdigest()}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Registered first, so that the user's classes can be found by their module.
        sys.modules[module_name] = module
        try:
            with _importable(path.parent):
                spec.loader.exec_module(module)
            _note_code(path.parent)
        except (Exception, SystemExit) as error:  # a script without a main guard may well exit
            del sys.modules[module_name]
            raise SourceError(
                f"{path.name} cannot be loaded: {describe(error, path)}", hint=f"python {path} shows it too"
            ) from error
    function = getattr(module, name, None)
    if not callable(function):
        own = {n: value for n, value in vars(module).items() if getattr(value, "__module__", None) == module_name}
        known = [n for n, value in own.items() if callable(value) and not n.startswith("_")]
        raise SourceError(f"{path.name} has no function {name!r}", hint=did_you_mean(name, known))
    return function  # type: ignore[no-any-return]  # any callable is one


def call(source: str, keys: Mapping[str, Any], base: Path) -> Any:
    """What the function named by `source` returns; an unknown or missing key and an exception become a SourceError."""
    function, path = load_function(source, base), source_file(source, base)
    try:
        inspect.signature(function).bind(**keys)
    except TypeError as error:
        accepted = list(inspect.signature(function).parameters)
        taken = f"it takes {', '.join(accepted) or 'no keys'}; the study file gives {', '.join(keys) or 'none'}"
        near = [get_close_matches(key, accepted, n=1) for key in keys if key not in accepted]
        raise SourceError(
            f"{source} does not take the keys of its section: {error}",
            hint=f"did you mean {near[0][0]!r}? {taken}" if near and near[0] else taken,
        ) from error
    except ValueError:
        pass  # a callable without a signature is simply called
    try:
        with _importable(path.parent):
            return function(**keys)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in keys.items())
        raise SourceError(
            f"{source} raised {describe(error, path)}", hint=f"it was called with {given or 'no keys'}"
        ) from error


def named_functions(document: Any) -> Iterator[str]:
    """Every `file.py:function` that a nest of dicts and lists names."""
    if isinstance(document, str):
        if is_function(document):
            yield document
    elif isinstance(document, Mapping | list | tuple):
        for own in document.values() if isinstance(document, Mapping) else document:
            yield from named_functions(own)


_loaded: dict[Path, bytes] = {}
"""The user's files that this process has loaded, each with what it held then."""


def loaded_code(sources: Iterable[str], base: Path) -> dict[Path, bytes]:
    """The files that these functions were loaded from, modules beside them included, with what was loaded; what they
    import later, when they are called, is not seen."""
    folders = [source_file(source, base).parent for source in sources]
    return {path: code for path, code in _loaded.items() if any(map(path.is_relative_to, folders))}


def code_now(path: Path) -> bytes:
    """What a file of `loaded_code` holds: as this process has loaded it, else as it is now; b"" where it is gone."""
    return _loaded.get(path) or _read(path)


def _note_code(folder: Path) -> None:
    below = f"{folder}{os.sep}"
    for module in tuple(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.startswith(below) and "site-packages" not in file:
            _loaded.setdefault(Path(file), _read(Path(file)))


def _read(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The user's other modules can be imported from `folder`, as they could for `python file.py`."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have removed it
            sys.path.remove(str(folder))


def describe(error: BaseException, path: Path | None = None) -> str:
    """`TypeError: text (model.py, line 12)`: the deepest line of the user's own file, else of any that they had loaded,
    else the deepest of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path is not None and Path(frame.filename) == path]
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    where = (own or frames)[-1:]
    line = (None if own else loaded_line(error)) or (_line(where[0]) if where else None)
    place = f" ({line})" if line else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def loaded_line(error: BaseException) -> str | None:
    """`model.py, line 12`: the deepest line of all files that a user's function was loaded from."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    own = (frame for frame in frames if Path(frame.filename) in _loaded)
    # A user's file may lie beside a clone of tunecli.
    return next((_line(frame) for frame in own if not Path(frame.filename).is_relative_to(_HERE)), None)


_HERE = Path(__file__).parent


def _line(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name}, line {frame.lineno}"
