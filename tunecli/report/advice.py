"""What may be worth changing in a study that is done: decided by what became of its trials, each with what to type."""

from __future__ import annotations

from tunecli.report.summary import Summary
from tunecli.trial import State

FEW_COMPLETE = 3
"""Fewer complete trials say little of each other: the best of two may be the luckier one."""

LEAST_ENDED = 10


def advice(summary: Summary) -> list[str]:
    """A sentence for each thing that is worth changing; none where all is as it should be, or not yet done."""
    if summary.ended < max(summary.asked, LEAST_ENDED) or summary.exhausted is not None:
        return []
    return [*_few_complete(summary), *_mostly_random(summary)]


def _few_complete(summary: Summary) -> list[str]:
    complete, pruned = summary.counts[State.COMPLETE], summary.counts[State.PRUNED]
    if not 0 < complete < FEW_COMPLETE or pruned < summary.ended // 2:
        return []
    few = "one trial" if complete == 1 else f"{complete} trials"
    return [
        f"only {few} of {summary.ended} trained to the end: {summary.search['pruner']} pruned {pruned}, what learns "
        f"slowly first; --pruner median --trials {2 * summary.ended} prunes later"
    ]


def _mostly_random(summary: Summary) -> list[str]:
    learned = summary.learned
    if learned is None or learned >= summary.ended / 3:
        return []
    share = "all" if learned == 0 else f"{summary.ended - learned} of the"
    sampler, window = summary.search["sampler"], summary.search["window"]
    return [
        f"{share} {summary.ended} trials are random: {sampler} chooses by what others came to once 10 of them have "
        f"ended, with {window} in flight at a time; --trials {3 * summary.ended} goes on with that"
    ]
