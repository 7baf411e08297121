"""Whether the removed elements of a value are exactly zero in the masked original.

Producers are masked, so a removed channel starts as zero; a bias-free convolution or a ReLU keeps it so, a
sigmoid does not. Sums over channels and the statistics of norms are exact only over zeros. Everything not
known to be zero is taken not to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..einsum import einsum_of
from ..labels import Labels, varying
from ..nodes import Node
from ..ops import POOLS, TRANSFORMS, VIEWS, is_pointwise
from .asked import true_at_zero, value_at, zero_at_zero
from .only import Only, among
from .overwritten import overwritten

Values = Mapping[Node, Any]

# f(0, ...) = 0 whenever the first operand is zero, whatever the others are.
_KEEP = frozenset(
    """permute transpose t T mT H mH adjoint movedim unsqueeze squeeze flip fliplr flipud
    roll narrow tensor_split unbind select unfold chunk split split_with_sizes unsafe_chunk unsafe_split repeat tile
    repeat_interleave expand broadcast_to expand_as view reshape _unsafe_view flatten ravel view_as reshape_as
    unflatten getitem index_select gather take_along_dim item clone contiguous detach to as_tensor asarray float
    double half bfloat16 type type_as data cpu cuda sum mean amax amin cumsum dropout dropout1d dropout2d dropout3d
    feature_dropout interpolate im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    linalg_vector_norm linalg_norm linalg_matrix_norm zeros_like grid_sampler grid_sample
    grid_sampler_2d max_unpool1d max_unpool2d max_unpool3d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
    reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d pad
    constant_pad_nd rms_norm glu tril triu roi_align roi_pool ps_roi_align
    ps_roi_pool fft_fftshift fft_ifftshift view_as_real view_as_complex real imag conj resolve_conj resolve_neg
    positive prelu diagonal linalg_diagonal diag_embed diag atleast_1d atleast_2d atleast_3d _pack_padded_sequence
    _pad_packed_sequence _weight_norm sort topk kthvalue median mode prod std std_mean var var_mean cummax
    cummin""".split()
).union(TRANSFORMS, POOLS)
_PRODUCERS = frozenset(
    """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d deform_conv2d""".split()
)


def reads_zero(source: Node, reader: Node, values: Values, known: dict[Node, bool] | None = None) -> bool:
    """True if `reader`, which takes what `source` computed, finds zeros in what is removed.

    `known` keeps what was found out for later questions about the same values.
    """
    memo: dict[Node, bool] = {}
    known = {} if known is None else known

    def zero(node: Node) -> bool:
        return is_zero(node, values, memo, known)

    return zero(source) and not overwritten(source, reader, zero)


def reads_true(source: Node, reader: Node, values: Values, known: dict[Node, bool] | None = None) -> bool:
    """True if `reader` finds a condition met in what is removed: `isfinite(x)`, or `x == y`, of what is zero there."""
    operands = source.all_input_nodes
    spread = any(_spread(n, operands, values) for n in operands if _labelled(n, values))
    told = source.op == "call_function" and is_pointwise(source.meta["op"]) and not spread and true_at_zero(source)
    return told and all(reads_zero(n, source, values, known) for n in operands)


def is_zero(node: Node, values: Values, memo: dict[Node, bool], known: dict[Node, bool]) -> bool:
    """True if every removed element of what `node` computes is zero in the masked original.

    What it is computed from comes first, so that the recursion stays shallow however deep the model is. `memo` is
    for one question: where something is written in place, a later one may find more zeros, once writers are
    labelled.
    """
    for each in _unanswered(node, memo, known):
        if each not in memo and each not in known:
            memo[each] = False  # a cycle through in-place operations is not known to be zero
            memo[each] = _labelled(each, values) and _decide(each, values, lambda n: is_zero(n, values, memo, known))
            if memo[each] or not each.graph.writes:
                known[each] = memo[each]
    return known[node] if node in known else memo[node]


def unmasked(node: Node, values: Values, known: dict[Node, bool]) -> Node:
    """The first value on the way to this one of which it is not known that what is removed is zero."""
    memo: dict[Node, bool] = {}
    while True:
        behind = [n for n in node.all_input_nodes if _labelled(n, values) and not is_zero(n, values, memo, known)]
        if not behind:
            return node
        node = behind[0]


def _unanswered(node: Node, memo: Mapping[Node, bool], known: Mapping[Node, bool]) -> list[Node]:
    """The node, and before it what it is computed from, back to weights, as far as it is not known yet."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(node, False)]
    while stack:
        each, entered = stack.pop()
        if entered:
            order.append(each)
        elif each not in seen and each not in memo and each not in known:
            seen.add(each)
            stack.append((each, True))
            weighted = each.meta["op"] in _PRODUCERS or each.meta["op"] in _NORM_WEIGHTS
            stack += [(n, False) for n in (() if weighted else each.inputs)]
    return order


