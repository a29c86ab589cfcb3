"""How full the blocks are that a search computes, and of how many shapes: `python -m tests.benchmarks.occupied`.

Computed from what a search recorded and from its plan: which trials were in flight in each tick, the lane that each
belongs to, and the rows that a lane's blocks have, which are computed whether or not a slot is in them. The drain
begins where the last trial has started: from then on slots cannot but stay empty.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from tests.benchmarks import results
from tests.benchmarks.plain import EPOCHS
from tests.benchmarks.whole import our_search
from tunecli import data
from tunecli.engine import Plan
from tunecli.engine.batches import micro_length
from tunecli.engine.plan import block_height
from tunecli.store import Record


def shapes_and_rows(record: Record) -> tuple[set[tuple[int, int]], list[tuple[int, int]]]:
    """The shapes of blocks (micro-batch length, rows); for each tick how many rows held a slot, and were computed."""
    plan = Plan(**record.plan)
    samples = len(data.load("digits", {}, base=Path(), seed=0).train)
    micro = {own.number: micro_length(own.hparams["batch_size"], samples, plan.cap) for own in record.trials}
    ticks, shapes = [], set()
    for tick in range(1, max(own.last_tick for own in record.trials) + 1):
        lanes = Counter(micro[own.number] for own in record.trials if own.start_tick <= tick <= own.last_tick)
        heights = {length: block_height(slots, plan.block_rows) for length, slots in lanes.items()}
        shapes |= set(heights.items())
        ticks.append((lanes.total(), sum(-(-lanes[length] // rows) * rows for length, rows in heights.items())))
    return shapes, ticks


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--trials", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _, record = our_search(Path(folder, "ours"), Path(folder), given.trials, EPOCHS, "--workers", "1")
    shapes, ticks = shapes_and_rows(record)
    drain = max(own.start_tick for own in record.trials)
    shares = [sum(own[0] for own in part) / sum(own[1] for own in part) for part in (ticks[:drain], ticks)]
    rows = [
        ["shapes compiled", "at most 3", 0],
        ["shapes recorded (micro-batch length, rows), at some 30 ms each", "", len(shapes)],
        ["rows occupied before the drain", "95 %", f"{shares[0]:.1%}"],
        ["rows occupied, the drain included", "", f"{shares[1]:.1%}"],
    ]
    how = f"""
    {given.trials} trials of up to {EPOCHS} epochs on digits, mlp 64-128-10, every default (asha), in one process: a
    window of {record.document["search"]["window"]}, {Plan(**record.plan)}. The last trial started in tick {drain} of
    {len(ticks)}.
    """
    title = f"Blocks in a search of {given.trials} trials"
    results.show(title, how, results.table(["figure", "goal", "got"], rows), write=given.write)


if __name__ == "__main__":
    main()
