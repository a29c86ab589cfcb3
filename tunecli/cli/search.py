"""tunecli search."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tunecli.cli.options import (
    HOME,
    DeviceOption,
    Direction,
    HomeOption,
    SetOption,
    Stopped,
    StorageOption,
    StudyArgument,
    TextOrJson,
    address_of,
    home_option,
    output_console,
    read_summary,
    typed_command,
)
from tunecli.errors import InputError, NoUsableTrial, SpaceError, TunecliError, UsageError, did_you_mean
from tunecli.space import PRUNERS, SAMPLERS
from tunecli.trial import State

if TYPE_CHECKING:
    from tunecli.live import Interrupt
    from tunecli.report.summary import Summary
    from tunecli.search import Event
    from tunecli.space import Space
    from tunecli.study import Question
    from tunecli.trial import Trial, Value


def search(
    study: StudyArgument = None,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The study's total; what is missing is done.")
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="10m", help="Stop at the first epoch's end after this time, counted from the start of training."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="All randomness of the study comes from it.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(metavar="NAME", help=f"Who proposes: {', '.join(SAMPLERS)}.")] = None,
    pruner: Annotated[str | None, typer.Option(metavar="NAME", help=f"Who stops early: {', '.join(PRUNERS)}.")] = None,
    tries: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="KEY=VALUE,...",
            help="Try these hparams first, once; the sampler chooses the others. Adds to a study that is done.",
        ),
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, metavar="W", help="How many trials are in flight.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train in N processes. Default: all cores, by threads or processes."),
    ] = None,
    target: Annotated[str | None, typer.Option(metavar="COL", help="The column of a table to predict.")] = None,
    command: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Search a program: "python train.py --lr {learning_rate}".')
    ] = None,
    direction: Annotated[
        Direction | None, typer.Option(help="Which way a script's or a program's value is better.")
    ] = None,
    device: DeviceOption = "auto",
    home: HomeOption = HOME,
    storage: StorageOption = None,
    settings: SetOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", metavar="", help="Begin anew; an earlier study is set aside.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", metavar="", help="Say how the trials are computed.")] = False,
    output: Annotated[TextOrJson, typer.Option("--format", help="What goes to stdout.")] = TextOrJson.TEXT,
) -> None:
    """Sample hyperparameters, train, prune, keep the best checkpoints.

    The same command again goes on where the last one ended, however it ended.
    """
    if command is None and device in ("auto", "cpu") and "torch" not in sys.modules:
        from tunecli import building

        building.begin()  # before all that takes long to load
    from tunecli import live
    from tunecli.given import trial_of
    from tunecli.home import find_command, find_database, find_study, latest_folder
    from tunecli.search import search as events

    _check_known("--sampler", sampler, SAMPLERS)
    _check_known("--pruner", pruner, PRUNERS)
    replaced = {"seed": seed, "search.trials": trials, "search.sampler": sampler, "search.pruner": pruner}
    replaced |= {"search.window": window, "data.target": target, "program.direction": direction and str(direction)}
    address = address_of(storage)
    if command is None:
        question = find_study(study, home, settings or [], replaced, address, fresh=fresh)
    elif study is None:
        question = find_command(command, home, settings or [], replaced)
    else:
        raise UsageError(f"{study} and --command both say what to search", hint="give one of them")
    points = _points(tries or [], question)
    folder, console = home / question.name, live.progress_console()
    if study is None and command is None and latest_folder(home, address) is None:
        console.say(
            f"no study is named, and none is in {home} yet: searching the bundled {question.name}\n"
            "for data of your own:\n  tunecli search FILE.csv --target COLUMN"
        )
    timeout_seconds = _seconds(timeout)
    database = find_database(folder, address, fresh=fresh)
    with live.Interrupt(typed_command(anew=True)).listening() as interrupt:
        found = events(
            question,
            folder,
            database=database,
            device=device,
            workers=workers,
            timeout_seconds=timeout_seconds,
            tries=points,
            fresh=fresh,
            stop=interrupt,
        )
        with live.own_prints(console):
            ended = live.show(_begun(found, interrupt), console, verbose=verbose)
        if ended.how == "stopped":
            live.say_stopped(ended, interrupt.again, console)
            raise Stopped(interrupt.exit_code)
        summary, report = read_summary(database), f"tunecli report {question.name}{home_option(home)}"
        tried = [own for point in points if (own := trial_of(question.space, point, summary.trials)) is not None]
        _print_result(summary, output, tried)
        if ended.how == "hopeless":
            raise _hopeless(summary, question.search.max_failures, report)
        live.say_next(ended, question, home_option(home), typed_command(), console, summary.exhausted)
        if summary.best is None and ended.how == "done":
            raise _nothing_to_show(summary, report)


def _begun(events: Iterable[Event], interrupt: Interrupt) -> Iterator[Event]:
    """Once a study has begun, the same command goes on with it without --fresh, which would begin another."""
    from tunecli.search import Opened, OpenedProgram

    for event in events:
        if isinstance(event, Opened | OpenedProgram):
            interrupt.again = typed_command()
        yield event


def _points(tries: list[str], question: Question) -> list[dict[str, Value]]:
    """The points of `--try`, checked."""
    from tunecli.study import ProgramStudy

    if tries and isinstance(question, ProgramStudy):
        raise UsageError("--try is for a study of a model", hint=f"run the program with {tries[0]} by hand")
    return [_given(text, question.space) for text in tries]


def _given(text: str, space: Space) -> dict[str, Value]:
    """A point of `--try`, checked. Commas within a list do not end a value."""
    from tunecli.given import given_point
    from tunecli.study.overrides import parse_override

    try:
        raw = dict(parse_override(part) for part in re.split(r",(?![^\[]*\])", text))
        return given_point(space, {name.removeprefix("space."): value for name, value in raw.items()})
    except UsageError as error:
        raise UsageError(
            f"--try takes KEY=VALUE,KEY=VALUE, got {text!r}", hint="for example --try learning_rate=0.01,batch_size=64"
        ) from error
    except SpaceError as error:
        raise UsageError(f"--try {text}: {error.message}", hint=error.hint) from error


def _nothing_to_show(summary: Summary, report: str) -> TunecliError:
    """Why a search without a complete trial has none: the user's own code, or what it met."""
    from tunecli.report.summary import against_divergence, failures, short_hparams

    found = failures(summary)
    if summary.counts[State.FAILED] < summary.ended:
        return NoUsableTrial(f"none of the {summary.ended} trials is complete", hint=f"{report} tells why")
    reason, trials = found[0]
    # What diverged is the recipe's fault; what raised is the user's code, and no other recipe will mend it.
    kind = NoUsableTrial if any(own.startswith("diverged") for own, _ in found) else InputError
    hparams = ", ".join(short_hparams(trials[0].hparams))
    had = against_divergence(summary) or (f"trial {trials[0].number} had {hparams}" if hparams else "")
    share = "" if len(trials) == summary.ended else f", {len(trials)} of them so"
    return kind(
        f"all {summary.ended} trials failed{share}: {reason}",
        hint=f"{had}{'; ' if had else ''}{report} tells more",
    )


