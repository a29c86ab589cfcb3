"""When a run has trained enough: pure decisions with their reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunecli.trial import Measurement, Value, first_best

STOPPING = ("patience", "loss_tolerance", "gradient_tolerance")
"""The settings that can end a run before its last epoch; by default none does."""


def reason_to_stop(curve: Sequence[Measurement], settings: Mapping[str, Value], direction: str) -> str | None:
    """Why a run with this curve is done before its last epoch, or None where it goes on.

    `patience`: that many epochs without a better metric on validation. `loss_tolerance`: the training loss changed by
    no more from one epoch to the next. `gradient_tolerance`: the norm of the epoch's last gradient is no larger. Each
    counts for nothing where it is 0.
    """
    last = curve[-1]
    patience, loss_tolerance, gradient_tolerance = (
        float(settings[name])  # type: ignore[arg-type]  # numbers by the space
        for name in STOPPING
    )
    best = first_best(curve, direction) if patience else None
    if best is not None and last.fidelity - best.fidelity >= patience:
        return f"no better metric for {last.fidelity - best.fidelity} epochs"
    if loss_tolerance and len(curve) > 1:
        change = abs(last.train_loss - curve[-2].train_loss)
        if change <= loss_tolerance:
            return f"converged: the training loss changed by {change:.3g}"
    if gradient_tolerance and last.gradient_norm <= gradient_tolerance:
        return f"converged: the gradient norm is {last.gradient_norm:.3g}"
    return None
