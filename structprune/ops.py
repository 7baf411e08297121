"""What an operation is called: one name for `torch.add`, `Tensor.add_`, `x += y` and `torch.ops.aten.add`.

The names are those of the ATen operator packets where there is one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace
from typing import Any

import torch

# Properties and methods that tell about a tensor without looking at its values.
QUERIES = frozenset(
    """dim ndim dtype device layout is_floating_point is_complex is_contiguous requires_grad is_cuda is_cpu is_xpu
    is_mps is_leaf is_sparse is_sparse_csr is_quantized is_meta is_mkldnn is_nested is_inference is_signed is_conj
    is_neg is_pinned is_shared grad_fn grad names has_names element_size itemsize get_device data_ptr _version
    output_nr type_str hash retains_grad is_tensor is_storage result_type can_cast promote_types get_default_dtype
    is_grad_enabled is_autocast_enabled set_grad_enabled is_same_size register_hook retain_grad repr format is_vulkan
    is_ipu is_mtia is_maia layout is_distributed get_autocast_dtype is_autocast_cpu_enabled get_autocast_gpu_dtype
    get_autocast_cpu_dtype iinfo finfo _has_compatible_shallow_copy_type is_coalesced dense_dim sparse_dim""".split()
)

# Queries whose answer is made of sizes, or shows them.
SIZES = frozenset("shape size numel nelement len nbytes stride storage_offset untyped_storage storage".split())

# What may share memory with its first operand, so that writing into one is writing into the other.
VIEWS = frozenset(
    """permute transpose t T mT H mH adjoint movedim unsqueeze squeeze narrow tensor_split
    unbind select unfold chunk split split_with_sizes unsafe_chunk unsafe_split unsafe_split_with_sizes expand
    broadcast_to broadcast_tensors expand_as view reshape _unsafe_view flatten ravel view_as reshape_as unflatten
    getitem item contiguous detach to as_tensor asarray float double half bfloat16 type type_as data cpu cuda diagonal
    linalg_diagonal real imag view_as_real view_as_complex conj resolve_conj resolve_neg positive dropout dropout1d
    dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout einsum""".split()
)

# Pooling over one to three trailing dimensions, in all its forms.
POOLS = frozenset(
    [f"{kind}_pool{rank}d" for rank in (1, 2, 3) for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")]
    + [f"{kind}_pool{rank}d_with_indices" for rank in (1, 2, 3) for kind in ("max", "adaptive_max")]
    + [f"fractional_max_pool{rank}d{more}" for rank in (2, 3) for more in ("", "_with_indices")]
)

# Fourier transforms, along one dimension, two or several.
TRANSFORMS = frozenset(f"fft_{way}fft{dims}" for way in ("", "i", "r", "ir", "h", "ih") for dims in ("", "2", "n"))

# Values handed to Python; `Tensor.float()` and the like keep their plain names.
_CONVERSIONS = frozenset({"__float__", "__int__", "__bool__", "__index__", "__complex__", "__array__", "__contains__"})
_BY_OBJECT = {torch.nn.functional.unfold: "im2col", torch.nn.functional.fold: "col2im"}  # unlike Tensor.unfold
_SPECIAL = {"expit": "sigmoid", "psi": "digamma", "gammaln": "lgamma", "gammainc": "igamma", "gammaincc": "igammac"}
_ALIASES = dict(  # what PyTorch has under several names
    pair.split("=")
    for pair in """absolute=abs arccos=acos arccosh=acosh arcsin=asin arcsinh=asinh arctan=atan arctan2=atan2
    arctanh=atanh clip=clamp concat=cat concatenate=cat divide=div fix=trunc ger=outer greater=gt greater_equal=ge
    less=lt less_equal=le linalg_matmul=matmul moveaxis=movedim multiply=mul negative=neg not_equal=ne row_stack=vstack
    subtract=sub swapaxes=transpose swapdims=transpose true_divide=div _grouped_mm=grouped_mm
    _sparse_mm=mm""".split()
)
_REFLECTED = {"radd": "add", "rmul": "mul", "rand": "bitwise_and", "ror": "bitwise_or", "rxor": "bitwise_xor"}
_SPELLED = {
    "truediv": "div",
    "rtruediv": "rdiv",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "invert": "bitwise_not",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    **_REFLECTED,
}


@dataclass(frozen=True)
class Operation:
    """A callable as structprune sees it."""

    name: str
    inplace: bool = False  # spelled with an underscore, `+=`, or item assignment
    python: bool = False  # written in Python, by PyTorch: its body can be traced

    @functools.cached_property
    def asks(self) -> bool:
        """Whether it asks about a tensor without looking at its values."""
        return self.name in QUERIES

    @functools.cached_property
    def sizes(self) -> bool:
        """Whether its answer is made of sizes."""
        return self.name in SIZES


@functools.cache
def operation(function: Callable[..., Any]) -> Operation:
    """The name of `function`, and what kind of thing it is."""
    name: str = _BY_OBJECT.get(function) or getattr(function, "__name__", None) or type(function).__name__
    if name in ("__get__", "__set__"):
        name = function.__self__.__name__ + ("" if name == "__get__" else "_setter")  # type: ignore[attr-defined]
        return Operation(name)
    if isinstance(function, torch._ops.OpOverloadPacket):
        function = getattr(function, function.overloads()[0])
    if isinstance(function, torch._ops.OpOverload):
        name = name.split(".")[0]
        if function.namespace != "aten" and hasattr(torch.ops.aten, name):  # another operator of the same name
            return Operation(f"{function.namespace}::{name}")
    inplace = False
    if name.startswith("__") and name.endswith("__") and name not in _CONVERSIONS:
        name = name[2:-2]
        if name != "invert" and name.startswith("i") and hasattr(torch.Tensor, name[1:]):
            name, inplace = name[1:], True
        name = _SPELLED.get(name, name)
        inplace |= name == "setitem"
    elif name.endswith("_") and not name.endswith("__"):
        name, inplace = name[:-1], True
    if name.startswith("special_"):
        plain = name.removeprefix("special_")
        plain = _SPECIAL.get(plain, plain)
        name = plain if hasattr(torch.ops.aten, plain) else name
    name = _ALIASES.get(name, name)
    python = inspect.isfunction(function) and (function.__module__ or "").partition(".")[0] == "torch"
    return Operation(name, inplace, python)


# What works element by element, though ATen does not say so (of leaky_relu it does only in later releases).
UNTAGGED = frozenset(
    """leaky_relu hardswish log_sigmoid tanhshrink softsign floor_divide isclose fake_quantize_per_tensor_affine
    special_ndtr""".split()
)


@functools.cache
def is_pointwise(name: str) -> bool:
    """Whether an operator works element by element: most of those that do are tagged so by ATen."""
    if name in UNTAGGED:
        return True
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())


@functools.cache
def python_body(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same Python function, without its request to be overridden first.

    PyTorch's Python functions begin with `if has_torch_function(...): return handle_torch_function(...)`;
    with that question always answered no, the body runs and the functions it calls can be seen.
    """
    function = inspect.unwrap(function)
    body = FunctionType(
        function.__code__, _globals(function.__module__), function.__name__, function.__defaults__, function.__closure__
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body


@functools.cache
def _globals(module: str) -> dict[str, Any]:
    namespace = _never_overridden(vars(__import__(module, fromlist=["*"])))
    for name, value in namespace.items():
        if value is torch.overrides:
            namespace[name] = SimpleNamespace(**_never_overridden(vars(torch.overrides)))
    return namespace


def _never_overridden(namespace: Mapping[str, Any]) -> dict[str, Any]:
    return {k: (lambda *tensors: False) if k.startswith("has_torch_function") else v for k, v in namespace.items()}


# What NumPy calls arguments, which PyTorch understands, too.
NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}

