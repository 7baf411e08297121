"""Files: what is saved comes back bit for bit, and what was damaged is refused. Nothing is ever unpickled."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from helpers import Snapshot, randomise
from torch import Tensor, nn

import structprune as sp
from structprune.specs import parse


class Net(nn.Module):
    """With tied weights, a buffer and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        return self.fc(self.b(self.a(x).relu()))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def result() -> sp.Result:
    torch.manual_seed(0)
    model = Net()
    model(images())
    return sp.prune(model, images())


@pytest.fixture
def folder(result: sp.Result, tmp_path: Path) -> Path:
    sp.save(result, tmp_path / "saved")
    return tmp_path / "saved"


def test_it_comes_back_bit_for_bit(result: sp.Result, folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["model.safetensors", "plan.json"]
    unpruned = Net()
    before = Snapshot.of(unpruned)
    for where, make in ((folder, Net), (folder, unpruned), (str(folder), lambda: unpruned)):
        again: Any = sp.load(where, make)
        before.assert_unchanged(unpruned)
        assert again.conv.out_channels == result.plan.attributes["conv"]["out_channels"] == 4
        assert again.a.weight is again.b.weight
        expected = result.model.state_dict()
        assert again.state_dict().keys() == expected.keys()
        for name, value in again.state_dict().items():
            assert torch.equal(value, expected[name])
            assert value.dtype == expected[name].dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    result = sp.prune(Net().to(dtype), images().to(dtype))
    sp.save(result, tmp_path)
    again = sp.load(tmp_path, lambda: Net().to(dtype))
    assert {p.dtype for p in again.parameters()} == {dtype}
    with pytest.raises(sp.FileFormatError, match=r"conv\.|a\.|bn\.|fc\."):
        sp.load(tmp_path, Net)


def test_a_plan_that_removes_nothing(tmp_path: Path) -> None:
    result = sp.prune(Net(), images(), ratio=0)
    sp.save(result, tmp_path)
    again = sp.load(tmp_path, Net)
    assert all(torch.equal(v, result.model.state_dict()[n]) for n, v in again.state_dict().items())


# -- saving ---------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty(result: sp.Result, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(sp.ArgumentError, match=r"is not empty; pass overwrite=True"):
        sp.save(result, tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]
    sp.save(result, tmp_path, overwrite=True)
    sp.save(result, tmp_path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["mine.txt", "model.safetensors", "plan.json"]


def test_a_file_in_place_of_the_folder(result: sp.Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(sp.ArgumentError, match=r"is a file; save needs a folder, or a name that ends in \.safe"):
            sp.save(result, tmp_path / "file", overwrite=overwrite)


@pytest.mark.parametrize("fails", ["replace", "fsync", "save_model"])
def test_a_full_disk_leaves_the_old_files(
    fails: str, result: sp.Result, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = sp.prune(Net(), images(), ratio=0.25)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch if fails == "save_model" else os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        sp.save(other, folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = {path!r}
import test_storage, structprune as sp
replace, left = os.replace, [{count}]
def killed(*args):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    replace(*args)
result = sp.prune(test_storage.Net(), test_storage.images(), ratio=0.25, verify=False)
os.replace = killed
sp.save(result, {folder!r}, overwrite=True)
"""


@pytest.mark.parametrize("count", [0, 1])
def test_a_killed_process(count: int, folder: Path) -> None:
    """Before the first rename the old model survives, after it the new one is there; the next save tidies up."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    script = KILLED.format(path=sys.path, count=count, folder=str(folder))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    again: Any = sp.load(folder, Net)
    assert again(images()).shape == (2, 4)
    if count == 0:
        assert {name: (folder / name).read_bytes() for name in before} == before
        assert again.conv.out_channels == 4
    else:
        assert (folder / "plan.json").read_bytes() == before["plan.json"]
        assert again.conv.out_channels == 6
    assert len(os.listdir(folder)) == 3
    sp.save(sp.prune(Net(), images(), ratio=0.25, verify=False), folder, overwrite=True)
    assert sorted(os.listdir(folder)) == ["model.safetensors", "plan.json"]


def test_a_process_killed_in_an_empty_folder(result: sp.Result, tmp_path: Path) -> None:
    """What it left half-written does not make the folder a full one; whole weights need no plan.json."""
    (tmp_path / ".model.safetensors.abc.partial").mkdir()
    (tmp_path / ".model.safetensors.abc.partial" / "model.safetensors").write_bytes(b"half")
    sp.save(result, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "plan.json"]
    os.unlink(tmp_path / "plan.json")
    assert sp.load(tmp_path, Net)(images()).shape == (2, 4)


def test_a_plan_of_another_save(folder: Path) -> None:
    """Only the plan that the weights replaced may lie beside them."""
    other = sp.prune(Net(), images(), ratio=0.25)
    (folder / "plan.json").write_text(other.plan.to_json())
    with pytest.raises(sp.FileFormatError, match=r"plan\.json is not the plan that model\.safetensors was saved with"):
        sp.load(folder, Net)


def test_folders_of_the_first_version(result: sp.Result, folder: Path) -> None:
    """Weights without metadata, beside a plan of schema 1."""
    data = result.plan.to_dict() | {"schema": 1}
    del data["becomes"], data["stock"], data["shifts"]
    (folder / "plan.json").write_text(json.dumps(data))
    safetensors.torch.save_model(result.model, str(folder / "model.safetensors"))
    again = sp.load(folder, Net)
    assert all(torch.equal(v, result.model.state_dict()[n]) for n, v in again.state_dict().items())
    os.unlink(folder / "plan.json")
    with pytest.raises(sp.FileFormatError, match=r"holds no plan\.json"):
        sp.load(folder, Net)


# -- one file -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(result: sp.Result, tmp_path: Path) -> Path:
    sp.save(result, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_one_file_comes_back_bit_for_bit(result: sp.Result, file: Path) -> None:
    assert os.listdir(file.parent) == [file.name]
    again: Any = sp.load(str(file), Net)
    assert again.a.weight is again.b.weight
    assert all(torch.equal(v, result.model.state_dict()[n]) for n, v in again.state_dict().items())
    with pytest.raises(sp.ArgumentError, match="exists; pass overwrite=True"):
        sp.save(result, file)
    sp.save(result, file, overwrite=True)
    assert os.listdir(file.parent) == [file.name]


def test_specs_make_the_unpruned_model(file: Path) -> None:
    for spec in ("test_storage:Net", "test_storage:Net?"):
        assert sp.load(file, spec)(images()).shape == (2, 4)
    for spec, words in (("Net", "is no model: write"), ("test_storage:Nett", "the closest are 'Net'")):
        with pytest.raises(sp.StructPruneError, match=words):
            sp.load(file, spec)


def test_a_file_does_not_choose_what_code_runs(result: sp.Result, tmp_path: Path) -> None:
    """The spec in its record is used if it names a model of a library, not if it names a function."""
    sp.save(result, tmp_path / "a.safetensors", record={"model": "test_storage:Net"})
    with pytest.raises(sp.ArgumentTypeError, match="does not say what model of a library it came from"):
        sp.load(tmp_path / "a.safetensors")
    pytest.importorskip("torchvision")
    sp.save(result, tmp_path / "b.safetensors", record={"model": "torchvision:resnet18"})
    with pytest.raises(sp.PlanError, match="for another model"):
        sp.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("model", ["my net, v2", "torchvision:resnet18?weights={[]: 1}", "a:b?c", 3, None])
def test_a_record_says_what_its_author_likes(model: Any, result: sp.Result, tmp_path: Path) -> None:
    sp.save(result, tmp_path / "small", record={"model": model})
    with pytest.raises(sp.StructPruneError, match=r"does not say what model|NoModel|weights"):
        sp.load(tmp_path / "small")
    assert sp.load(tmp_path / "small", Net()).training


@pytest.mark.parametrize("name", ["small.safetensors", "m[1]"])
def test_files_are_as_others_are_and_leftovers_go(name: str, result: sp.Result, tmp_path: Path) -> None:
    """Their modes are those of other new files, whatever their names are."""
    before = os.umask(0o027)
    try:
        sp.save(result, tmp_path / name)
    finally:
        os.umask(before)
    file = tmp_path / name if (tmp_path / name).is_file() else tmp_path / name / "plan.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    left = file.parent / f".{file.name}.gone.partial"
    left.mkdir()
    sp.save(result, tmp_path / name, overwrite=True)
    assert not left.exists()


METADATA: dict[str, tuple[Any, str]] = {
    "missing": ({}, "holds no plan"),
    "a number": ({"structprune.plan": 3}, "not a table of texts"),
    "a list": ([], "not a table of texts"),
    "another schema": ({"structprune.schema": "9", "structprune.plan": "{}"}, "reads files of schema 1, not '9'"),
    "no schema": ({"structprune.plan": "{}"}, "schema 1, not None"),
    "no plan": ({"structprune.schema": "1"}, "holds no plan"),
    "no JSON": ({"structprune.schema": "1", "structprune.plan": "{"}, "not JSON"),
    "another schema of plans": ({"structprune.schema": "1", "structprune.plan": '{"schema": 77}'}, "not 77"),
    "nested": ({"structprune.schema": "1", "structprune.plan": "[" * 100_000}, "not JSON"),
    "a billion": (
        {
            "structprune.schema": "1",
            "structprune.plan": '{"schema": 1, "kept": {"../../x": {"0": {"of": 1000000000}}}}',
        },
        "missing key|unknown key",
    ),
    "a record that is a list": ({"structprune.schema": "1", "structprune.record": "[]"}, "holds no plan|JSON object"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_written_by_hand(case: str, file: Path) -> None:
    metadata, words = METADATA[case]
    header, values = split(file)
    header["__metadata__"] = metadata
    join(file, json.dumps(header), values)
    with pytest.raises((sp.FileFormatError, sp.PlanError), match=words):
        sp.load(file, Net)


def split(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(file: Path, header: str, values: bytes) -> None:
    file.write_bytes(struct.pack("<Q", len(header.encode())) + header.encode() + values)


def test_keys_that_are_there_twice(file: Path) -> None:
    header, values = split(file)
    text = json.dumps(header)
    twice = text[:-1] + ', "fc.bias": ' + json.dumps(header["fc.bias"]) + "}"
    join(file, twice, values)
    with pytest.raises(sp.FileFormatError, match=r"holds 'fc\.bias' twice"):
        sp.load(file, Net)
    plan = header["__metadata__"]["structprune.plan"]
    header["__metadata__"]["structprune.plan"] = plan[:-1] + ',"notes":[]}'
    join(file, json.dumps(header), values)
    with pytest.raises(sp.PlanError, match="'notes' twice"):
        sp.load(file, Net)


def test_every_truncation_of_the_file(file: Path) -> None:
    content = file.read_bytes()
    for length in range(0, len(content), 397):
        file.write_bytes(content[:length])
        with pytest.raises(sp.FileFormatError, match=r"small\.safetensors"):
            sp.load(file, Net)


FRESH = """
import sys, warnings; warnings.simplefilter("ignore")
import torch, safetensors.torch
import structprune as sp, structprune.api
structprune.api.trace = None
for path in sys.argv[1:]:
    model = sp.load(path)
    known = safetensors.torch.load_file(path + ".outputs")
    with torch.no_grad():
        found = model.eval()(**{k[6:]: v for k, v in known.items() if k.startswith("input.")}) \
            if "positional" not in known else model.eval()(known["positional"])
    found = found if isinstance(found, torch.Tensor) else found[0]
    assert torch.equal(found, known["output"]), path
print(*sys.modules)
"""


def load_in_a_fresh_process(specs: list[str], folder: Path) -> set[str]:
    """Prunes and saves models of libraries; another process must load them by what the files say, and compute the
    same bits. Returns the modules that it imported."""
    paths = []
    for i, text in enumerate(specs):
        torch.manual_seed(0)
        spec = parse(text)
        model = randomise(spec.build()).eval()
        inputs = spec.inputs(model)
        result = sp.prune(model, inputs, verify=False)
        paths.append(str(folder / f"{i}.safetensors"))
        sp.save(result, paths[-1], record={"model": text})
        with torch.no_grad():
            out = result.model(**inputs)[0] if isinstance(inputs, dict) else result.model(inputs)
        known = {f"input.{k}": v for k, v in inputs.items()} if isinstance(inputs, dict) else {"positional": inputs}
        safetensors.torch.save_file({**known, "output": out.contiguous()}, paths[-1] + ".outputs")
    run = subprocess.run([sys.executable, "-c", FRESH, *paths], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_a_fresh_process_loads_what_was_saved(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    loaded = load_in_a_fresh_process(["torchvision:shufflenet_v2_x0_5"], tmp_path)
    assert "torchvision" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {"torch_pruning", "sklearn", "timm", "transformers"}


def test_loading_needs_no_tracer() -> None:
    """Neither `storage` nor anything that it imports is, or imports, the tracer or the rules."""
    from test_floors import FILES, own_imports

    seen: set[str] = set()
    todo = ["storage"]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [target for target in own_imports(name) if target in FILES]
    assert {"plan", "surgery", "specs", "checkpoint"} <= seen
    assert not {name for name in seen if name in ("trace", "analysis", "graph", "api") or name.startswith("rules")}


# -- loading --------------------------------------------------------------------------------------------------


def test_files_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(sp.FileFormatError, match=r"nowhere holds no model\.safetensors"):
        sp.load(tmp_path / "nowhere", Net)
    with pytest.raises(sp.FileFormatError, match=r"there is no file .*nowhere\.safetensors"):
        sp.load(tmp_path / "nowhere.safetensors", Net)
    os.unlink(folder / "model.safetensors")
    with pytest.raises(sp.FileFormatError, match=r"holds no model\.safetensors"):
        sp.load(folder, Net)


@pytest.mark.parametrize("make", [3, {}, lambda: None, lambda: "net", dict], ids=repr)
def test_what_makes_no_model(make: Any, folder: Path) -> None:
    with pytest.raises(sp.ArgumentTypeError, match=r"make_model must be or return a torch\.nn\.Module"):
        sp.load(folder, make)


def test_another_model(folder: Path) -> None:
    model = nn.Linear(3, 4)
    before = Snapshot.of(model)
    with pytest.raises(sp.PlanError, match="the plan is for another model"):
        sp.load(folder, model)
    before.assert_unchanged(model)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"null", b"[" * 100_000], ids=[*"abcde"])
def test_a_damaged_plan(content: bytes, folder: Path) -> None:
    (folder / "plan.json").write_bytes(content)
    with pytest.raises((sp.PlanError, sp.FileFormatError)):
        sp.load(folder, Net)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], list[str]]] = {
    "missing": (lambda t: t.pop("bn.running_var"), ["lacks", "'bn.running_var'"]),
    "missing tied": (lambda t: [t.pop(n, None) for n in ("a.weight", "b.weight")], ["lacks", "'a.weight'"]),
    "extra": (lambda t: t.update(more=torch.zeros(1)), ["'more'", "does not have"]),
    "path": (lambda t: t.update({"../../x": torch.zeros(1)}), ["'../../x'", "does not have"]),
    "dunder": (lambda t: t.update(__class__=torch.zeros(1)), ["'__class__'", "does not have"]),
    "shape": (lambda t: t.update({"fc.weight": torch.zeros(4, 8)}), ["fc.weight", "(4, 8)", "(4, 4)"]),
    "transposed": (lambda t: t.update({"conv.weight": t["conv.weight"].mT[:, :, :2].contiguous()}), ["conv.weight"]),
    "dtype": (lambda t: t.update({"fc.bias": t["fc.bias"].double()}), ["fc.bias", "float64", "float32"]),
    "integers": (lambda t: t.update({"fc.bias": t["fc.bias"].long()}), ["fc.bias", "int64", "float32"]),
    "empty": (lambda t: t.clear(), ["lacks"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_do_not_fit(change: str, folder: Path) -> None:
    edit, words = CHANGES[change]
    rewrite(folder, edit)
    model = Net()
    before = Snapshot.of(model)
    with pytest.raises(sp.FileFormatError) as caught:
        sp.load(folder, model)
    for word in words:
        assert word in str(caught.value)
    before.assert_unchanged(model)


def test_every_truncation_of_the_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    for length in [*range(0, len(content), 199), len(content) - 1]:
        (folder / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(sp.FileFormatError, match=r"model\.safetensors"):
            sp.load(folder, Net)
    (folder / "model.safetensors").write_bytes(content + b"\0")
    with pytest.raises(sp.FileFormatError, match=r"model\.safetensors"):
        sp.load(folder, Net)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("how", ["pickle", "torch", "zip header"])
def test_a_pickle_is_not_opened(how: str, folder: Path) -> None:
    target = folder / "model.safetensors"
    if how == "torch":
        torch.save({"fc.weight": Bomb()}, target)
    else:
        target.write_bytes((b"PK\3\4" if how == "zip header" else b"") + pickle.dumps(Bomb()))
    with pytest.raises(sp.FileFormatError, match="is not a safetensors file"):
        sp.load(folder, Net)
    (folder / "plan.json").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((sp.FileFormatError, sp.PlanError)):
        sp.load(folder, Net)


HEADERS: dict[str, Any] = {
    "a list": [],
    "a number": 3,
    "no shape": {"fc.weight": {"dtype": "F32", "data_offsets": [0, 4]}},
    "an entry that is a list": {"fc.weight": [1, 2]},
    "a shape that is a number": {"fc.weight": {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]}},
    "a shape of 1e12": {"fc.weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
    "offsets beyond the end": {"fc.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 4096]}},
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_written_by_hand(header: str, folder: Path) -> None:
    text = json.dumps(HEADERS[header]).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(sp.FileFormatError, match=r"model\.safetensors"):
        sp.load(folder, Net)


def test_offsets_that_lie(folder: Path) -> None:
    """The header names the right shapes, and more bytes than there are."""
    content = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["fc.weight"]["data_offsets"][1] += 10**9
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(sp.FileFormatError, match="cannot be read"):
        sp.load(folder, Net)


class Tied(nn.Module):
    """One weight by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = (nn.Linear(*sizes) for sizes in ((6, 8), (8, 8), (8, 8), (8, 3)))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b(self.a(self.first(x))).relu())  # type: ignore[no-any-return]


def test_a_weight_by_two_names_is_one(tmp_path: Path) -> None:
    path = tmp_path / "tied.safetensors"
    result = sp.prune(Tied(), torch.randn(4, 6))
    sp.save(result, path)
    with safetensors.safe_open(path, "pt") as file:
        metadata, values = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    values["b.weight"] = values["a.weight"].clone()
    safetensors.torch.save_file(values, path, metadata)
    assert torch.equal(sp.load(path, Tied).get_parameter("b.weight"), values["a.weight"])
    safetensors.torch.save_file({**values, "b.weight": values["b.weight"] + 1}, path, metadata)
    with pytest.raises(sp.FileFormatError, match=r"b\.weight is a\.weight by another name, and holds other values"):
        sp.load(path, Tied)


def test_overwrite_is_a_flag(result: sp.Result, tmp_path: Path) -> None:
    with pytest.raises(sp.ArgumentTypeError, match="overwrite"):
        sp.save(result, tmp_path / "out", overwrite="no")  # type: ignore[arg-type]


def test_a_plan_of_a_billion_indices(folder: Path) -> None:
    """A size that the model does not have is refused before anything of that size is made."""
    data = json.loads((folder / "plan.json").read_text())
    data["kept"]["conv.weight"]["0"] = {"of": 10**9, "indices": [0, 10**9 - 1]}
    header, values = split(folder / "model.safetensors")
    header["__metadata__"]["structprune.plan"] = json.dumps(data)
    join(folder / "model.safetensors", json.dumps(header), values)
    (folder / "plan.json").write_text(json.dumps(data))
    with pytest.raises(sp.PlanError, match=r"conv\.weight"):
        sp.load(folder, Net)


@pytest.mark.parametrize(
    "text",
    [
        "torchvision:resnet18?weights=DEFAULT", "torchvision:fcn_resnet50?weights_backbone=DEFAULT",
        "timm:resnet10t?pretrained=True", "timm:resnet10t?checkpoint_path=/some/file", "timm:hf_hub:some/model",
    ],
)  # fmt: skip
def test_a_file_does_not_choose_what_is_fetched(text: str, result: sp.Result, tmp_path: Path) -> None:
    sp.save(result, tmp_path / "a.safetensors", record={"model": text})
    with pytest.raises(sp.StructPruneError):
        sp.load(tmp_path / "a.safetensors")
    assert parse(text).fetches
    assert not parse("timm:resnet10t?pretrained=False&num_classes=10").fetches


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.c = nn.Parameter(torch.randn(16, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) * self.c).abs())  # type: ignore[no-any-return]


def test_complex_numbers_that_the_format_does_not_hold(tmp_path: Path) -> None:
    result = sp.prune(Complex().double(), torch.randn(2, 8, dtype=torch.float64), ratio=0.5)
    with pytest.raises(sp.UnsupportedModelError, match="complex128, which safetensors does not hold"):
        sp.save(result, tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()


class Bound(nn.Module):
    """It holds a function that names it, and so cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.act = lambda x: self.a(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(x))


def test_models_that_cannot_be_copied_are_made_for_loading(tmp_path: Path) -> None:
    rows = torch.randn(5, 4)
    result = sp.prune(Bound(), rows, inplace=True, verify=False)
    sp.save(result, tmp_path / "small")
    assert torch.equal(sp.load(tmp_path / "small", Bound)(rows), result.model(rows))
    with pytest.raises(sp.UnsupportedModelError, match="cannot be copied"):
        sp.load(tmp_path / "small", Bound())


@pytest.mark.parametrize(
    ("record", "words"), [("{", "not JSON"), ("[" * 100000, "not JSON"), ("[1]", "not a JSON object")]
)
def test_a_record_that_is_none(tmp_path: Path, record: str, words: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    result = sp.prune(model, torch.randn(1, 3, 4, 4))
    file = tmp_path / "small.safetensors"
    sp.save(result, file)
    with safetensors.safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, {**metadata, "structprune.record": record})
    with pytest.raises(sp.FileFormatError, match=words):
        sp.load(file, lambda: model)


def test_a_record_that_fits_in_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("structprune.storage.HEADER_LIMIT", 1000)
    result = sp.prune(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), torch.randn(1, 3, 4, 4))
    with pytest.raises(sp.ArgumentError, match="larger than the header"):
        sp.save(result, tmp_path / "small")
