"""Three readers look at a study all the while that a search writes to it: no commit fails, no half tick is seen."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Question
from tests.faults.conftest import Report
from tunecli.search import search
from tunecli.store import Store, read, writer
from tunecli.trial import State

REPORT = """
import sys
from pathlib import Path
from tunecli.cli.options import read_summary
from tunecli.home import find_database
from tunecli.report import formats
from tunecli.trial import State
folder, window, seen = Path(sys.argv[1]), int(sys.argv[2]), set()
print("ready", flush=True)
while not (folder / "enough").exists():
    summary = read_summary(find_database(folder))
    formats.as_json(summary)
    flight = [t for t in summary.trials if t.state is State.RUNNING]
    ticks = {t.start_tick + t.fidelity - 1 for t in flight}
    assert len(ticks) <= 1, ticks
    assert len(flight) <= window, len(flight)
    for trial in summary.trials:
        if trial.state.ended:
            assert trial.end_tick == trial.start_tick + trial.fidelity - 1
            assert trial.value == max(own.metric for own in trial.curve)
    seen.add(sum(len(trial.curve) for trial in summary.trials))
print(len(seen))
"""

OPTUNA = """
import sys
from pathlib import Path
import optuna
from optuna.trial import TrialState
optuna.logging.set_verbosity(optuna.logging.WARNING)
folder, seen = Path(sys.argv[1]), set()
print("ready", flush=True)
while not (folder / "enough").exists():
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder}/study.db")
    trials = study.trials
    for trial in trials:
        # It reads a study in several transactions: a trial's value may be there before the last of its curve.
        assert trial.state is not TrialState.COMPLETE or trial.value >= max(trial.intermediate_values.values())
    seen.add(sum(len(trial.intermediate_values) for trial in trials))
print(len(seen))
"""

DASHBOARD = """
import json, sys
from pathlib import Path
from wsgiref.util import setup_testing_defaults
import optuna
from optuna_dashboard import wsgi
optuna.logging.set_verbosity(optuna.logging.WARNING)
folder, seen = Path(sys.argv[1]), set()
def get(app, path):
    request, statuses = {"PATH_INFO": path, "QUERY_STRING": "after=0"}, []
    setup_testing_defaults(request)
    text = b"".join(app(request, lambda status, *_: statuses.append(status)))
    assert statuses == ["200 OK"], (statuses, text)
    return json.loads(text)
url = f"sqlite:///{folder}/study.db"
get(wsgi(url), "/api/studies")
print("ready", flush=True)
while not (folder / "enough").exists():
    app = wsgi(url)  # a new one each time: one shows for seconds what it read before
    (study,) = get(app, "/api/studies")["study_summaries"]
    trials = get(app, f"/api/studies/{study['study_id']}")["trials"]
    for trial in trials:
        curve = [own["value"] for own in trial["intermediate_values"]]
        assert trial["state"] != "Complete" or trial["values"][0] >= max(curve)
    seen.add(sum(len(trial["intermediate_values"]) for trial in trials))
print(len(seen))
"""


def test_readers_never_stop_a_commit_and_never_see_half_a_tick(
    question: Question, tmp_path: Path, full: bool, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna_dashboard", reason="the dashboard is one of the readers")
    study, folder = question(trials=300 if full else 60, window=4), tmp_path / "tiny"
    monkeypatch.setattr(writer, "GROUP_SECONDS", 0.0)  # every tick is a commit
    commits = [0]
    flush = Store.flush

    def counted(store: Store) -> None:
        flush(store)
        commits[0] += 1

    monkeypatch.setattr(Store, "flush", counted)
    list(search(study.with_trials(4), folder))  # there is something to read
    commits[0] = 0
    arguments = [str(folder), "4"]
    readers = [
        subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for script in (REPORT, DASHBOARD, OPTUNA)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"ready\n"
        list(search(study, folder))
    finally:
        (folder / "enough").touch()
    seen = []
    for reader in readers:
        out, errors = reader.communicate()
        assert reader.returncode == 0, errors.decode()
        seen.append(int(out))
    assert min(seen) > 1, "the readers looked while the search wrote"
    found = read(folder / "study.db").trials
    assert len(found) == study.search.trials
    assert all(trial.state in (State.COMPLETE, State.PRUNED) for trial in found)
    report(
        "a report, Optuna's dashboard and its load_study in a loop during a search",
        f"0 of {commits[0]} commits failed; no half tick among {seen[0]} states that the report saw, no trial that "
        f"contradicts itself among {seen[1]} of the dashboard's and {seen[2]} of Optuna's",
    )
