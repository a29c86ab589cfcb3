"""How a study comes to be on disk: its question first, then its empty database, then where that is."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunecli import __version__
from tunecli.home import remember, write_question
from tunecli.storage import Database
from tunecli.store import create_study
from tunecli.study import Question


def begin(
    study: Question,
    folder: Path,
    database: Database,
    *,
    metric: str,
    direction: str,
    plan: Mapping[str, Any],
    data_hash: str,
    **environment: str,
) -> None:
    """Write the question and the database of a new study. `environment` is what else a result may depend on."""
    write_question(folder, study)
    create_study(
        database,
        name=study.name,
        metric=metric,
        direction=direction,
        document=study.document(),
        plan=plan,
        data_hash=data_hash,
        environment={
            "tunecli": __version__,
            "python": platform.python_version(),
            "optuna": version("optuna"),
            "platform": platform.platform(),
            **environment,
        },
    )
    remember(folder, database)
