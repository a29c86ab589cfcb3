"""The code that a study's model is made by: a checkpoint knows it as it was when it was trained."""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import compress
from pathlib import Path
from typing import Any

from tunecli.source import code_now, function_name, is_function, loaded_code, named_functions, source_file
from tunecli.study import Study

MADE_NOW = "the model is made by what is there now"


def code_of_model(study: Study) -> dict[str, str]:
    """The hash of the code in each file that the function of the study's model was loaded from, modules beside it
    included, by its path relative to the study's base; of a bundled model none. A file of data or losses alone is none
    of them."""
    source, base = study.model.source, study.base
    if not is_function(source):
        return {}
    own = source_file(source, base)
    others = {source_file(named, base) for named in named_functions(study.document())} - {own}
    return {
        os.path.relpath(path, base): _hash(code, function_name(source) if path == own else None)
        for path, code in loaded_code([source], base).items()
        if path not in others
    }


def changed_code(manifest: Mapping[str, Any], base: Path) -> str | None:
    """What to say of the files whose code is not what it was when the weights of this manifest were trained, up to what
    comes of it; None where all is. Comments, docstrings and what the model does not use may change."""
    source = manifest["model"]["source"]
    own = source_file(source, base) if is_function(source) else None
    changed = []
    for name, code in manifest.get("code", {}).items():
        path = (base / name).resolve()
        if name.endswith(".py") and _hash(code_now(path), function_name(source) if path == own else None) != code:
            changed.append(name)
    which = f"trial {manifest['trial']}" if "finetuned" not in manifest else "the fine-tuned model"
    return f"{', '.join(changed)} changed after {which} was trained" if changed else None


def _hash(code: bytes, function: str | None) -> str:
    """Of all that a file says but comments and docstrings; with a `function`, of what that uses alone."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):
        return hashlib.sha256(code).hexdigest()
    file = ast.Module(body if function is None else _used(body, function), [])
    for node in ast.walk(file):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.body[:] = [own for own in node.body if not _is_text(own)]
    return hashlib.sha256(ast.unparse(file).encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _used(body: list[ast.stmt], function: str) -> list[ast.stmt]:
    """The statements of a file that a function of it depends on, as far as names tell, in order: those that bind a name
    which it or one of them reads, and those that bind none, for what they do; but not what only `python file.py` runs.
    """
    body = [part for own in body for part in (own.orelse if isinstance(own, ast.If) and _is_main(own.test) else [own])]
    top = {name for own in body if not isinstance(own, ast.Import | ast.ImportFrom) for name in _bound(own)}
    binds = [set() if _does_more(own, top) else set(_bound(own)) for own in body]
    used = [not names for names in binds]
    wanted, before = {function}, set[str]()
    while wanted != before:
        before = set(wanted)
        used = [not names or bool(names & wanted) for names in binds]
        for own in compress(body, used):
            wanted |= {node.id for node in ast.walk(own) if isinstance(node, ast.Name)}
        if wanted & {"globals", "vars", "eval", "exec"}:
            return body  # names are made where it runs
    return list(compress(body, used))


def _is_main(test: ast.expr) -> bool:
    return ast.unparse(test) == "__name__ == '__main__'"


def _does_more(statement: ast.stmt, top: set[str]) -> bool:
    """Whether it may matter to others that read none of the names that it binds: a class or a function that a decorator
    of the user's may put down in a registry, what a loop or a context does, whatever a star imports."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        read = {node.id for own in statement.decorator_list for node in ast.walk(own) if isinstance(node, ast.Name)}
        return bool(read & top) or (isinstance(statement, ast.ClassDef) and bool(read))
    if isinstance(statement, ast.ImportFrom):
        return statement.names[0].name == "*"
    return isinstance(statement, ast.For | ast.While | ast.With)


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of a file binds there."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (own.asname or own.name.partition(".")[0] for own in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
