"""Every rule: an operation between a conv and a linear layer, pruned, against the masked original.

The table says for each registered name a use of the operation and how many of the conv's eight channels become
units: 8 if they are free, 4 if they go in pairs, 0 if they must stay.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import assert_exact, assert_exact_or_nothing, randomise, tensors
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

import structprune as sp
from structprune.ops import UNTAGGED
from structprune.rules import RULES

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SEQUENCE, VOLUME = IMAGE.flatten(2), IMAGE[..., None].expand(-1, -1, -1, -1, 2)
aten = torch.ops.aten
BOXES = torch.tensor([[0, 0.2, 0.1, 2.7, 3.0], [1, 0.0, 1.0, 3.0, 3.5]], dtype=torch.float64)


SQUARE = torch.eye(16, dtype=torch.float64) * 2 + torch.randn(16, 16, generator=torch.Generator().manual_seed(2)) / 9


def by_heads(h: Tensor, function: Callable[[Tensor], Any]) -> Any:
    """A function of matrices of 2 x 2, of which each channel has some."""
    return function(h.unflatten(2, (2, 2)).unflatten(4, (2, 2)).flatten(2, 3).flatten(3, 4)[:, :, :2, :2])


def covariance(a: Tensor) -> Tensor:
    return a @ a.mT + torch.eye(2).to(a)


REGULAR: dict[str, Callable[[Tensor], Any]] = {
    "inverse": lambda a: covariance(a).inverse(),
    "linalg_inv": lambda a: torch.linalg.inv(covariance(a)),
    "linalg_inv_ex": lambda a: torch.linalg.inv_ex(covariance(a))[0],
    "linalg_cholesky": lambda a: torch.linalg.cholesky(covariance(a)),
    "linalg_cholesky_ex": lambda a: torch.linalg.cholesky_ex(covariance(a))[0],
    "cholesky_inverse": lambda a: torch.cholesky_inverse(covariance(a)),
    "det": lambda a: a.det(),
    "linalg_det": lambda a: torch.linalg.det(a),
    "logdet": lambda a: covariance(a).logdet(),
    "slogdet": lambda a: covariance(a).slogdet()[1],
    "linalg_slogdet": lambda a: torch.linalg.slogdet(covariance(a))[1],
    "linalg_cond": lambda a: torch.linalg.cond(covariance(a)),
    "matrix_exp": lambda a: torch.matrix_exp(a),
    "linalg_matrix_exp": lambda a: torch.linalg.matrix_exp(a),
    "matrix_power": lambda a: a.matrix_power(3),
    "linalg_matrix_power": lambda a: torch.linalg.matrix_power(a, 2),
    "pinverse": lambda a: covariance(a).pinverse(),
    "linalg_pinv": lambda a: torch.linalg.pinv(covariance(a)),
    "linalg_qr": lambda a: torch.linalg.qr(covariance(a))[1],
    "svd": lambda a: covariance(a).svd()[1],
    "linalg_svd": lambda a: torch.linalg.svd(covariance(a))[1],
    "linalg_svdvals": lambda a: torch.linalg.svdvals(a),
    "linalg_eigh": lambda a: torch.linalg.eigh(covariance(a))[0],
    "linalg_eigvalsh": lambda a: torch.linalg.eigvalsh(covariance(a)),
    "linalg_matrix_rank": lambda a: torch.linalg.matrix_rank(covariance(a)) * a[..., 0, 0],
    "linalg_lu_factor": lambda a: torch.linalg.lu_factor(covariance(a))[0],
}


class Around(nn.Module):
    """conv -> the operation -> a linear layer for each of its results."""

    def __init__(self, operation: Callable[..., Any], example: Tensor) -> None:
        super().__init__()
        rank = example.ndim - 2
        self.operation = operation
        self.a = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](3, 8, 1)
        self.b = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](3, 8, 1)
        self.vector = nn.Parameter(torch.randn(8))
        self.square = nn.Parameter(torch.randn(5, 8))
        self.third = nn.Parameter(torch.randn(5, 8, 8))
        self.groups = 2
        self.double()
        with torch.no_grad():
            results = self.results(copy.deepcopy(self), example)
        self.out = nn.ModuleList(nn.Linear(rows(r).shape[-1], 3) for r in results).double()

    @staticmethod
    def results(model: Any, x: Tensor) -> list[Tensor]:
        return list(tensors(model.operation(model.a(x), model, x)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(out(rows(r)) for out, r in zip(self.out, self.results(self, x), strict=True))


def rows(value: Tensor) -> Tensor:
    """As real numbers, with everything but the first dimension in a row."""
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    value = value.to(torch.float64)
    return value.flatten(1) if value.ndim > 1 else value[None]


@dataclass(frozen=True)
class Use:
    """One use of an operation."""

    operation: Callable[..., Any]
    units: int
    example: Tensor = IMAGE
    ratio: float = 0.5


def use(units: int, *operations: Callable[..., Any], example: Tensor = IMAGE) -> list[Use]:
    return [Use(operation, units, example) for operation in operations]


def function_of_space(name: str) -> list[Use]:
    """torch.<name>(h, dim), over space and over channels."""
    function = getattr(torch, name)
    return use(8, lambda h, m, x: function(h, dim=3)) + use(0, lambda h, m, x: function(h, dim=1))


def distance(name: str) -> list[Use]:
    """F.<name>(h, b) and that of ATen."""
    function, own = getattr(F, name), getattr(torch.ops.aten, name)
    return use(
        8,
        lambda h, m, x: function(h.sigmoid(), m.b(x), reduction="none"),
        lambda h, m, x: h + function(h, m.b(x), reduction="sum"),
        lambda h, m, x: h + own(h, m.b(x), 2),
    ) + use(
        0,
        lambda h, m, x: h + function(h, m.b(x)),
        lambda h, m, x: h + own(h, m.b(x)),
        lambda h, m, x: h + function(h.sigmoid(), m.b(x), reduction="sum"),
        lambda h, m, x: h + function(h, m.b(x).sum(1, True).expand_as(h), reduction="sum"),
    )


def fourier(name: str, size: str) -> list[Use]:
    """torch.fft.<name>, over space and over channels; the two-sided ones halve what they give."""
    function = getattr(torch.fft, name)
    several = size == "s"
    space, channels, four = ((2, 3), (1, 2), (4, 4)) if several else (3, 1, 4)
    return (
        use(8, lambda h, m, x: function(h, dim=space), lambda h, m, x: function(h, four, space))
        + use(8, *([lambda h, m, x: function(h)] if not name.endswith("n") else []))
        + use(
            8, *([lambda h, m, x: function(h, s=(4, 4)), lambda h, m, x: function(h, 4)] if name.endswith("n") else [])
        )
        + use(0, lambda h, m, x: function(h, dim=channels), lambda h, m, x: function(h.mT.transpose(1, 3)))
    )


def shifted(name: str) -> list[Use]:
    function = getattr(torch.fft, name)
    return use(8, lambda h, m, x: function(h, (2, 3)), lambda h, m, x: function(h, dim=3)) + use(
        0, lambda h, m, x: function(h), lambda h, m, x: function(h, (1,))
    )


def complex_of(h: Tensor) -> Tensor:
    return torch.view_as_complex(torch.stack([h, h * 2], -1))


def bag(table: Tensor, weights: Tensor) -> Tensor:
    """Two bags, of one entry and of two."""
    return F.embedding_bag(torch.tensor([3, 0, 4]), table, torch.tensor([0, 1]), mode="sum", per_sample_weights=weights)


def random(function: Callable[[Tensor], Tensor]) -> list[Use]:
    """Random numbers cannot be the same in a narrower model: they are multiplied by zero."""
    return use(8, lambda h, m, x: h + 0 * function(h.clone()))


def written(h: Tensor, index: Any, value: Any) -> Tensor:
    """A copy that something is written into."""
    h = h.clone()
    h[index] = value
    return h


def reduced(h: Tensor, *args: Any) -> Tensor:
    """index_reduce, without its warning that it is new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return h.index_reduce(*args)


def places(model: Any) -> Tensor:
    """Filters that look at one place at a time, of what has four channels."""
    return model.third[0, :4, :4, None, None]  # type: ignore[no-any-return]


def differentiable(h: Tensor) -> Tensor:
    """A value for `aminmax`, which has a derivative in later releases only."""
    return h if torch.__version__ >= (2, 14) else h.detach()


