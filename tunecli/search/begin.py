"""How a study comes to be on disk, and how it is opened there to be gone on with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from tunecli import __version__
from tunecli.home import remember, write_question
from tunecli.search.resume import Found
from tunecli.space import Space
from tunecli.store import Store, create_study
from tunecli.study import Question, Study


def open_store(
    found: Found,
    study: Question,
    *,
    metric: str,
    direction: str,
    plan: Mapping[str, Any],
    data_hash: str,
    **environment: str,
) -> Store:
    """The writer of the study that was found, as it is asked now: a new one is begun, in the place of one that makes
    way for it, another keeps what it was begun with. `environment` is what else results may depend on.
    """
    database = found.database if found.make_way is None else found.make_way()
    if found.record is None:
        # The question first, then the empty database, then where that is: a kill leaves nothing without its question.
        write_question(found.folder, study)
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
        remember(found.folder, database)
    # What a program asks for is written as it asks: in no space of ours.
    store = Store(database, study.space if isinstance(study, Study) else Space(()))
    if found.record is not None:
        # It may ask for more trials now, or lie elsewhere; and this is the study that was searched last.
        write_question(found.folder, study)
        if found.earlier is not None:
            store.set_aside(found.earlier.document, found.earlier.until)
        store.restate(study.document())
    return store
