"""Studies in PostgreSQL, as a user meets them; what a database keeps is the contract in test_store.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import optuna
import psycopg
import pytest

from tests.conftest import Command, Question
from tests.postgres import IN_URL, PASSWORD, Server
from tests.test_store import SPACE, create, ended, measurement, running, write
from tunecli.errors import InputError, StorageError, UsageError
from tunecli.storage import Address, Shared, read_address
from tunecli.store import Store, hold, is_held, is_unfinished, overview, read, rename, studies_in, writer
from tunecli.trial import State

SEARCH = ("search", "iris", "--trials", "4", "--set", "train.epochs=2", "--window", "2")


@pytest.fixture(scope="module")
def address(postgres: Server) -> Address:
    return postgres.make("tuning")


@pytest.fixture
def shared(address: Address, request: pytest.FixtureRequest) -> Shared:
    """A study without trials, in a database that holds those of other tests."""
    database = Shared(address, request.node.name)
    create(database)
    return database


@pytest.fixture
def asked(postgres: Server, address: Address, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the same database for a user who needs PASSWORD."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    return postgres.url("tuning", user="asked")


# Which database


@pytest.mark.parametrize(
    ("url", "shown", "secrets"),
    [
        ("postgresql://u:p%40s@h:54/d?sslmode=require", "postgresql://u@h:54/d?sslmode=require", {"password": "p@s"}),
        ("postgres://h/d?password=p1&sslpassword=q2", "postgresql://h/d", {"password": "p1", "sslpassword": "q2"}),
        ("postgresql://u%40org@h/d?passwd=p1&pwd=q2", "postgresql://u%40org@h/d", {"passwd": "p1", "pwd": "q2"}),
        ("postgresql+psycopg2://u@/d", "postgresql://u@/d", {}),
        ("sqlite:////tmp/../tmp/a.db", "sqlite:////tmp/a.db", {}),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str, secrets: dict[str, str]) -> None:
    address = read_address(url)
    assert (str(address), dict(address.secrets)) == (shown, secrets)
    assert not any(own in repr(address) for own in secrets.values())


@pytest.mark.parametrize(
    "url",
    [
        "study.db",
        "sqlite://",
        "",
        *(
            f"{own}s3cr3t{rest}"
            for own, rest in [
                ("mysql://u:", "@h/d"),
                ("sqlite://u:", "@h/f.db"),
                ("tuner:", "@h/db"),
                ("postgresql:u:", "@h/db"),
                ("host=h password='my ", "' dbname=x"),
                ("postgresql://u:", "@h:x/d"),
                ("postgresql://u:", "/db"),
                ("postgresql://u:pa@", "@h/db"),
                ("postgresql://u:p?a@", "@h/db"),
                ("postgresql://us/er:", "@h/db"),
                ("postgresql://u@h/db#password=", ""),
            ]
        ),
    ],
)
def test_another_database_is_refused_and_what_was_typed_is_not_shown(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_address(url)
    assert "s3cr3t" not in f"{caught.value.message} {caught.value.hint} {caught.value.__cause__}"
    assert any(way in str(caught.value.hint) for way in ("PGPASSWORD", "postgresql://", "sqlite:///"))


# A search in it


def test_a_search_keeps_its_trials_there_and_everything_else_in_its_folder(
    tunecli: Command, tmp_path: Path, address: Address
) -> None:
    """The same trials and values as in a file; other studies beside it; its name is enough from then on."""
    in_file = tunecli(*SEARCH, "--home", "file", "--format", "json")
    for name in ("iris", "second"):
        done = tunecli(*SEARCH, "--set", f"name={name}", "--storage", str(address), "--format", "json")
        assert done.code == 0, done.err
        best = done.document["best"]
        assert {**best, "seconds": 0} == {**in_file.document["best"], "seconds": 0}
    folder = tmp_path / "studies" / "second"
    assert sorted(own.name for own in folder.iterdir()) == ["checkpoints", "lock", "storage", "study.toml"]
    assert (folder / "storage").read_text() == f"{address}\n"
    for place in (("second",), ("second", "--storage", str(address), "--home", "elsewhere"), ()):
        assert tunecli("report", *place, "--format", "json").document["best"] == best
    assert tunecli("finetune", "second", "--best", "--epochs", "1").code == 0
    assert [own.purpose for own in read(Shared(address, "second")).readings] == ["finetune"]
    more = tunecli("search", "second", "--trials", "6", "--set", "train.epochs=2", "--format", "json")
    assert more.document["counts"]["complete"] + more.document["counts"]["pruned"] == 6
    listed = {
        own["study"]: own for own in tunecli("ls", "--storage", str(address), "--format", "json").document["studies"]
    }
    assert (listed["iris"]["done"], listed["second"]["done"]) == (4, 6)
    here = tunecli("ls", "--format", "json").document["studies"]
    assert [(own["study"], own["done"], own["state"]) for own in here] == [("second", 6, "done"), ("iris", 4, "done")]
    # Optuna's own reader tells the same.
    theirs = optuna.load_study(
        study_name="second", storage=f"postgresql+psycopg{str(address).removeprefix('postgresql')}"
    )
    ours = read(Shared(address, "second")).trials
    assert [trial.value for trial in theirs.trials] == [trial.value for trial in ours]
    curves = [{own.fidelity: own.metric for own in trial.curve} for trial in ours]
    assert [trial.intermediate_values for trial in theirs.trials] == curves


def test_a_study_begins_anew_beside_the_earlier_one(
    question: Question, tmp_path: Path, address: Address, tunecli: Command
) -> None:
    option = ("--set", "name=anew", "--storage", str(address))
    first = tunecli(*SEARCH, *option, "--format", "json").document
    assert tunecli(*SEARCH, *option, "--seed", "1").code == 3
    assert tunecli(*SEARCH, *option, "--seed", "1", "--fresh").code == 0
    (aside,) = (own.name for own in (tmp_path / "studies").glob("anew-*"))
    assert tunecli("report", aside, "--format", "json").document["trials"] == first["trials"]
    assert {"anew", aside} <= {own.study for own in studies_in(address)}


def test_a_study_of_another_home_or_database_is_not_gone_on_with(
    tunecli: Command, tmp_path: Path, address: Address
) -> None:
    assert tunecli(*SEARCH, "--set", "name=there", "--storage", str(address)).code == 0
    elsewhere = tunecli(*SEARCH, "--set", "name=there", "--storage", str(address), "--home", "other")
    assert elsewhere.code == 3
    assert "begun in another home" in elsewhere.complaint[0]
    assert not (tmp_path / "other").exists()
    assert tunecli("finetune", "there", "--best", "--storage", str(address), "--home", "other").code == 3
    moved = tunecli(*SEARCH, "--set", "name=there", "--storage", "sqlite:///runs.db")
    assert moved.code == 3
    assert str(address) in moved.complaint[0]
    assert not (tmp_path / "runs.db").exists()


def test_several_studies_share_a_file(tunecli: Command, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert tunecli(*SEARCH, "--set", f"name={name}", "--storage", "sqlite:///runs.db").code == 0
    assert tunecli("report", "one", "--format", "json").document["counts"]["complete"] >= 1
    assert [own.study for own in studies_in(read_address("sqlite:///runs.db"))] == ["one", "two"]
    assert (tmp_path / "runs.db").stat().st_mode & 0o777 == 0o600


def test_a_shared_database_that_is_lost_is_never_begun_anew_unasked(tunecli: Command, tmp_path: Path) -> None:
    """Moved, and emptied: what was trained stays as it is until `--fresh`."""
    first = tunecli(*SEARCH, "--storage", "sqlite:///runs.db", "--format", "json").document
    kept = {path: path.read_bytes() for path in (tmp_path / "studies" / "iris").rglob("*.*") if path.is_file()}
    (tmp_path / "runs.db").rename(tmp_path / "away.db")
    for again in (SEARCH, (*SEARCH, "--seed", "1", "--storage", "sqlite:///runs.db")):
        lost = tunecli(*again)
        assert (lost.code, "no longer holds the study iris" in lost.complaint[0]) == (3, True)
        assert "--fresh" in lost.complaint[1]
        (tmp_path / "runs.db").touch()
    assert {path: path.read_bytes() for path in kept} == kept
    (tmp_path / "away.db").rename(tmp_path / "runs.db")
    assert tunecli(*SEARCH, "--format", "json").document["trials"] == first["trials"]
    (tmp_path / "runs.db").write_bytes(b"")
    assert tunecli(*SEARCH, "--fresh").code == 0


def test_a_setting_aside_that_was_killed_between_its_two_names_is_finished(tunecli: Command, tmp_path: Path) -> None:
    option = ("--storage", "sqlite:///runs.db")
    first = tunecli(*SEARCH, *option, "--format", "json").document
    aside = tmp_path / "studies" / "iris-20260102-030405"
    (tmp_path / "studies" / "iris").rename(aside)
    assert tunecli(*SEARCH, *option, "--seed", "1", "--fresh").code == 0
    assert {own.study for own in studies_in(read_address("sqlite:///runs.db"))} == {"iris", aside.name}
    assert tunecli("report", aside.name, "--format", "json").document["trials"] == first["trials"]
    # One of another home is nobody's to rename.
    assert tunecli(*SEARCH, *option, "--fresh", "--home", "other").code == 3


def test_a_study_in_a_shared_file_is_held_by_one_writer_whatever_its_home(tmp_path: Path) -> None:
    shared = Shared(read_address(f"sqlite:///{tmp_path}/runs.db"), "own")
    with hold(tmp_path / "a" / "own", shared):
        assert is_held(None, shared)
        with (
            pytest.raises(StorageError, match=r"the study own in sqlite:.*held by another tunecli \(process"),
            hold(tmp_path / "b" / "own", shared),
        ):
            pass
        with hold(tmp_path / "b" / "other", replace(shared, study="other")):
            pass
    assert not is_held(None, shared)
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_database_does_not_stick_and_anothers_own_is_refused(tunecli: Command, tmp_path: Path) -> None:
    assert tunecli(*SEARCH, "--storage", "sqlite:///none/runs.db").code == 5
    (tmp_path / "studies" / "iris").mkdir(parents=True, exist_ok=True)
    (tmp_path / "studies" / "iris" / "storage").touch()  # as an earlier version could leave it
    assert tunecli(*SEARCH).code == 0
    own = tunecli(*SEARCH, "--set", "name=second", "--storage", "sqlite:///studies/iris/study.db")
    assert (own.code, "the study iris's own" in own.complaint[0]) == (3, True)
    assert tunecli("report", "iris").code == 0
    assert not (tmp_path / "studies" / "second").exists()


def test_a_study_whose_beginning_was_killed_before_its_database_was_written_down_goes_on(
    tunecli: Command, tmp_path: Path
) -> None:
    storage = tmp_path / "studies" / "iris" / "storage"
    assert tunecli(*SEARCH, "--storage", "sqlite:///runs.db").code == 0
    storage.unlink()
    assert tunecli(*SEARCH, "--storage", "sqlite:///runs.db").code == 0
    assert storage.read_text() == f"sqlite:///{tmp_path}/runs.db\n"


KILLED = """
import os, sys
from tunecli.cli import main
from tunecli.store import Store, writer
writer.GROUP_SECONDS = 0
flush, flushes = Store.flush, []
def kill(self):
    flushes.append(flush(self))
    if len(flushes) == 8:
        os.kill(os.getpid(), 9)