# Operations with arguments of their own by such names.
_NAMED_SO = frozenset(
    """quantize_per_channel fake_quantize_per_channel_affine segment_reduce trapezoid trapz cumulative_trapezoid vander
    ldexp""".split()
)

# Operations that take something else before `input`.
_INPUT_LATER = frozenset({"where", "polygamma", "special_polygamma", "searchsorted"})

# The operands of the others, by what they are called.
_OPERANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "addmm": (("input",), ("mat1",), ("mat2",)),
    **dict.fromkeys(("addbmm", "baddbmm"), (("input",), ("batch1",), ("batch2",))),
    "addmv": (("input",), ("mat",), ("vec",)),
    "addr": (("input",), ("vec1",), ("vec2",)),
    "mv": (("input",), ("vec",)),
    "dot": (("input",), ("tensor",)),
    "outer": (("input",), ("vec2",)),
    **dict.fromkeys(
        ("linear", *(f"conv{way}{rank}d" for way in ("", "_transpose") for rank in (1, 2, 3))),
        (("input",), ("weight",)),
    ),
    "scaled_dot_product_attention": (("query",), ("key",), ("value",)),
}
_USUAL = (("input",), ("other", "mat2"))


def in_place(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by their own names, with operands that were passed by keyword in their places."""
    if not NUMPY.keys().isdisjoint(kwargs) and name not in _NAMED_SO:
        kwargs = {NUMPY.get(key, key): value for key, value in kwargs.items()}
    if name in _INPUT_LATER:
        return args, kwargs
    for place, names in enumerate(_OPERANDS.get(name, _USUAL)):
        for key in names:
            if len(args) == place and key in kwargs:
                args, kwargs = (*args, kwargs[key]), {k: v for k, v in kwargs.items() if k != key}
    return args, kwargs
