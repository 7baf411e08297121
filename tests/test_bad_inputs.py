"""What users get wrong: every answer names what was given and what to do, and leaves the model as it was."""

from __future__ import annotations

import copy
import itertools
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_exact, assert_exact_or_nothing, assert_kept, randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import structprune as sp
from structprune.checkpoint import load_weights
from structprune.export import export_onnx
from structprune.rules import rule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.bn1(self.conv1(x))).mean((2, 3)))


def images(batch: int = 2, channels: int = 3, **options: Any) -> Tensor:
    return torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(0)).to(**options)


def exact_net(model: nn.Module | None = None) -> nn.Module:
    return randomise((model or Net()).double())


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The same tensors with the same bits, the same modes and no new attributes."""

    def facts() -> list[Any]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return [
            [(path, type(m), m.training, sorted(vars(m)), len(m._forward_hooks)) for path, m in model.named_modules()],
            [(name, id(t), sorted(vars(t)), t.requires_grad, t.grad is None) for name, t in named],
        ]

    def bits() -> dict[str, Any]:
        plain = (t for t in [*model.named_parameters(), *model.named_buffers()])
        return {n: t.detach().clone() for n, t in plain if not (is_lazy(t) or t.is_meta or t.is_nested or t.is_sparse)}

    before, values = facts(), bits()
    generator = torch.get_rng_state()
    yield
    assert facts() == before
    assert torch.equal(torch.get_rng_state(), generator), "the random state moved"
    for name, value in bits().items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0, equal_nan=True)


def refuses(
    model: nn.Module, error: type[Exception], words: str | Sequence[str], run: Callable[[nn.Module], object]
) -> None:
    """`run(model)` raises `error`, a StructPruneError that says all of `words`, and nothing is touched."""
    assert issubclass(error, sp.StructPruneError)
    with untouched(model), pytest.raises(error) as caught:
        run(model)
    for word in [words] if isinstance(words, str) else words:
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"


# -- settings -------------------------------------------------------------------------------------------------

BAD_RATIOS = [
    (float("nan"), sp.ArgumentError),
    (-0.1, sp.ArgumentError),
    (1, sp.ArgumentError),
    (1.0, sp.ArgumentError),
    (50, sp.ArgumentError),
    (float("inf"), sp.ArgumentError),
    (np.float32("nan"), sp.ArgumentError),
    (True, sp.ArgumentTypeError),
    (False, sp.ArgumentTypeError),
    ("half", sp.ArgumentTypeError),
    ("0.5", sp.ArgumentTypeError),
    ([0.5], sp.ArgumentTypeError),
    (0.5j, sp.ArgumentTypeError),
]


@pytest.mark.parametrize(("ratio", "error"), BAD_RATIOS, ids=[repr(r) for r, _ in BAD_RATIOS])
def test_a_ratio_out_of_range(ratio: Any, error: type[Exception]) -> None:
    model = Net()
    words = ["[0, 1)", repr(ratio)]
    refuses(model, error, words, lambda m: sp.prune(m, images(), ratio=ratio))
    graph = sp.analyze(model, images())
    refuses(model, error, words, lambda m: sp.plan(graph, ratio=ratio))


def test_errors_are_also_the_builtin_ones() -> None:
    with pytest.raises(ValueError, match="ratio"):
        sp.prune(Net(), images(), ratio=2)
    with pytest.raises(TypeError, match="ratio"):
        sp.prune(Net(), images(), ratio="a")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="conv9"):
        sp.prune(Net(), images(), exclude="conv9")


SETTINGS = [
    ({"importance": "l3"}, sp.ArgumentError, ["'l1'", "'l3'"]),
    ({"importance": 3}, sp.ArgumentTypeError, ["importance", "3"]),
    ({"importance": ["l1"]}, sp.ArgumentTypeError, ["importance", "['l1']"]),
    ({"scope": "everywhere"}, sp.ArgumentError, ["'local'", "'global'", "'everywhere'"]),
    ({"scope": None}, sp.StructPruneError, ["'local'", "None"]),
    ({"exclude": "conv2"}, sp.UnknownNameError, ["'conv2'", "'conv1'"]),
    ({"exclude": ["fc", "blok.*"]}, sp.UnknownNameError, ["'blok.*'", "block"]),
    ({"exclude": 3}, sp.ArgumentTypeError, ["exclude", "3"]),
    ({"exclude": [3]}, sp.ArgumentTypeError, ["exclude", "3"]),
    ({"exclude": torch.tensor(0)}, sp.ArgumentTypeError, ["exclude", "tensor(0)"]),
    ({"importance": lambda group: [1.0]}, sp.ArgumentError, ["one score for each of the 8 units", "conv1"]),
    ({"importance": lambda group: np.full(len(group), np.nan)}, sp.ArgumentError, ["conv1", "8", "NaN"]),
    ({"importance": lambda group: "high"}, sp.StructPruneError, ["importance", "conv1"]),
    ({"importance": lambda group: None}, sp.StructPruneError, ["importance", "conv1"]),
]


@pytest.mark.parametrize(("settings", "error", "words"), SETTINGS, ids=[str(s) for s, _, _ in SETTINGS])
def test_an_unknown_setting(settings: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    refuses(Net(), error, words, lambda m: sp.prune(m, images(), **settings))


def test_an_unknown_layer_in_explain() -> None:
    refuses(Net(), sp.UnknownNameError, ["'conv2'", "'conv1'"], lambda m: sp.explain(m, images(), "conv2"))


def test_an_unknown_device_in_verify() -> None:
    plan = sp.prune(Net(), images()).plan
    refuses(Net(), sp.StructPruneError, "abacus", lambda m: sp.verify(m, plan, images(), device="abacus"))


@pytest.mark.parametrize("device", ["meta", "cuda:999", 3.5])
def test_a_device_that_is_not_there(device: Any) -> None:
    plan = sp.prune(Net(), images()).plan
    refuses(Net(), sp.ArgumentError, repr(device), lambda m: sp.verify(m, plan, images(), device=device))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_small_model_that_verify_cannot_take() -> None:
    plan = sp.prune(Net(), images()).plan
    for small, error in (
        ("small", sp.ArgumentTypeError),
        (Net, sp.ArgumentTypeError),
        (Net().to("meta"), sp.UnsupportedModelError),
        (torch.jit.script(Net()), sp.UnsupportedModelError),
        (nn.LazyLinear(3), sp.UnsupportedModelError),
    ):
        refuses(Net(), error, "", lambda m, small=small: sp.verify(m, plan, images(), small=small))  # type: ignore[misc]


class BoomError(Exception):
    """Of the user's own."""


