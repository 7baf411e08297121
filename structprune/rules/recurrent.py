"""Recurrent layers, and sequences packed for them: a hidden unit is one index of the state, with its row in every
gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..labels import IntArray, Labels, place
from ..nodes import Node
from .checks import Pairs, Reader, View
from .site import Site, rule


@dataclass
class Projected:
    """PyTorch tells an LSTM with projections by the sizes of its two states, which must not become the same."""

    node: Node
    labels: list[IntArray]  # of what it puts out, and of its cells
    why: str = "an LSTM's cells must not be as many as what they are projected to"

    def holds(self, view: View) -> bool:
        first, second = (int((~view.gone(labels)).sum()) for labels in self.labels)
        return first != second

    def equals(self, read: Reader) -> Pairs:
        return []


def _unit(site: Site, input: Labels, weights: Sequence[Labels], state: Labels) -> tuple[IntArray | None, ...]:
    """One layer in one direction: w_ih [gates * H, I], w_hh [gates * H, R], biases, and w_hr [R, H] if projected.

    Returns the labels of what it puts out (R) and of its cells (H).
    """
    inside, recurrent, *rest = weights
    biases = [w for w in rest if w.ndim == 1]
    projection = next((w for w in rest if w.ndim == 2), None)
    site.contract(input, -1, inside, 1)
    out = site.join(recurrent, 1, state, -1)
    cells = out
    if projection is not None:
        out = site.join(projection, 0, state, -1)
        site.produce(out)
        cells = site.vector(projection, 1)
        if out is not None or cells is not None:
            sizes = [np.zeros(n, np.int64) for n in projection.shape]  # where a size is fixed
            both = [known if known is not None else size for known, size in zip((out, cells), sizes, strict=True)]
            site.checks.append(Projected(site.node, both))
    for weight in (inside, recurrent, *biases):
        rows = site.vector(weight, 0)
        site.produce(rows if weight.ndim == 2 else None)
        if rows is not None and cells is not None:
            site.couple(rows.reshape(-1, len(cells)), cells.reshape(1, -1))
        elif rows is not None:
            site.fix(rows, "its state has a fixed size")
    return out, cells


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(site: Site, input: Labels, state: Any, weights: Any, biased: Any, *options: Any) -> Any:
    """[time, batch, I] -> [time, batch, directions * R], and the last states [layers * directions, batch, R or H].

    Packed sequences, [steps, I] -> [steps, directions * R], bring along how many examples each moment has. All layers
    and directions share one size of state, so index j of each goes together.
    """
    if isinstance(biased, list | tuple):
        site.freeze("it counts examples", state)
        state, weights, options = weights, biased, options[1:]
    layers, _, _, bidirectional = options[:4]
    input = site.held(input, range(input.ndim - 1), "it is a sequence")
    states = [site.held(s, range(s.ndim - 1), "it counts states") for s in (state if site.name == "lstm" else [state])]
    directions = 2 if bidirectional else 1
    each = len(weights) // (int(layers) * directions)
    sequence, cells = input, None
    for layer in range(int(layers)):
        outs = []
        for direction in range(directions):
            start = (layer * directions + direction) * each
            out, cells = _unit(site, sequence, weights[start : start + each], states[0])
            outs.append(out)
            if len(states) > 1:
                _meet(site, cells, states[1])
        laid = np.concatenate([o for o in outs if o is not None]) if all(o is not None for o in outs) else None
        width = len(outs) * states[0].shape[-1]
        before, sequence = sequence, Labels((*input.shape[:-1], width), tuple(place(laid, input.ndim, -1)))
        site.alias(before, sequence)  # it is made from zeros wherever these or the weights are
    ends = [states[0].along(-1), cells][: len(states)]
    parts = {0: sequence}
    for i, labels in enumerate(ends, 1):
        rank = states[i - 1].ndim
        vector = None if labels is None else labels.reshape(-1)
        parts[i] = Labels(states[i - 1].shape, tuple(place(vector, rank, -1)))
    return parts


def _meet(site: Site, cells: IntArray | None, state: Labels) -> None:
    """The cells of an LSTM start from a state of their size."""
    initial = site.vector(state, -1)
    if cells is not None and initial is not None:
        site.couple(cells, initial)
    for labels in (cells, initial):
        if labels is not None and (cells is None or initial is None):
            site.fix(labels, "its state has a fixed size")


@rule("_pack_padded_sequence")
def pack(site: Site, input: Labels, lengths: Labels, batch_first: bool) -> Any:
    """[time, batch, ...] -> [steps, ...], and how many examples each moment has."""
    site.freeze("it is the length of a sequence", lengths)
    input = site.held(input, (0, 1), "it is a sequence")
    return {i: site.merge(s, [c[0] for c in input.coordinates] if i == 0 else []) for i, s in site.parts.items()}


@rule("_pad_packed_sequence")
def unpack(site: Site, input: Labels, counts: Labels, *options: Any) -> Any:
    """[steps, ...] -> [time, batch, ...], and the lengths of the sequences."""
    site.freeze("it counts examples", counts)
    input = site.held(input, (0,), "it is a sequence")
    return {i: site.merge(s, [c[None] for c in input.coordinates] if i == 0 else []) for i, s in site.parts.items()}


@rule("pad_sequence")
def pad(site: Site, sequences: Sequence[Labels], *options: Any) -> Labels:
    """Values [steps, ...] that may differ in their steps -> [batch, time, ...] or [time, batch, ...]"""
    held = [site.hold(v, (0,), "it is a sequence") for v in sequences]
    rest = site.shape[2:]
    together = site.broadcast([Labels((1, *rest), v.coordinates) for v in held], (1, *rest))
    return site.merge(site.shape, [c[None] for c in together.coordinates])


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(site: Site, input: Labels, state: Any, *weights: Any) -> Any:
    """One step of one layer."""
    states = list(state) if site.name == "lstm_cell" else [state]
    given = [w for w in weights if isinstance(w, Labels)]
    out, cells = _unit(site, input, given, states[0])
    if len(states) > 1:
        _meet(site, cells, states[1])
    parts = {i: Labels(s.shape, tuple(place(out, s.ndim, -1))) for i, s in enumerate(states)}
    return parts[0] if site.has_shape else parts