Store.flush = kill
sys.argv = ["tunecli", *sys.argv[1:]]
main()
"""


def cut(postgres: Server) -> None:
    """End the connections by which this process holds studies."""
    with psycopg.connect(postgres.url("tuning")) as connection:
        own = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        name = f"tunecli, process {os.getpid()} on {os.uname().nodename}"
        assert connection.execute(own, [name]).fetchall() == [(True,)]


def test_a_search_that_is_killed_or_loses_its_connection_goes_on_to_the_same_trials(
    tunecli: Command, tmp_path: Path, address: Address, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = ("search", "iris", "--trials", "9", "--set", "train.epochs=9", "--window", "3", "--workers", "1")
    whole = tunecli(*question, "--home", "file", "--format", "json").document
    again = (*question, "--set", "name=killed", "--storage", str(address))
    killed = subprocess.run([sys.executable, "-c", KILLED, *again], cwd=tmp_path, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    before = read(Shared(address, "killed")).trials
    assert sum(own.fidelity for own in before) > 0

    flush, flushes = Store.flush, count()

    def cut_off(self: Store) -> None:
        if next(flushes) == 8:
            cut(postgres)
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "GROUP_SECONDS", 0)
        patch.setattr(Store, "flush", cut_off)
        lost = tunecli(*again)
    assert lost.code == 5
    assert lost.complaint[0].startswith("lost the connection to postgresql://")
    after = read(Shared(address, "killed")).trials
    assert sum(own.fidelity for own in before) < sum(own.fidelity for own in after)
    done = tunecli(*again, "--format", "json").document
    for trials in (done["trials"], whole["trials"]):
        for own in trials:
            own["seconds"] = None
    assert done["trials"] == whole["trials"]


# One writer


def test_a_study_is_held_by_one_writer_whatever_its_home(shared: Shared, tmp_path: Path) -> None:
    with hold(tmp_path / "a" / "own", shared) as held:
        assert is_held(None, shared)
        says = rf"held by another tunecli, process {os.getpid()} on "
        with pytest.raises(StorageError, match=says) as caught, hold(tmp_path / "b" / "own", shared):
            pass
        assert caught.value.hint
        assert isinstance(held, Shared)
        # Other studies of the database are free.
        with hold(tmp_path / "b" / "own", replace(shared, study="other")):
            pass
    assert not is_held(None, shared)
    with hold(tmp_path / "b" / "own", shared):
        pass


def test_a_writer_that_lost_its_connection_writes_nothing_more(
    shared: Shared, tmp_path: Path, postgres: Server
) -> None:
    with hold(tmp_path / "a", shared) as held:
        store = Store(held, SPACE)
        write(store, [running(0)])
        cut(postgres)
        with hold(tmp_path / "b", shared) as taken_over:
            later = Store(taken_over, SPACE)
            store.record([measurement(0, 1, 0.25)])
            for _ in range(2):
                with pytest.raises(StorageError, match="lost the connection"):
                    store.flush()
            later.record([measurement(0, 1, 0.75)])
            later.flush()
            later.close()
        store.close()
    assert read(shared).trials[0].curve[0].metric == 0.75


# What it keeps


def test_text_that_postgres_cannot_keep_is_written_readably(shared: Shared) -> None:
    store = Store(shared, SPACE)
    trial = ended(running(0), State.FAILED, [0.5], reason="a\0b \ud800 ü \U0001f600")
    write(store, [trial])
    store.note(0, {"k\0": "\0"})
    store.flush()
    store.close()
    assert read(shared).trials[0].reason == "a\\x00b \\ud800 ü \U0001f600"


def test_a_study_that_optuna_deletes_takes_nothing_of_the_others_with_it(shared: Shared, postgres: Server) -> None:
    other = replace(shared, study="stays")
    create(other)
    for database in (shared, other):
        store = Store(database, SPACE)
        write(store, [ended(running(number), State.COMPLETE, [0.5]) for number in range(2)])
        store.keep(ended(running(0), State.COMPLETE, [0.5]), "f" * 64)
        store.read_split("test", "finetune", 0, {})
        store.flush()
        store.close()
    kept = read(other)
    url = str(shared).replace("postgresql", "postgresql+psycopg", 1)
    optuna.delete_study(study_name=shared.study, storage=url)
    assert is_unfinished(shared)
    for open_it in (read, overview, lambda database: Store(database, SPACE)):
        with pytest.raises(InputError, match="no study"):
            open_it(shared)
    create(shared)
    assert read(shared).trials == ()
    Store(shared, SPACE).close()
    assert read(other) == kept
    with psycopg.connect(postgres.url("tuning")) as connection:
        for table in ("trials", "measurements", "checkpoints"):
            orphans = f"SELECT * FROM tunecli_{table} WHERE trial_id NOT IN (SELECT trial_id FROM trials)"
            assert connection.execute(orphans).fetchall() == []


def test_a_study_that_is_not_ours_is_refused_and_left_as_it_is(address: Address, shared: Shared) -> None:
    theirs = optuna.create_study(
        study_name="theirs", storage=str(shared).replace("postgresql", "postgresql+psycopg", 1)
    )
    theirs.add_trial(optuna.create_trial(value=1.0))
    for open_it in (read, overview, lambda database: Store(database, SPACE)):
        with pytest.raises(InputError, match="not one of tunecli"):
            open_it(replace(shared, study="theirs"))
    assert "theirs" not in {own.study for own in studies_in(address)}
    assert theirs.best_value == 1.0
    rename(shared, "renamed")
    assert read(replace(shared, study="renamed")).name == "renamed"


# What goes wrong on the way there


@pytest.mark.parametrize(
    ("url", "says", "hint"),
    [
        ("postgresql://nobody@/none?host={socket}", 'role "nobody" does not exist', "createdb"),
        ("postgresql://tuner@/none?host={socket}", 'database "none" does not exist', "createdb"),
        ("postgresql://tuner@localhost:1/tuning", "refused", "does the server run"),
        ("postgresql://asked@/tuning?host={socket}", "no password supplied", "PGPASSWORD"),
        ("postgresql://asked:s3cr3t@/tuning?host={socket}", "password authentication failed", "PGPASSWORD"),
        ("postgresql://tuner@/tuning?host={socket}&nonsense=1", "nonsense", "server"),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_with_a_way_out(
    tunecli: Command, tmp_path: Path, asked: str, postgres: Server, url: str, says: str, hint: str
) -> None:
    url = url.format(socket=postgres.folder)
    for command in (SEARCH, ("report", "iris"), ("ls",)):
        done = tunecli(*command, "--storage", url, "--debug")
        message, way_out = done.complaint
        assert (done.code, says in message, hint in way_out) == (5, True, True), done.err
        assert "s3cr3t" not in done.out + done.err
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_takes_a_line_of_the_list_and_no_more(
    tunecli: Command, home: Path, postgres: Server
) -> None:
    for name in ("away", "gone"):
        (home / name).mkdir()
        (home / name / "study.toml").write_text((home / "tiny" / "study.toml").read_text())
        (home / name / "storage").write_text("postgresql://tuner@localhost:1/tuning\n")
    listed = {own["study"]: own for own in tunecli("ls", "--format", "json").document["studies"]}
    assert listed["tiny"]["state"] == "done"
    assert "cannot reach postgresql://tuner@localhost:1/tuning" in listed["away"]["reason"]
    assert listed["gone"]["state"] == "unreadable"


def test_without_its_driver_the_extra_is_named(
    tunecli: Command, monkeypatch: pytest.MonkeyPatch, address: Address
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    done = tunecli("report", "iris", "--storage", str(address))
    assert done.code == 3
    assert done.complaint[1] == "pip install 'tunecli[postgres]'"


# Passwords


def holding(folder: Path, secret: bytes) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes())


SPY = """
import os

