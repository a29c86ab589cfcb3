"""Where studies lie: the study that a user means, by file, table or name, and the folder of its results."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunecli import checkpoint, data
from tunecli.command import Command
from tunecli.errors import InputError, StorageError, UsageError, did_you_mean
from tunecli.files import write_new
from tunecli.source import is_function, source_file, which_function
from tunecli.storage import Address, Database, Shared, read_address
from tunecli.study import (
    ProgramStudy,
    Question,
    Study,
    make_program,
    make_study,
    read_question,
    study_of_table,
    table_name,
)
from tunecli.study.faults import NAME
from tunecli.study.overrides import parse_override

BUNDLED_FOLDERS = (Path(__file__).parent / "studies", Path(__file__).parent.parent / "studies")
"""Where the studies that ship lie: inside the package in a wheel, beside it in a checkout."""


def find_study(
    argument: str | None,
    home: Path,
    overrides: Sequence[str],
    replaced: Mapping[str, Any],
    address: Address | None = None,
    *,
    fresh: bool = False,
) -> Question:
    """The study that a user means: a file, a table, a script's function, a name, or the latest in the home, of those in
    the database at `address` where one is given.

    Where there is none yet, it is the bundled digits. A study that was begun from no file of the user's is asked as it
    was begun, `--set` included, and not as it ships; unless it begins anew (`fresh`), or under another name.
    """
    if argument is None:
        latest = latest_folder(home, address)
        if latest is not None:
            return _begun(latest, overrides, replaced)
        argument = "digits"
    path, anew = _path(argument), fresh or any(parse_override(override)[0] == "name" for override in overrides)
    if path.suffix == ".toml":
        return read_question(path, overrides, replaced)
    if is_function(argument):
        script = source_file(argument, Path.cwd())
        return _of_program({"objective": argument}, argument, table_name(script), home, overrides, replaced)
    if path.suffix == ".py":
        which = which_function(path, "objective")
        raise InputError(f"{argument} is a script: which function of it?", hint=f"tunecli search {which}")
    if path.suffix.lower() in data.TABLE_SUFFIXES:
        return _of_data(path, home, overrides, replaced, anew)
    if NAME.fullmatch(argument):
        if (home / f"{argument}.toml").is_file():
            return read_question(home / f"{argument}.toml", overrides, replaced)
        ships = bundled_study(argument)
        ships_anew = anew and (ships is not None or argument in data.BUNDLED)
        if (home / argument / "study.toml").is_file() and not ships_anew:
            return _begun(home / argument, overrides, replaced)
        here = Path.cwd()  # what ships names no file: whose `--set` names one means one of theirs
        if ships is not None:
            return read_question(ships, overrides, {**replaced, "base": str(here)})
        if argument in data.BUNDLED:
            return make_study({"data": {"source": argument}}, here, argument, overrides, replaced, where=argument)
    if argument and (path.is_dir() or path.suffix.lower() == ".npy"):
        return _of_data(path, home, overrides, replaced, anew)
    if path.is_file():
        raise InputError(
            f"{argument} is no file to search", hint=f"a table is {', '.join(data.TABLE_SUFFIXES)}: save it so"
        )
    names = {
        *bundled_names(),
        *data.BUNDLED,
        *(own.stem for own in home.glob("*.toml")),
        *(own.name for own in _begun_folders(home) if not is_set_aside(own)),
    }
    raise InputError(f"no study {argument!r} in {home}", hint=did_you_mean(argument, names))


def _of_data(path: Path, home: Path, overrides: Sequence[str], replaced: Mapping[str, Any], anew: bool) -> Question:
    """The study that data are themselves, as it was begun with these very data; `anew` but for the target."""
    begun = home / table_name(path.absolute())
    if (begun / "study.toml").is_file():
        first = read_question(begun / "study.toml")
        if isinstance(first, Study) and (first.base / first.data.source).resolve() == path.resolve():
            if not anew:
                return _begun(begun, overrides, replaced)
            replaced = {**replaced, "data.target": replaced.get("data.target") or first.data.target}
    return study_of_table(path, overrides, replaced)


def _path(argument: str) -> Path:
    try:
        return Path(argument).expanduser()
    except RuntimeError:  # ~name, of nobody here
        return Path(argument)


def find_command(text: str, home: Path, overrides: Iterable[str], replaced: Mapping[str, Any]) -> ProgramStudy:
    """The study of a command, `python train.py --lr {learning_rate}`, named after the first script file in it."""
    command = Command.parse(text)
    name = table_name(command.script(Path.cwd()) or Path(command.program))
    return _of_program({"command": text}, "--command", name, home, overrides, replaced)


def _of_program(
    program: dict[str, str], where: str, name: str, home: Path, overrides: Iterable[str], replaced: Mapping[str, Any]
) -> ProgramStudy:
    study = make_program({"program": program}, Path.cwd(), name, overrides, replaced, where=where)
    begun = home / study.name / "study.toml"
    first = read_question(begun) if begun.is_file() else None
    return study.begun_as(first) if isinstance(first, ProgramStudy) else study


def _begun(folder: Path, overrides: Iterable[str], replaced: Mapping[str, Any]) -> Question:
    """The study in a folder, under the folder's name: a copy is a study of its own."""
    return read_question(folder / "study.toml", overrides, {"name": folder.name, **replaced})