def _labelled(node: Node, values: Values) -> bool:
    found = values.get(node)
    if isinstance(found, dict):
        return any(bool(part.coordinates) for part in found.values() if isinstance(part, Labels))
    return isinstance(found, Labels) and bool(found.coordinates)


def _decide(node: Node, values: Values, zero: Callable[[Node], bool]) -> bool:
    op = node.meta["op"]
    inputs = [n for n in node.all_input_nodes if not overwritten(n, node, zero)]
    if len(inputs) < len(node.all_input_nodes):
        return False
    if op == "parameter":
        return not node.meta["plain"]  # a plain tensor attribute is cut, but not masked
    if op in _ZEROS:
        return True
    if op == "item" and not _is_floating(node):  # positions
        return False
    if op in _ENLARGING and _spread(inputs[0], [node], values):  # to as many as there are
        return False
    if op in _RECURRENT:  # gates at rest: a state that starts at zero stays there
        return all(zero(n) for n in inputs[1:] if n.meta["op"] != "parameter" and _is_floating(n))
    if op in ("embedding", "embedding_bag"):
        return any(zero(n) for n in inputs)
    if op in _PRODUCERS:
        return _made_by_weight(node, values, zero)
    if op in _NORM_WEIGHTS:
        return _normed(node, values, zero)
    if op in ("matmul", "bmm", "mm", "grouped_mm"):
        return _product(inputs, values, zero)
    if op == "einsum":
        return _einsum(node, values, zero)
    if op in ("addmm", "baddbmm"):
        return _added_product(node, values, zero)
    if op == "scaled_dot_product_attention":
        value = _argument(node, 2, "value")
        return value in inputs and zero(value)
    padded = op in _PADS and _argument(node, _PADS[op], "value")
    if op in ("cat", "stack", "pad_sequence"):
        return all(zero(n) for n in inputs if _labelled(n, values)) and not padded
    if op in ("max", "min", "maximum", "minimum", "complex", "diff"):
        return _all_zero(inputs, values, zero)
    if op == "div" and len(inputs) == 2:
        return zero(inputs[0]) and inputs[0] is node.args[0] and _divides(inputs[1], values, zero)
    if op == "mul":
        return any(zero(n) and _covers(n, inputs, values) for n in inputs)
    if op == "where" or op == "masked_fill":
        data = [n for n in inputs if n.meta.get("dtype") != torch.bool]
        return bool(data) and _all_zero(data, values, zero) and all(number == 0 for number in _filled_with(node))
    if op in _WRITTEN:
        written = _argument(node, *_WRITTEN[op])
        data = [n for n in (node.args[0], written) if isinstance(n, Node)]
        return (len(data) == 2 or written == 0) and _all_zero(data, values, zero)
    if op in _KEEP:
        return zero(inputs[0]) and not padded
    return is_pointwise(op) and _cancels(node, values, zero)


def _cancels(node: Node, values: Values, zero: Callable[[Node], bool]) -> bool:
    """Whether an operation element by element gives zero where something goes."""
    if _all_zero(node.all_input_nodes, values, zero):
        return zero_at_zero(node)
    return _at_zero(node, values, zero) == 0


def _is_floating(node: Node) -> bool:
    """Whether these are values, and no positions, counts or masks."""
    dtype: torch.dtype = node.meta["dtype"]
    return dtype.is_floating_point or dtype.is_complex


def _unexpanded(node: Node) -> Node:
    """A value before it was made larger."""
    while node.meta["op"] in _ENLARGING:
        node = node.all_input_nodes[0]
    return node


