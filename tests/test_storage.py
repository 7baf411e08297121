"""Files: what is saved comes back bit for bit, and what was damaged is refused. Nothing is ever unpickled."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import Snapshot
from torch import Tensor, nn

import structprune as sp


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
        with pytest.raises(sp.ArgumentError, match="is a file; save needs a folder"):
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
    """Before the first rename the old files survive; between the two the pair is refused or whole."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    script = KILLED.format(path=sys.path, count=count, folder=str(folder))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    if count == 0:
        assert {name: (folder / name).read_bytes() for name in before} == before
        assert sp.load(folder, Net)(images()).shape == (2, 4)
    else:
        with pytest.raises(sp.StructPruneError):
            sp.load(folder, Net)


# -- loading --------------------------------------------------------------------------------------------------


def test_files_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(sp.FileFormatError, match=r"nowhere holds no plan\.json"):
        sp.load(tmp_path / "nowhere", Net)
    os.unlink(folder / "model.safetensors")
    with pytest.raises(sp.FileFormatError, match=r"holds no model\.safetensors"):
        sp.load(folder, Net)


@pytest.mark.parametrize("make", [None, "Net", 3, {}, lambda: None, lambda: "net", dict], ids=repr)
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


def test_a_plan_of_a_billion_indices(folder: Path) -> None:
    """A size that the model does not have is refused before anything of that size is made."""
    data = json.loads((folder / "plan.json").read_text())
    data["kept"]["conv.weight"]["0"] = {"of": 10**9, "indices": [0, 10**9 - 1]}
    (folder / "plan.json").write_text(json.dumps(data))
    with pytest.raises(sp.PlanError, match=r"conv\.weight"):
        sp.load(folder, Net)