class Single(Net):
    """Does not run in float64."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise self.error("no kernel")
        return super().forward(x)


@pytest.mark.parametrize("error", [NotImplementedError, BoomError])
@pytest.mark.parametrize("verb", [sp.prune, sp.shrink])
def test_a_model_that_does_not_run_in_float64(verb: Callable[..., Any], error: type[Exception]) -> None:
    words = ["cannot verify", "does not run in float64", "no kernel"]
    refuses(Single(error), sp.VerificationError, words, lambda m: verb(m, images()))
    assert verb(Single(error), images(), verify=False)


class Refuses(Net):
    """Raises what it likes in train mode, or at another batch size."""

    def __init__(self, error: type[Exception] = BoomError, *, train: bool = True) -> None:
        super().__init__()
        self.error, self.refuses_train = error, train

    def forward(self, x: Tensor) -> Tensor:
        if self.training if self.refuses_train else len(x) > 2:
            raise self.error("targets")
        return super().forward(x)


@pytest.mark.parametrize("error", [BoomError, KeyError, ZeroDivisionError, AttributeError, IndexError, AssertionError])
def test_what_the_model_itself_refuses_is_not_compared(error: type[Exception]) -> None:
    """Another batch size, and train mode without targets; and the verification says so."""
    for model in (Refuses(error), Refuses(error, train=False)):
        with untouched(model):
            result = sp.prune(model, images())
        assert result.report.verification is not None
        message = result.report.verification.message
        what = "train mode" if model.refuses_train else "a batch of 3"
        assert f"{what} was not compared: the model itself raises {error.__name__}: " in message
        assert "eval and train mode" not in message
    assert [step.number for step in sp.iterate(Refuses(error), images(), ratio=0.5, steps=1)] == [1]
    assert sp.shrink(Refuses(error), images())


@pytest.mark.parametrize("train", [False, True])
def test_a_small_model_that_fails_where_the_masked_one_runs(train: bool) -> None:
    plan = sp.prune(Net(), images()).plan

    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training or not train:
                raise BoomError("odd")
            return super().forward(x)

    model = exact_net(Net())
    small: Any = sp.apply(plan, model)
    small.fc.__class__ = Fails
    check = sp.verify(model, plan, images(dtype=torch.float64), small=small, device="cpu")
    assert not check.ok
    assert check.first_difference == "fc, which fails: BoomError: odd"
    assert ("train mode" if train else "eval mode") in check.message


PATHS: list[Any] = [3, None, b"x", "", "a\0b", "\ud800"]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_path(path: Any) -> None:
    result = sp.prune(Net(), images())
    for run in (
        lambda m: sp.save(result, path),
        lambda m: sp.load(path, m),
        lambda m: result.report.to_html(path),
        lambda m: None if path is None else sp.iterate(m, images(), ratio=0.5, folder=path),
    )[: 3 if path is None else 4]:
        refuses(Net(), sp.ArgumentTypeError, repr(path), run)


def test_a_folder_for_a_file_and_the_reverse(tmp_path: Path) -> None:
    result = sp.prune(Net(), images())
    refuses(Net(), sp.ArgumentError, "is a folder", lambda m: result.report.to_html(tmp_path))
    refuses(Net(), sp.ArgumentError, "is a folder", lambda m: export_onnx(m, images(), tmp_path))
    wrong = images(channels=4)
    words = ["(2, 4, 8, 8)", "while running the model on example_inputs"]
    refuses(Net(), sp.ExampleInputsError, words, lambda m: export_onnx(m, wrong, tmp_path / "a.onnx"))
    file = tmp_path / "run"
    file.touch()
    refuses(Net(), sp.ArgumentError, "is a file", lambda m: sp.iterate(m, images(), ratio=0.5, folder=file))


def test_the_sparsity_of_a_lazy_model() -> None:
    refuses(nn.Sequential(nn.LazyLinear(3)), sp.UnsupportedModelError, "0.weight is lazy", sp.sparsity)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    result = sp.prune(Net(), images())
    circular: dict[str, Any] = {}
    circular["itself"] = circular
    for changed, record, error in (
        (result, 3, sp.ArgumentTypeError),
        (result, {"when": object()}, sp.ArgumentTypeError),
        (result, circular, sp.ArgumentTypeError),
        (replace(result, model=Net()), {}, sp.ArgumentError),
        (replace(result, model=copy.deepcopy(result.model).to("meta")), {}, sp.UnsupportedModelError),
    ):
        with pytest.raises(error):
            sp.save(changed, tmp_path / "new", record=record)  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())


def test_an_original_that_cannot_be_filled(tmp_path: Path) -> None:
    result = sp.prune(Net(), images())
    sp.save(result, tmp_path / "small")
    meta, exported = Net().to("meta"), torch.export.export(Net().eval(), (images(),))
    for given, error in ((meta, sp.UnsupportedModelError), (exported, sp.ArgumentTypeError)):
        with pytest.raises(error):
            sp.load(tmp_path / "small", given)  # type: ignore[arg-type]
        with pytest.raises(error):
            sp.inflate(result.plan, result.model, given)  # type: ignore[arg-type]


def test_an_optimizer_of_another_model() -> None:
    other = torch.optim.SGD(Net().parameters())
    words = "model.parameters()"
    refuses(Net(), sp.ArgumentError, words, lambda m: sp.iterate(m, images(), ratio=0.5, optimizer=other))


def test_what_is_no_name_and_no_json() -> None:
    graph = sp.analyze(Net(), images())
    for name in (3, None, nn.Linear):
        with pytest.raises(sp.ArgumentTypeError, match="name"):
            graph.explain(name)  # type: ignore[arg-type]
        with pytest.raises(sp.ArgumentTypeError, match="pattern"):
            graph.matching(name)  # type: ignore[arg-type]
    other = sp.plan(sp.analyze(exact_net(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3))), torch.randn(2, 3).double()))
    for given, error in ((3, sp.ArgumentTypeError), (None, sp.ArgumentTypeError), (other, sp.PlanError)):
        for ask in (graph.under, graph.removed):
            with pytest.raises(error):
                ask(given)  # type: ignore[arg-type]
    for name in (3, None):
        with pytest.raises(sp.ArgumentTypeError, match="names of operations"):
            rule(name)(lambda site, *args: site.plain())  # type: ignore[arg-type]
    for text in (3, None, {}):
        with pytest.raises(sp.ArgumentTypeError, match="JSON"):
            sp.PruningPlan.from_json(text)  # type: ignore[arg-type]


def test_arguments_of_the_wrong_kind() -> None:
    model = Net()
    result = sp.prune(model, images())
    plan: Any = result.plan
    for run in (
        lambda m: sp.apply(plan.to_dict(), m),
        lambda m: sp.apply(m, plan),
        lambda m: sp.mask(result, m),  # type: ignore[arg-type]
        lambda m: sp.plan(m),
        lambda m: sp.verify(plan, m, images()),
        lambda m: sp.save(m, "never"),
    ):
        refuses(model, sp.ArgumentTypeError, "not ", run)


def test_numbers_that_no_computer_counts_to() -> None:
    graph = sp.analyze(Net(), images())
    huge = 10**400
    with pytest.raises(sp.ArgumentError, match="target for latency"):
        sp.Latency(huge)
    with pytest.raises(sp.ArgumentError, match="seconds must be at least 0"):
        sp.Latency(0.5, seconds=huge)
    with pytest.raises(sp.ArgumentError, match="steps must be a whole number from 1 to 1000000; 1000"):
        next(iter(sp.iterate(Net(), images(), ratio=0.5, steps=huge)))
    with pytest.raises(sp.ArgumentTypeError, match="evaluate must return a number"):
        sp.sensitivity(graph, lambda model: huge)
    with pytest.raises(sp.ArgumentTypeError, match=r"each of ratios must be a number in \[0, 1\)"):
        sp.sensitivity(graph, lambda model: 1.0, ratios=np.array("half"))
    assert sp.sensitivity(graph, lambda model: 1.0, ratios=np.float64(0.5)).rows[0].drops.keys() == {0.5}


def test_a_title_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(sp.ArgumentTypeError, match="title must be a text, not 3"):
        sp.prune(Net(), images()).report.to_html(tmp_path / "page.html", title=3)  # type: ignore[arg-type]


def test_ratio_zero_is_the_identical_model() -> None:
    model = Net()
    with untouched(model):
        result = sp.prune(model, images(), ratio=0)
    assert not result.plan
    assert result.plan.kept == {}
    check = result.report.verification
    assert check is not None
    assert check.ok
    assert "nothing removed" in str(check)
    assert result.model is not model
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


# -- example inputs -------------------------------------------------------------------------------------------

RUNNING = "while running the model on example_inputs"
EXAMPLES: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "channels": (images(channels=5), sp.ExampleInputsError, [RUNNING, "(2, 5, 8, 8)", "conv1"]),
    "rank": (torch.randn(4), sp.ExampleInputsError, [RUNNING, "(4,)", "conv1"]),
    "integers": (torch.zeros(2, 3, 8, 8, dtype=torch.int64), sp.ExampleInputsError, [RUNNING, "conv1"]),
    "dtype": (images(dtype=torch.float64), sp.ExampleInputsError, ["float64", "float32"]),
    "device": (images(device="meta"), sp.ExampleInputsError, ["meta", "cpu"]),
    "empty batch": (images(0), sp.ExampleInputsError, ["empty", "(0, 3, 8, 8)"]),
    "missing keyword": ({}, sp.ExampleInputsError, [RUNNING, "missing", "'x'"]),
    "unknown keyword": ({"image": images()}, sp.ExampleInputsError, [RUNNING, "image"]),
    "too many": ((images(), images()), sp.ExampleInputsError, [RUNNING, "positional"]),
    "no calls": ([], sp.ExampleInputsError, ["empty list"]),
    "nested lists": ([[images()]], sp.ArgumentTypeError, ["tuple", "list"]),
    "array": (np.zeros((2, 3, 8, 8), np.float32), sp.ArgumentTypeError, ["tensor", "ndarray"]),
    "shape": ("1x3x8x8", sp.ArgumentTypeError, ["tensor", "str"]),
    "none": (None, sp.ArgumentTypeError, ["tensor", "NoneType"]),
    "a list of bad and good": ([images(), images(channels=1)], sp.ExampleInputsError, [RUNNING, "(2, 1, 8, 8)"]),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_examples_that_do_not_fit(case: str) -> None:
    examples, error, words = EXAMPLES[case]
    refuses(Net(), error, words, lambda m: sp.prune(m, examples))
    refuses(Net().train(), error, words, lambda m: sp.analyze(m, examples))
    plan = sp.prune(Net(), images()).plan
    words = [word for word in words if word not in ("conv1",)]  # verify does not look for the module
    refuses(Net(), error, words, lambda m: sp.verify(m, plan, examples))


def test_the_path_of_the_module_that_fails() -> None:
    model = Net()
    model.block[1] = nn.Conv2d(4, 6, 3)
    refuses(model, sp.ExampleInputsError, [RUNNING, "block.1", "(2, 3, 8, 8)"], lambda m: sp.analyze(m, images()))


class Fails(Net):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        self.stray = self.bn1(self.conv1(x))
        self.bn1.running_mean.add_(1)
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError("d"), AttributeError("a"), ArithmeticError("b"), KeyError("k")])
def test_any_exception_of_the_model_is_wrapped(error: Exception) -> None:
    refuses(Fails(error), sp.ExampleInputsError, [RUNNING, type(error).__name__], lambda m: sp.analyze(m, images()))


def test_a_forward_that_takes_gradients() -> None:
    """Models run without gradients; the message says how a forward gets its own."""

    class Force(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(super().forward(x).tanh().sum(), x)[0]

    refuses(Force(3, 8), sp.ExampleInputsError, [RUNNING, "enable_grad"], lambda m: sp.analyze(m, torch.ones(2, 3)))


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    model = Fails(KeyboardInterrupt())
    with untouched(model), pytest.raises(KeyboardInterrupt):
        sp.prune(model, images())


def test_a_batch_of_one_in_train_mode() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.bn, self.fc2 = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.fc1(x))
            return self.fc2(x * 2 if self.training else x)

    model = exact_net(Tiny()).train()
    one = torch.randn(1, 4, dtype=torch.float64)
    with untouched(model):
        assert len(sp.analyze(model, one).groups) == 1
        result = sp.prune(model, one)
    assert result.model.training
    assert_exact(model, torch.randn(3, 4, dtype=torch.float64))


# -- nothing to prune -----------------------------------------------------------------------------------------


def test_nothing_to_prune() -> None:
    refuses(Net(), sp.NothingToPruneError, ["2 groups are excluded"], lambda m: sp.prune(m, images(), exclude="*"))
    one = nn.Sequential(nn.Linear(3, 4))
    reasons = ["nothing to prune", "2 x ", "output of the model", "1 x ", "the model's input"]
    rows = torch.randn(2, 3)
    refuses(one, sp.NothingToPruneError, reasons, lambda m: sp.prune(m, rows))
    refuses(nn.ReLU(), sp.NothingToPruneError, "no parameters", lambda m: sp.prune(m, rows))
    refuses(nn.Identity(), sp.NothingToPruneError, "no parameters", lambda m: sp.prune(m, rows, ratio=0))


def test_outputs_of_the_model() -> None:
    assert_kept(exact_net(), images(dtype=torch.float64), "fc.weight[0]", "output of the model, which callers rely on")


class Branches(nn.Module):
    """The branch depends on the data, or on the batch size."""

    def __init__(self, by_batch: bool) -> None:
        super().__init__()
        self.by_batch = by_batch
        self.first = nn.Linear(4, 8)
        self.usual = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        usual = len(x) < 3 if self.by_batch else bool(x.mean() > -100)
        x = self.first(x).relu()
        return self.last((self.usual if usual else self.other)(x))


def test_data_dependent_control_flow() -> None:
    model = exact_net(Branches(by_batch=False))
    inputs = torch.randn(2, 4, dtype=torch.float64)
    result = assert_exact(model, inputs)
    assert not [name for name in result.plan.kept if name.startswith("other")]
    graph = sp.analyze(model, inputs)
    assert graph.fixed["other.weight"] == "no traced call reaches it"
    assert "no traced call reaches it" in graph.explain("other")


def test_a_branch_that_only_verification_takes() -> None:
    """The pruned model fails there: that is a difference, not a crash of the library."""
    model = exact_net(Branches(by_batch=True))
    inputs = torch.randn(2, 4, dtype=torch.float64)
    with untouched(model):
        try:
            sp.prune(model, inputs)
        except sp.VerificationError as error:
            assert "other" in str(error)  # noqa: PT017
    both = [inputs, torch.randn(4, 4, dtype=torch.float64)]
    assert {"other.weight", "usual.weight"} <= set(assert_exact_lists(model, both).plan.kept)


def assert_exact_lists(model: nn.Module, several: list[Tensor]) -> sp.Result:
    with untouched(model):
        result = sp.prune(model, several)
    masked = sp.mask(result.plan, model)
    for inputs in several:
        torch.testing.assert_close(result.model(inputs), masked(inputs), rtol=1e-12, atol=1e-12)
    return result


# -- kinds of models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "resnet18", Net, torch.relu, {}, torch.zeros(3)], ids=str)
def test_what_is_no_module(given: Any) -> None:
    for run in (lambda: sp.prune(given, images()), lambda: sp.analyze(given, images())):
        with pytest.raises(sp.ArgumentTypeError, match=r"must be a torch\.nn\.Module, not"):
            run()


def test_wrappers_are_opened(tmp_path: Path) -> None:
    model = Net()
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        torch.compile(nn.DataParallel(model), backend="eager"),
    ):
        with untouched(model):
            result = sp.prune(wrapped, images())  # type: ignore[arg-type]
            small = sp.apply(result.plan, wrapped)  # type: ignore[arg-type]
            masked = sp.mask(result.plan, wrapped)  # type: ignore[arg-type]
        full = sp.inflate(result.plan, torch.compile(small, backend="eager"), wrapped)  # type: ignore[arg-type]
        sp.save(result, tmp_path, overwrite=True)
        again = sp.load(tmp_path, wrapped)  # type: ignore[arg-type]
        assert type(result.model) is type(small) is type(masked) is type(full) is type(again) is Net
        assert not any(name.startswith(("module.", "_orig_mod.")) for name in result.plan.kept)


def test_a_module_that_was_compiled_in_place() -> None:
    model = exact_net()
    model.compile(backend="eager")
    assert sp.prune(model, images(dtype=torch.float64)).model.conv1.out_channels == 4


def test_a_compiled_child() -> None:
    model: Any = exact_net()
    model.block = torch.compile(model.block, backend="eager")
    with untouched(model):
        try:
            assert sp.prune(model, images(dtype=torch.float64)).plan
        except sp.StructPruneError as error:
            assert "block" in str(error)  # noqa: PT017


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("process_group")
def test_distributed_models() -> None:
    model = Net()
    result = sp.prune(nn.parallel.DistributedDataParallel(model), images())
    assert type(result.model) is Net
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    sharded = Net()
    fully_shard(sharded, mesh=DeviceMesh("cpu", [0]))
    with pytest.raises(sp.UnsupportedModelError) as caught:
        sp.prune(sharded, images())
    assert "conv1.weight" in str(caught.value) or "FSDP" in str(caught.value)
    assert "pass" in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_models() -> None:
    scripted = torch.jit.script(Net())
    words = ["scripted", "pass the nn.Module it was scripted from"]
    refuses(scripted, sp.UnsupportedModelError, words, lambda m: sp.prune(m, images()))
    traced = torch.jit.trace(Net().eval(), images())
    refuses(traced, sp.UnsupportedModelError, "nn.Module", lambda m: sp.prune(m, images()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_child() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.inner = nn.Linear(8, 8)
            self.child = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.child(self.inner(self.first(x))))

    model, rows = Parent(), torch.randn(2, 4)
    with untouched(model):
        graph = sp.analyze(model, rows)
        small: Any = sp.prune(model, rows).model
    assert "scripted" in graph.fixed["inner.weight[0]"]
    assert "child" in graph.fixed["inner.weight[0]"]
    assert small.first.out_features == 4
    assert small(rows).shape == (2, 3)


def test_an_exported_program() -> None:
    exported: Any = torch.export.export(Net().eval(), (images(),))
    with pytest.raises(sp.UnsupportedModelError, match=r"ExportedProgram.*pass the nn\.Module"):
        sp.prune(exported, images())


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model() -> None:
    try:
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this PyTorch quantises no model: {error}")
    with pytest.raises(sp.UnsupportedModelError, match=r"'0' is quantised .*prune the float model"):
        sp.prune(model, torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(4, 3))
    words = ["1.weight", "lazy", "run the model once"]
    refuses(model, sp.UnsupportedModelError, words, lambda m: sp.prune(m, images()))


def test_a_model_without_values() -> None:
    model = Net().to("meta")
    refuses(model, sp.UnsupportedModelError, ["meta", "conv1"], lambda m: sp.prune(m, images()))
    refuses(model, sp.UnsupportedModelError, ["meta", "conv1"], lambda m: sp.prune(m, images(device="meta")))


class Holds(Net):
    """A model with one awkward tensor."""

    def __init__(self, tensor: Tensor, buffer: bool = False) -> None:
        super().__init__()
        if buffer:
            self.register_buffer("awkward", tensor)
        else:
            self.awkward = nn.Parameter(tensor, requires_grad=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("buffer", [False, True])
def test_sparse_and_nested_tensors(buffer: bool) -> None:
    sparse = Holds(torch.eye(4).to_sparse(), buffer)
    refuses(sparse, sp.UnsupportedModelError, ["awkward", "sparse", "to_dense()"], lambda m: sp.prune(m, images()))
    rows = Holds(torch.eye(4).to_sparse_csr(), buffer)
    with pytest.raises(sp.UnsupportedModelError, match="awkward is sparse"):
        sp.prune(rows, images())
    nested = Holds(torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), True)
    refuses(nested, sp.UnsupportedModelError, ["awkward", "NestedTensor", "dense"], lambda m: sp.prune(m, images()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse")
def test_examples_that_are_not_dense() -> None:
    rows = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)])
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    refuses(model, sp.ExampleInputsError, ["nested", "padded"], lambda m: sp.prune(m, rows))
    refuses(model, sp.ExampleInputsError, ["sparse", "dense"], lambda m: sp.prune(m, torch.eye(8).to_sparse()))


def test_weights_in_eight_bits() -> None:
    model = Holds(torch.randn(4, 4).to(torch.float8_e4m3fn))
    refuses(model, sp.UnsupportedModelError, ["awkward", "float8_e4m3fn", "bfloat16"], lambda m: sp.prune(m, images()))


AWKWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda t: t.to_sparse(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "on the meta device": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "of another shape": lambda t: t[:1],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", AWKWARD)
def test_weights_that_cannot_be_copied_into_a_model(how: str, tmp_path: Path) -> None:
    state = Net().state_dict()
    state["fc.weight"] = AWKWARD[how](state["fc.weight"])
    torch.save(state, tmp_path / "weights.pt")
    words = ["fc.weight", "weights.pt"]
    refuses(Net(), sp.FileFormatError, words, lambda m: load_weights(m, tmp_path / "weights.pt"))


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refuses(Net(), sp.FileFormatError, "not a safetensors", lambda m: load_weights(m, tmp_path / "a.safetensors"))


def test_a_multiple_wider_than_any_layer() -> None:
    plan = sp.plan(sp.analyze(Net(), images()), ratio=0.5, round_to=10**30)
    assert not plan.kept


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("norm", "way"),
    [(nn.utils.weight_norm, "remove_weight_norm(module)"), (parametrizations.weight_norm, "remove_parametrizations")],
)
def test_the_way_out_of_weight_norm(norm: Callable[[nn.Module], nn.Module], way: str) -> None:
    model = Net()
    norm(model.conv1)
    assert any(way in why for why in sp.analyze(model, images()).fixed.values())


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations_are_exact_or_refused(norm: Callable[[nn.Module], nn.Module]) -> None:
    model: Any = exact_net()
    norm(model.block[1])
    model.eval()
    with untouched(model):
        try:
            result = sp.prune(model, images(dtype=torch.float64))
        except sp.StructPruneError as error:
            assert "block.1.parametrizations" in str(error)  # noqa: PT017
        else:
            assert result.report.verification is not None
            assert result.report.verification.max_rel_error < 1e-12


def test_masks_of_pytorch_are_exact_or_refused() -> None:
    """A mask that was made and not yet used: `weight` is not a leaf, and PyTorch cannot copy the model."""
    model: Any = exact_net()
    torch_prune.ln_structured(model.conv1, "weight", 0.25, n=1, dim=0)
    with untouched(model):
        try:
            result = sp.prune(model, images(dtype=torch.float64))
        except sp.StructPruneError as error:
            assert "prune.remove" in str(error)  # noqa: PT017
        else:
            assert result.report.verification is not None
            assert result.report.verification.max_rel_error < 1e-12


# -- weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    model: Any = Net()
    with torch.no_grad():
        model.block[1].weight[2, 3, 1] = value
    words = ["block.1.weight", "3", "NaN or infinite"]
    refuses(model, sp.NonFiniteError, words, lambda m: sp.prune(m, images()))
    refuses(model, sp.NonFiniteError, words, lambda m: sp.prune(m, images(), scope="global"))
    refuses(model, sp.NonFiniteError, words, lambda m: sp.shrink(m, images()))


@pytest.mark.parametrize("name", ["bias", "running_mean", "running_var"])
def test_what_is_not_finite_though_nothing_ranks_it(name: str) -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    tensor = model[2].bias if name == "bias" else getattr(model[3], name)
    with torch.no_grad():
        tensor[1:3] = float("nan")
    words = [f"{'2' if name == 'bias' else '3'}.{name}", "2", "NaN or infinite"]
    refuses(model, sp.NonFiniteError, words, lambda m: sp.prune(m, images()))
    refuses(model, sp.NonFiniteError, words, lambda m: sp.shrink(m, images()))


def test_a_mask_among_the_parameters_may_be_infinite() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
            self.mask = nn.Parameter(torch.full((3, 3), -torch.inf).triu(1), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b((h @ h.mT + self.mask).softmax(-1) @ h)

    assert sp.prune(Masked(), torch.randn(2, 3, 8)).plan


def test_half_precision_is_scored_in_float64() -> None:
    """8 filters of 27 weights of 60000: their sums overflow in half precision."""
    model: Any = Net().half()
    with torch.no_grad():
        model.conv1.weight.copy_(60000 * torch.linspace(0.5, 1, 8)[:, None, None, None])
    result = sp.prune(model, images(dtype=torch.float16), verify=False)
    assert result.plan.kept["conv1.weight"][0] == (4, 5, 6, 7)


def test_integer_parameters() -> None:
    model = Holds(torch.arange(8))
    with untouched(model):
        small = sp.prune(model, images()).model
    assert torch.equal(small.awkward, model.awkward)


# -- models that behave in odd ways ---------------------------------------------------------------------------


def test_a_model_that_is_not_deterministic() -> None:
    calls = itertools.count()

    class Counts(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + next(calls)

    words = "cannot verify: the masked model differs from itself"
    refuses(Counts(), sp.VerificationError, words, lambda m: sp.prune(m, images()))
    assert sp.prune(Counts(), images(), verify=False).plan


def test_constant_outputs_are_not_called_equal() -> None:
    class Dead(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (self.conv1.weight.abs().sum() > self.threshold)

    model = Dead()
    model.threshold = 0.9 * model.conv1.weight.detach().abs().sum().item()
    refuses(model, sp.VerificationError, ["cannot verify", "constant"], lambda m: sp.prune(m, images()))


def test_a_hook_that_changes_shapes() -> None:
    model: Any = exact_net()
    model.block[1] = nn.Conv2d(8, 12, 3, padding=1).double()
    model.block[1].register_forward_hook(lambda module, args, out: out[:, 6:])
    model = exact_net(model)
    result = assert_exact_or_nothing(model, images(dtype=torch.float64))
    assert result is not None
    assert "conv1.weight" in result.plan.kept


class Standardised(nn.Conv2d):
    """Not what its class says: the filters are centred, and their order is reversed."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((2, 3), keepdim=True)
        return F.conv2d(input, weight.flip(0), self.bias, padding=1)


