"""Operations called in ways that are seldom seen: implied dimensions, odd keywords, arguments of other kinds.

Like the table of `test_rules.py`: what stands between a conv and a linear layer, and how many of the conv's eight
channels become units.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from helpers import assert_exact, assert_exact_or_nothing
from test_rules import Use, build, free_channels, use
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune.ops import operation
from structprune.rules import has_rule

TWO = torch.tensor(2)


def sampled(h: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(h, grid, align_corners=False)


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
    "the names that NumPy gives to arguments": use(
        8,
        lambda h, m, x: h.softmax(axis=3),
        lambda h, m, x: h.topk(2, axis=2)[0],
        lambda h, m, x: torch.unbind(h, axis=2),
        lambda h, m, x: h.narrow(axis=2, start=1, length=2),
        lambda h, m, x: h.var(axis=(2, 3), keepdims=True),
        lambda h, m, x: h.sum(axis=1, keepdims=True),
        lambda h, m, x: torch.cat([h, m.b(x)], axis=1),
        lambda h, m, x: torch.stack([h, m.b(x)], axis=1),
        lambda h, m, x: torch.add(x1=h, x2=m.b(x)) + torch.relu(x=h),
    )
    + use(4, lambda h, m, x: torch.chunk(h, 2, axis=1))
    + use(
        0,
        *(
            lambda h, m, x, name=name: getattr(torch, name)(h, axis=1)
            for name in ("log_softmax", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "amax", "std")
        ),
        lambda h, m, x: h.softmax(axis=1),
        lambda h, m, x: h.topk(2, axis=1)[0],
        lambda h, m, x: torch.cat(h.split_with_sizes([4, 4], axis=1)[::-1], 1),
        lambda h, m, x: torch.linalg.vector_norm(h.sigmoid(), axis=1),
        lambda h, m, x: h.index_select(axis=1, index=torch.tensor([0, 1])),
    ),
    "operands by keyword": use(
        8,
        lambda h, m, x: torch.addmm(m.vector, mat1=h.mean((2, 3)), mat2=m.third[0]),
        lambda h, m, x: torch.addmm(mat2=m.third[0], mat1=h.mean((2, 3)), input=m.vector),
        lambda h, m, x: torch.baddbmm(
            h.flatten(2), batch2=torch.ones(len(x), 16, 16, dtype=h.dtype), batch1=m.b(x).flatten(2)
        ),
        lambda h, m, x: torch.mv(h.mean((2, 3)), vec=m.vector),
        lambda h, m, x: torch.addmv(x[:, 0, 0, 0], vec=m.vector, mat=h.mean((2, 3))),
        lambda h, m, x: torch.dot(h[0, :, 0, 0], tensor=m.vector),
        lambda h, m, x: torch.vdot(h[0, :, 0, 0], other=m.vector),
        lambda h, m, x: torch.bmm(mat2=m.b(x).flatten(2), input=h.flatten(2).mT),
        lambda h, m, x: F.scaled_dot_product_attention(
            value=h.flatten(2).mT, key=x.flatten(2).mT, query=x.flatten(2).mT
        ),
    )
    + use(
        0,
        lambda h, m, x: torch.addr(torch.ones(8, 4, dtype=h.dtype), vec2=m.third[0, 0, :4], vec1=h.mean((0, 2, 3))),
        lambda h, m, x: torch.addbmm(m.vector, batch2=m.b(x).flatten(2).mT, batch1=h.flatten(2)),
    ),
    "reductions with more to say": use(
        8,
        lambda h, m, x: torch.diff(h, 1, 3),
        lambda h, m, x: torch.diff(h, dim=3, prepend=m.b(x)),
        lambda h, m, x: torch.diff(h, 2, 2, None, m.b(x)[:, :, :1]),
        lambda h, m, x: h.kthvalue(2)[0],
        lambda h, m, x: h.kthvalue(2, 2)[0].mT,
        lambda h, m, x: h.kthvalue(2, 2, True),
        lambda h, m, x: h.topk(2, 2, False, False),
        lambda h, m, x: h.sort(2, True),
        lambda h, m, x: h.median(3, True),
        lambda h, m, x: h.mode(3, keepdim=False),
        lambda h, m, x: h.std((2, 3), correction=0),
        lambda h, m, x: h.std((2, 3), False, True),
        lambda h, m, x: h.norm(2, (2, 3)),
        lambda h, m, x: torch.nanquantile(h, 0.5, dim=3),
    )
    + use(
        0,
        lambda h, m, x: torch.diff(h, 2, 1),
        lambda h, m, x: torch.diff(h, dim=1, prepend=m.b(x)),
        lambda h, m, x: torch.diff(h, dim=3, prepend=x[:, :1].expand(-1, 8, -1, -1).clone()),
        lambda h, m, x: h.permute(0, 2, 3, 1).kthvalue(2)[0],
        lambda h, m, x: h.kthvalue(2, 1)[0],
        lambda h, m, x: h.permute(0, 2, 3, 1).sort(descending=True)[0],
        lambda h, m, x: h.std((1, 2), correction=0),
        lambda h, m, x: torch.quantile(h, 0.5, 1),
        lambda h, m, x: torch.renorm(h, 2, 1, 0.1),
    ),
    "subscripts of every kind": use(
        8,
        lambda h, m, x: h[:, :, np.array([0, 2])],
        lambda h, m, x: h[:, :, np.int64(3)],
        lambda h, m, x: h[:, :, np.array(3)],
        lambda h, m, x: h[:, :, np.eye(4) > 0],
        lambda h, m, x: h[:, :, torch.eye(4) > 0],
        lambda h, m, x: h[:, :, (torch.eye(4) > 0).byte()],
        lambda h, m, x: h[:, :, range(0, 4, 2)],
        lambda h, m, x: h[:, :, (0, 2)],
        lambda h, m, x: h[..., (0, 1), (2, 3)],
        lambda h, m, x: h[:, :, [True, False, True, False]],
        lambda h, m, x: h[torch.tensor([True, False]), :, torch.tensor([1, 2])],
    )
    + use(
        0,
        lambda h, m, x: h[:, np.array([0, 2, 4, 6])],
        lambda h, m, x: h[:, np.array([True, False] * 4)],
        lambda h, m, x: h[:, np.int64(3)],
        lambda h, m, x: h[:, range(0, 8, 2)],
        lambda h, m, x: h[:, (0, 2)],
        lambda h, m, x: h[:, torch.Size([0, 2])],
        lambda h, m, x: h[((0, 1), (2, 3))],
        lambda h, m, x: h[:, [0, h.size(1) - 1]],
        lambda h, m, x: h[:, [torch.tensor(1), torch.tensor(2)]],
        lambda h, m, x: h[[[0, 1], [2, 3]]],
        lambda h, m, x: h[torch.tensor(True)],
        lambda h, m, x: [h := h.clone(), h.__setitem__((slice(None), np.array([1, 2])), 0.0)][0],
        lambda h, m, x: [z := torch.zeros_like(x[:, :1]).repeat(1, 8, 1, 1), z.__setitem__((..., range(4)), h)][0],
    ),
    "as many places along another dimension as there are channels": use(
        8,
        lambda h, m, x: h.narrow(1, 0, h.size(1)),
        lambda h, m, x: h.roll(1, 3).diagonal(dim1=2, dim2=3),
        lambda h, m, x: h.unflatten(1, (h.size(1), 1)).squeeze(2),
    )
    + use(
        0,
        lambda h, m, x: torch.cat([h, h], 1)[:, : h.size(1), h.size(1) // 4 : h.size(1) // 4 + 1],
        lambda h, m, x: h.roll(h.size(1) // 4, 3),
        lambda h, m, x: h.roll((0, h.size(1) // 4), (1, 2)),
        lambda h, m, x: torch.rot90(h, h.size(1) // 8, (2, 3)),
        lambda h, m, x: h.diagonal(h.size(1) // 4, 2, 3),
        lambda h, m, x: h.diagonal(dim1=1, dim2=2),
        lambda h, m, x: h.narrow(3, h.size(1) // 4, 2),
        lambda h, m, x: h.select(3, h.size(1) // 4),
        lambda h, m, x: h.unfold(3, h.size(1) // 4, 1),
        lambda h, m, x: h.repeat(1, 1, h.size(1) // 4, 1),
        lambda h, m, x: sampled(h.transpose(0, 1), x[:1, :1, :2, :2].expand(8, 2, 2, 2)).transpose(0, 1),
    ),
    "what memory tells of sizes": use(
        8,
        lambda h, m, x: h * h.stride(-1),
        lambda h, m, x: h * h.stride(1),
        lambda h, m, x: h.permute(0, 2, 3, 1).mT * h.permute(0, 2, 3, 1).stride()[3],
        lambda h, m, x: h[..., 1:3] * h[:, :, 1:3].stride(3),
        lambda h, m, x: h * (h.storage_offset() + h.element_size()),
        lambda h, m, x: h.type(h.type()),
    )
    + use(
        0,
        lambda h, m, x: h * h.stride(0),
        lambda h, m, x: h * h.stride()[0],
        lambda h, m, x: h * h.to(memory_format=torch.channels_last).stride(3),
        lambda h, m, x: h * h[..., 1:].stride(0),
        lambda h, m, x: h * h[1].storage_offset(),
        lambda h, m, x: h * h.unbind(0)[1].storage_offset(),
        lambda h, m, x: h * h.nbytes,
        lambda h, m, x: h * h.untyped_storage().nbytes(),
    ),
    "zeros of both signs": use(8, lambda h, m, x: (-h.relu()).sum(1), lambda h, m, x: torch.copysign(h, -h).sum(1))
    + use(
        0,
        lambda h, m, x: torch.atan2(h.relu(), -h.relu()).sum(1),
        lambda h, m, x: (-h.relu()).signbit().to(h.dtype).sum(1),
        lambda h, m, x: torch.complex(-h, h).angle().sum(1),
    ),
    "functions by the names they have elsewhere": use(
        8,
        lambda h, m, x: torch.special.expit(h),
        lambda h, m, x: torch.special.log_softmax(h, 2),
        lambda h, m, x: torch.special.expm1(h),
        lambda h, m, x: torch.special.erf(h),
        lambda h, m, x: torch.special.xlog1py(h, h.exp()),
        lambda h, m, x: torch.as_tensor(h),
        lambda h, m, x: torch.asarray(h, requires_grad=False),
    )
    + use(0, lambda h, m, x: torch.special.softmax(h, 1), lambda h, m, x: torch.special.logsumexp(h, 1)),
    "tensors where numbers are usual": use(
        8,
        lambda h, m, x: F.max_pool2d(h, (TWO, TWO)),
        *([lambda h, m, x: F.max_pool2d(h, TWO)] if torch.__version__ >= (2, 11) else []),
        lambda h, m, x: h.flatten(TWO),
        lambda h, m, x: torch.addmm(m.vector, h.mean((2, 3)), m.third[0], beta=TWO * 1.0),
    )
    + use(
        0,
        lambda h, m, x: torch.cat(torch.tensor_split(h, torch.tensor([1, 2]), dim=3), 3),
        lambda h, m, x: h.narrow(3, TWO, 2),
        lambda h, m, x: h.roll((TWO,), 3),
        *([lambda h, m, x: h.roll(TWO, 3)] if torch.__version__ >= (2, 11) else []),
        lambda h, m, x: h.select(3, TWO),
        lambda h, m, x: h.sum(TWO),
        lambda h, m, x: h.softmax(TWO),
        lambda h, m, x: h.topk(2, TWO)[0],
        lambda h, m, x: h.aminmax(dim=TWO),
        lambda h, m, x: h.view(TWO, -1),
        lambda h, m, x: h.unflatten(1, (TWO, 4)),
        lambda h, m, x: torch.cat(h.split(TWO, 1)[::-1], 1),
        lambda h, m, x: torch.cat(h.chunk(TWO, 1)[::-1], 1),
        lambda h, m, x: h.repeat(1, TWO, 1, 1),
        lambda h, m, x: h[:, :, :1].expand(2, 8, TWO, 4),
        lambda h, m, x: h.transpose(TWO, 1),
        lambda h, m, x: F.pad(h, (TWO, 1)),
        lambda h, m, x: F.group_norm(h, TWO),
        lambda h, m, x: F.pixel_shuffle(h, TWO),
        lambda h, m, x: F.conv2d(h, m.square[:4, :4, None, None], groups=TWO),
        lambda h, m, x: h + torch.zeros(TWO * 4, 1, 1),
        lambda h, m, x: h.kthvalue(TWO, TWO)[0],
    ),
}

ALL = [(name, one) for name, uses in SPELLINGS.items() for one in uses]


@pytest.mark.filterwarnings(
    "ignore:Implicit dimension choice", "ignore:Using a non-tuple sequence", "ignore:indexing with dtype"
)
@pytest.mark.parametrize(("name", "one"), ALL, ids=[name for name, _ in ALL])
def test_exact(name: str, one: Use) -> None:
    assert free_channels(sp.analyze(build(one), one.example)) == one.units
    if one.units:
        assert_exact(build(one), one.example)
    else:
        assert_exact_or_nothing(build(one), one.example)


DOCUMENTED = {
    name: match[1]
    for name, function in vars(torch).items()
    if (match := re.search(r"Alias (?:for|of) :func:`(?:torch\.)?(\w+)`", str(function.__doc__)))
}


def test_aliases_have_one_name() -> None:
    """What PyTorch says is an alias of an operation with a rule goes by its name."""
    known = {name: plain for name, plain in DOCUMENTED.items() if has_rule(plain)}
    assert len(known) > 20
    assert {name: operation(getattr(torch, name)).name for name in known} == known


def test_aliases_are_exact() -> None:
    def aliased(h: Tensor, m: nn.Module, x: Tensor) -> Tensor:
        both = torch.concat([torch.multiply(h, m.b(x)), torch.divide(h.absolute(), 2)], 1)
        either = torch.where(both.greater(0), torch.negative(both), torch.subtract(both, 1))
        return torch.linalg.matmul(torch.arctan(either).swapaxes(2, 3), torch.row_stack([either[:1], either[1:]]))

    assert_exact(build(Use(aliased, 8)), Use(aliased, 8).example)