def find_folder(argument: str | None, home: Path, address: Address | None = None) -> Path:
    """Where the results of a study lie: of a file, a name, or the latest. Raises InputError where there are none.

    With an `address` the study may be in that database alone, and the folder on another machine.
    """
    if argument is None:
        latest = latest_folder(home, address)
        if latest is None:
            there = "" if address is None else f" is kept in {address}"
            begins = (
                "`tunecli search` begins one"
                if address is None
                else f"tunecli ls --storage {shlex.quote(str(address))}"
            )
            raise InputError(f"no study in {home}{there} yet", hint=begins)
        return latest
    path = _path(argument)
    name = read_question(path).name if path.suffix == ".toml" else argument
    if is_function(argument) or path.suffix == ".py":
        name = table_name(source_file(argument, Path.cwd()) if is_function(argument) else path)
    if path.suffix.lower() in data.TABLE_SUFFIXES or (argument and path.is_dir() and not NAME.fullmatch(argument)):
        name = table_name(path.absolute())
    plain = table_name(Path(f"{name}.csv"))
    if path.name == name and is_begun(home / plain):
        name = plain  # a table's name as it was before it became a study's
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no study's name", hint="give its name, its .toml file or its table")
    if address is None and not is_begun(home / name):
        names = [own.name for own in _begun_folders(home) if not is_set_aside(own)]
        hint = did_you_mean(name, names) if names else f"`tunecli search {argument}` begins it"
        raise InputError(f"no study {name!r} in {home} yet", hint=hint)
    return home / name


def latest_folder(home: Path, address: Address | None = None) -> Path | None:
    """The study that a search wrote to last; with an `address`, of those in that database. One that was set aside is
    none, unless there is no other."""
    found = [own for own in _begun_folders(home) if address is None or _remembered(own) == str(address)]
    found = [own for own in found if not is_set_aside(own)] or found
    # A search marks the question, which nothing else writes: finetune writes to the database as well.
    return max(found, key=lambda folder: (folder / "study.toml").stat().st_mtime, default=None)


def _begun_folders(home: Path) -> list[Path]:
    return [path.parent for path in home.glob("*/study.toml") if is_begun(path.parent)]


def is_begun(folder: Path) -> bool:
    """Whether a study's results lie here, wherever its trials are."""
    return (folder / "study.db").exists() or is_remembered(folder)


def is_remembered(folder: Path) -> bool:
    """Whether the study in `folder` was begun in a database that it shares. An empty file is what a kill left."""
    path = folder / "storage"
    return path.exists() and path.stat().st_size > 0


def study_folders(home: Path) -> list[Path]:
    """Every folder that a search began in, whatever state it was left in."""
    return sorted({path.parent for name in ("study.db", "study.toml") for path in home.glob(f"*/{name}")})