def test_a_subclass_is_what_it_computes() -> None:
    model: Any = Net()
    model.conv1 = Standardised(3, 8, 3)
    assert "conv1.weight" in assert_exact(exact_net(model), images(dtype=torch.float64)).plan.kept


class Literal(Net):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.wide = nn.Conv2d(6, 8, 1)
        self.fc = nn.Linear(512 if how == "view" else 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.block(self.bn1(self.conv1(x))))
        if self.how == "view":
            return self.fc(x.view(x.shape[0], 512))
        x = x[:, :4] if self.how == "slice" else x.split(4, 1)[1]
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("how", ["view", "slice", "split"])
def test_sizes_written_in_the_code(how: str) -> None:
    assert_kept(exact_net(Literal(how)), images(dtype=torch.float64), "wide.weight[0]", "test_bad_inputs.py:")


class Tensors(Net):
    """Channels in a buffer, in a plain tensor attribute, and in a tensor that no call reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(8, 1, 1))
        self.shift = torch.rand(1, 8, 1, 1, dtype=torch.float64)
        self.register_buffer("unused", torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.bn1(self.conv1(x)) * self.scale + self.shift).mean((2, 3)))


def test_buffers_and_tensor_attributes() -> None:
    model = exact_net(Tensors())
    result = assert_exact(model, images(dtype=torch.float64))
    small: Any = result.model
    assert small.scale.shape == (4, 1, 1)
    assert small.shift.shape == (1, 4, 1, 1)
    assert small.unused.shape == (8,)
    assert "unused" in sp.analyze(model, images(dtype=torch.float64)).fixed


# -- what a model returns, and how it is copied -----------------------------------------------------------------


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Returns(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.wrap = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.b(self.a(x).relu()))


@pytest.mark.parametrize("wrap", [lambda t: deque([t]), lambda t: {"a": t}.values(), Slots], ids=str)
def test_outputs_in_other_containers_are_outputs(wrap: Callable[[Tensor], Any]) -> None:
    small: Any = sp.prune(Returns(wrap), images()).model
    assert small.a.out_channels == 4
    assert small.b.out_channels == 8


def test_outputs_that_cannot_be_seen() -> None:
    for wrap in (lambda t: iter([t]), lambda t: (t for _ in "a"), lambda t: zip([t], strict=True), lambda t: lambda: t):
        refuses(Returns(wrap), sp.UnsupportedModelError, "return tensors", lambda m: sp.prune(m, images()))
    for wrap in (lambda t: None, lambda t: {t: 1}, lambda t: [[iter([t])]]):
        refuses(Returns(wrap), sp.VerificationError, "returns no tensors", lambda m: sp.prune(m, images()))


class CopiesItself(Net):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


class CopiesNothing(Net):
    def __deepcopy__(self, memo: Any) -> Any:
        return None


@pytest.mark.parametrize("kind", [CopiesItself, CopiesNothing])
@pytest.mark.parametrize(
    "run", [lambda m, p: sp.prune(m, images()), lambda m, p: sp.apply(p, m), lambda m, p: sp.mask(p, m)]
)
def test_copies_that_are_none(kind: type[nn.Module], run: Callable[[nn.Module, sp.PruningPlan], Any]) -> None:
    plan = sp.plan(sp.analyze(Net(), images()))
    refuses(kind(), sp.UnsupportedModelError, "cannot be copied", lambda m: run(m, plan))


@pytest.mark.parametrize("keyword", [True, False])
def test_a_forward_that_holds_its_module_by_default(keyword: bool) -> None:
    """Its copy would go on calling the original."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    forward = (
        (lambda x, *, m=model[1]: type(m).forward(m, x)) if keyword else (lambda x, m=model[1]: type(m).forward(m, x))
    )
    model[1].forward = forward
    refuses(
        model,
        sp.UnsupportedModelError,
        "1.forward: a function that holds modules",
        lambda m: sp.prune(m, torch.ones(1, 4)),
    )


