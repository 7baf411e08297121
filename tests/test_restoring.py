"""A trace leaves nothing behind: in the model, in what it remembers, in other threads, in random numbers."""

from __future__ import annotations

import copy
import functools
import random
import threading
from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Snapshot, assert_equal_models, assert_exact, assert_kept, masked_original, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp

ROWS = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Holder:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.value: Any = None


class Slotted:
    """One that has places for its attributes."""

    __slots__ = ("value", "width")

    def __init__(self) -> None:
        self.value: Any = None


class Remembers(nn.Module):
    """Two layers, and something that keeps what `write` puts into it."""

    def __init__(self, store: Any, write: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.store, self.write = store, write

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        self.write(self.store, h)
        return self.b(h)


def put(key: Any) -> Callable[[Any, Tensor], None]:
    return lambda store, h: store.__setitem__(key, h)


STORES: dict[str, tuple[Any, Callable[[Any, Tensor], Any]]] = {
    "list": ([None], put(0)),
    "list of sizes": ([], lambda store, h: store.append(h.shape[-1])),
    "list in a tuple": (([],), lambda store, h: store[0].append(h)),
    "list in a dict": ({"features": []}, lambda store, h: store["features"].append(h)),
    "dict": ({}, put("h")),
    "dict in a dict": ({"a": {"b": 1}}, lambda store, h: store["a"].update(b=h)),
    "dict by size": ({}, lambda store, h: store.__setitem__(h.shape[-1], h)),
    "ordered": (OrderedDict(a=1, b=2), lambda store, h: (store.pop("a"), store.update(c=h))),
    "defaultdict": (defaultdict(list), lambda store, h: store["h"].append(h)),
    "set": (set(), lambda store, h: store.add(h.shape[-1])),
    "deque": (deque([1, 2], maxlen=2), lambda store, h: store.append(h)),
    "object": (Holder(), lambda store, h: setattr(store, "value", h)),
    "object with slots": (
        Slotted(),
        lambda store, h: (setattr(store, "value", h), setattr(store, "width", h.shape[-1])),
    ),
    "user dict": (UserDict(), put("h")),
    "user list": (UserList(), lambda store, h: store.append(h)),
    "array": (np.zeros(3), lambda store, h: store.__setitem__(0, len(h))),
    "namespace": (SimpleNamespace(h=None), lambda store, h: setattr(store, "h", h)),
    "module out of sight": ([nn.Identity()], lambda store, h: setattr(store[0], "h", h)),
    "a list that holds itself": ((lambda value: value.append(value) or value)([]), lambda store, h: store.append(h)),
}


def written(value: Any, depth: int = 4) -> Any:
    """What a store holds, to compare."""
    if isinstance(value, dict):
        return {key: written(v, depth) for key, v in value.items()}
    if isinstance(value, UserDict | UserList):
        return written(value.data)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Slotted):
        return [written(getattr(value, name, "nothing")) for name in Slotted.__slots__]
    if isinstance(value, list | tuple | deque):
        return [written(v, depth - 1) for v in value] if depth else []
    if isinstance(value, set):
        return sorted(value)
    return {k: written(v) for k, v in vars(value).items()} if isinstance(value, Holder | SimpleNamespace) else value


@pytest.mark.parametrize("name", [name for name in STORES if name != "module out of sight"])
def test_containers_are_as_they_were(name: str) -> None:
    store, write = STORES[name]
    model = randomise(Remembers(store, write)).double().eval()
    before = written(store)
    graph = sp.analyze(model, ROWS)
    assert graph.groups
    assert type(store) is type(model.store)
    assert written(store) == before
    write(store, torch.ones(2))  # it would have shown
    assert str(written(store)) != str(before)


def test_modules_out_of_sight_are_as_they_were() -> None:
    store, write = STORES["module out of sight"]
    sp.analyze(randomise(Remembers(store, write)).double(), ROWS)
    assert "h" not in vars(store[0])


