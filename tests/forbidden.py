"""What ruff has no rule for: code that would let data execute. `make check` runs it; it prints what it finds.

python -m tests.forbidden [FILE]...
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SQL = {"execute", "executemany", "executescript", "exec_driver_sql", "text", "TextClause"}
"""What takes a statement. SQLAlchemy's expressions are no strings and pass."""

UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve"}


def found(source: str) -> Iterator[tuple[int, str]]:
    """Line and rule of each place."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, f"import of {own.name}") for own in node.names if _unpickles(own.name))
        elif isinstance(node, ast.ImportFrom) and _unpickles(node.module or ""):
            if [own.name for own in node.names] != ["UnpicklingError"]:
                yield node.lineno, f"import from {node.module}"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, rule) for rule in _faults(node))


def _faults(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    said = {own.arg: ast.unparse(own.value) for own in call.keywords}
    if name == "torch.load" and said.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if said.get("weights_only", "True") != "True":
        yield "weights_only is not True"
    if name.endswith(("np.load", "numpy.load")) and said.get("allow_pickle") != "False":
        yield "np.load without allow_pickle=False"
    if said.get("allow_pickle", "False") != "False":
        yield "allow_pickle is not False"
    if name.rpartition(".")[2] in SQL and any(_is_built(own) for own in call.args[:1]):
        yield "SQL built from strings"


def _is_built(statement: ast.expr) -> bool:
    """Whether a text is put together: an f-string, +, %, .format or .join of texts."""
    if isinstance(statement, ast.JoinedStr):
        return True
    if isinstance(statement, ast.BinOp):
        return any(_is_text(own) for own in (statement.left, statement.right))
    called = statement.func if isinstance(statement, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr in ("format", "join", "replace") and _is_text(called.value)


def _is_text(node: ast.expr) -> bool:
    return _is_built(node) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _unpickles(module: str) -> bool:
    return module.partition(".")[0] in UNPICKLERS


def main(paths: list[Path]) -> int:
    places = [f"{path}:{line}: {rule}" for path in paths for line, rule in found(path.read_text(encoding="utf-8"))]
    print("\n".join(places) or "nothing lets data execute")
    return 1 if places else 0


if __name__ == "__main__":
    sys.exit(main([Path(own) for own in sys.argv[1:]] or sorted(Path(__file__).parent.parent.glob("tunecli/**/*.py"))))