def find_database(folder: Path, address: Address | None = None, *, fresh: bool = False) -> Database:
    """Where the trials of the study in `folder` are, or will be: at `address`, where the folder says, or in it.

    Raises InputError where `address` is another database than the study's, unless it begins anew there (`fresh`), or
    the file of another study's own.
    """
    kept = _remembered(folder)
    own = folder / "study.db" if kept is None else Shared(_address(folder, kept), folder.name)
    if address is None or address.file == (folder / "study.db").resolve():
        return own
    if address.file is not None and address.file.name == "study.db" and (address.file.parent / "study.toml").exists():
        raise InputError(
            f"{address} is the study {address.file.parent.name}'s own, and holds no other",
            hint="name a file that studies may share: --storage sqlite:///runs.db",
        )
    if not fresh and (own.exists() if isinstance(own, Path) else str(own) != str(address)):
        raise InputError(
            f"the study in {folder} is kept in {own}, not in {address}",
            hint="leave --storage out, or give this one another name (--set name=NEW)",
        )
    return Shared(address, folder.name)


def _remembered(folder: Path) -> str | None:
    """The database of the study in `folder` by its URL; None where it is the file beside it."""
    try:
        return (folder / "storage").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {folder / 'storage'}: {error}", hint="it holds a URL, see --storage") from error


def _address(folder: Path, text: str) -> Address:
    try:
        return read_address(text)
    except UsageError as error:
        raise InputError(f"{folder / 'storage'} holds no URL of a database", hint=error.hint) from error


def is_set_aside(folder: Path) -> bool:
    """Whether the study in a folder made way for another: it is read by its name, and nowhere meant without it.

    Its question has the name that it had then; one that somebody named like this has its folder's.
    """
    if re.search(r".-\d{8}-\d{6}\Z", folder.name) is None:
        return False
    with suppress(OSError, ValueError):
        return tomllib.loads((folder / "study.toml").read_text(encoding="utf-8")).get("name") != folder.name
    return True


def remember(folder: Path, database: Database) -> None:
    """Write down in the study's folder where its trials are, so that its name is enough; a password never.

    Once the study is there: what is written down says that it was begun.
    """
    if not isinstance(database, Shared) or is_remembered(folder):
        return
    path = folder / "storage"
    try:
        unfinished = path.with_name("storage.new")
        write_new(unfinished, f"{database}\n".encode())
        unfinished.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error


def questions(home: Path) -> list[Path]:
    """The study files in the home, searched or not."""
    return sorted(home.glob("*.toml"))


def bundled_study(name: str) -> Path | None:
    """The study file that ships under this name."""
    for folder in BUNDLED_FOLDERS:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    return None


def bundled_names() -> list[str]:
    return sorted({path.stem for folder in BUNDLED_FOLDERS for path in folder.glob("*.toml")})


def checkpoint_folder(folder: Path, trial: int) -> Path:
    return folder / "checkpoints" / f"trial-{trial}"


def write_question(folder: Path, study: Question) -> None:
    """study.toml, the question as it was resolved; written before the database, so that none is without it."""
    path = folder / "study.toml"
    try:
        unfinished = path.with_suffix(".toml.new")
        write_new(unfinished, study.toml().encode())
        unfinished.replace(path)
    except UnicodeEncodeError as error:
        raise InputError(
            f"a study file is UTF-8, and cannot hold {error.object[max(0, error.start - 40) : error.end]!r}",
            hint="rename the file or the folder",
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> StorageError:
    """What to raise where a file in a study's folder cannot be written."""
    hint = "choose another folder with --home"
    if is_begun(path.parent):
        hint = f"mend that, or copy {path.parent} to a folder of studies that is yours, and name that with --home"
    return StorageError(f"cannot write {path}: {error.strerror}", hint=hint)


def remove_unknown_checkpoints(folder: Path, kept: Iterable[int]) -> None:
    """A kill can leave a checkpoint whose trial is not recorded as ended, which will be written again, or displaced."""
    known = {checkpoint_folder(folder, number).name for number in kept}
    for found in (folder / "checkpoints").glob("trial-*"):
        if found.name.removesuffix(".old") not in known:
            checkpoint.remove(found)