class Cached(nn.Module):
    """A position table that is computed when it is first asked for, and kept in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.position, self.b = nn.Linear(6, 16), nn.Linear(1, 3), nn.Linear(16, 3)
        self.register_buffer("steps", torch.linspace(-1, 1, 64)[:, None])
        self.cache: list[Any] = [None]

    def forward(self, x: Tensor) -> Tensor:
        if self.cache[0] is None:
            self.cache[0] = self.position(self.steps[: x.shape[0]])  # type: ignore[index]
        return self.b(self.a(x).relu()) + self.cache[0]


def test_a_cache_keeps_no_zeros() -> None:
    model = randomise(Cached()).double().eval()
    result = sp.prune(model, ROWS, ratio=0.5)
    with torch.no_grad():
        assert model(ROWS).sub(model.b(model.a(ROWS).relu())).abs().max() > 0.01
        expected = masked_original(model, result.plan)(ROWS)
        assert torch.allclose(result.model(ROWS), expected, atol=1e-12)


def test_features_in_a_list_do_not_hold_the_graph() -> None:
    """Deep copies of a model that kept tensors of a trace would copy the trace, or fail at its depth."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(60))
            self.features = [torch.empty(0)]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).tanh()
                self.features = [*self.features, x][-8:]
            return x.sum(-1)

    model = randomise(Deep()).double().eval()
    sp.analyze(model, ROWS)
    copy.deepcopy(model)
    with torch.no_grad():
        model(ROWS)
    sp.analyze(model, ROWS)
    assert not any(key for t in model.features for key in vars(t))
    copy.deepcopy(model)


def test_tensors_that_live_on_hold_no_graph() -> None:
    kept: list[Tensor] = []
    sp.analyze(randomise(Remembers(None, lambda _, h: kept.append(h))).double(), ROWS)
    assert kept
    assert not any(vars(tensor) for tensor in kept)


class Writes(nn.Module):
    """A forward that writes into buffers."""

    def __init__(self, write: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        shared = torch.arange(6.0)
        self.register_buffer("one", shared[:3])
        self.register_buffer("two", shared[3:])
        self.register_buffer("table", torch.ones(3))
        self.kept = [torch.ones(3)]
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        return self.b(self.a(x).relu())


WRITES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda m: m.table.mul_(2),
    "an item": lambda m: m.table.__setitem__(0, 5.0),
    "out": lambda m: torch.mul(m.table, 2, out=m.table),
    "data": lambda m: setattr(m.table, "data", m.table.data * 2),
    "data, in place": lambda m: m.table.data.mul_(2),
    "another shape": lambda m: setattr(m.table, "data", torch.zeros(5)),
    "resized": lambda m: m.table.resize_(5).fill_(7.0),
    "numpy": lambda m: m.table.numpy().__setitem__(0, 7.0),
    "two in one memory": lambda m: (m.one.mul_(2), m.two.mul_(3)),
    "a tensor in a list": lambda m: m.kept[0].mul_(2),
}


@pytest.mark.parametrize("name", WRITES)
def test_buffers_are_as_they_were(name: str) -> None:
    model = Writes(WRITES[name]).eval()
    before = Snapshot.of(model)
    kept = model.kept[0].clone()
    sp.analyze(model, ROWS.float())
    before.assert_unchanged(model)
    assert torch.equal(model.kept[0], kept)
    assert model.one.untyped_storage().data_ptr() == model.two.untyped_storage().data_ptr()
    with torch.no_grad():
        model(ROWS.float())
    if torch.equal(model.kept[0], kept):
        with pytest.raises(AssertionError):  # it would have shown
            before.assert_unchanged(model)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_tables_that_are_scaled_in_use(kind: Any) -> None:
    table = kind(10, 16, max_norm=1.0)
    model = randomise(nn.Sequential(table, nn.Linear(16, 3))).double().eval()
    inputs = torch.arange(6).reshape(2, 3)
    before = Snapshot.of(model)
    graph = sp.analyze(model, inputs)
    before.assert_unchanged(model)
    plan = sp.plan(graph, ratio=0.5)
    small, masked = sp.apply(plan, model), masked_original(model, plan)
    assert small[1].in_features == 8  # type: ignore[index]
    assert torch.allclose(small(inputs), masked(inputs), atol=1e-12)


def test_a_computed_table_that_is_scaled_in_use() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.b = nn.Parameter(torch.randn(10, 16)), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.embedding(x, self.table.sigmoid(), max_norm=1.0))

    assert_kept(randomise(Model()).double(), torch.arange(6), "table[1]", "scaled by their norm")


def test_a_failing_call_leaves_the_model_as_it_was() -> None:
    class Model(Writes):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyError("no")

    model = Model(WRITES["resized"]).train()
    before = Snapshot.of(model)
    with pytest.raises(sp.ExampleInputsError):
        sp.analyze(model, ROWS.float())
    before.assert_unchanged(model)
    assert model.training


def test_random_numbers_of_python_and_numpy_go_on_as_if_nothing_was() -> None:
    class Model(Remembers):
        def forward(self, x: Tensor) -> Tensor:
            random.random()
            np.random.rand()
            torch.rand(())
            return super().forward(x)

    model = randomise(Model([], lambda *_: None)).double()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    sp.analyze(model, ROWS)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), before[2])


