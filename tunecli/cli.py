"""The command line: parse, call one function, print. `main` alone turns an error into an exit code."""

from __future__ import annotations

import os
import re
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunecli.errors import NoUsableTrial, StorageError, TunecliError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from tunecli.report.summary import Summary

app = typer.Typer(
    name="tunecli",
    help="Tune the training of a PyTorch model: search for the best recipe, explain it, train the best on.",
    epilog="--debug, with any command, shows the traceback behind an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130

StudyArgument = Annotated[
    str | None,
    typer.Argument(metavar="STUDY", help="A study file, a study's name, or a table (.csv). Left out: the latest."),
]
HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="Where results lie.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study file, e.g. train.epochs=5."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
HOME = Path("studies")

_Usage: type[Exception] = typer.BadParameter.__mro__[1]
"""click's UsageError. typer carries a click of its own and exports only this subclass of it."""


class TextOrJson(StrEnum):
    TEXT = "text"
    JSON = "json"


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


@app.command()
def search(
    study: StudyArgument = None,
    trials: Annotated[int | None, typer.Option(min=1, help="The study's total; what is missing is done.")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="10m", help="Stop at a tick after this time.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="All randomness of the study comes from it.")] = None,
    sampler: Annotated[str | None, typer.Option(metavar="NAME", help="tpe or random.")] = None,
    pruner: Annotated[str | None, typer.Option(metavar="NAME", help="asha or none.")] = None,
    window: Annotated[int | None, typer.Option(min=1, metavar="W", help="How many trials are in flight.")] = None,
    target: Annotated[str | None, typer.Option(metavar="COL", help="The column of a table to predict.")] = None,
    device: DeviceOption = "auto",
    home: HomeOption = HOME,
    settings: SetOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; an earlier study is set aside.")] = False,
    output: Annotated[TextOrJson, typer.Option("--format", help="What goes to stdout.")] = TextOrJson.TEXT,
) -> None:
    """Sample hyperparameters, train, prune, keep the best checkpoints.

    The same command again goes on where the last one ended, however it ended.
    """
    from tunecli import live
    from tunecli.home import find_study
    from tunecli.search import search as events
    from tunecli.search import set_aside

    replaced = {"seed": seed, "search.trials": trials, "search.sampler": sampler, "search.pruner": pruner}
    replaced |= {"search.window": window, "data.target": target}
    question = find_study(study, home, settings or [], replaced)
    folder, console = home / question.name, live.progress_console()
    timeout_seconds = _seconds(timeout)
    if fresh and (aside := set_aside(folder)):
        console.print(f"the earlier study is now {aside}", soft_wrap=True)
    with live.Interrupt().listening() as interrupt:
        found = events(question, folder, device=device, timeout_seconds=timeout_seconds, stop=interrupt)
        ended = live.show(found, console)
    summary = _summary(folder)
    if ended.how == "stopped":
        live.say_stopped(ended, _again(), console)
        raise typer.Exit(interrupt.exit_code)
    _print_result(summary, output)
    live.say_next(ended, question.name, _home(home), _again(), console)
    if summary.best is None and ended.how == "done":
        raise NoUsableTrial(
            f"none of the {summary.ended} trials is complete",
            hint=f"tunecli report {question.name}{_home(home)} tells why",
        )


@app.command()
def report(
    study: StudyArgument = None,
    top: Annotated[int, typer.Option(min=1, help="How many trials to show.")] = 5,
    home: HomeOption = HOME,
    output: Annotated[Format, typer.Option("--format", help="text, json, csv or markdown.")] = Format.TEXT,
) -> None:
    """Explain a study: what won, and how it learned."""
    from tunecli.home import find_folder
    from tunecli.report import formats, tables

    summary = _summary(find_folder(study, home))
    if output is Format.JSON:
        print(formats.as_json(summary))
    elif output is Format.CSV:
        print(formats.as_csv(summary), end="")
    elif output is Format.MARKDOWN:
        print(formats.as_markdown(summary, top), end="")
    else:
        tables.draw(summary, top, _console())


@app.command()
def finetune(
    study: StudyArgument = None,
    best: Annotated[bool, typer.Option("--best", help="Go on from the best trial.")] = False,
    trial: Annotated[int | None, typer.Option(min=0, metavar="N", help="Go on from trial N.")] = None,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="A new task: a table or file.py:function.")] = None,
    target: Annotated[str | None, typer.Option(metavar="COL", help="The column of a new table to predict.")] = None,
    layers: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="What trains: globs over layer names, head, or all.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="How long to train on.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start from these weights: a state dict or safetensors.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE.pth", help="Write a plain state dict as well.")] = None,
    device: DeviceOption = "auto",
    home: HomeOption = HOME,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change an hparam (learning_rate=0.01) or a data.KEY."),
    ] = None,
    output: Annotated[TextOrJson, typer.Option("--format", help="What goes to stdout.")] = TextOrJson.TEXT,
) -> None:
    """Train the best checkpoint on: on the same task, or with --data on a new one.

    The metric on the test split is printed before and after, and beside it what the same model reaches from scratch.
    """
    from tunecli import live
    from tunecli.finetune import Request
    from tunecli.finetune import finetune as epochs_of
    from tunecli.home import find_folder

    if best == (trial is not None):
        given = "--best and --trial both name the trial to go on from" if best else "choose the trial to go on from"
        raise UsageError(given, hint="--best, or --trial N")
    hparams, data_keys = _split_settings(settings or [])
    if data is None and (target is not None or data_keys):
        given = "--target" if target is not None else f"--set data.{next(iter(data_keys))}"
        raise UsageError(f"{given} is about new data, and none are given", hint="name them with --data SOURCE")
    request = Request(
        trial=trial,
        data=data,
        target=target,
        data_keys=data_keys,
        layers=tuple(layers) if layers else None,
        epochs=epochs,
        checkpoint=checkpoint,
        save=save,
        hparams=hparams,
        device=device,
    )
    console = live.progress_console()
    with live.Interrupt().listening() as interrupt:
        found = epochs_of(find_folder(study, home), request, interrupt)
        result = live.show_finetune(found, console)
    if result is None:
        live.say_unchanged(_again(), console)
        raise typer.Exit(interrupt.exit_code)
    if output is TextOrJson.JSON:
        print(live.finetune_json(result))
    else:
        live.print_finetuned(result, _console())


