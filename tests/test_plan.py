"""A plan is data: complete, byte-identical for the same model, checked field by field when it is read back."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Snapshot, masked_original, randomise
from torch import Tensor, nn

import structprune as sp


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5))
    return nn.Sequential(*layers)


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def made(**settings: Any) -> sp.PruningPlan:
    return sp.plan(sp.analyze(net(), images()), **settings)


def test_it_comes_back_from_json() -> None:
    plan = made()
    again = sp.PruningPlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert sp.PruningPlan.from_dict(plan.to_dict()) == plan
    assert json.loads(plan.to_json()) == plan.to_dict()


def test_zeroing_what_it_does_not_keep_is_the_masked_original() -> None:
    model = randomise(net().double()).eval()
    result = sp.prune(model, images().double())
    masked = masked_original(model, result.plan)
    for other in (sp.mask(result.plan, model), result.model.eval()):
        torch.testing.assert_close(other(images().double()), masked(images().double()), rtol=1e-12, atol=1e-12)
    assert all(
        set(indices) | set(result.plan.removed(name)[dim]) == set(range(result.plan.sizes[name][dim]))
        for name, dims in result.plan.kept.items()
        for dim, indices in dims.items()
    )


def test_what_goes_has_the_smallest_norm() -> None:
    model: Any = net()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([5.0, 1, 6, 2, 7, 3, 8, 4])[:, None, None, None])
    plan = sp.plan(sp.analyze(model, images()))
    assert plan.kept["0.weight"] == {0: (0, 2, 4, 6)}
    assert plan.kept["1.running_var"] == {0: (0, 2, 4, 6)}
    assert plan.kept["3.weight"][1] == (0, 2, 4, 6)


def test_ties_go_by_index() -> None:
    model: Any = net()
    with torch.no_grad():
        model[0].weight.fill_(1)
    assert sp.plan(sp.analyze(model, images())).kept["0.weight"][0] == (4, 5, 6, 7)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75, 0.99, 1 - 1e-12])
def test_one_unit_of_every_group_stays(scope: str, ratio: float) -> None:
    plan = made(ratio=ratio, scope=scope)
    assert all(indices for dims in plan.kept.values() for indices in dims.values())
    small: Any = sp.apply(plan, net())
    assert small(images()).shape == (2, 5)
    removed = 14 - small[0].out_channels - small[3].out_channels
    exact = int(8 * ratio + 1e-9) + int(6 * ratio + 1e-9) if scope == "local" else int(14 * ratio + 1e-9)
    assert removed == min(exact, 12)


class Rolled(nn.Module):
    """A part of the channels is rolled: all go to the same layers, and so compete, and yet some of the part must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        part, rest = y.split([self.width, y.shape[1] - self.width], 1)
        return self.last(torch.cat([part.roll(1, 2), rest], 1))  # type: ignore[no-any-return]


def test_the_most_important_unit_of_a_part_stays() -> None:
    model = randomise(Rolled())
    with torch.no_grad():
        model.first.weight[:4] *= torch.tensor([0.001, 0.003, 0.002, 0.0005])[:, None, None, None]
    result = sp.prune(model, images())
    assert result.plan.kept["first.weight"][0][0] == 1
    assert len(result.plan.kept["first.weight"][0]) == 9


def test_excluded_layers_keep_their_filters() -> None:
    assert "0.weight" not in made(exclude="0").kept
    assert made(exclude=["0"]).kept["3.weight"].keys() == {0}
    assert made(exclude=("3.weight",)).kept["0.weight"][0]


SCRIPT = """
import sys; sys.path[:0] = {path!r}
import warnings; warnings.simplefilter("ignore")
import structprune as sp, test_plan
print(sp.prune(test_plan.net(), test_plan.images(), scope="global").plan.to_json())
"""


