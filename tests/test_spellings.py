"""Operations called in ways that are seldom seen: implied dimensions, odd keywords, arguments of other kinds.

Like the table of `test_rules.py`: what stands between a conv and a linear layer, and how many of the conv's eight
channels become units.
"""

from __future__ import annotations

import pytest
from helpers import assert_exact, assert_exact_or_nothing
from test_rules import Use, build, free_channels, use
from torch import nn
from torch.nn import functional as F

import structprune as sp

SPELLINGS: dict[str, list[Use]] = {
    "softmax without a dimension": use(8, lambda h, m, x: F.softmax(h.flatten(2)))
    + use(
        0,
        lambda h, m, x: F.softmax(h),
        lambda h, m, x: F.softmax(h[0]),
        lambda h, m, x: F.log_softmax(h, None),
        lambda h, m, x: F.softmin(h.mean((2, 3))),
        lambda h, m, x: nn.Softmax()(h),
        lambda h, m, x: nn.LogSoftmax()(h.permute(1, 0, 2, 3).flatten(2)),
        lambda h, m, x: nn.Softmin()(h[0]),
    ),
}

ALL = [(name, one) for name, uses in SPELLINGS.items() for one in uses]


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize(("name", "one"), ALL, ids=[name for name, _ in ALL])
def test_exact(name: str, one: Use) -> None:
    assert free_channels(sp.analyze(build(one), one.example)) == one.units
    if one.units:
        assert_exact(build(one), one.example)
    else:
        assert_exact_or_nothing(build(one), one.example)