def look():
    with open(f"seen-{os.getpid()}", "wb") as seen:
        for name in ("cmdline", "environ"):
            seen.write(open(f"/proc/self/{name}", "rb").read())

def model(**keys):
    import torch
    look()
    return torch.nn.Linear(4, 3)

def objective(trial):
    look()
    return trial.suggest_float("x", 0, 1)
"""
"""What the system tells everyone of a process: its arguments, and what it was given to begin with."""


def test_a_password_appears_nowhere(
    tunecli: Command, tmp_path: Path, asked: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted in a URL and in PGPASSWORD, looked for in all that is printed and written, and in the database itself."""
    url = asked.replace("asked@", f"asked:{IN_URL}@")
    told: list[str] = []

    def type_it(*arguments: str) -> int:
        done = tunecli(*arguments)
        told.append(done.out + done.err)
        return done.code

    (tmp_path / "own.py").write_text(SPY)
    (tmp_path / "spied.toml").write_text('data.source = "iris"\nmodel.source = "own.py:model"\ntrain.epochs = 2\n')
    assert type_it("search", "spied.toml", "--trials", "4", "--workers", "2", "--storage", url, "--debug") == 0
    assert type_it(*SEARCH, "--set", "name=secret", "--storage", url, "--verbose") == 0
    assert type_it(*SEARCH, "--set", "name=secret", "--storage", url, "--timeout", "1s", "--trials", "9") == 0
    assert type_it("search", "own.py:objective", "--trials", "2", "--storage", url) == 0
    assert type_it("report", "secret", "--storage", url, "--format", "json") == 0
    assert type_it("report", "secret", "--debug") == 5
    assert type_it("ls", "--storage", url) == 0
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert type_it("report", "secret") == 0
    assert type_it("finetune", "secret", "--best", "--epochs", "1", "--debug") == 0
    assert len({own.name for own in tmp_path.glob("seen-*")} - {f"seen-{os.getpid()}"}) >= 3
    # What is mistyped is shown back.
    for wrong in (("search", url), ("report", url), ("search", "iris", url), ("search", "iris", "--home", url)):
        assert type_it(*wrong, "--debug") in (2, 3, 5)
    assert type_it("search", "iris", "--storage", url.replace("%2F", "/").replace("%40", "@"), "--debug") in (2, 5)
    for secret in (PASSWORD, IN_URL, "s3cr3t"):
        assert not [text for text in told if secret in text]
        assert list(holding(tmp_path, secret.encode())) == []
    dumped = []
    with psycopg.connect(postgres.url("tuning")) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        dumped = [str(connection.execute(f'SELECT * FROM "{name}"').fetchall()) for (name,) in names]
    assert not [text for text in dumped if "s3cr3t" in text]
