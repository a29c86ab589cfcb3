"""tunecli finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunecli.cli.options import (
    HOME,
    DeviceOption,
    HomeOption,
    Stopped,
    StorageOption,
    StudyArgument,
    TextOrJson,
    find_results,
    output_console,
    typed_command,
)
from tunecli.errors import UsageError


def finetune(
    study: StudyArgument = None,
    best: Annotated[bool, typer.Option("--best", metavar="", help="Go on from the best trial.")] = False,
    trial: Annotated[int | None, typer.Option(min=0, metavar="N", help="Go on from trial N.")] = None,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="A new task: a table or file.py:function.")] = None,
    target: Annotated[str | None, typer.Option(metavar="COL", help="The column of a new table to predict.")] = None,
    layers: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="What trains: globs over layer names, head, or all.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="How long to train on.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start from these weights: a state dict or safetensors.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE.pth", help="Write a plain state dict as well.")] = None,
    device: DeviceOption = "auto",
    home: HomeOption = HOME,
    storage: StorageOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change an hparam (learning_rate=0.01) or a data.KEY."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", metavar="", help="Train anew what was done, or interrupted, before.")
    ] = False,
    output: Annotated[TextOrJson, typer.Option("--format", help="What goes to stdout.")] = TextOrJson.TEXT,
) -> None:
    """Train the best checkpoint on: on the same task, or with --data on a new one.

    The metric on the test split is printed before and after, and beside it what the same model reaches from scratch.

    The same command again goes on where it was interrupted, or shows what it came to.
    """
    from tunecli import live
    from tunecli.finetune import Request
    from tunecli.finetune import finetune as epochs_of
    from tunecli.predict import choose

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
        fresh=fresh,
    )
    console = live.progress_console()
    with live.Interrupt(typed_command()).listening() as interrupt:
        folder, database = find_results(study, home, storage)
        found = epochs_of(folder, request, interrupt, database)
        with live.own_prints(console):
            result = live.show_finetune(found, console)
        if result is None:
            live.say_interrupted(typed_command(), console)
            raise Stopped(interrupt.exit_code)
        if output is TextOrJson.JSON:
            print(live.finetune_json(result))
        else:
            instead = None if result.used else choose(folder, database=database).words
            live.print_finetuned(result, output_console(), instead)
        if result.earlier:
            live.say_done_already(f"{typed_command()} --fresh", console)


def _split_settings(settings: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`--set` of finetune: hparams by name, and keys of the new data's function as data.KEY. Raises UsageError."""
    from tunecli.study.overrides import parse_override

    hparams: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for key, value in map(parse_override, settings):
        section, dot, name = key.partition(".")
        if key in _OPTIONS:
            raise UsageError(f"--set {key}: that has an option of its own", hint=f"{_OPTIONS[key]} {value}")
        if section == "data" and dot:
            keys[name] = value
        else:
            # Those of [train] that a space may have are hparams here.
            hparams[name if section in ("space", "train") and dot else key] = value
    return hparams, keys


_OPTIONS = {
    **{f"{section}epochs": "--epochs" for section in ("", "train.", "finetune.")},
    **{f"{section}layers": "--layers" for section in ("", "finetune.")},
    "data.source": "--data",
    "data.target": "--target",
}
"""What a study file says, and `finetune` takes as an option."""