def test_gradients_of_what_inference_mode_made() -> None:
    with torch.inference_mode():
        model = Net()
    importance = sp.importance.Taylor(lambda m, batch: m(batch).sum(), [images()])
    with pytest.raises(sp.UnsupportedModelError, match="inference_mode"):
        sp.prune(model, images(), importance=importance)
    assert sp.prune(model, images(), importance=sp.importance.ActivationNorm([images()])).plan


def test_other_records_reports_and_names() -> None:
    result = sp.prune(Net(), images())
    with pytest.raises(sp.ArgumentTypeError, match="record must be a dict"):
        sp.save(result, "nowhere", record=torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(sp.FileFormatError, match="no report"):
        type(result.report).from_dict(np.int64(3))
    with pytest.raises(sp.ArgumentTypeError, match="name of a parameter"):
        result.plan.removed([])  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["", "block"])
def test_a_module_that_holds_itself(path: str) -> None:
    model = Net()
    model.get_submodule(path)._modules["again"] = model
    with pytest.raises(sp.UnsupportedModelError, match="'again'"):
        sp.prune(model, images())


def test_a_model_that_is_not_initialised() -> None:
    class Forgot(nn.Module):
        def __init__(self) -> None:
            pass

    with pytest.raises(sp.UnsupportedModelError, match=r"Forgot .*super\(\)\.__init__\(\)"):
        sp.prune(Forgot(), images())


