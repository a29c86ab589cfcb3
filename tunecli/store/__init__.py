"""The study database: the only writer, the only room that knows SQL.

An ordinary Optuna study, which Optuna's own reader, command line and dashboard read without tunecli; what Optuna has
no place for lies in `tunecli_*` tables beside it.
"""

from tunecli.store.chosen import Kept, load_kept
from tunecli.store.create import create_study
from tunecli.store.lock import hold, is_held
from tunecli.store.overview import Overview, overview
from tunecli.store.reader import read
from tunecli.store.record import Earlier, Reading, Record
from tunecli.store.versions import is_deleted, is_unfinished, rename, studies_in
from tunecli.store.writer import Store

__all__ = [
    "Earlier",
    "Kept",
    "Overview",
    "Reading",
    "Record",
    "Store",
    "create_study",
    "hold",
    "is_deleted",
    "is_held",
    "is_unfinished",
    "load_kept",
    "overview",
    "read",
    "rename",
    "studies_in",
]
