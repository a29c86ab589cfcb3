"""A database without a study, kept for the next one: Optuna takes half a second to make its tables, most of it for
loading what brings older databases up to date."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import MetaData
from sqlalchemy.schema import CreateTable

from tunecli.files import cache_folder, keep_in_cache, write_new

DIGEST_BYTES = 32


def recall(file: Path, ours: MetaData) -> bool:
    """Write the database that was kept to `file`; whether there is one, and whole. Raises OSError for `file` alone."""
    try:
        kept = _path(ours).read_bytes()
    except OSError:
        return False
    digest, blank = kept[:DIGEST_BYTES], kept[DIGEST_BYTES:]
    if hashlib.sha256(blank).digest() != digest:
        return False  # a cache, which anybody may spoil
    write_new(file, blank, sync=False)
    return True


def remember(file: Path, ours: MetaData) -> None:
    """Keep a database that has no study yet, where it can be written."""
    blank = file.read_bytes()
    with suppress(OSError):
        keep_in_cache(_path(ours), hashlib.sha256(blank).digest() + blank)


def _path(ours: MetaData) -> Path:
    """By all that decides what is in it: who makes it, and the tables that we have beside Optuna's."""
    made_by = {name: version(name) for name in ("optuna", "sqlalchemy")} | {"sqlite": sqlite3.sqlite_version}
    tables = [str(CreateTable(table)) for table in ours.sorted_tables]
    name = hashlib.sha256(json.dumps([made_by, tables]).encode()).hexdigest()[:32]
    return cache_folder("blank") / f"{name}.db"