def main() -> None:
    """Run the command line; an error that a user can cause is one message, a hint and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments or ["--help"], prog_name="tunecli", standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is known
    except TunecliError as error:
        code = _complain(error, debug)
    except _Usage as error:
        code = _complain(_usage(error), debug)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted; nothing acknowledged is lost, the same command goes on", file=sys.stderr)
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader of our output has gone (`| head`), of which rich and typer make a SystemExit: nothing is wrong,
        # and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        code = _complain(StorageError(f"cannot write the output: {error.strerror}", hint="free some space"), debug)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or 0)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def _summary(folder: Path) -> Summary:
    from tunecli.report.summary import summarize
    from tunecli.store import read

    record = read(folder / "study.db")
    return summarize(
        study=record.name,
        metric=record.metric,
        direction=record.direction,
        asked=int(record.document["search"]["trials"]),
        epochs=int(record.document["train"]["epochs"]),
        trials=record.trials,
    )


def _print_result(summary: Summary, output: TextOrJson) -> None:
    from tunecli.report import formats, tables

    if output is TextOrJson.JSON:
        print(formats.as_json(summary))
    else:
        tables.draw_best(summary, _console())


def _again() -> str:
    """The command that was typed, for the user to type again; what was set up once need not be."""
    return shlex.join(["tunecli", *(argument for argument in sys.argv[1:] if argument != "--fresh")])


def _home(home: Path) -> str:
    return "" if home == HOME else f" --home {shlex.quote(str(home))}"


def _split_settings(settings: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`--set` of finetune: hparams by name, and keys of the new data's function as data.KEY."""
    from tunecli.study import parse_override

    parsed = dict(parse_override(setting) for setting in settings)
    keys = {key.removeprefix("data."): value for key, value in parsed.items() if key.startswith("data.")}
    hparams = {key.removeprefix("space."): v for key, v in parsed.items() if not key.startswith("data.")}
    return hparams, keys


def _seconds(text: str | None) -> float | None:
    """10m, 1h30m, 90s or plain seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if match is None or not any(match.groups()):
        raise UsageError(f"--timeout takes a time, got {text!r}", hint="for example 90s, 10m or 1h30m")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _complain(error: TunecliError, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _usage(error: Any) -> UsageError:
    command = error.ctx.command_path if error.ctx is not None else "tunecli"
    message = str(error.format_message()).rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint=f"{command} --help")