@pytest.mark.parametrize("flag", ["", "no", None, {}, 1, torch.ones(2), np.ones(2)], ids=str)
def test_flags_are_true_or_false(flag: Any) -> None:
    plan = sp.plan(sp.analyze(Net(), images()))
    for name, run in (
        ("verify", lambda m: sp.prune(m, images(), verify=flag)),
        ("inplace", lambda m: sp.prune(m, images(), inplace=flag)),
        ("inplace", lambda m: sp.apply(plan, m, inplace=flag)),
        ("verify", lambda m: sp.shrink(m, images(), verify=flag)),
        ("details", lambda m: sp.shrink(m, images(), details=flag)),
        ("group", lambda m: sp.prune(m, images(), importance=sp.importance.L1(flag))),
        ("train", lambda m: sp.importance.ActivationNorm([images()], train=flag)),
        ("progress", lambda m: sp.importance.Taylor(lambda model: model(images()).sum(), progress=flag)),
        ("compiled", lambda m: sp.prune(m, images(), target={"latency": sp.Latency(0.5, compiled=flag)})),
        ("verify", lambda m: sp.iterate(m, images(), ratio=0.5, verify=flag)),
    ):
        refuses(Net(), sp.ArgumentTypeError, f"{name} must be True or False", run)


ARRAY = np.array(0.5)
ODD: list[Callable[[nn.Module], Any]] = [
    *(lambda m, k=k: sp.prune(m, images(), **{k: np.array(["a", "b"])}) for k in ("scope", "allocation")),
    *(lambda m, k=k: sp.prune(m, images(), **{k: ARRAY}) for k in ("exclude", "include")),
    lambda m: sp.prune(m, images(), importance=sp.importance.L1(slices=ARRAY)),  # type: ignore[arg-type]
    lambda m: sp.prune(m, images(), importance=lambda g: [10**400] * len(g)),
    lambda m: sp.prune(m, images(), importance=sp.importance.ActivationNorm(ARRAY)),  # type: ignore[arg-type]
    lambda m: sp.importance.ActivationNorm([images()], batches=2**70),
    lambda m: sp.regularize.GroupLasso(sp.analyze(m, images()), 10**400),
    lambda m: sp.shrink(m, images(), structured=ARRAY),  # type: ignore[call-overload]
    lambda m: sp.verify(m, sp.plan(sp.analyze(m, images())), images(), device=2**70),
    *(lambda m, v=v: sp.iterate(m, images(), ratio=0.5, optimizer=v) for v in (torch.tensor(0.5), ARRAY, "", {})),
]