def _divides(node: Node, values: Values, zero: Callable[[Node], bool]) -> bool:
    """Whether zero may be divided by a value where something goes."""
    below = _unexpanded(node)
    return not _labelled(below, values) or _positive(below) or _at_zero(below, values, zero) not in (0, None)


def _at_zero(node: Node, values: Values, zero: Callable[[Node], bool], depth: int = 6) -> float | None:
    """The one number that a value is where something goes, if a few operations tell: `1 - exp(x)` is zero where `x`
    is."""
    if not _labelled(node, values) or not depth:
        return None
    if zero(node):
        return 0.0
    inputs, op = node.all_input_nodes, node.meta["op"]
    if op in VIEWS or op in _ENLARGING:
        return _at_zero(inputs[0], values, zero, depth - 1)
    if not is_pointwise(op) or not inputs or any(_spread(n, inputs, values) for n in inputs):
        return None
    found: dict[Node, float] = {}
    for each in inputs:
        number = _at_zero(each, values, zero, depth - 1)
        if number is None:
            return None
        found[each] = number
    return value_at(node, found)


def _positive(node: Node) -> bool:
    """Whether a value is at least some number above zero: a norm that something may be divided by."""
    if node.meta["op"] not in ("clamp", "clamp_min"):
        return False
    bounds = (_argument(node, 1, "min"), _argument(node, 2, "max"))
    return bounds[0] is not None and all(b is None or (isinstance(b, int | float) and b > 0) for b in bounds)


def _all_zero(inputs: list[Node], values: Values, zero: Callable[[Node], bool]) -> bool:
    """Whether all operands are zero where any of them loses something."""
    spread = any(_spread(n, inputs, values) for n in inputs if _labelled(n, values))
    return not spread and all(zero(n) or _blank(n) for n in inputs)


def _blank(node: Node) -> bool:
    """Whether a value was made of zeros alone."""
    op = node.meta["op"]
    place = _FILLING.get(op)
    number = _argument(node, place, "fill_value") if place is not None else None
    return op in _ZEROS or (isinstance(number, int | float) and number == 0)


def _spread(node: Node, others: list[Node], values: Values) -> bool:
    """Whether one value of this operand goes with what others lose: they are labelled where it has the size 1.

    Where it is larger and not labelled, they can lose nothing.
    """
    shape = node.meta["shape"]
    return any(
        d < -len(shape) or shape[d] == 1
        for other in others
        if isinstance(labels := values.get(other), Labels)
        for c in labels.coordinates
        for d in (d - labels.ndim for d in varying(c))
    )


_ZEROS = frozenset({"zeros", "new_zeros", "zeros_like"})
# Where the number is that they are filled with.
_FILLING = {"tensor": 0, "scalar_tensor": 0, "new_tensor": 1, "full": 1, "full_like": 1, "new_full": 2}
_RECURRENT = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
)
_ENLARGING = frozenset({"expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile"})
# Where what is written is found.
_WRITTEN = {
    "masked_scatter": (2, "source"),
    **dict.fromkeys(("setitem", "index_put"), (2, "values")),
    **dict.fromkeys(("index_add", "index_copy", "index_reduce"), (3, "source")),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), (3, "src")),
}
# Where the number is that they pad with.
_PADS = {"pad": 3, "constant_pad_nd": 2, "_pad_packed_sequence": 3, "pad_sequence": 2}
_NORM_WEIGHTS = {"layer_norm": 2, "group_norm": 2, "batch_norm": 3, "instance_norm": 3}