def test_two_processes_make_the_same_bytes() -> None:
    def run(seed: str) -> str:
        command = [sys.executable, "-c", SCRIPT.format(path=sys.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout

    assert run("1") == run("2") != ""


# -- other models ---------------------------------------------------------------------------------------------


def renamed() -> nn.Module:
    return nn.ModuleDict({"body": net()})


def widened() -> nn.Module:
    model = net()
    model[3] = nn.Conv2d(8, 7, 3)
    return model


def tied() -> nn.Module:
    model = net()
    model[1].bias = model[1].weight
    return model


def extended() -> nn.Module:
    return nn.Sequential(*net(), nn.Linear(5, 5))


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "names": (renamed, "has no '0.weight'"),
    "shapes": (widened, "3.weight has the shape (7, 8, 3, 3), not 6 in dimension 0"),
    "ties": (tied, "'1.bias'"),
    "one layer more": (extended, "names, shapes or ties"),
    "no parameters": (nn.Identity, "has no '0.weight'"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_plan_for_another_model(other: str, inplace: bool) -> None:
    make, words = OTHERS[other]
    plan, model = made(), make()
    before = Snapshot.of(model)
    for use in (
        lambda: sp.apply(plan, model, inplace=inplace),
        lambda: sp.mask(plan, model),
        lambda: sp.verify(model, plan, images()),
    ):
        with pytest.raises(sp.PlanError, match="the plan is for another model") as caught:
            use()
        assert words in str(caught.value)
        before.assert_unchanged(model)


def test_a_plan_applied_twice() -> None:
    plan = made()
    small = sp.apply(plan, net())
    before = Snapshot.of(small)
    with pytest.raises(sp.PlanError, match="was the plan applied already"):
        sp.apply(plan, small, inplace=True)
    before.assert_unchanged(small)


# -- files that were damaged, or written by hand --------------------------------------------------------------

Edit = Callable[[dict[str, Any]], object]
ENTRY = "$.kept.0.weight.0"


def entry(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["kept"]["0.weight"]["0"]
    return found


EDITS: dict[str, tuple[Edit, list[str]]] = {
    "version": (lambda d: d.update(schema=99), ["$.schema", "99"]),
    "no version": (lambda d: d.pop("schema"), ["$.schema", "None"]),
    "unknown key": (lambda d: d.update(code="import os"), ["$: unknown key 'code'"]),
    "missing key": (lambda d: d.pop("kept"), ["$: missing key 'kept'"]),
    "unknown key in an entry": (lambda d: entry(d).update(step=2), [ENTRY, "unknown key 'step'"]),
    "missing key in an entry": (lambda d: entry(d).pop("of"), [ENTRY, "missing key 'of'"]),
    "kept is a list": (lambda d: d.update(kept=[]), ["$.kept", "dict", "list"]),
    "dims are a list": (lambda d: d["kept"].update({"0.weight": [1]}), ["$.kept.0.weight", "dict"]),
    "entry is a list": (lambda d: d["kept"]["0.weight"].update({"0": [1]}), [ENTRY, "dict"]),
    "dimension": (lambda d: d["kept"].update({"0.weight": {"-1": entry(d)}}), ["$.kept.0.weight.-1", "dimension"]),
    "dimension that is superscript": (lambda d: d["kept"].update({"0.weight": {"²": entry(d)}}), ["$.kept.0.weight.²"]),
    "dimension too large": (lambda d: d["kept"].update({"0.weight": {"9": entry(d)}}), ["0.weight"]),
    "dimension written twice": (lambda d: d["kept"]["0.weight"].update({"00": entry(d)}), ["$.kept.0.weight.00"]),
    "out of range": (lambda d: entry(d).update(indices=[0, 8]), [f"{ENTRY}.indices[1]", "8"]),
    "negative": (lambda d: entry(d).update(indices=[-1, 2]), [f"{ENTRY}.indices[0]", "-1"]),
    "doubled": (lambda d: entry(d).update(indices=[1, 1]), [f"{ENTRY}.indices[1]", "increasing"]),
    "unsorted": (lambda d: entry(d).update(indices=[2, 1]), [f"{ENTRY}.indices[1]", "increasing"]),
    "everything removed": (lambda d: entry(d).update(indices=[]), [f"{ENTRY}.indices", "not 0"]),
    "more than there are": (lambda d: entry(d).update(indices=list(range(9))), [f"{ENTRY}.indices", "not 9"]),
    "float index": (lambda d: entry(d).update(indices=[0.0, 1]), [f"{ENTRY}.indices[0]", "int", "float"]),
    "true index": (lambda d: entry(d).update(indices=[True]), [f"{ENTRY}.indices[0]", "int", "bool"]),
    "null index": (lambda d: entry(d).update(indices=[None]), [f"{ENTRY}.indices[0]", "int"]),
    "size is a string": (lambda d: entry(d).update(of="8"), [f"{ENTRY}.of", "int", "str"]),
    "size is true": (lambda d: entry(d).update(of=True), [f"{ENTRY}.of", "int", "bool"]),
    "size of 1e18": (lambda d: entry(d).update(of=10**18), ["0.weight", str(10**18)]),
    "fingerprint": (lambda d: d.update(fingerprint=5), ["$.fingerprint", "str", "int"]),
    "notes": (lambda d: d.update(notes="no"), ["$.notes", "list"]),
    "a note": (lambda d: d.update(notes=[1]), ["$.notes", "str"]),
    "attribute": (lambda d: d["attributes"]["0"].update(out_channels="4"), ["$.attributes.0.out_channels", "str"]),
    "attributes": (lambda d: d.update(attributes=[]), ["$.attributes", "dict"]),
    "parameter that is none": (lambda d: d["kept"].update({"9.weight": d["kept"]["0.weight"]}), ["9.weight"]),
    "path": (lambda d: d["kept"].update({"../../x": d["kept"]["0.weight"]}), ["../../x"]),
    "dunder": (lambda d: d["kept"].update({"__class__": d["kept"]["0.weight"]}), ["__class__"]),
    "module that is none": (lambda d: d["attributes"].update({"9": {"groups": 1}}), ["'9'"]),
    "attribute that is none": (lambda d: d["attributes"]["0"].update(colour=1), ["colour"]),
    "attribute that is a method": (lambda d: d["attributes"]["0"].update(forward=1), ["forward"]),
    "attribute that is a dunder": (lambda d: d["attributes"]["0"].update(__class__=1), ["__class__"]),
    "size that contradicts another": (lambda d: entry(d).update(of=9), ["0.weight", "9"]),
    "dimension left out": (lambda d: d["kept"].pop("3.weight"), ["3.weight"]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_plan_is_refused(edit: str) -> None:
    """Refused when it is read, or, if only a model can tell, before the model is touched."""
    change, words = EDITS[edit]
    data = copy.deepcopy(made().to_dict())
    change(data)
    model = net()
    before = Snapshot.of(model)
    with pytest.raises(sp.PlanError) as caught:
        sp.apply(sp.PruningPlan.from_json(json.dumps(data)), model, inplace=True)
    for word in words:
        assert word in str(caught.value)
    before.assert_unchanged(model)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"plan"', "{}", "nan", "[" * 100_000, '{"schema": 1, "schema": 1}']
)
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(sp.PlanError):
        sp.PruningPlan.from_json(text)


def test_every_truncation_is_refused() -> None:
    text = made().to_json()
    for length in range(0, len(text), 7):
        with pytest.raises(sp.PlanError, match="JSON"):
            sp.PruningPlan.from_json(text[:length])


class Lazy(nn.Module):
    """A table that is made once for all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bias = nn.Linear(6, 16), nn.Linear(16, 3), nn.Parameter(torch.randn(16))
        self.table: Tensor | None = None

    def prepare(self) -> None:
        self.table = (self.bias * 2).detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) + self.table).relu())  # type: ignore[no-any-return]


def test_a_plan_for_a_model_that_was_prepared_before() -> None:
    """What it made then is cut as it lies there; a model that has not made it would make it too large."""
    prepared, inputs = Lazy(), torch.randn(2, 6)
    prepared.prepare()
    plan = sp.plan(sp.analyze(prepared, inputs), ratio=0.5)
    assert "table" in plan.tensors
    with pytest.raises(sp.PlanError, match="made when it was first called"):
        sp.apply(plan, Lazy())
    fresh = Lazy()
    fresh.prepare()
    assert sp.apply(plan, fresh)(inputs).shape == (2, 3)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["kept"]["0.bias"]["0"].update(indices=[0]),
        lambda d: d["scales"].update({"0.weight": float("nan")}),
        lambda d: d["scales"].update({"0.weight": 0.0}),
        lambda d: d["scales"].update({"0.weight": float("inf")}),
    ],
    ids=["a bias of another size", "nan", "zero", "infinite"],
)
def test_a_plan_that_contradicts_itself(edit: Callable[[Any], Any]) -> None:
    model = net()
    fields = json.loads(sp.plan(sp.analyze(model, torch.randn(2, 3, 8, 8)), ratio=0.5).to_json())
    edit(fields)
    before = Snapshot.of(model)
    with pytest.raises(sp.PlanError):
        sp.apply(sp.PruningPlan.from_json(json.dumps(fields)), model)
    before.assert_unchanged(model)


class Normed(nn.Module):
    def __init__(self, eps: float = 0.1) -> None:
        super().__init__()
        self.a, self.layer, self.b = nn.Linear(6, 16, bias=False), nn.LayerNorm(16), nn.Linear(16, 12, bias=False)
        self.rms, self.c, self.conv = nn.RMSNorm(12, eps=eps), nn.Linear(12, 3), nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.c(self.rms(self.b(self.layer(self.a(x)).relu()))).mT)  # type: ignore[no-any-return]


NONSENSE: dict[str, Callable[[Any], Any]] = {
    "no swap of a layer norm": lambda d: d["swaps"].clear(),
    "an epsilon that no weight goes with": lambda d: d["attributes"]["layer"].update(eps=4.0),
    "another epsilon": lambda d: d["attributes"]["rms"].update(eps=10.0),
    "a scale of a weight that has no epsilon": lambda d: d["scales"].update({"a.weight": 2.0}),
    "another scale": lambda d: d["scales"].update({"rms.weight": 3.0}),
    "no scale": lambda d: d["scales"].clear(),
    "a larger stride": lambda d: d["attributes"].update(conv={"stride": [3]}),
    "half a feature": lambda d: d["attributes"]["a"].update(out_features=8.0),
}


@pytest.mark.parametrize("edit", NONSENSE)
def test_numbers_that_only_a_norm_can_tell_are_checked(edit: str) -> None:
    torch.manual_seed(0)
    model, rows = Normed(), torch.randn(2, 5, 6)
    plan = sp.plan(sp.analyze(model, rows), ratio=0.5)
    assert plan.scales
    assert plan.swaps
    assert sp.apply(sp.PruningPlan.from_json(plan.to_json()), model)(rows).shape == (2, 3, 5)
    data = plan.to_dict()
    data["attributes"].setdefault("layer", {})
    NONSENSE[edit](data)
    before = Snapshot.of(model)
    with pytest.raises(sp.PlanError):
        sp.apply(sp.PruningPlan.from_dict(data), model)
    before.assert_unchanged(model)


def test_an_epsilon_of_zero_stays_zero() -> None:
    torch.manual_seed(0)
    model = Normed(eps=0.0)
    assert sp.prune(model, torch.randn(2, 5, 6), ratio=0.5).plan.scales


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": {"0.weight": math.nan}}, "scales or shifts 0.weight by nan"),
        ({"scales": {"0.weight": math.inf}}, "scales or shifts 0.weight by inf"),
        ({"shifts": {"0.weight": -math.inf}}, "scales or shifts 0.weight by -inf"),
        ({"scales": {"0.weight": 0.0}}, "scales by 0"),
        ({"swaps": {"0": ["norm", 8, 8]}}, "the name of a swap and a number"),
        ({"kept": {"0.weight": {0: {"of": 8, "indices": [0]}}}}, "expected str, found int"),
    ],
)
def test_what_no_plan_says(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(sp.PlanError, match=words):
        sp.PruningPlan.from_dict({**made().to_dict(), **changes})


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(1, 8)])
def test_norms_count_what_they_counted(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 8), norm, nn.Linear(8, 3))
    data = sp.prune(model, torch.randn(4, 6)).plan.to_dict()
    assert list(data["swaps"]["1"]) == ["norm", 8]
    data["swaps"]["1"] = ["norm", 10**9]
    with pytest.raises(sp.PlanError, match="has '1' count 1000000000 channels, of 8"):
        sp.apply(sp.PruningPlan.from_dict(data), model)
