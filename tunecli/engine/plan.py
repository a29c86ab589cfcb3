"""The plan: how a study is computed. All that can change the last bits of a result is in it, but for the device.

It is chosen once, by the rule below or by measuring (`calibration`), stored with the study and kept on resume.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from tunecli.machine import cores

NARROW_WEIGHTS = 65_536
"""Up to here the cost of a step is mostly the calls into torch, and rows computed together share them."""


EVALUATION_SAMPLES = 1024
"""Samples evaluated at once. A multiple of what a block's micro-batches are filled up to, for the same reason."""


MOST_THREADS = 2
"""With more, threads that share an update should gain more than reading gradients where autograd made them does:
reckoned from the share of an update in a wide step, an eighth; measured with one and two alone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`way`: how gradients are had: by "rules", of many rows at once, or "looped", as where a model allows no other;
    `cap`: largest micro-batch (None: whole batches); `block_rows`: at most so many rows are computed at once, which
    from two on changes the speed alone; `threads`: of the process; `evaluated`: so many samples are evaluated at once;
    `compiled`: C of our own (`compiler.py`) updates weights, and computes the losses and windows of recorded models, or
    all of a model whose layers C has.
    """

    way: str
    cap: int | None
    block_rows: int
    threads: int
    evaluated: int = EVALUATION_SAMPLES
    compiled: bool = False

    def with_compiled(self, possible: bool) -> Plan:
        """The plan with C of our own where that is possible and faster: torch's updates are shared among threads."""
        return replace(self, compiled=possible and self.threads <= MOST_THREADS)

    def lacks_compiler(self, device: str) -> bool:
        """Whether C of our own would compute it if a compiler worked here, or had when the study began."""
        return device == "cpu" and self.with_compiled(True) != self

    def halved(self, of: str, at: int) -> Plan:
        """The plan with half of the `at` rows of a block, or samples `evaluated` at once, that did not fit: the next
        power of two below."""
        half = 1 << (at // 2).bit_length() - 1
        return replace(self, block_rows=half) if of == "block_rows" else replace(self, evaluated=half)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.block_rows == 1:
            return f"trials one after another, {threads}"
        return f"up to {self.block_rows} trials at once, up to {self.cap} samples of each, {threads}"


def lessened(before: Plan, now: Plan) -> list[str]:
    """What is computed at once now, and what was before; and that no C of our own works any more."""
    found = []
    if now.block_rows != before.block_rows:
        found.append(f"up to {now.block_rows} trials at once from now on, not {before.block_rows}")
    if now.evaluated != before.evaluated:
        found.append(f"{now.evaluated} samples evaluated at once from now on, not {before.evaluated}")
    if before.compiled and not now.compiled:
        found.append("no C compiler (cc, or CC) works any more: torch computes all, and last bits differ")
    return found


LOOPED = Plan("looped", cap=None, block_rows=1, threads=1)

TRIED = Plan("rules", cap=16, block_rows=1, threads=1)
"""By which a model is tried, before there is a plan."""


NATIVE_WEIGHTS = 1 << 20
"""Up to here C of our own computes a model faster than torch does a trial alone, at every batch size: at 0.8
million weights in 0.6 to 0.9 of its time, at 5.8 million in 0.9 to 1.1, each by the plan that is best for it."""


BLOCK_WEIGHTS, BLOCK_ROWS = 1 << 22, 64
"""So many weights a core the rows of a block have that C computes: then one call trains each row through a dozen steps,
while its weights are near the core. A wide mlp takes 0.6 of the time with 4 rows that it takes with 32, and 0.7 with 8.
And so many rows at most: a narrow mlp takes a tenth less with 64 than with 32, by what each block costs."""


GPU_BYTES_A_WEIGHT = 64
"""Of each row: the weight, its gradient, both moments and its best, of 4 bytes each, and as much as that again three
times for what a step holds meanwhile."""


def choose_plan_for_gpu(weights: int, window: int, smallest_batch: int, memory: int) -> Plan:
    """The written rule for a GPU with so many bytes: as many rows at once as there are trials, and as fit.

    Reckoned, where a GPU was at hand to nobody: a step of 32 narrow models of four optimizers has torch compute
    something 72 times, a step of one model 33 times (counted on the device that the tests pretend), and each of them
    takes some microseconds whatever it computes.
    What activations take beyond is found out: where they do not fit, blocks are halved. A cap as low as the smallest
    batch leaves all trials in one lane, of the fewest steps.
    """
    rows = min(1 << (window - 1).bit_length(), memory // (GPU_BYTES_A_WEIGHT * max(weights, 1)))
    if rows < 2:
        return LOOPED
    return Plan("rules", cap=_cap(smallest_batch), block_rows=1 << rows.bit_length() - 1, threads=1)


def choose_plan(
    weights: int,
    window: int,
    smallest_batch: int = 16,
    blocks: int = 1,
    *,
    convolves: bool = False,
    native: bool = False,
) -> Plan:
    """The written rule for the CPU: for a model of `weights` weights that allows either way and a window of `window`
    trials, which is to fall into so many `blocks` at least: one a core where a study is long enough for all of them.
    `convolves`: it has filters; `native`: C of our own computes it.

    Measured with the benchmark `slots`: narrow models gain from a block as soon as it holds two trials. One lane that
    holds every trial beats several low ones, hence a cap as low as the smallest batch: at the default batch sizes, a
    cap of 64 costs two fifths more than one of 16 at a window of 8, a seventh more at 16 and the same at 64. Blocks of
    16 rows cost about a tenth more than blocks of 32, and two of them can share the cores. Below eight trials a cap of
    64 takes 0.4 to 0.85 of the time of one trial after another, one of 16 up to twice that time, at batches of 256; a
    trial alone gains a seventh to a half at small batches by what is recorded of its model, and reads batches whole;
    but one that convolves loses a fifth by it.
    What C computes goes a row after the other, and shares only the calls that lay out and measure a tick: by a
    cap of 16, which holds all default batch sizes in one lane, it takes 0.8 of the time of a cap of 64 at a window of 4
    and the same at 32; a single batch size of 64 or more takes a tenth less by a cap of 64, if the model does not
    convolve: then the images of a layer should stay near the core.
    One thread: two gain a sixth on an idle machine, and lose tenfold where another process wants the second core.
    """
    cap = _cap(smallest_batch)
    rows = _most_rows(window, blocks)[-1]
    if native and weights <= NATIVE_WEIGHTS:
        most = min(BLOCK_ROWS, 1 << (window - 1).bit_length(), BLOCK_WEIGHTS * cores() // max(weights, 1))
        few = max(2, 1 << most.bit_length() - 1)
        return Plan("rules", cap=CAPS[0] if convolves else cap, block_rows=1 if window == 1 else few, threads=1)
    if weights > NARROW_WEIGHTS:
        return Plan("looped", cap=None, block_rows=1, threads=cores())
    if window == 1:
        return LOOPED if convolves else Plan("rules", cap=LARGEST_CAP, block_rows=1, threads=1)
    if window < 8:
        return Plan("rules", cap=CAPS[-1], block_rows=8, threads=1)
    return Plan("rules", cap=cap, block_rows=rows, threads=1)


def _cap(smallest_batch: int) -> int:
    return min(max(CAPS[0], 1 << (smallest_batch.bit_length() - 1)), CAPS[-1])


ALL_IN_C = "compiled code trains all of its layers"


def reason(weights: int, window: int, *, native: bool, gpu: bool = False) -> str:
    """Why the written rule takes the plan that it takes, in a few words."""
    if gpu:
        return "a GPU computes many trials in the time that it takes to be told of one: as many as fit"
    if native and weights <= NATIVE_WEIGHTS:
        return ALL_IN_C
    if weights > NARROW_WEIGHTS:
        return f"with more than {NARROW_WEIGHTS:,} weights, one trial keeps the cores at work by itself"
    if window == 1:
        return "one trial is in flight: it has nobody to share a step with, and reads its batches whole"
    if window < 8:
        return f"{window} trials are in flight: they share the cost of a step, and read more samples in each"
    return f"up to {NARROW_WEIGHTS:,} weights, a step costs many trials hardly more than one: they share it"


def _most_rows(window: int, blocks: int) -> list[int]:
    """How many rows a block may have, of 8 to 32, that a window falls into so many of them."""
    return [8, *(rows for rows in (16, 32) if rows < 2 * window and -(-window // rows) >= blocks)]


def block_height(slots: int, most: int) -> int:
    """How many rows each block has where so many slots fall into as few of `most` rows as can be.

    An even number, for a row's bits not to depend on it: micro-batches are whole sixteens, so no tensor ends within
    two vectors of 16 floats, after which torch computes exp and tanh one by one, and otherwise; and a product of a
    single row goes another way too. `most` is 1 where every row is computed alone.
    """
    height = -(-slots // max(1, -(-slots // most)))
    return 1 if most == 1 else max(2, height + height % 2)


CAPS = (16, 32, 64)
"""Micro-batches that are worth a lane of their own: a larger product gains nothing, a smaller one loses."""

LARGEST_CAP = 256
"""For a trial alone, which has no lane to share."""


def rivals(
    written: Plan, window: int, largest_batch: int, blocks: int, *, looped: bool, compiled: bool = False
) -> list[Plan]:
    """The plans worth measuring beside the written rule's, which comes first; `looped` where a model allows no other.

    Rows computed at once have one thread: above, torch splits tensors where a row's bits would depend on its slot.
    """
    one_by_one = [replace(LOOPED, threads=threads) for threads in sorted({1, cores()})]
    caps = [cap for cap in CAPS if cap <= max(largest_batch, CAPS[0])]
    at_once = [Plan("rules", cap, rows, 1) for cap in caps for rows in _most_rows(window, blocks)]
    found = one_by_one if looped or window == 1 else [*at_once, *one_by_one]
    alike = [plan.with_compiled(compiled) for plan in found]
    return [written, *(plan for plan in alike if plan != written)]