USES: dict[str, list[Use]] = {
    # contractions
    "linear": use(
        8,
        lambda h, m, x: F.linear(h.flatten(2).mT, m.square),
        lambda h, m, x: F.linear(m.vector + h.mean((2, 3)), m.square),
        lambda h, m, x: F.linear(h.flatten(2).mT, m.square, m.square.sum(1)[None]),
    ),
    "conv1d": use(8, lambda h, m, x: F.conv1d(h, m.square[:, :, None]), example=SEQUENCE),
    "conv2d": use(
        8,
        lambda h, m, x: F.conv2d(h, m.square[:, :, None, None]),
        lambda h, m, x: h.mT.transpose(1, 3) * F.conv2d(h.mT.transpose(1, 3), places(m), m.vector[:4]),
        lambda h, m, x: F.conv2d(h.transpose(1, 3), places(m), padding="same").sum(3),
    )
    + use(
        0,
        lambda h, m, x: F.conv2d(h.transpose(1, 3), places(m), m.vector[:4]).sum(3),
        lambda h, m, x: F.conv2d(h.transpose(1, 3), places(m), padding=(0, 1))[..., 1:-1],
        lambda h, m, x: F.conv2d(h.transpose(1, 3), places(m), stride=(1, 2)),
    ),
    "conv3d": use(8, lambda h, m, x: F.conv3d(h, m.square[:, :, None, None, None]), example=VOLUME),
    "conv_transpose1d": use(8, lambda h, m, x: F.conv_transpose1d(h, m.square.t()[:, :, None]), example=SEQUENCE),
    "conv_transpose2d": use(8, lambda h, m, x: F.conv_transpose2d(h, m.square.t()[:, :, None, None])),
    "conv_transpose3d": use(
        8, lambda h, m, x: F.conv_transpose3d(h, m.square.t()[:, :, None, None, None]), example=VOLUME
    ),
    "bilinear": use(8, lambda h, m, x: F.bilinear(h.mean((2, 3)), m.b(x).mean((2, 3)), m.third)),
    "embedding": use(8, lambda h, m, x: h.mean((2, 3)) + F.embedding(torch.tensor([0, 3]), m.square)[:1]),
    "embedding_bag": use(
        8,
        *(
            lambda h, m, x, mode=mode: (
                h.mean((2, 3)) + F.embedding_bag(torch.tensor([[0, 3], [4, 4]]), m.square, mode=mode)
            )
            for mode in ("sum", "mean", "max")
        ),
        lambda h, m, x: h.mean((2, 3)) + bag(m.square, x[0, 0, 0, :3]),
        lambda h, m, x: (bag(m.square, x[0, 0, 0, :3]) + h[:, :, 0, 0]).sum(1),
        lambda h, m, x: h[:, :, 0, 0] + torch.embedding_bag(m.square, torch.tensor([3, 0, 4]), torch.tensor([0, 1]))[0],
    )
    + use(7, lambda h, m, x: bag(m.square, h[0].flatten()[:3]) + h.mean((2, 3))),
    "matmul": use(
        8,
        lambda h, m, x: h.flatten(2).mT @ m.square.T,
        lambda h, m, x: m.square @ h.flatten(2),
        lambda h, m, x: h.flatten(2).mT @ m.vector,
    ),
    "bmm": use(8, lambda h, m, x: torch.bmm(h.flatten(2).mT, m.b(x).flatten(2))),
    "mm": use(8, lambda h, m, x: torch.mm(h.mean((2, 3)), m.square.T)),
    "mv": use(8, lambda h, m, x: torch.mv(h.mean((2, 3)), m.vector)),
    "dot": use(8, lambda h, m, x: torch.dot(h[0, :, 0, 0], m.vector)),
    "addmm": use(
        8,
        lambda h, m, x: torch.addmm(torch.ones(5, dtype=h.dtype), h.mean((2, 3)), m.square.T),
        lambda h, m, x: torch.addmm(m.vector, h.mean((2, 3)), m.third[0]),
    ),
    "baddbmm": use(
        8,
        lambda h, m, x: torch.baddbmm(
            h.flatten(2), m.b(x).flatten(2), x[:, :1, :, :].flatten(1)[:, :, None] * x[:, :1].flatten(1)[:, None]
        ),
    ),
    **{f"fft_{way}fft": fourier(f"{way}fft", "n") for way in ("", "i", "r", "ir", "h", "ih")},
    **{f"fft_{way}fft{n}": fourier(f"{way}fft{n}", "s") for way in ("", "i", "r", "ir", "h", "ih") for n in ("2", "n")},
    "fft_fftshift": shifted("fftshift"),
    "fft_ifftshift": shifted("ifftshift"),
    "tensordot": use(
        8,
        lambda h, m, x: torch.tensordot(h.permute(0, 2, 3, 1), m.square.t(), dims=1),
        lambda h, m, x: torch.tensordot(m.square, h, dims=([1], [1])),
        lambda h, m, x: torch.tensordot(h, m.third, ([1], [-1])),
        lambda h, m, x: torch.tensordot(x, h, dims=([0, 2, 3], [0, 2, 3])),
        lambda h, m, x: torch.tensordot(h, x, 0).sum((2, 3, 4)),
    )
    + use(0, lambda h, m, x: torch.tensordot(h.sigmoid(), m.b(x).exp(), ([1], [1]))),
    **{name: use(8, lambda h, m, x, name=name: by_heads(h, REGULAR[name])) for name in REGULAR},
    "linalg_solve": use(8, lambda h, m, x: by_heads(h, lambda a: torch.linalg.solve(a + 3 * torch.eye(2).to(a), a)))
    + use(8, lambda h, m, x: torch.linalg.solve(SQUARE, h.flatten(2).mT)),
    "linalg_solve_triangular": use(
        8,
        lambda h, m, x: by_heads(h, lambda a: torch.linalg.solve_triangular(a, a, upper=False, unitriangular=True)),
        lambda h, m, x: torch.linalg.solve_triangular(SQUARE, h.flatten(2), upper=True, left=False),
    )
    + use(0, lambda h, m, x: by_heads(h.relu(), lambda a: torch.linalg.solve_triangular(a, a, upper=False))),
    "cholesky_solve": use(
        8,
        lambda h, m, x: torch.cholesky_solve(h.flatten(2).mT, SQUARE),
        lambda h, m, x: by_heads(
            h, lambda a: torch.cholesky_solve(a, torch.linalg.cholesky(a @ a.mT + torch.eye(2).to(a)))
        ),
    ),
    "inner": use(
        8,
        lambda h, m, x: torch.inner(h.mean((2, 3)), m.square),
        lambda h, m, x: torch.inner(m.vector, h.movedim(1, -1)),
        lambda h, m, x: torch.inner(h, x),
    )
    + use(0, lambda h, m, x: torch.inner(h.mean((2, 3)).exp(), m.square.exp())),
    "outer": use(
        8,
        lambda h, m, x: torch.outer(h[0, :, 0, 0], x[0, 0, 0]).T,
        lambda h, m, x: torch.outer(x[0, 0, 0], vec2=h[0, :, 0, 0]),
        lambda h, m, x: torch.outer(m.vector, h[0, :, 0, 0]) @ h[1].flatten(1),
    ),
    "addmv": use(
        8,
        lambda h, m, x: torch.addmv(x[:, 0, 0, 0], h.mean((2, 3)), m.vector, beta=2),
        lambda h, m, x: torch.addmv(m.vector, h[0].flatten(1), x[0, 0].flatten()),
    ),
    "addr": use(8, lambda h, m, x: torch.addr(h.mean((2, 3)), x[:, 0, 0, 0], m.vector, alpha=0.5)),
    "addbmm": use(
        8,
        lambda h, m, x: torch.addbmm(m.vector, x.flatten(2).mT, h.flatten(2)[:, :, :3].mT),
        lambda h, m, x: torch.addbmm(m.square, m.square.expand(2, -1, -1), h.flatten(2) @ h.flatten(2).mT),
    ),
    "linalg_multi_dot": use(
        8,
        lambda h, m, x: torch.linalg.multi_dot([h.mean((2, 3)), m.square.T, m.square]),
        lambda h, m, x: torch.linalg.multi_dot([m.vector, h[0].flatten(1), x[0].flatten(1).T, x[0, :, 0, 0]])[None],
    ),
    "cdist": use(
        8,
        lambda h, m, x: torch.cdist(h.flatten(2).mT, m.square),
        lambda h, m, x: torch.cdist(h.flatten(2).mT, m.b(x).relu().flatten(2).mT, p=1.0),
        lambda h, m, x: torch.cdist(h.flatten(2), x.flatten(2)),
        lambda h, m, x: torch.cdist(x.flatten(2), h.flatten(2), float("inf")),
    )
    + use(0, lambda h, m, x: torch.cdist(h.sigmoid().flatten(2).mT, m.square)),
    "einsum": use(
        8,
        lambda h, m, x: torch.einsum("nchw,kc->nkhw", h, m.square),
        lambda h, m, x: torch.einsum("nchw,c->nchw", h, m.vector),
        lambda h, m, x: torch.einsum("nchw->nhw", h),
        lambda h, m, x: torch.einsum("nc...,kc->nk...", h, m.square),
        lambda h, m, x: torch.einsum("...c,kc", h.permute(0, 2, 3, 1), m.square),
        lambda h, m, x: torch.einsum("...cd,...cd->...c", h, h[:, :, :1]),
        lambda h, m, x: torch.einsum("...chw,c->h...w", [h, m.vector]),
        lambda h, m, x: torch.einsum("nc...->n...c", h),
        lambda h, m, x: torch.einsum("n...,n...->n...", h, x.mean(1, keepdim=True)),
        lambda h, m, x: torch.einsum("nchw,nd->nd", h, x.mean((2, 3))),
        lambda h, m, x: torch.einsum("nchw,nd->nchw", h.sigmoid(), x.mean((2, 3))),
        lambda h, m, x: torch.einsum("nchw,kcd,d->nkhw", h, m.third, m.vector),
        lambda h, m, x: torch.einsum("nchw,nchw,kc->nkh", h, h.sigmoid(), m.square),
    )
    + use(
        0,
        lambda h, m, x: torch.einsum("nchw->nhw", h.sigmoid()),
        lambda h, m, x: torch.einsum("ncii->nci", h),
        lambda h, m, x: torch.einsum("...c,...c->...", h.permute(0, 2, 3, 1).exp(), m.b(x).permute(0, 2, 3, 1).exp()),
        lambda h, m, x: torch.einsum("nchw,nd->nd", h.sigmoid(), m.b(x).mean((2, 3))),
        lambda h, m, x: torch.einsum("nchw,nd,k->nk", h.exp(), x.mean((2, 3)), m.vector),
    ),
    "scaled_dot_product_attention": use(
        8, lambda h, m, x: F.scaled_dot_product_attention(x.flatten(2).mT, x.flatten(2).mT, h.flatten(2).mT)
    ),
    # norms
    "batch_norm": use(
        8, lambda h, m, x: F.batch_norm(h, m.vector.detach(), m.vector.detach() ** 2, m.vector, m.vector)
    ),
    "instance_norm": use(8, lambda h, m, x: F.instance_norm(h, weight=m.vector, bias=m.vector)),
    "layer_norm": use(8, lambda h, m, x: F.layer_norm(h, (4, 4)))
    + use(0, lambda h, m, x: F.layer_norm(h.mean((2, 3)).sigmoid(), (8,), m.vector)),
    "group_norm": use(0, lambda h, m, x: F.group_norm(h.sigmoid(), 2, m.vector)),
    "rms_norm": use(8, lambda h, m, x: F.rms_norm(h, (4,)))
    + use(0, lambda h, m, x: F.rms_norm(h.mean((2, 3)).sigmoid(), (8,), m.vector)),
    "_weight_norm": use(
        8, lambda h, m, x: h.mean((2, 3)) + torch._weight_norm(m.square, torch.ones(5, 1, dtype=h.dtype), 0)[:1]
    ),
    "_weight_norm_interface": use(
        8,
        lambda h, m, x: (
            h.mean((2, 3)) + torch._weight_norm_interface(m.square, torch.ones(5, 1, dtype=h.dtype), 0)[0][:1]
        ),
    ),
    "linalg_vector_norm": use(
        8,
        lambda h, m, x: torch.linalg.vector_norm(h, 2, (2, 3)),
        lambda h, m, x: torch.linalg.vector_norm(h, 2, 1),
        lambda h, m, x: torch.linalg.vector_norm(h, 3.5, 1),
        lambda h, m, x: h.norm(float("inf"), 1),
    )
    + use(0, lambda h, m, x: torch.linalg.vector_norm(h.sigmoid(), 2, 1), lambda h, m, x: h.norm(-2, 1)),
    "linalg_norm": use(
        8,
        lambda h, m, x: h + torch.linalg.norm(h, dim=1, keepdim=True),
        lambda h, m, x: torch.linalg.norm(h, dim=(1, 2)),
        lambda h, m, x: h * torch.linalg.norm(m.b(x)),
        lambda h, m, x: torch.linalg.norm(h, 1, 1),
        lambda h, m, x: torch.linalg.norm(h, 1, (2, 3)),
        lambda h, m, x: torch.linalg.norm(h, 3, 1),
    )
    + use(
        0,
        lambda h, m, x: torch.linalg.norm(h, 1, (1, 2)),
        lambda h, m, x: torch.linalg.norm(h, -3, 1),
        lambda h, m, x: torch.linalg.norm(h.sigmoid(), dim=1),
    ),
    "linalg_matrix_norm": use(
        8, lambda h, m, x: torch.linalg.matrix_norm(h), lambda h, m, x: torch.linalg.matrix_norm(h.mT.transpose(1, 3))
    )
    + use(0, lambda h, m, x: torch.linalg.matrix_norm(h, "nuc", (1, 2))),
    "linalg_vecdot": use(
        8,
        lambda h, m, x: torch.linalg.vecdot(h, m.b(x), dim=1),
        lambda h, m, x: torch.linalg.vecdot(h, m.b(x).sigmoid()),
        lambda h, m, x: torch.linalg.vecdot(h.sigmoid(), m.vector[:, None, None], dim=1),
        lambda h, m, x: torch.linalg.vecdot(x[:, :1].mT, m.vector[:, None, None], dim=-3)[:, None] * h,
    )
    + use(
        0,
        lambda h, m, x: torch.linalg.vecdot(h.sigmoid(), m.b(x).sigmoid(), dim=1),
        lambda h, m, x: torch.linalg.vecdot(h.sigmoid().mean((2, 3)), h.mT.mean((2, 3))[:, :, None].sum(1)),
    ),
    **{name: distance(name) for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")},
    **{
        name: use(8, lambda h, m, x, cross=cross: cross(h[..., :3], m.b(x)[..., 1:], dim=3))
        for name, cross in (("cross", torch.cross), ("linalg_cross", torch.linalg.cross))
    },
    **{
        name: use(8, lambda h, m, x, name=name: getattr(torch, name)(h, 0.5, dim=2))
        + use(
            0,
            lambda h, m, x, name=name: getattr(torch, name)(h, 0.5, 1),
            lambda h, m, x, name=name: getattr(torch, name)(h, torch.tensor([0.2, 0.5], dtype=h.dtype), dim=2)[0],
        )
        for name in ("quantile", "nanquantile")
    },
    # movement that changes nothing
    **{name: use(8, lambda h, m, x, name=name: getattr(h[0, :, :, 0], name).T[None]) for name in ("T", "H")},
    **{name: use(8, lambda h, m, x, name=name: getattr(h, name)) for name in ("mT", "mH")},
    "t": use(8, lambda h, m, x: h.mean((2, 3)).t().t()),
    "adjoint": use(8, lambda h, m, x: h.adjoint()),
    "permute": use(8, lambda h, m, x: h.permute(0, 2, 3, 1)),
    "transpose": use(8, lambda h, m, x: h.transpose(1, 3), lambda h, m, x: h.transpose(0, 1).transpose(0, 1)),
    "movedim": use(8, lambda h, m, x: h.movedim(1, -1)),
    "unsqueeze": use(8, lambda h, m, x: h.unsqueeze(1)),
    "squeeze": use(8, lambda h, m, x: h.mean((2, 3), keepdim=True).squeeze(), lambda h, m, x: h[:, :, :1].squeeze(2)),
    "flip": use(8, lambda h, m, x: h.flip(1), lambda h, m, x: h.flip((1, 2))),
    "fliplr": use(8, lambda h, m, x: torch.fliplr(h)),
    "flipud": use(8, lambda h, m, x: torch.flipud(h)),
    "view_as_real": use(8, lambda h, m, x: torch.view_as_real(complex_of(h))),
    "view_as_complex": use(8, lambda h, m, x: complex_of(h)),
    # movement by position
    "roll": use(8, lambda h, m, x: h.roll(1, 2)) + use(0, lambda h, m, x: h.roll(3, 1), lambda h, m, x: h.roll(5)),
    "narrow": use(8, lambda h, m, x: h.narrow(2, 1, 2)) + use(0, lambda h, m, x: h.narrow(1, 1, 4)),
    "tensor_split": use(8, lambda h, m, x: h.tensor_split(3, 2))
    + use(4, lambda h, m, x: torch.tensor_split(h, sections=2, dim=1))
    + use(0, lambda h, m, x: h.tensor_split((3,), 1)[1], lambda h, m, x: torch.cat(h.tensor_split(3, 1)[::-1], 1)),
    "hsplit": use(4, lambda h, m, x: h.hsplit(2)) + use(0, lambda h, m, x: h.hsplit((2, 4))[1]),
    "vsplit": use(8, lambda h, m, x: torch.vsplit(h, 2)),
    "dsplit": use(8, lambda h, m, x: torch.dsplit(h, (1, 3))[1]),
    "unbind": use(8, lambda h, m, x: h.unbind(3), lambda h, m, x: h.unbind(-1)[1:])
    + use(0, lambda h, m, x: h.unbind(1)),
    "select": use(8, lambda h, m, x: h.select(2, 1)),
    "tril": use(8, lambda h, m, x: h.tril()) + use(0, lambda h, m, x: h.flatten(2).tril(diagonal=-1)),
    "triu": use(8, lambda h, m, x: h.triu()) + use(0, lambda h, m, x: h.flatten(2).triu(1)),
    "diagonal": use(
        8,
        lambda h, m, x: h.diagonal(dim1=2, dim2=3),
        lambda h, m, x: torch.einsum("nchw,ndhw->ncd", h, m.b(x)).diagonal(0, 1, 2),
    )
    + use(0, lambda h, m, x: h.diagonal(-1, 1, 2), lambda h, m, x: torch.diagonal(h)),
    "linalg_diagonal": use(8, lambda h, m, x: torch.linalg.diagonal(h)),
    "diag_embed": use(
        8,
        lambda h, m, x: torch.diag_embed(h.mean((2, 3))) @ m.square.T,
        lambda h, m, x: h.diag_embed(dim1=1, dim2=3).sum(-1),
        lambda h, m, x: torch.diag_embed(h[..., 0], dim1=0).sum(3),
        lambda h, m, x: m.square @ torch.diag_embed(h.mean((2, 3)).exp()),
    )
    + use(0, lambda h, m, x: torch.diag_embed(h.mean((2, 3)), 1)),
    "diag": use(
        8,
        lambda h, m, x: h.mean((2, 3)) @ torch.diag(m.vector),
        lambda h, m, x: torch.diag(h[:, :, 0, 0].T @ h[:, :, 1, 1]),
    )
    + use(0, lambda h, m, x: torch.diag(h.mean((2, 3)), diagonal=-1)),
    "atleast_1d": use(8, lambda h, m, x: torch.atleast_1d(h)),
    "atleast_2d": use(8, lambda h, m, x: torch.atleast_2d(h[0, :, 0, 0]))
    + use(0, lambda h, m, x: torch.atleast_2d(h, m.vector)[0]),
    "atleast_3d": use(8, lambda h, m, x: torch.atleast_3d(h.mean((2, 3)))),
    "rot90": use(8, lambda h, m, x: h.rot90(1, (2, 3)), lambda h, m, x: h.rot90(2, (1, 2))),
    "unfold": use(8, lambda h, m, x: h.unfold(2, 2, 1))
    + use(4, lambda h, m, x: h.unfold(1, 2, 2))
    + use(0, lambda h, m, x: h.unfold(1, 3, 1)),
    "chunk": use(8, lambda h, m, x: h.chunk(2, 2))
    + use(4, lambda h, m, x: h.chunk(2, 1))
    + use(2, lambda h, m, x: h.chunk(4, 1)),
    "split": use(8, lambda h, m, x: h.split(3, 3))
    + use(4, lambda h, m, x: torch.split(h, h.shape[1] // 2, 1))
    + use(0, lambda h, m, x: h.split(3, 1)),
    "split_with_sizes": use(8, lambda h, m, x: h.split_with_sizes([1, 3], 2))
    + use(0, lambda h, m, x: h.split_with_sizes([2, 6], 1)),
    "unsafe_chunk": use(4, lambda h, m, x: torch.unsafe_chunk(h, 2, 1)),
    "unsafe_split": use(4, lambda h, m, x: torch.unsafe_split(h, h.shape[1] // 2, 1)),
    "repeat": use(
        8,
        lambda h, m, x: h.repeat(1, 3, 1, 1),
        lambda h, m, x: h.repeat(1, 1, 2, 1),
        lambda h, m, x: h.repeat(2, 1, 1, 1, 1),
        lambda h, m, x: h + x[:, :1].repeat(1, h.shape[1], 1, 1),
        lambda h, m, x: h * x[:1, 0, 0].repeat((h.size(0), h.size(1), h.size(2), 1)),
        lambda h, m, x: h.gather(3, (x[:, :1] > 0).long().repeat(1, h.shape[1], 1, 1)),
    )
    + use(0, lambda h, m, x: h + m.b(x).repeat(1, h.shape[1] // 8, 1, 1)),
    "tile": use(
        8,
        lambda h, m, x: h.tile(2, 1, 1),
        lambda h, m, x: h.tile((1, 2, 1, 1)),
        lambda h, m, x: h + x[:, :1].tile(h.shape[1], 1, 1),
    ),
    "repeat_interleave": use(
        8,
        lambda h, m, x: h.repeat_interleave(3, dim=1),
        lambda h, m, x: h.repeat_interleave(2, 3),
        lambda h, m, x: h + x[:, :1].repeat_interleave(h.shape[1], 1),
    )
    + use(0, lambda h, m, x: h.repeat_interleave(torch.arange(8), dim=1)),
    "expand": use(
        8,
        lambda h, m, x: h[:, :, :1].expand(-1, -1, 4, -1),
        lambda h, m, x: m.vector.expand(*h.shape[:2]) + h.mean((2, 3)),
    )
    + use(
        0,
        lambda h, m, x: m.vector.expand(2, 8) + h.mean((2, 3)),
        lambda h, m, x: F.conv2d(  # its kernel is no zero where a channel goes
            F.pad(h.sigmoid(), (4, 4, 4, 4)), m.square[None, None].expand(h.size(1), 1, 5, 8), groups=h.size(1)
        ).sum(1),
    ),
    "expand_as": use(8, lambda h, m, x: h[:, :, :1].expand_as(h), lambda h, m, x: h + x[:, :1].expand_as(h)),
    "broadcast_to": use(8, lambda h, m, x: torch.broadcast_to(h[:, :, :1], h.shape)),
    "broadcast_tensors": use(
        8,
        lambda h, m, x: torch.broadcast_tensors(h, m.vector[:, None, None]),
        lambda h, m, x: torch.broadcast_tensors(h, x[:, :1]),
    ),
    "cat": use(8, lambda h, m, x: torch.cat([h, m.b(x), x], 1)),
    "hstack": use(8, lambda h, m, x: torch.hstack([h, x, h])),
    "column_stack": use(
        8,
        lambda h, m, x: torch.column_stack([h, x, h]),
        lambda h, m, x: torch.column_stack([h[0, :, 0, 0], m.vector]).T,
        lambda h, m, x: torch.column_stack([h[0, :, 0, 0], m.square.T]).T,
    ),
    "vstack": use(
        8, lambda h, m, x: torch.vstack([h, m.b(x)]), lambda h, m, x: torch.vstack([m.square, h[0, :, 0, 0], m.vector])
    ),
    "dstack": use(
        8,
        lambda h, m, x: torch.dstack([h, m.b(x)]),
        lambda h, m, x: torch.dstack([h[0, :, 0, 0], m.vector]),
        lambda h, m, x: torch.dstack([h[0].flatten(1), m.b(x)[1].flatten(1)]).transpose(0, 1),
    ),
    "stack": use(8, lambda h, m, x: torch.stack([h, m.b(x)], 1), lambda h, m, x: torch.stack([h, m.b(x)], -1)),
    # new values
    **{
        name: use(8, lambda h, m, x, name=name: h + 0 * getattr(torch, name)(h.shape[1], dtype=h.dtype)[:, None, None])
        for name in ("rand", "randn")
    },
    **{
        name: use(8, lambda h, m, x, name=name: h + getattr(torch, name)(h.shape[1], 1, 1))
        + use(0, lambda h, m, x, name=name: h + getattr(torch, name)(8, 1, 1))
        for name in ("zeros", "ones")
    },
    "empty": use(8, lambda h, m, x: torch.empty(h.shape, dtype=h.dtype).copy_(h))
    + use(0, lambda h, m, x: torch.empty(2, 8, 4, 4, dtype=h.dtype).copy_(h)),
    "full": use(8, lambda h, m, x: h + torch.full((h.shape[1], 1, 1), 2.0))
    + use(0, lambda h, m, x: h + torch.full((1,), h.shape[1])),
    "new_zeros": use(8, lambda h, m, x: h + h.new_zeros(h.shape)),
    "new_ones": use(8, lambda h, m, x: torch.cat([h, h.new_ones(2, 1, 4, 4)], 1)),
    "new_full": use(8, lambda h, m, x: h + h.new_full((h.shape[1], 1, 1), 2.0)),
    "new_empty": use(8, lambda h, m, x: h + h.new_empty(h.shape).zero_()),
    "zeros_like": use(8, lambda h, m, x: h + torch.zeros_like(h)),
    "ones_like": use(8, lambda h, m, x: h + torch.ones_like(h)),
    "empty_like": use(8, lambda h, m, x: h + torch.empty_like(h).fill_(1.5)),
    "full_like": use(8, lambda h, m, x: h + torch.full_like(h, 2.0))
    + use(0, lambda h, m, x: h + torch.full_like(h, h.shape[1])),
    "rand_like": random(torch.rand_like),
    "randn_like": random(torch.randn_like),
    "bernoulli": random(lambda h: torch.bernoulli(torch.sigmoid(h))),
    "normal": random(lambda h: h.normal_()),
    "uniform": random(lambda h: h.uniform_(0, 1)),
    "exponential": random(lambda h: h.exponential_()),
    "random": random(lambda h: h.random_(0, 5)),
    **{
        name: use(8, lambda h, m, x, name=name: getattr(F, name)(h, 0.0))
        for name in ("alpha_dropout", "feature_alpha_dropout", "dropout", "dropout2d", "dropout3d")
    },
    "dropout1d": use(8, lambda h, m, x: F.dropout1d(h, 0.0), example=SEQUENCE),
    "feature_dropout": use(8, lambda h, m, x: torch.feature_dropout(h, 0.0, False)),
    # indices
    "getitem": use(
        8,
        lambda h, m, x: h[:, :, ::2, 1:],
        lambda h, m, x: h[..., None, 1],
        lambda h, m, x: h[:, :, torch.tensor([0, 2])],
        lambda h, m, x: h[:1],
        lambda h, m, x: h[-1][None],
        lambda h, m, x: h[:, :, [[0, 1], [2, 3]]],
        lambda h, m, x: h.permute(0, 2, 3, 1)[torch.ones(2, 4, 4, dtype=torch.bool)],
    )
    + use(
        0,
        lambda h, m, x: h[:, 1:4],
        lambda h, m, x: h[:, [0, 1]],
        lambda h, m, x: h[:, torch.tensor([0, 2])],
        lambda h, m, x: h[:, ::2],
        lambda h, m, x: h[:, -3:],
        lambda h, m, x: h[:, torch.tensor([True, False] * 4)],
        lambda h, m, x: h[torch.tensor([0, 1]), torch.tensor([3, 4])],
    ),
    "setitem": use(
        8,
        lambda h, m, x: written(h, (slice(None), slice(None), 1), 2.0),
        lambda h, m, x: written(h, (0, slice(None), slice(1, 3)), m.b(x)[1, :, 1:3]),
        lambda h, m, x: written(h, (..., slice(1, 3), 0), m.vector[None, :, None]),
        lambda h, m, x: written(h.flatten(1, 2), (1,), m.b(x)[:1].flatten(1, 2)),
        lambda h, m, x: written(torch.zeros_like(h), slice(None), h),
        lambda h, m, x: written(h, (slice(None), slice(None), None, 2), 1.0),
        lambda h, m, x: written(h, h > 0.5, 2.0),
        lambda h, m, x: written(h, m.b(x).isnan(), torch.tensor(3.0, dtype=h.dtype)),
        lambda h, m, x: written(h, h.abs() < 0.1, 0).sum(1),
    )
    + use(
        0,
        lambda h, m, x: written(h, (slice(None), 0), 0.0),
        lambda h, m, x: written(h, (slice(None), slice(2, 6)), m.b(x)[:, 2:6]),
        lambda h, m, x: written(h, (slice(None), torch.tensor([0, 2])), 0.0),
        lambda h, m, x: written(h, (slice(None), slice(None), 1), torch.arange(32.0, dtype=h.dtype).view(8, 4)),
    ),
    "index_add": use(8, lambda h, m, x: h.index_add(2, torch.tensor([0, 2, 0]), m.b(x)[:, :, 1:], alpha=2))
    + use(
        0,
        lambda h, m, x: h.index_add(1, torch.arange(8), m.b(x)),
        lambda h, m, x: (h.cos() * 9).int().index_add(2, torch.tensor([1]), (m.b(x)[:, :, :1] * 9).int()).sum(1),
        lambda h, m, x: complex_of(h.cos()).index_add(2, torch.tensor([1]), complex_of(m.b(x))[:, :, :1]).sum(1),
    ),
    "index_copy": use(8, lambda h, m, x: torch.index_copy(h, -1, torch.tensor([3, 0]), m.b(x)[..., 1:3])),
    "scatter_add": use(
        8,
        lambda h, m, x: torch.zeros_like(h).scatter_add(2, h.argsort(2), h),
        lambda h, m, x: torch.zeros_like(h).scatter_add(dim=-1, index=h.argsort(3), src=h).relu().sum(1),
    )
    + use(0, lambda h, m, x: h.scatter_add(1, h.argsort(1), h)),
    "scatter": use(
        8,
        lambda h, m, x: torch.zeros_like(h).scatter(3, h.argsort(3), m.b(x)).sum(1),
        lambda h, m, x: h.scatter(2, h.argsort(2), 2.0),
    )
    + use(
        0,
        lambda h, m, x: h.scatter(1, h.argsort(1), h),
        lambda h, m, x: h.scatter(2, h.argsort(2)[:, :4], m.b(x)),
        lambda h, m, x: h.cos().scatter(2, h.argsort(2)[:, :, :1], m.b(x)).sum(1),
    ),
    "scatter_reduce": use(
        8,
        lambda h, m, x: h.scatter_reduce(2, h.argsort(2), m.b(x), "amax").sum(1),
        lambda h, m, x: h.scatter_reduce(  # as tokens are merged
            -1, x[:, :1].argsort(3).expand(-1, h.shape[1], -1, -1), src=m.b(x), reduce="mean", include_self=False
        ),
    )
    + use(0, lambda h, m, x: h.scatter_reduce(1, h.argsort(1), h, "sum")),
    "index_reduce": use(8, lambda h, m, x: reduced(h, 2, torch.tensor([0, 2, 0]), m.b(x)[:, :, 1:], "amin").sum(1))
    + use(0, lambda h, m, x: reduced(h, 1, torch.arange(8), m.b(x), "prod")),
    "index_fill": use(8, lambda h, m, x: h.index_fill(2, torch.tensor([1, 3]), 2.0))
    + use(
        0,
        lambda h, m, x: h.index_fill(1, torch.tensor([1, 3]), 2.0),
        lambda h, m, x: h.index_fill(3, torch.tensor([0]), 2.0).sum(1),
    ),
    "masked_scatter": use(
        8,
        lambda h, m, x: h.mT.transpose(1, 3).masked_scatter(x[:, 0, :, :, None] > 0, m.b(x).permute(0, 2, 3, 1)).sum(3),
    )
    + use(
        0,
        lambda h, m, x: h.masked_scatter(x[:, :1] > 0, m.b(x)),
        lambda h, m, x: h.masked_scatter(m.b(x) > 0, m.b(x)),
    ),
    "slice_scatter": use(8, lambda h, m, x: h.slice_scatter(m.b(x)[..., 1:3], -1, 0, 2))
    + use(0, lambda h, m, x: h.slice_scatter(m.b(x)[:, 1:3], 1, 0, 2)),
    "select_scatter": use(8, lambda h, m, x: torch.select_scatter(h, m.b(x).sum(2), 2, 1))
    + use(0, lambda h, m, x: torch.select_scatter(h, m.b(x).sum(1), 1, 1)),
    "new": use(8, lambda h, m, x: h + h.data.new(2, 1, 4, 4).zero_()),
    "new_tensor": use(8, lambda h, m, x: h * h.new_tensor([0.5, 2.0, 1.0, -1.0])),
    "cosine_similarity": use(
        8,
        lambda h, m, x: F.cosine_similarity(h.relu(), m.b(x).relu()),
        lambda h, m, x: torch.cosine_similarity(h, m.vector[:, None, None], dim=2),
        lambda h, m, x: F.cosine_similarity(  # over the channels of b, which stay: one row of h meets them all
            h.mean((2, 3))[:, None], m.b(x).mean((2, 3))[:, :, None] @ h.mean((2, 3))[:, None]
        ),
    )
    + use(0, lambda h, m, x: F.cosine_similarity(h.sigmoid(), h, dim=1)),
    "index_put": use(
        8,
        lambda h, m, x: h.index_put((torch.tensor([0]),), torch.zeros((), dtype=h.dtype)),
        lambda h, m, x: h.mT.index_put((torch.tensor([0]),), m.b(x).mT[:1], accumulate=True).mT,
    )
    + use(0, lambda h, m, x: h.index_put((torch.tensor([0, 1]), torch.tensor([3, 5])), torch.zeros((), dtype=h.dtype))),
    "index_select": use(8, lambda h, m, x: h.index_select(2, torch.tensor([0, 3])))
    + use(0, lambda h, m, x: h.index_select(1, torch.tensor([0, 3]))),
    "gather": use(8, lambda h, m, x: h.gather(2, h.argsort(2)))
    + use(
        0,
        lambda h, m, x: h.gather(1, h.argsort(1)),
        lambda h, m, x: h.gather(2, torch.zeros(2, 3, 2, 4, dtype=torch.int64)),
    ),
    "take_along_dim": use(8, lambda h, m, x: torch.take_along_dim(h, h.argsort(3), 3)),
    "item": use(8, lambda h, m, x: h.max(3)),
    "one_hot": use(0, lambda h, m, x: F.one_hot((h > 0).long(), 2).to(h.dtype)),
    "nonzero": use(0, lambda h, m, x: torch.nonzero(h.clamp(1, 2))),
    "bincount": use(0, lambda h, m, x: torch.bincount((h > 0).long().flatten(), minlength=3)),
    "unique": use(0, lambda h, m, x: torch.unique(h * 0 + h.sign() ** 2)),
    "isin": use(0, lambda h, m, x: torch.isin(h.sign(), torch.tensor([1.0], dtype=h.dtype))),
    "searchsorted": use(0, lambda h, m, x: torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0], dtype=h.dtype), h)),
    "bucketize": use(0, lambda h, m, x: torch.bucketize(h, torch.tensor([-1.0, 0.0, 1.0], dtype=h.dtype))),
    # element by element
    **{
        name: use(8, lambda h, m, x, name=name: getattr(F, name)(h))
        for name in ("leaky_relu", "hardswish", "tanhshrink", "softsign")
    },
    "log_sigmoid": use(8, lambda h, m, x: F.logsigmoid(h)),
    "isclose": use(8, lambda h, m, x: torch.where(torch.isclose(h, m.b(x)), h, m.b(x))),
    "special_ndtr": use(8, lambda h, m, x: torch.special.ndtr(h) * h),
    "fake_quantize_per_tensor_affine": use(8, lambda h, m, x: torch.fake_quantize_per_tensor_affine(h, 0.1, 3, -9, 9))
    + use(8, lambda h, m, x: torch.fake_quantize_per_tensor_affine(h, 0.1, 3, 0, 9).sum(1)),  # zero is a grid point
    "floor_divide": use(
        8,
        lambda h, m, x: h + h.detach() // 0.25,
        lambda h, m, x: h + torch.floor_divide(h.detach(), m.vector.detach().exp()[:, None, None]),
    ),
    "fill": use(8, lambda h, m, x: h + h.clone().fill_(2.0), lambda h, m, x: h + torch.fill(h, 2.0)),
    "zero": use(8, lambda h, m, x: h + h.clone().zero_()),
    "copy": use(8, lambda h, m, x: h.clone().copy_(m.b(x)) + h),
    "type_as": use(8, lambda h, m, x: h.type_as(x)),
    "as_tensor": use(8, lambda h, m, x: torch.as_tensor(h)),
    "asarray": use(8, lambda h, m, x: torch.asarray(h, requires_grad=False)),
    **{
        name: use(8, lambda h, m, x, name=name: getattr(h * 3, name)())
        for name in (
            "clone",
            "contiguous",
            "detach",
            "double",
            "long",
            "int",
            "bool",
            "short",
            "cpu",
            "conj",
            "resolve_conj",
            "resolve_neg",
            "positive",
        )
    },
    **{
        name: use(8, lambda h, m, x, name=name: getattr((h * 2).round(), name)())
        for name in ("float", "half", "bfloat16")
    },
    "to": use(8, lambda h, m, x: h.to("cpu").to(x).to(torch.float64)),
    "type": use(8, lambda h, m, x: h.type(torch.float64)),
    "data": use(8, lambda h, m, x: h + h.data),
    "real": use(8, lambda h, m, x: complex_of(h).real),
    "imag": use(8, lambda h, m, x: complex_of(h).imag),
    "complex": use(8, lambda h, m, x: torch.complex(h, m.b(x)), lambda h, m, x: torch.complex(h, 2 * h).sum(1)),
    "polar": use(8, lambda h, m, x: torch.polar(h, m.b(x))),
    "glu": use(4, lambda h, m, x: F.glu(h, 1), lambda h, m, x: F.glu(h, -3).sum(1))
    + use(8, lambda h, m, x: F.glu(h), lambda h, m, x: F.glu(torch.cat([h, m.b(x)], 1), 1)),
    "prelu": use(8, lambda h, m, x: F.prelu(h, m.vector), lambda h, m, x: F.prelu(h, x[0, 0, 0, :1])),
    # reductions
    "max": function_of_space("max") + use(8, lambda h, m, x: torch.max(h, other=h * m.vector.mean())),
    "min": function_of_space("min") + use(8, lambda h, m, x: torch.min(h, other=h * m.vector.mean())),
    **{
        name: function_of_space(name)
        for name in (
            "prod",
            "amax",
            "amin",
            "argmax",
            "argmin",
            "median",
            "nanmedian",
            "std",
            "var",
            "var_mean",
            "std_mean",
            "logsumexp",
            "nanmean",
            "mode",
            "mean",
            "sort",
            "argsort",
            "softmax",
            "log_softmax",
            "cumsum",
            "cumprod",
            "logcumsumexp",
            "cummax",
            "cummin",
            "diff",
        )
    },
    "aminmax": use(8, lambda h, m, x: differentiable(h).aminmax(dim=3))
    + use(0, lambda h, m, x: differentiable(h).aminmax(dim=1)),
    "any": use(8, lambda h, m, x: (h > 0).any(3), lambda h, m, x: (h > 0).any(1))
    + use(0, lambda h, m, x: (h >= 0).any(1)),
    "all": use(8, lambda h, m, x: (h > 0).all(3)) + use(0, lambda h, m, x: (h > 0).all(1)),
    "count_nonzero": use(
        8,
        lambda h, m, x: (h > 0).count_nonzero(3),
        lambda h, m, x: (h > 0).count_nonzero(3, 2),
        lambda h, m, x: h.count_nonzero(1),
    )
    + use(0, lambda h, m, x: h.cos().count_nonzero(1), lambda h, m, x: h.cos().count_nonzero(2, 1)),
    "sum": use(8, lambda h, m, x: h.sum(3), lambda h, m, x: h.sum((2, 3)), lambda h, m, x: h.sum(1))
    + use(0, lambda h, m, x: h.cos().sum(1), lambda h, m, x: h.cos().sum()),
    "nansum": use(8, lambda h, m, x: h.nansum(3), lambda h, m, x: h.nansum(1)),
    "softmin": use(8, lambda h, m, x: F.softmin(h, 3)) + use(0, lambda h, m, x: F.softmin(h, 1)),
    "topk": use(8, lambda h, m, x: h.topk(2, 3)) + use(0, lambda h, m, x: h.topk(2, 1)),
    "kthvalue": use(8, lambda h, m, x: h.kthvalue(2, 3)) + use(0, lambda h, m, x: h.kthvalue(2, 1)),
    # shapes
    "view": use(8, lambda h, m, x: h.view(h.shape[0], -1), lambda h, m, x: h.view(*h.shape[:2], -1))
    + use(4, lambda h, m, x: h.view(2, m.groups, -1, 16).flatten(2))
    + use(0, lambda h, m, x: h.view(2, 8, 16), lambda h, m, x: h.view(-1, 32)),
    "reshape": use(
        8, lambda h, m, x: h.mT.reshape(h.shape[0], -1), lambda h, m, x: h.permute(2, 3, 0, 1).reshape(16, 2, -1)
    ),
    "_unsafe_view": use(8, lambda h, m, x: aten._unsafe_view(h, [h.shape[0], h.shape[1], -1])),
    "flatten": use(
        8,
        lambda h, m, x: h.flatten(1),
        lambda h, m, x: h.flatten(0, 1).unflatten(0, (2, -1)),
        lambda h, m, x: h.permute(0, 2, 3, 1).flatten(1),
    ),
    "ravel": use(8, lambda h, m, x: h.ravel()[None]),
    "view_as": use(8, lambda h, m, x: h.flatten(2).view_as(h))
    + use(
        0,
        lambda h, m, x: torch.arange(256.0).to(x).view_as(h) + h.exp(),
        lambda h, m, x: h.flatten(2).view_as(torch.ones(2, 8, 4, 4)),
        lambda h, m, x: torch.arange(256.0).to(x).reshape(2, 8, 16).view_as(h),
    ),
    "reshape_as": use(8, lambda h, m, x: h.flatten(1).reshape_as(h)),
    "unflatten": use(8, lambda h, m, x: h.unflatten(2, (2, 2)))
    + use(4, lambda h, m, x: h.unflatten(1, (2, -1)), lambda h, m, x: h.unflatten(-3, (-1, 2)))
    + use(0, lambda h, m, x: h.unflatten(1, (4, 2))),
    # space
    **{
        f"{kind}_pool2d": use(8, lambda h, m, x, kind=kind: getattr(F, f"{kind}_pool2d")(h, 2))
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg")
    },
    **{
        f"{kind}_pool1d": use(8, lambda h, m, x, kind=kind: getattr(F, f"{kind}_pool1d")(h, 2), example=SEQUENCE)
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg")
    },
    **{
        f"{kind}_pool3d": use(8, lambda h, m, x, kind=kind: getattr(F, f"{kind}_pool3d")(h, 2), example=VOLUME)
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg")
    },
    "lp_pool1d": use(8, lambda h, m, x: F.lp_pool1d(h, 2.0, 2), example=SEQUENCE),
    "lp_pool2d": use(8, lambda h, m, x: F.lp_pool2d(h, 2.0, 2)),
    "lp_pool3d": use(8, lambda h, m, x: F.lp_pool3d(h, 2.0, 2), example=VOLUME),
    **{
        f"{kind}_pool1d_with_indices": use(
            8, lambda h, m, x, kind=kind: getattr(F, f"{kind}_pool1d")(h, 2, return_indices=True), example=SEQUENCE
        )
        for kind in ("max", "adaptive_max")
    },
    **{
        f"{kind}_pool2d_with_indices": use(
            8, lambda h, m, x, kind=kind: getattr(F, f"{kind}_pool2d")(h, 2, return_indices=True)
        )
        for kind in ("max", "adaptive_max")
    },
    **{
        f"{kind}_pool3d_with_indices": use(
            8, lambda h, m, x, kind=kind: getattr(F, f"{kind}_pool3d")(h, 2, return_indices=True), example=VOLUME
        )
        for kind in ("max", "adaptive_max")
    },
    "max_unpool1d": use(
        8, lambda h, m, x: F.max_unpool1d(*F.max_pool1d(h, 2, return_indices=True), 2), example=SEQUENCE
    ),
    "max_unpool2d": use(
        8,
        lambda h, m, x: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
        lambda h, m, x: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2, output_size=h.shape),
        lambda h, m, x: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2, 2, 0, h.size()[2:]),
    )
    + use(
        0,
        lambda h, m, x: F.max_unpool2d(
            *F.max_pool2d(h, 2, return_indices=True), 2, output_size=[h.size(1) // 2, h.size(1) // 2]
        ),
    ),
    "max_unpool3d": use(8, lambda h, m, x: F.max_unpool3d(*F.max_pool3d(h, 2, return_indices=True), 2), example=VOLUME),
    "fractional_max_pool2d": use(
        8,
        lambda h, m, x: F.fractional_max_pool2d(
            h, 2, 2, _random_samples=torch.full((*h.shape[:2], 2), 0.3, dtype=h.dtype)
        ),
    ),
    "fractional_max_pool2d_with_indices": use(
        8,
        lambda h, m, x: F.fractional_max_pool2d(
            h, 2, 2, return_indices=True, _random_samples=torch.full((*h.shape[:2], 2), 0.3, dtype=h.dtype)
        ),
    ),
    "fractional_max_pool3d": use(
        8,
        lambda h, m, x: F.fractional_max_pool3d(
            h, (2, 2, 1), (2, 2, 1), _random_samples=torch.full((*h.shape[:2], 3), 0.3, dtype=h.dtype)
        ),
        example=VOLUME,
    ),
    "fractional_max_pool3d_with_indices": use(
        8,
        lambda h, m, x: F.fractional_max_pool3d(
            h,
            (2, 2, 1),
            (2, 2, 1),
            return_indices=True,
            _random_samples=torch.full((*h.shape[:2], 3), 0.3, dtype=h.dtype),
        ),
        example=VOLUME,
    ),
    "interpolate": use(
        8,
        lambda h, m, x: F.interpolate(h, scale_factor=1.5, mode="bicubic"),
        lambda h, m, x: F.interpolate(h, size=(3, 5)),
    ),
    "upsample_nearest2d": use(8, lambda h, m, x: aten.upsample_nearest2d(h, [8, 8])),
    "upsample_bilinear2d": use(8, lambda h, m, x: aten.upsample_bilinear2d(h, [8, 8], False)),
    "upsample_bicubic2d": use(8, lambda h, m, x: aten.upsample_bicubic2d(h, [8, 8], False)),
    "grid_sample": use(8, lambda h, m, x: F.grid_sample(h, x[:, :2].permute(0, 2, 3, 1), align_corners=False)),
    "grid_sampler": use(8, lambda h, m, x: torch.grid_sampler(h, x[:, :2].permute(0, 2, 3, 1), 0, 0, False)),
    "grid_sampler_2d": use(8, lambda h, m, x: aten.grid_sampler_2d(h, x[:, :2].permute(0, 2, 3, 1), 0, 0, False)),
    "affine_grid": use(
        8,
        lambda h, m, x: h + F.affine_grid(x[:, :2, 0, :3], [2, 1, 4, 4], align_corners=False)[:, None, ..., 0],
        lambda h, m, x: F.grid_sample(h, F.affine_grid(x[:, :2, 0, :3], h.shape, False), align_corners=False),
    ),
    "affine_grid_generator": use(
        8, lambda h, m, x: h + torch.affine_grid_generator(x[:, :2, 0, :3], [2, 1, 4, 4], False)[:, None, ..., 0]
    ),
    "pad": use(
        8,
        lambda h, m, x: F.pad(h, (1, 2)),
        lambda h, m, x: F.pad(h, (0, 1, 1, 0), mode="reflect"),
        lambda h, m, x: F.pad(h, (0, 0, 0, 0, 2, 1), value=1.5),
        lambda h, m, x: F.pad(h, (-1, 0)),
    )
    + use(0, lambda h, m, x: F.pad(h, (0, 0, 0, 0, -2, 1))),
    "constant_pad_nd": use(8, lambda h, m, x: torch.constant_pad_nd(h, (0, 1), 2.0)),
    "reflection_pad1d": use(8, lambda h, m, x: aten.reflection_pad1d(h, [1, 1]), example=SEQUENCE),
    "reflection_pad2d": use(8, lambda h, m, x: aten.reflection_pad2d(h, [1, 1, 0, 0])),
    "replication_pad1d": use(8, lambda h, m, x: aten.replication_pad1d(h, [1, 1]), example=SEQUENCE),
    "replication_pad2d": use(8, lambda h, m, x: aten.replication_pad2d(h, [1, 1, 0, 0])),
    "im2col": use(8, lambda h, m, x: F.unfold(h, 2, stride=2), lambda h, m, x: F.unfold(h[0], 2)[None]),
    "col2im": use(2, lambda h, m, x: F.fold(h, (8, 8), 2, stride=2), example=SEQUENCE),
    "deform_conv2d": use(
        8,
        lambda h, m, x: ops.deform_conv2d(h, x[:, :2] / 2, m.square[..., None, None]),
        lambda h, m, x: ops.deform_conv2d(h, x[:, :2], m.square[..., None, None], m.vector[:5], mask=x[:, 2:]).sum(1),
        lambda h, m, x: ops.deform_conv2d(x, x[:, :2], m.a.weight, m.a.bias) + m.b(x),
        lambda h, m, x: ops.deform_conv2d(h, x[:, :2], m.vector[:, None, None, None]),
    )
    + use(
        4,
        lambda h, m, x: ops.deform_conv2d(h, torch.cat([x, x[:, :1]], 1), m.square[..., None, None]),
    )
    + use(6, lambda h, m, x: ops.deform_conv2d(x, h[:, :2], m.square[:, :3, None, None]))
    + use(7, lambda h, m, x: ops.deform_conv2d(x, x[:, :2], m.square[:, :3, None, None], mask=h[:, :1])),
    "roi_align": use(8, lambda h, m, x: ops.roi_align(h, BOXES, 2))
    + use(0, lambda h, m, x: ops.roi_align(x, BOXES + h[0, 3:, 0, 0].cos(), 2)),
    "roi_pool": use(8, lambda h, m, x: ops.roi_pool(h, BOXES, 2).sum(1)),
    "ps_roi_align": use(2, lambda h, m, x: ops.ps_roi_align(h, BOXES, 2)),
    "ps_roi_pool": use(2, lambda h, m, x: ops.ps_roi_pool(h, BOXES, 2).sum(1)),
    "pixel_shuffle": use(2, lambda h, m, x: F.pixel_shuffle(h, 2)),
    "pixel_unshuffle": use(8, lambda h, m, x: F.pixel_unshuffle(h, 2)),
    "vdot": use(8, lambda h, m, x: h * torch.vdot(h.flatten(), h.flatten())),
    "channel_shuffle": use(4, lambda h, m, x: F.channel_shuffle(h, 2))
    + use(2, lambda h, m, x: F.channel_shuffle(h, 4)),
    "native_channel_shuffle": use(4, lambda h, m, x: [torch.native_channel_shuffle(h.detach(), 2), h]),
}

# More of what operations are used for, mostly along dimensions other than usual.
MORE: dict[str, list[Use]] = {
    "conv_transpose2d": use(
        8, lambda h, m, x: F.conv_transpose2d(h.movedim(1, 0), m.square[:2, :5, None, None]).movedim(0, 1)
    ),
    "conv2d": use(8, lambda h, m, x: F.conv2d(h.movedim(1, 0), m.square[:5, :2, None, None]).movedim(0, 1)),
    "im2col": use(8, lambda h, m, x: F.unfold(h.movedim(1, 0), 2).movedim(0, 1)),
    "col2im": use(
        8, lambda h, m, x: F.fold(h.movedim(1, 0), (4, 8), (1, 2), stride=(1, 2)).movedim(0, 1), example=SEQUENCE
    ),
    "pixel_shuffle": use(8, lambda h, m, x: F.pixel_shuffle(h.movedim(1, 0).repeat(1, 2, 1, 1), 2).movedim(0, 1)),
    "pixel_unshuffle": use(
        8,
        lambda h, m, x: F.pixel_unshuffle(h.movedim(1, 0), 2).movedim(0, 1),
        lambda h, m, x: F.pixel_unshuffle(h[0], 2)[None],
    ),
    "channel_shuffle": use(8, lambda h, m, x: F.channel_shuffle(h.movedim(1, 0), 2).movedim(0, 1)),
    "glu": use(8, lambda h, m, x: F.glu(h.mean((2, 3))[:, :, None] * m.b(x).mean((2, 3))[:, None], 2)),
    "bilinear": use(
        8,
        lambda h, m, x: F.bilinear(h[:, :, :2].flatten(2), h[:, :, 2:].flatten(2), m.third),
        lambda h, m, x: F.bilinear(h.permute(0, 2, 3, 1), m.b(x).permute(0, 2, 3, 1), m.third, m.vector[:5]),
    ),
    "gather": use(8, lambda h, m, x: h.gather(dim=2, index=h.argsort(2))),
    "ps_roi_align": use(0, lambda h, m, x: ops.ps_roi_align(x.repeat(1, 4, 1, 1), h[0, :, 0, :1] * 0 + BOXES[:1], 2)),
    "roi_align": use(0, lambda h, m, x: ops.roi_align(x, h[0, :, 0, :1] * 0 + BOXES[:1], 2)),
    "affine_grid": use(0, lambda h, m, x: F.affine_grid(h[0, :, :2, :3], [8, 1, 4, 4], False)),
    "linalg_cross": use(8, lambda h, m, x: torch.linalg.cross(h[..., :3], h[..., 1:])),
    "new": use(8, lambda h, m, x: h + h.data.new(h.shape).zero_(), lambda h, m, x: h + h.data.new(*h.shape).zero_())
    + use(8, lambda h, m, x: h + h.data.new([0.5])),
    "split": use(4, lambda h, m, x: sum(h.split(split_size=h.shape[1] // 2, dim=1)))
    + use(8, lambda h, m, x: h.split(split_size=2, dim=2)),
    "hstack": use(8, lambda h, m, x: torch.hstack([h.mean((0, 2, 3)), m.b(x).mean((0, 2, 3))])[None]),
    "hsplit": use(
        4,
        lambda h, m, x: torch.stack(torch.hsplit(h.mean((0, 2, 3)), 2)),
        lambda h, m, x: torch.hsplit(h.mean((2, 3)), 2),
    ),
    "mse_loss": use(8, lambda h, m, x: F.mse_loss(h, m.b(x), None, None, "none")),
    "linalg_matrix_norm": use(
        8,
        lambda h, m, x: torch.linalg.matrix_norm(h.permute(0, 2, 3, 1), "fro", (2, 3)),
    ),
    "linalg_norm": use(8, lambda h, m, x: torch.linalg.norm(h, "fro", (1, 2))),
    "batch_norm": use(
        0, lambda h, m, x: F.batch_norm(h, m.vector * 0, m.vector.exp(), m.vector, m.vector.cos()).sum(1)
    ),
    "roll": use(0, lambda h, m, x: h.mean((2, 3)).roll(168)) + use(8, lambda h, m, x: h.mean((2, 3)).roll(h.shape[1])),
    "scaled_dot_product_attention": use(
        8, lambda h, m, x: F.scaled_dot_product_attention(x.flatten(2).mT, x.flatten(2).mT, h.flatten(2).mT).sum(-1)
    ),
    "deform_conv2d": use(8, lambda h, m, x: (ops.deform_conv2d(x, x[:, :2], m.a.weight, m.a.bias) + m.b(x)).sum(1)),
}
for _name, _more in MORE.items():
    USES[_name] = USES.get(_name, []) + _more

# Registered under a name that no public function reaches by itself, or that needs what a CPU does not have.
RECURRENT = "recurrent layers are in test_sequences.py"
ELSEWHERE = {
    **dict.fromkeys(
        ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"], RECURRENT
    ),
    **dict.fromkeys(["_pack_padded_sequence", "_pad_packed_sequence", "pad_sequence"], RECURRENT),
    "grouped_mm": "PyTorch has no such product in float64: test_sequences.py",
    "cuda": "moving to the GPU is covered by test_cuda below, where there is one",
}

ALL = [(name, i, one) for name, uses in USES.items() for i, one in enumerate(uses)]
IDS = [f"{name}-{i}" for name, i, _ in ALL]


def build(one: Use) -> nn.Module:
    torch.manual_seed(3)
    return randomise(Around(one.operation, one.example).double())


def free_channels(graph: sp.ChannelGraph) -> int:
    """How many units the channels of `a` form."""
    found = [g for g in graph.groups for s in g.slices if (s.name, s.dim) == ("a.weight", 0)]
    return sum(len(g) for g in found if len(g) > 1)


def test_every_rule_has_a_case() -> None:
    assert {*RULES, *UNTAGGED} == {*USES, *ELSEWHERE}


@pytest.mark.parametrize(("name", "i", "one"), ALL, ids=IDS)
def test_units(name: str, i: int, one: Use) -> None:
    graph = sp.analyze(build(one), one.example)
    met = {node.meta["op"] for program in graph.space.programs for node in program.graph.nodes}
    assert name in met, f"this use calls {met}"
    assert free_channels(graph) == one.units


@pytest.mark.parametrize(("name", "i", "one"), ALL, ids=IDS)
def test_exact(name: str, i: int, one: Use) -> None:
    if one.units:
        assert_exact(build(one), one.example)
    else:
        assert_exact_or_nothing(build(one), one.example)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda() -> None:
    one = Use(lambda h, m, x: h.cpu().cuda(), 8)
    sp.prune(build(one).cuda(), one.example.cuda())
