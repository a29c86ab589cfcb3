"""Programs of the user's own as they are: each trial in a process of its own, which reports to the search.

A worker is told its task in one line of JSON and answers in lines of JSON, over one socket:

    worker                                              search
    {"ready": true}, once the objective is loaded       {"go": true}
    {"ask": NAME, "distribution": JSON}                 {"answer": INTERNAL} or {"refused": TEXT}
    {"report": VALUE, "step": STEP}
    {"prune": true}                                     {"answer": true or false}
    {"attribute": KEY, "value": VALUE}
    {"end": "complete", "value": VALUE}                 ends the trial; or
    {"end": "pruned"}, {"end": "failed", "reason": TEXT, "holds": WHAT}, {"end": "interrupted"},
    {"end": "unloadable", "reason": TEXT, "hint": TEXT}

A worker whose search is gone ends itself, with every process that it began.
"""

from tunecli.program.child import Child, wait

NO_VALUE = "it printed no line of JSON"
"""How the reason begins why a trial failed whose program came to its end and told no value."""

__all__ = ["NO_VALUE", "Child", "wait"]
