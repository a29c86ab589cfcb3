"""The first tick: from the start of the process to the first epoch of `tunecli search digits`, and what is imported.

    python -m tests.benchmarks.first [--rounds 5] [--write]

Two processes a round, each of which ends itself once its first tick is decided: the first has an empty cache of the
user's, as the first search of all, the second finds there what the first one left. Files are in the system's cache from
the second round on.
"""

from __future__ import annotations

import json
import os
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
    first, wall, cpu, modules = [], [], [], set()
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as cache:
            first.append(_search(cache)[0])
            seconds, spent, modules = _search(cache)
            wall.append(seconds)
            cpu.append(spent)
    rows = [
        [step, *(f"{statistics.median(own[place] for own in side):.2f}" for side in (first, wall, cpu))]
        for place, step in enumerate(STEPS)
    ]
    rows[-1][0] += f", goal {GOAL_SECONDS:g}"
    heavy = [name for name in ("torch", "pandas", "optuna", "alembic", "scipy", "sklearn") if name in modules]
    results.show(
        "First tick of digits",
        f"Seconds since the process began, the median of {given.rounds}, up to the end of each step. "
        f"Loaded by then: {', '.join(heavy)}.",
        results.table(["up to", "first of all: wall", "wall", "CPU"], rows),
        versions=("torch", "optuna"),
        write=given.write,
    )


def _search(cache: str) -> tuple[list[float], list[float], set[str]]:
    """When each step ended, by the clock and by the CPU, in seconds since the process began; what was loaded."""
    with tempfile.TemporaryDirectory() as home:
        began = time.time()
        command = [sys.executable, "-c", PROGRAM, "search", "digits", "--home", home]
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    wall, cpu = zip(*found["seen"], strict=True)
    return [at - began for at in wall], list(cpu), set(found["modules"])


if __name__ == "__main__":
    main()
