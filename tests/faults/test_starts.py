"""Many processes begin one new study at once: one wins, the others are turned away before torch is loaded."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import Question
from tests.faults.conftest import Report
from tunecli.store import read
from tunecli.trial import State

STARTER = """
import sys
from tunecli.cli import main
sys.stdin.readline()  # all at once
try:
    main()
finally:
    print("torch" in sys.modules)
"""


def test_one_process_wins_a_new_study_and_the_others_leave_at_once(
    question: Question, tmp_path: Path, full: bool, report: Report
) -> None:
    rounds, processes = (20, 32) if full else (1, 4)
    (tmp_path / "question.toml").write_text(question(trials=100_000).toml())
    for number in range(rounds):
        home = tmp_path / f"home-{number}"
        command = [sys.executable, "-c", STARTER, "search", str(tmp_path / "question.toml"), "--home", str(home)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started = [subprocess.Popen(command, text=True, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
        time.sleep(0.2 * processes)  # for all of them to stand at the line
        for own in started:
            own.stdin.write("\n")
            own.stdin.flush()
        while sum(own.poll() is None for own in started) > 1:
            time.sleep(0.05)
        (winner,) = (own for own in started if own.poll() is None)
        database = home / "tiny" / "study.db"
        while not database.exists():
            assert winner.poll() is None, winner.communicate()
            time.sleep(0.05)
        time.sleep(1.0)
        winner.send_signal(signal.SIGTERM)
        winner.communicate()
        assert winner.returncode == 75
        for own in started:
            if own is not winner:
                out, errors = own.communicate()
                assert own.returncode == 5, errors
                assert "Traceback" not in errors
                assert "is held by another tunecli" in errors
                assert out == "False\n", "torch was loaded"
        assert all(trial.state is not State.FAILED for trial in read(database).trials)
    report(
        f"{processes} processes start on one new study at once, {rounds} rounds",
        f"one wins, {processes - 1} leave with exit 5 before torch is loaded, no traceback",
    )