GENERATORS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "torch": (torch.Generator(), lambda g: torch.rand(1, generator=g).item()),
    "numpy": (np.random.default_rng(1), lambda g: g.random()),
    "old numpy": (np.random.RandomState(1), lambda g: g.rand()),
    "python": (random.Random(1), lambda g: g.random()),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_of_the_model_go_on_as_if_nothing_was(name: str) -> None:
    generator, draw = GENERATORS[name]
    model = randomise(Remembers([generator], lambda store, h: draw(store[0]))).double()
    twin = copy.deepcopy(generator) if name != "torch" else torch.Generator()
    sp.analyze(model, ROWS)
    assert draw(generator) == draw(twin)


@pytest.mark.parametrize("name", sorted(STORES.keys() - {"module out of sight", "ordered"}))
def test_scores_from_data_leave_a_model_as_it_was(name: str) -> None:
    store, write = STORES[name]
    model = randomise(Remembers(store, write)).double().eval()
    before, numbers = written(store), random.getstate()
    sp.plan(sp.analyze(model, ROWS), importance=sp.importance.Wanda([ROWS, ROWS]))
    assert str(written(store)) == str(before)
    assert random.getstate() == numbers


# -- functions that remember ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def heads_of(width: int, heads: int) -> tuple[int, int]:
    return heads, width // heads


class Attention(nn.Module):
    """Attention whose shapes come from a function that remembers."""

    def __init__(self, width: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.inner = heads, 16
        self.qkv, self.out = nn.Linear(width, 48), nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, heads_of(t.shape[-1], self.heads)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


SEQUENCES = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("ran", [False, True])
def test_functions_that_remember_make_no_difference(ran: bool) -> None:
    heads_of.cache_clear()
    one = randomise(nn.Sequential(Attention(), nn.ReLU(), Attention())).double().eval()
    if ran:
        one(SEQUENCES)
    plans = [assert_exact(model, SEQUENCES).plan for model in (one, copy.deepcopy(one))]
    assert plans[0] == plans[1]
    assert len(plans[0].kept["0.qkv.weight"][0]) == len(plans[0].kept["2.qkv.weight"][0]) == 24
    heads_of.cache_clear()
    assert type(heads_of(16, 4)[0]) is int
    assert heads_of.cache_info().currsize == 1  # it remembers again


# -- threads --------------------------------------------------------------------------------------------------


def test_what_other_threads_run_is_not_traced() -> None:
    model = randomise(nn.Sequential(*(nn.Linear(6, 6) for _ in range(40)))).double().eval()
    other = nn.Sequential(*(nn.Identity() for _ in range(20)))
    stop, failed = threading.Event(), []

    def keep_running() -> None:
        while not stop.is_set():
            try:
                other(ROWS)
            except IndexError as error:
                failed.append(error)

    def operations() -> list[tuple[str, str]]:
        graph = sp.analyze(model, ROWS)
        return [(node.meta["op"], node.meta["path"]) for node in graph.space.programs[0].graph.nodes]

    expected = operations()
    thread = threading.Thread(target=keep_running)
    thread.start()
    try:
        found = [operations() for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    assert found == [expected] * 10
    assert not failed


def test_the_same_model_in_several_threads() -> None:
    model = randomise(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)))
    model = model.double().train()
    before, expected = Snapshot.of(model), sp.plan(sp.analyze(model, ROWS), ratio=0.5)
    plans: list[sp.PruningPlan] = []
    threads = [
        threading.Thread(target=lambda: plans.append(sp.plan(sp.analyze(model, ROWS), ratio=0.5))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plans == [expected] * 6
    before.assert_unchanged(model)
    assert model.training


# -- writes, hooks and masks that a forward has of its own -------------------------------------------------------


class Own(nn.Module):
    """Two layers, and what a forward does between them."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.c, self.b = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mask", (torch.arange(48).reshape(8, 6) % 3 > 0).double())
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, x))


def into_a_view(model: Any, x: Tensor) -> Tensor:
    h = model.a(x)
    view = h.unsqueeze(1)
    with torch.no_grad():
        torch.sigmoid(h, out=h)
    return view.squeeze(1)


def into_new_memory(model: Any, x: Tensor) -> Tensor:
    h, out = model.a(x), torch.zeros(len(x), 8, dtype=x.dtype)
    view = out.view_as(out)
    with torch.no_grad():
        torch.add(h, 1, out=out)
    return view


def hooked(model: Any, x: Tensor) -> Tensor:
    h: Tensor = model.a(x)
    handle = h.register_hook(lambda gradient: gradient)
    h.retain_grad()
    handle.remove()
    return h.relu()


def masked_weight(model: Any, x: Tensor) -> Tensor:
    model.a.weight.data *= model.mask
    return model.a(x).relu()  # type: ignore[no-any-return]


@pytest.mark.parametrize("between", [into_a_view, into_new_memory])
def test_out_is_a_write_that_views_see(between: Callable[[Any, Tensor], Tensor]) -> None:
    model = randomise(Own(between)).double().eval()
    graph = sp.analyze(model, ROWS)
    plan = sp.plan(graph, ratio=0.5) if graph.groups else None
    if plan is not None:
        with torch.no_grad():
            assert torch.allclose(sp.apply(plan, model)(ROWS), masked_original(model, plan)(ROWS), atol=1e-12)


def test_hooks_on_tensors() -> None:
    model = randomise(Own(hooked)).double()
    model(ROWS)  # it runs
    graph = sp.analyze(model, ROWS)
    assert len(next(g for g in graph.groups if g.name == "a")) == 8


def test_a_weight_that_is_masked_in_every_call() -> None:
    model = randomise(Own(masked_weight)).double().eval()
    graph = sp.analyze(model, ROWS)
    plan = sp.plan(graph, ratio=0.5)
    assert len(plan.kept["a.weight"][0]) == len(plan.kept["mask"][0]) == 4
    small, masked = sp.apply(plan, model), masked_original(model, plan)
    assert torch.allclose(small(ROWS), masked(ROWS), atol=1e-12)


def another_memory(model: Any, x: Tensor) -> Tensor:
    model.a.weight.data = (fresh := model.a.weight.data * model.mask)
    fresh.add_(1.0)
    return model.a(x).relu()  # type: ignore[no-any-return]


def test_a_weight_that_becomes_other_memory_is_kept() -> None:
    """What is written there later is written into the weight."""
    assert_kept(randomise(Own(another_memory)).double().eval(), ROWS, "a.weight[0]", "reads its values")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("first", [False, True])
def test_padded_sequences(first: bool) -> None:
    """Without gradients, nn.TransformerEncoder makes nested tensors of them."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=first)
            self.embed, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
            self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8))

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.out(self.encoder(self.embed(x), src_key_padding_mask=padding))  # type: ignore[no-any-return]

    model = randomise(Model()).double().eval()
    inputs = SEQUENCES, torch.arange(5)[None] >= torch.tensor([[5], [3]])
    result = assert_exact(model, inputs)
    small: Any = result.model
    assert small.embed.out_features == 4
    assert small.encoder.layers[0].self_attn.in_proj_weight.shape == (12, 4)
    masked = masked_original(model, result.plan)
    with torch.no_grad():
        assert torch.allclose(small(*inputs), masked(*inputs), atol=1e-12)
    assert_equal_models(small, masked, inputs)


