"""Many processes begin one new study at once: one wins, the others are turned away before torch is loaded."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import Question
from tests.faults.conftest import Report
from tunecli.store import read
from tunecli.trial import State

STARTER = """
import json, os, signal, sys, time
from pathlib import Path
# What a search loads before it takes the lock, so that all come to it at the same moment.
import tunecli.live, tunecli.search, tunecli.store, tunecli.study
from tunecli.cli import main
assert "torch" not in sys.modules
folder, processes, database = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
sys.argv = ["tunecli", *sys.argv[4:]]
line, gate = os.pipe()
children, codes = {}, {}
for number in range(processes):
    child = os.fork()
    if child == 0:
        os.close(gate)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}-{number}", os.O_CREAT | os.O_WRONLY, 0o600), stream)
        os.read(line, 1)  # all at once
        try:
            main()
        finally:
            print("torch" in sys.modules)
    children[child] = number
os.close(gate)
while len(children) > 1:
    child, status = os.wait()
    codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
((winner, number),) = children.items()
while not database.exists():
    assert os.waitpid(winner, os.WNOHANG) == (0, 0), (folder / f"err-{number}").read_text()
    time.sleep(0.05)
time.sleep(1.0)
os.kill(winner, signal.SIGTERM)
codes[number] = os.waitstatus_to_exitcode(os.waitpid(winner, 0)[1])
print(json.dumps([number, [codes[own] for own in range(processes)]]))
"""


def test_one_process_wins_a_new_study_and_the_others_leave_at_once(
    question: Question, tmp_path: Path, full: bool, report: Report
) -> None:
    rounds, processes = (20, 32) if full else (1, 8)
    (tmp_path / "question.toml").write_text(question(trials=100_000).toml())

    def begin(number: int) -> None:
        home = tmp_path / f"home-{number}"
        folder, database = tmp_path / str(number), home / "tiny" / "study.db"
        folder.mkdir()
        command = ["search", str(tmp_path / "question.toml"), "--home", str(home)]
        starter = [sys.executable, "-c", STARTER, str(folder), str(processes), str(database), *command]
        done = subprocess.run(starter, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        winner, codes = json.loads(done.stdout)
        assert codes.pop(winner) == 75, (folder / f"err-{winner}").read_text()
        assert codes == [5] * (processes - 1)
        for own in set(range(processes)) - {winner}:
            errors = (folder / f"err-{own}").read_text()
            assert "Traceback" not in errors
            assert "is held by another tunecli" in errors
            assert (folder / f"out-{own}").read_text() == "False\n", "torch was loaded"
        assert all(trial.state is not State.FAILED for trial in read(database).trials)

    with ThreadPoolExecutor(2) as side_by_side:
        list(side_by_side.map(begin, range(rounds)))
    report(
        f"{processes} processes start on one new study at once, {rounds} rounds",
        f"one wins, {processes - 1} leave with exit 5 before torch is loaded, no traceback",
    )
