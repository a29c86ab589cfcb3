"""The command line: parse, call one function, print. `main` alone turns an error into an exit code."""

from __future__ import annotations

import atexit
import errno
import io
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import typer

from tunecli import __version__
from tunecli.cli.finetune import finetune
from tunecli.cli.init import init
from tunecli.cli.ls import ls
from tunecli.cli.options import Stopped
from tunecli.cli.predict import predict
from tunecli.cli.report import report
from tunecli.cli.search import search
from tunecli.errors import StorageError, TunecliError, UsageError, nearest
from tunecli.output import broken, say

app = typer.Typer(
    name="tunecli",
    help="Tune the training of a PyTorch model: search for the best recipe, explain it, train the best on.",
    epilog="--debug, with any command, shows the traceback behind an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130


def _show_version(asked: bool) -> None:
    if asked:
        print(f"tunecli {__version__}")
        raise typer.Exit


_Usage: type[Exception] = typer.BadParameter.__mro__[1]
"""click's UsageError. typer carries a click of its own and exports only this subclass of it."""


VersionOption = Annotated[
    bool,
    typer.Option("--version", metavar="", help="Show the version and exit.", callback=_show_version, is_eager=True),
]


@app.callback()
def _app(version: VersionOption = False) -> None:
    pass


app.command("search")(search)
app.command("report")(report)
app.command("finetune")(finetune)
app.command("predict")(predict)
app.command("init")(init)
app.command("ls")(ls)


def _command() -> Any:
    """What typer makes of the application, its --help shown as what it is: it says that it takes a <bool>."""
    group: Any = typer.main.get_command(app)
    for command in (group, *group.commands.values()):
        command.get_help_option = partial(_untyped, command.get_help_option)
    return group


def _untyped(make: Callable[[Any], Any], context: Any) -> Any:
    option = make(context)
    option.metavar = ""
    return option


def main() -> None:
    """Run the command line; an error that a user can cause is one message, a hint and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an encoding without some character ends no command
    try:
        code = _command()(arguments or ["--help"], prog_name="tunecli", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt  # which typer has made an exit code of
        sys.stdout.flush()  # here, where a reader that has gone is known
    except Stopped as stopped:
        code = stopped.exit_code
    except TunecliError as error:
        code = _complain(error, debug)
    except _Usage as error:
        code = _complain(_usage(error), debug)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted: what was recorded is kept, and the same command goes on", file=sys.stderr)
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader of our output has gone (`| head`), of which rich and typer make a SystemExit: nothing is wrong,
        # and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except PermissionError as error:  # of a file or a folder, which a stream has not
        named = f"no access to {error.filename or 'the output'}: {error.strerror}"
        code = _complain(StorageError(named, hint="mend its permissions, or name another folder with --home"), debug)
    except OSError as error:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "write it elsewhere"
        code = _complain(StorageError(f"cannot write the output: {error.strerror}", hint=hint), debug)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or 0)


def run() -> NoReturn:
    """`main` in a process of its own, which ends at once when all is said and done: Python would take apart what torch
    has brought in, for a quarter of a second.
    """
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    for thread in threading.enumerate():  # a user's code may have begun some
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0)


def _complain(error: TunecliError, debug: bool) -> int:
    if debug:
        import traceback

        say("".join(traceback.format_exception(error)), sys.stderr, end="")
    for line in (f"error: {error.message}", *([f"hint: {error.hint}"] if error.hint else [])):
        # A pipe or a log has each on a line of its own; a person reads whole words.
        say(broken(line, os.get_terminal_size(2).columns or 80) if os.isatty(2) else line, sys.stderr)
    return error.exit_code


_WORDS = {
    r"Input should be a valid integer.*": "expected a whole number",
    r"Input should be greater than or equal to (\d+)": r"must be at least \1",
    r"Value error, ": "",
}
"""What typer says of a value that is none, in our words."""


def _usage(error: Any) -> UsageError:
    command = error.ctx.command_path if error.ctx is not None else "tunecli"
    message = str(error.format_message()).rstrip(".")
    for pydantic, ours in _WORDS.items():
        message = re.sub(pydantic, ours, message)
    typed = getattr(error, "option_name", "")
    extra = re.fullmatch(r"got unexpected extra argument\(?s?\)? \((\S+\.py:\w+)\)", message, re.IGNORECASE)
    if extra and command == "tunecli search":
        return UsageError(message[:1].lower() + message[1:], hint=f"a model is named by --set model.source={extra[1]}")
    if not typed or not message.lower().startswith("no such option"):
        return UsageError(message[:1].lower() + message[1:], hint=f"{command} --help")
    opts = [name for own in error.ctx.command.params for name in own.opts]
    as_key = _as_key(typed, command.removeprefix("tunecli "))
    near = nearest(typed.lstrip("-"), [name.removeprefix("--") for name in opts if name.startswith("--")])
    hint = as_key or (f"did you mean --{near}?" if near else f"{command} --help")
    return UsageError(f"no such option: {typed}", hint=hint)


def _as_key(option: str, command: str) -> str | None:
    """How a key of a study file, or an hparam for `finetune`, is set that was typed as an option of its own."""
    from tunecli.models import BUNDLED
    from tunecli.space.hparams import HPARAMS, elsewhere
    from tunecli.study.sections import DataSection, SearchSection, TrainSection

    typed = option.lstrip("-").replace("-", "_")
    name = elsewhere(typed) or typed
    if command == "search" and name in ("data", "source"):
        return "data are named without an option: tunecli search FILE"
    if command != "search":
        set_it = f"--set {shlex.quote(f'{name}={_value_of(option)}')}"
        return set_it if command == "finetune" and name in HPARAMS else None
    places = {
        "name": ("name",),
        "model.source": ("model",),
        "train.{}": TrainSection.model_fields,
        "space.{}": HPARAMS,
        "search.{}": SearchSection.model_fields,
        "data.{}": DataSection.model_fields.keys() - {"source"},
        "model.{}": {key for keys in BUNDLED.values() for key in keys},
    }
    found = (place.format(name) for place, names in places.items() if name in names)
    return next((f"--set {shlex.quote(f'{key}={_value_of(option)}')}" for key in found), None)


def _value_of(option: str) -> str:
    """What was typed after an option that there is none of: nobody parsed it."""
    for typed, following in pairwise([*sys.argv, "-"]):
        name, equals, value = typed.partition("=")
        if name == option:
            return value if equals else "..." if following.startswith("-") else following
    return "..."