def _argument(node: Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _made_by_weight(node: Node, values: Values, zero: Callable[[Node], bool]) -> bool:
    """Filters that are zero give zero if their bias is; rows and places of the input need a zero input and no bias."""
    names = (
        ("input", "weight", "offset", "mask", "bias") if "deform" in node.meta["op"] else ("input", "weight", "bias")
    )
    source, weight, bias = (_argument(node, i, n) for i, n in enumerate(names) if n not in ("offset", "mask"))
    if bias is not None and not zero(bias):
        return False
    rank = 1 if node.meta["op"] == "linear" else int(node.meta["op"][-2]) + 1
    carried = [c for c in values[source].coordinates if c.shape[c.ndim - rank] == 1]
    filters = zero(weight) or _filters_zero(weight, node, values) or not _labelled(weight, values)
    return filters and (not carried or (zero(source) and bias is None))


def _filters_zero(weight: Node, node: Node, values: Values) -> bool:
    """Whether a computed weight is zero where filters go, whatever is where their inputs go: standardised filters."""
    labels = values.get(weight)
    own = labels.along(0) if isinstance(labels, Labels) and "transpose" not in node.meta["op"] else None
    return own is not None and is_zero(weight, Only(values, among(own)), {}, {})


def _normed(node: Node, values: Values, zero: Callable[[Node], bool]) -> bool:
    """A masked scale and shift leave nothing; else zero must come in, and its mean be zero: where statistics run over
    what goes, 0 becomes -mean."""
    op = node.meta["op"]
    first = _NORM_WEIGHTS[op] if node.target is not torch.batch_norm else 1
    weight, bias = _argument(node, first, "weight"), _argument(node, first + 1, "bias")
    over = _runs_over(node)
    spread = any(d in over for c in values[node].coordinates for d in varying(c))
    if (bias is not None and not zero(bias)) or (spread and op == "batch_norm"):
        return False
    if weight is not None and zero(weight):
        return True
    source, *statistics = [n for n in node.all_input_nodes if n not in (weight, bias)]
    return zero(source) and not spread and all(zero(n) for n in statistics)


def _runs_over(node: Node) -> Sequence[int]:
    """The dimensions that the statistics of a norm run over."""
    op, ndim = node.meta["op"], len(node.meta["shape"])
    if op == "layer_norm":
        shape: Any = _argument(node, 1, "normalized_shape")
        return range(ndim - len(shape), ndim)
    return {"batch_norm": (0, *range(2, ndim)), "instance_norm": range(2, ndim)}.get(op, range(1, ndim))


def _filled_with(node: Node) -> list[Any]:
    """The numbers that `where` and `masked_fill` put in place of others; NaN for what is none."""
    given = (*node.args[1:], node.kwargs.get("value", node.kwargs.get("other", 0)))
    return [a if isinstance(a, int | float) else math.nan for a in given if not isinstance(a, Node)]


def _covers(node: Node, inputs: list[Node], values: Values) -> bool:
    """Whether this operand is labelled wherever the others are, so that its zeros cover theirs."""
    mine = values[node]
    rank = max(len(n.meta["shape"]) for n in inputs)

    def dims(labels: Any) -> set[int]:
        return {d + rank - labels.ndim for c in labels.coordinates for d in range(c.ndim) if c.shape[d] > 1}

    return all(dims(values[n]) <= dims(mine) for n in inputs if isinstance(values.get(n), Labels))


def _product(inputs: list[Node], values: Values, zero: Callable[[Node], bool]) -> bool:
    """[..., M, K] x [..., K, N]: a side whose removed slices are zero makes the product zero there."""
    left, right = (inputs * 2)[:2]
    a, b = values[left], values[right]
    rows = any(c.ndim > 1 and c.shape[-2] > 1 for c in a.coordinates)
    columns = any(c.shape[-1] > 1 for c in b.coordinates)
    batch_a = any(max(c.shape[:-2], default=1) > 1 for c in a.coordinates)
    batch_b = any(max(c.shape[:-2], default=1) > 1 for c in b.coordinates)
    zero_a, zero_b = zero(left), zero(right)
    if zero_a and zero_b:
        return True
    return (zero_b and not rows and (batch_b or not batch_a)) or (zero_a and not columns and (batch_a or not batch_b))


def _added_product(node: Node, values: Values, zero: Callable[[Node], bool]) -> bool:
    """input + a x b, where the input is zero, too."""
    added, *factors = (a for a in node.args[:3] if isinstance(a, Node))
    three = len(factors) == 2 and not _spread(added, [node], values)
    return three and zero(added) and _product(factors, values, zero)


def _einsum(node: Node, values: Values, zero: Callable[[Node], bool]) -> bool:
    """A product is zero wherever one of its operands is: one for each part of its labels."""
    terms, right, operands = einsum_of(node)
    covered = [
        {term[d] for d in varying(c)}
        for term, operand in zip(terms, operands, strict=True)
        if isinstance(labels := values.get(operand), Labels) and zero(operand)
        for c in labels.coordinates
    ]
    return all(any({right[d] for d in varying(c)} <= part for part in covered) for c in values[node].coordinates)