def test_tf32_switched_by_the_new_names() -> None:
    """Reading the old names raises then, on machines without CUDA too."""
    matmul: Any = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this PyTorch has the old names alone")
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        assert sp.prune(randomise(Own(lambda m, x: m.a(x).relu())).double(), ROWS).report.verification
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_examples_that_were_expanded() -> None:
    """They cannot be written to, nor need be put back."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.out = nn.Embedding(9, 8), nn.Embedding(9, 8), nn.Linear(8, 3)

        def forward(self, words: Tensor, places: Tensor) -> Tensor:
            return self.out(self.words(words) + self.places(places))  # type: ignore[no-any-return]

    words = torch.tensor([[3, 1, 4, 1], [5, 2, 6, 5]])
    assert_exact(randomise(Positions()).double(), (words, torch.arange(4).expand(2, 4)))


def test_buffers_that_were_expanded() -> None:
    """What goes is zero in the masked original, and what stays is not."""
    model = randomise(Own(lambda m, x: m.a(x).relu() * m.scale)).double()
    model.register_buffer("scale", torch.tensor([0.7], dtype=torch.float64).expand(model.a.out_features))
    result = sp.prune(model, ROWS, ratio=0.5)
    assert result.report.verification is not None
    assert result.report.verification.max_rel_error < 1e-12
    assert result.model.scale.shape == (model.a.out_features // 2,)
    assert model.scale.stride() == (0,)
    masked: Any = sp.mask(result.plan, model)
    assert torch.equal(masked.scale.unique(), torch.tensor([0.0, 0.7], dtype=torch.float64))
