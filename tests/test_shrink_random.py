"""Random architectures with random zeros: shrinking is exact, and masks and plans are inverse.

`STRUCTPRUNE_EXAMPLES=5000 STRUCTPRUNE_SEED=1 pytest tests/test_shrink_random.py` hunts for longer.
"""

from __future__ import annotations

from typing import Any

import torch
from helpers import Snapshot, assert_bookkeeping, call, fresh, randomise, tensors
from hypothesis import given, note, seed, settings
from hypothesis import strategies as st
from test_random import EXAMPLES, SEED, Architecture, Model, architectures, hunted
from torch import Tensor, nn

import structprune as sp

some = settings(hunted, max_examples=max(EXAMPLES // 3, 1))

Drawn = tuple[Architecture, list[int], bool]


def built(drawn: Drawn) -> tuple[nn.Module, Tensor]:
    net, reads, flat = drawn
    note(f"{net}\nread: {reads}, flat: {flat}")
    model = randomise(Model(net, reads, flat).double()).eval()
    return model, torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scatter_zeros(model: nn.Module, number: int, biases: bool) -> None:
    """Rows and columns of zeros: two thirds of the filters of some layers, some inputs of others, some vectors."""
    random = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            share = float(torch.rand((), generator=random))
            for dim in range(2 if parameter.ndim > 1 else int(biases)):
                gone = torch.rand(parameter.shape[dim], generator=random) < share - 0.3 * dim
                parameter.index_fill_(dim, gone.nonzero()[:, 0], 0)


@some
@given(architectures(), st.integers(0, 1000), st.booleans())
def test_random_zeros(drawn: Drawn, number: int, biases: bool) -> None:
    model, x = built(drawn)
    scatter_zeros(model, number, biases)
    before = Snapshot.of(model)
    small = sp.shrink(model, x, verify=False)
    before.assert_unchanged(model)
    assert_bookkeeping(small)
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in model.parameters())
    for changed in (fresh(x, 1), fresh(x, 2, 5)):
        with torch.no_grad():
            pairs: list[Any] = list(zip(tensors(call(small, changed)), tensors(call(model, changed)), strict=True))
        for found, expected in pairs:
            assert float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max())


@some
@given(architectures(), st.sampled_from([0.5, 0.25]))
def test_masks_and_plans_are_inverse(drawn: Drawn, ratio: float) -> None:
    model, x = built(drawn)
    try:
        plan = sp.plan(sp.analyze(model, x), ratio=ratio)
    except sp.NothingToPruneError:
        return
    again = sp.plan_from_masks(sp.mask(plan, model), x)
    assert (again.kept, again.swaps, again.attributes) == (plan.kept, plan.swaps, plan.attributes)
    if not plan.notes:
        assert again.to_json() == plan.to_json()


if SEED is not None:
    test_random_zeros = seed(int(SEED))(test_random_zeros)
    test_masks_and_plans_are_inverse = seed(int(SEED))(test_masks_and_plans_are_inverse)