@pytest.mark.parametrize("run", ODD)
def test_odd_values(run: Callable[[nn.Module], Any]) -> None:
    model = Net()
    with untouched(model), pytest.raises((sp.ArgumentError, sp.ArgumentTypeError)):
        run(model)


def test_scores_that_require_gradients() -> None:
    plan = sp.plan(
        sp.analyze(Net(), images()), importance=lambda g: torch.arange(len(g)) * torch.ones(1).requires_grad_()
    )
    assert plan.kept["conv1.weight"][0] == (4, 5, 6, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_scores_of_any_real_dtype(dtype: torch.dtype) -> None:
    plan = sp.plan(sp.analyze(Net(), images()), importance=lambda g: torch.arange(len(g)).to(dtype))
    assert plan.kept["conv1.weight"][0] == (4, 5, 6, 7)


def test_scores_without_order_or_values() -> None:
    graph = sp.analyze(Net(), images())
    for scores in (torch.arange(8) * 1j, np.arange(8) * 1j):
        with pytest.raises(sp.ArgumentTypeError, match="an importance must return numbers"):
            sp.plan(graph, importance=lambda g, scores=scores: scores[: len(g)])
    with pytest.raises(sp.UnsupportedModelError, match="is on the meta device and has no values"):
        sp.plan(graph, importance=lambda g: torch.empty(len(g), device="meta"))


def test_a_plan_of_more_channels_than_there_can_be() -> None:
    text = sp.plan(sp.analyze(Net(), images())).to_json().replace('"of":8', f'"of":{10**12}', 1)
    with pytest.raises(sp.PlanError, match="no dimension has 1000000000000 channels"):
        sp.PruningPlan.from_json(text)


ELSEWHERE: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "prune": lambda m, x: sp.prune(m, x),
    "shrink": lambda m, x: sp.shrink(m, x),
    "sparsity": lambda m, x: sp.sparsity(m, x),
    "taylor": lambda m, x: sp.prune(m, x, importance=sp.importance.Taylor(lambda n, batch: n(batch).sum(), [x])),
    "activations": lambda m, x: sp.prune(m, x, importance=sp.importance.ActivationNorm([x])),
    "flap": lambda m, x: sp.prune(m, x, importance=sp.importance.FLAP([x])),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_default_device(name: str) -> None:
    """Where new tensors go says nothing about a model that is on the CPU."""
    model, x = Net(), images()
    with torch.device("meta"):
        assert ELSEWHERE[name](model, x) is not None