def _hopeless(summary: Summary, most: int, report: str) -> TunecliError:
    from tunecli.report.summary import failures

    reason, trials = failures(summary)[0]
    if summary.ended < most:  # nothing that is sampled could mend them
        if any(trial.hparams for trial in trials):
            way = 'it has to print one, {"value": 0.93}, or --set train.metric=NAME names what it prints'
        else:
            way = "an objective asks the trial that it is given, as by trial.suggest_float"
        return InputError(
            f"all {summary.ended} trials failed, whatever was sampled: {reason}", hint=f"{way}; {report} tells more"
        )
    return NoUsableTrial(
        f"{most} trials in a row failed, the search.max_failures; {len(trials)} of {summary.ended}: {reason}",
        hint=f"{report} tells more; mend it and go on, or with --set search.max_failures={2 * most}:\n"
        f"  {typed_command()}",
    )


def _check_known(option: str, name: str | None, known: tuple[str, ...]) -> None:
    if name is not None and name not in known:
        takes = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UsageError(f"{option} takes {takes}, got {name!r}", hint=did_you_mean(name, known))


def _print_result(summary: Summary, output: TextOrJson, tried: Iterable[Trial]) -> None:
    from tunecli.report import formats, tables

    if output is TextOrJson.JSON:
        print(formats.as_json(summary))
    else:
        tables.draw_best(summary, output_console())
        tables.draw_tried(summary, {trial.number: trial for trial in tried}.values(), output_console())


def _seconds(text: str | None) -> float | None:
    """10m, 1h30m, 90s or plain seconds."""
    from tunecli.study.duration import EXAMPLES, read_seconds

    if text is None:
        return None
    seconds = read_seconds(text)
    if seconds is None:
        raise UsageError(f"--timeout takes a time, got {text!r}", hint=f"for example {EXAMPLES}")
    return seconds
