"""The first tick: from the start of the process to the first epoch of `tunecli search digits`, and what is imported.

    python -m tests.benchmarks.first [--rounds 5] [--write]

A process a round, which ends itself once its first tick is decided. Files are in the system's cache from the second on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time

from tests.benchmarks import results

GOAL_SECONDS = 3.0

STEPS = ("command line", "data, model and database", "first tick")

PROGRAM = """
import json, os, sys, time
from tunecli.cli import main
seen = [(time.time(), time.process_time())]
import tunecli.search.loop as room
loop, decide = room.Loop.__init__, room.Loop._decide
def make(self, *arguments, **options):
    loop(self, *arguments, **options)
    seen.append((time.time(), time.process_time()))
def end(self, measured):
    decide(self, measured)
    seen.append((time.time(), time.process_time()))
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"seen": seen, "modules": modules}), file=sys.__stdout__, flush=True)
    os._exit(0)
room.Loop.__init__, room.Loop._decide = make, end
main()
"""


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    wall, cpu, modules = [], [], set()
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as home:
            began = time.time()
            command = [sys.executable, "-c", PROGRAM, "search", "digits", "--home", home]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        wall.append([at - began for at, _ in found["seen"]])
        cpu.append([spent for _, spent in found["seen"]])
        modules = set(found["modules"])
    rows = [
        [step, *(f"{statistics.median(own[place] for own in side):.2f}" for side in (wall, cpu))]
        for place, step in enumerate(STEPS)
    ]
    rows[-1][0] += f", goal {GOAL_SECONDS:g}"
    heavy = [name for name in ("torch", "pandas", "optuna", "alembic", "scipy", "sklearn") if name in modules]
    results.show(
        "First tick of digits",
        f"Seconds since the process began, the median of {given.rounds}, up to the end of each step. "
        f"Loaded by then: {', '.join(heavy)}.",
        results.table(["up to", "wall", "CPU"], rows),
        versions=("torch", "optuna"),
        write=given.write,
    )


if __name__ == "__main__":
    main()
