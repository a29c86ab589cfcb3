"""Recurrent layers as the products and functions of which they consist: torch's own are one operation each, which vmap
has no rule for.

Each takes what `torch.nn` hands to torch's, whose equations they follow (the documentation of nn.LSTM,
nn.GRU and nn.RNN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunecli.engine.forward import watch

MOST_STEPS = 64
"""Of a sequence that is computed step by step: each of them is recorded, a millisecond and more."""

MOST_WEIGHTS = 1 << 19
"""Of a model whose weights are gone through in every step: an LSTM of 0.3 million takes 0.93 of torch's time in C, one
of 0.7 million 1.0 to 1.03."""

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor]], State]
"""From what a step's inputs give (m, gates), the state before, and what the state is multiplied by, to the state."""


def _projected(values: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return functional.linear(values, *weights)


def _lstm(given: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    hidden, cell = state
    enter, forget, value, leave = (given + _projected(hidden, weights)).chunk(4, 1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru(given: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    (hidden,) = state
    (reset, update, value), own = given.chunk(3, 1), _projected(hidden, weights).chunk(3, 1)
    new = (value + (reset + own[0]).sigmoid() * own[2]).tanh()
    return (new + (update + own[1]).sigmoid() * (hidden - new),)


def _tanh(given: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    return ((given + _projected(state[0], weights)).tanh(),)


def _relu(given: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    return ((given + _projected(state[0], weights)).relu(),)


_CELLS: dict[str, Cell] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh, "rnn_relu": _relu}


def _direction(
    cell: Cell, inputs: Tensor, state: State, weights: Sequence[Tensor], *, backward: bool
) -> tuple[Tensor, State]:
    """The hidden states (T, m, H) of a sequence (T, m, F), in its order, and the last state."""
    half = len(weights) // 2
    given, hidden = _projected(inputs, weights[:half]), []
    steps = given.unbind(0)
    for step in reversed(steps) if backward else steps:
        state = cell(step, state, weights[half:])
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if backward else hidden), state


def _layers(
    cell: Cell,
    inputs: Tensor,
    states: State,
    weights: Sequence[Tensor],
    *,
    directions: int,
    drop: Callable[[Tensor], Tensor],
) -> tuple[Tensor, State]:
    """All layers: the last one's hidden states (T, m, D * H), and the last states of all, (L * D, m, H) each."""
    layers, last = len(states[0]) // directions, []
    each = len(weights) // len(states[0])
    for layer in range(layers):
        found = []
        for direction in range(directions):
            place = layer * directions + direction
            own = weights[place * each : (place + 1) * each]
            # As weight_ih, weight_hh, bias_ih, bias_hh: what is for the inputs, then what is for the state.
            hidden, state = _direction(
                cell, inputs, tuple(one[place] for one in states), [*own[::2], *own[1::2]], backward=direction == 1
            )
            found.append(hidden)
            last.append(state)
        inputs = found[0] if directions == 1 else torch.cat(found, 2)
        inputs = drop(inputs) if layer < layers - 1 else inputs
    return inputs, tuple(torch.stack(own) for own in zip(*last, strict=True))


def _recurrent(name: str, torchs: Callable[..., Any]) -> Callable[..., Any]:
    def call(inputs: Tensor, states: Any, weights: Any, *how: Any) -> Any:
        given = states if isinstance(states, tuple) else (states,)
        # Of packed sequences the lengths stand before the states; proj_size is a weight more of each layer.
        if len(how) < 6 or len(weights) // len(given[0]) % 2:
            return torchs(inputs, states, weights, *how)
        _, _, dropout, training, bidirectional, batch_first = how
        found, last = _layers(
            _CELLS[name],
            inputs.transpose(0, 1) if batch_first else inputs,
            given,
            weights,
            directions=1 + bidirectional,
            drop=lambda own: functional.dropout(own, dropout, training) if dropout else own,
        )
        return (found.transpose(0, 1) if batch_first else found, *last)

    return call


def _cell(name: str) -> Callable[..., Any]:
    def call(inputs: Tensor, state: Any, *weights: Any) -> Any:
        own = [weight for weight in weights if weight is not None]
        given = state if isinstance(state, tuple) else (state,)
        found = _CELLS[name](_projected(inputs, own[::2]), given, own[1::2])
        return found if isinstance(state, tuple) else found[0]

    return call


@contextmanager
def in_steps() -> Iterator[None]:
    """While it holds, recurrent layers are computed step by step."""
    own: dict[str, Any] = {name: _recurrent(name, getattr(torch._VF, name)) for name in _CELLS}
    own |= {f"{name}_cell": _cell(name) for name in _CELLS}
    with patch.multiple(torch._VF, **own):
        yield


def steps(module: nn.Module, forward: Callable[[], object]) -> int:
    """How many steps the longest sequence has that a recurrent layer of the module reads; 0 where it has no such layer.
    `forward` calls the module."""
    found = [0]

    def see(part: nn.RNNBase, inputs: tuple[Any, ...], outputs: object) -> None:
        read = inputs[0]
        if not isinstance(read, Tensor):  # a packed sequence, which is left to torch
            found.append(MOST_STEPS + 1)
        else:
            found.append(read.shape[1 if part.batch_first and read.dim() == 3 else 0])

    watch([part for part in module.modules() if isinstance(part, nn.RNNBase)], see, forward)
    return max(found)
