"""Where a study's database is: a file of its own, or a database that several studies share, by its URL.

A password is kept apart from its URL: what is shown, written or remembered never has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunecli.errors import UsageError
from tunecli.output import is_secret

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

POSTGRES = "postgresql"
_NAMES = {"sqlite": "sqlite", POSTGRES: POSTGRES, "postgres": POSTGRES}
_TAKES = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
_WRITTEN = "write @ : / ? # % in a password as %40 %3A %2F %3F %23 %25, or give it in PGPASSWORD"


@dataclass(frozen=True, slots=True)
class Address:
    """A database by its URL, in whose words it is shown. `secrets` are what its driver is told beside it."""

    url: URL
    secrets: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return self.url.render_as_string()

    @property
    def file(self) -> Path | None:
        """Where it is an SQLite database, its file."""
        return Path(self.url.database or "") if self.url.drivername == "sqlite" else None


@dataclass(frozen=True, slots=True)
class Shared:
    """The study of this name, in a database that it may share with others.

    `writer` is the connection that holds it, which nobody else's writer can then have.
    """

    address: Address
    study: str
    writer: Engine | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.address)


Database = Path | Shared
"""Where a study's trials are written: an SQLite file that holds this one study, or a database that several share."""


def read_address(text: str) -> Address:
    """The database that a URL names; a file's path is relative to this folder.

    Raises UsageError, without the text that is refused: where the password is in it, nobody knows.
    """
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    scheme, separator, rest = text.partition("://")
    name = _NAMES.get(scheme.partition("+")[0])
    if not separator or name is None:
        raise UsageError("--storage got no URL of an SQLite or a PostgreSQL database", hint=f"write --storage {_TAKES}")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Without what raised it: that can hold the half of a password with a slash in it.
        raise UsageError(f"--storage {name}://... is no URL", hint=_WRITTEN) from None
    if name == "sqlite":
        if url.database in (None, "", ":memory:") or url.host or url.query:
            raise UsageError("--storage takes a file after sqlite:///", hint="for example --storage sqlite:///runs.db")
        return Address(URL.create(name, database=str(Path(url.database).expanduser().resolve())))
    if rest.partition("?")[0].count("@") > 1 or any(own in f"{url.host}{url.database}" for own in "@#"):
        # Else what follows it in a password is taken for the host or the database, and shown.
        raise UsageError(f"--storage {name}://... has an @ or a # too many", hint=_WRITTEN)
    secrets = {key: str(value) for key, value in url.query.items() if is_secret(key)}
    if url.password is not None:
        secrets["password"] = str(url.password)
    query = {key: value for key, value in url.query.items() if key not in secrets}
    own = URL.create(name, username=url.username, host=url.host, port=url.port, database=url.database, query=query)
    return Address(own, secrets)
