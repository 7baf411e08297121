"""The command line as a new user meets it: what works, and what a wrong argument of every kind says."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import randomise
from torch import Tensor, nn

import structprune as sp
from structprune.cli import COMMANDS, main
from structprune.commands.inputs import make_inputs
from structprune.specs import expand, parse
from structprune.storage import PARTIAL

SPEC = "test_cli:small"
INPUT = "2x3x8x8"


class Small(nn.Module):
    """A residual block, with words for a second argument."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.body, self.bn = (
            nn.Conv2d(3, width, 3),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )
        self.embed, self.head = nn.Embedding(10, width), nn.Linear(width, 4)

    def forward(self, x: Tensor, words: Tensor | None = None) -> Tensor:
        x = self.stem(x).relu()
        out = (x + self.bn(self.body(x))).mean((2, 3))
        return self.head(out if words is None else out + self.embed(words).mean(1))


def fail() -> nn.Module:
    raise ZeroDivisionError("why")


def small(width: int = 8) -> nn.Module:
    return randomise(Small(width))


def plain(bias: bool) -> nn.Module:
    """What is constant in the first layer is folded into the second, which may need a bias for it."""
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1, bias=bias), nn.Sigmoid(), nn.Flatten(), nn.Linear(180, 4)
    return randomise(nn.Sequential(*layers)).eval()


def inputs() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def number() -> int:
    return 3


text = "a text"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prune` writes."""
    folder = tmp_path_factory.mktemp("cli") / "small"
    assert main(["prune", SPEC, "--input", INPUT, "--out", str(folder)]) == 0
    return folder


def fails(arguments: list[str], capsys: Captured) -> str:
    """The message of a command that must fail with code 2, and no traceback."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # of argparse
        code = int(str(stop.code))
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    return error


# -- what works -----------------------------------------------------------------------------------------------


def test_prune(saved: Path, capsys: Captured) -> None:
    plan = sp.PruningPlan.from_json((saved / "plan.json").read_text())
    assert len(plan.kept["stem.weight"][0]) == 4
    again = sp.load(saved, small)
    assert again(inputs()).shape == (2, 4)
    assert main(["prune", SPEC, "--input", INPUT, "--ratio", "0.25"]) == 0
    out = capsys.readouterr().out
    assert "equal to the masked original" in out
    assert "nothing was saved: pass --out" in out


def test_prune_for_machines(tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "deep" / "small.safetensors"
    page = tmp_path / "report.html"
    arguments = [
        "prune",
        SPEC,
        "--input",
        INPUT,
        "--exclude",
        "head",
        "--json",
        "--out",
        str(target),
        "--html",
        str(page),
    ]
    assert main([*arguments, "--scope", "global", "--importance", "l1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verification"]["ok"] is True
    assert found["params"][1] < found["params"][0]
    assert "test_cli:small" in page.read_text()
    assert "already" not in fails(["prune", SPEC, "--input", INPUT, "--out", str(page)], capsys)
    assert "exists; pass overwrite" in fails([*arguments], capsys)
    assert main([*arguments, "--overwrite"]) == 0


def test_settings_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `structprune.prune` takes, by the same names."""
    given: dict[str, Any] = {}
    prune = sp.api.prune  # type: ignore[attr-defined]

    def fake(model: nn.Module, example_inputs: Any, **settings: Any) -> sp.Result:
        given.update(settings)
        return prune(model, example_inputs)

    monkeypatch.setattr("structprune.api.prune", fake)
    words = (
        "--target macs=0.5 --target params=0.6 --round-to 8 --max-ratio 0.9 --ratios a.*=0.2 --exclude b --exclude c"
    )
    assert main(["prune", SPEC, "--input", INPUT, "--ratio", "0.25", *words.split()]) == 0
    assert given == {
        "ratio": 0.25, "target": {"macs": 0.5, "params": 0.6}, "round_to": 8, "max_ratio": 0.9, "ratios": {"a.*": 0.2},
        "exclude": ["b", "c"],
    }  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_shrink(bias: bool, tmp_path: Path, capsys: Captured) -> None:
    """A checkpoint with masks becomes a smaller model, which can be verified with the checkpoint and without."""
    spec = f"test_cli:plain?bias={bias}"
    model: Any = plain(bias)
    nn.utils.prune.ln_structured(model[0], "weight", 2, n=1, dim=0)
    torch.save(model.state_dict(), tmp_path / "sparse.pt")
    arguments = [
        "shrink",
        str(tmp_path / "sparse.pt"),
        "--model",
        spec,
        "--input",
        INPUT,
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    again: Any = sp.load(tmp_path / "out", lambda: plain(bias))
    assert again[0].out_channels == 6
    x = inputs()
    torch.testing.assert_close(again(x), model.eval()(x))
    check = ["verify", str(tmp_path / "out"), "--model", spec]
    assert main(check) == 0
    assert "shrink compared the model with its checkpoint" in fails(
        [*check, "--weights", str(tmp_path / "a.pt")], capsys
    )
    assert "leave --weights out" in fails([*arguments[:-1], str(tmp_path / "2"), "--weights", "x.pt"], capsys)


def test_verify(saved: Path, tmp_path: Path, capsys: Captured) -> None:
    model = ["--model", SPEC]
    assert main(["verify", str(saved), *model]) == 0
    assert "equal to the masked original" in capsys.readouterr().out
    assert main(["verify", str(saved), *model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    safetensors.torch.save_model(small(), str(tmp_path / "original.safetensors"))
    assert main(["verify", str(saved), *model, "--weights", str(tmp_path / "original.safetensors")]) == 0
    other = randomise(Small(), 1)
    safetensors.torch.save_model(other, str(tmp_path / "other.safetensors"))
    capsys.readouterr()
    assert main(["verify", str(saved), *model, "--weights", str(tmp_path / "other.safetensors")]) == 1
    assert "DIFFERS" in capsys.readouterr().out
    assert "pass --model; it was test_cli:small, and a file does not choose" in fails(["verify", str(saved)], capsys)


def test_a_model_trained_further_is_verified(saved: Path, tmp_path: Path) -> None:
    """What is kept may have any values; what the plan says of it must hold."""
    model: Any = sp.load(saved, small)
    randomise(model, 7)
    result = sp.Result(model, sp.PruningPlan.from_json((saved / "plan.json").read_text()), report_of(saved))
    sp.save(result, tmp_path / "tuned")
    assert main(["verify", str(tmp_path / "tuned"), "--model", SPEC, "--input", INPUT]) == 0


def report_of(path: Path) -> sp.Report:
    from structprune.storage import read

    return sp.Report.from_dict(read(path).record["report"])


def test_report(saved: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["report", str(saved), "--html", str(tmp_path / "a.html")]) == 0
    out = capsys.readouterr().out
    assert "stem" in out
    assert "MACs" in out
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(saved), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["model"] == SPEC
    assert record["inputs"] == [INPUT]
    assert record["versions"]["structprune"] == sp.__version__


def test_diff(saved: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["diff", str(saved), str(saved / "plan.json")]) == 0
    assert capsys.readouterr().out == "the plans are equal\n"
    other = sp.plan(sp.analyze(small(), inputs()), ratio=0.25)
    (tmp_path / "other.json").write_text(other.to_json())
    assert main(["diff", str(saved), str(tmp_path / "other.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"]["stem.weight"]["0"]["second"]


def test_inspect_and_explain(capsys: Captured) -> None:
    assert main(["inspect", SPEC, "--input", INPUT]) == 0
    out = capsys.readouterr().out
    assert "stem, body" in out
    assert "head.weight[0]" in out
    assert "it is an output of the model" in re.sub(r"[\s│]+", " ", out)
    assert main(["inspect", SPEC, "--input", INPUT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [group["units"] for group in found["groups"]] == [8]
    assert main(["inspect", SPEC, "--input", INPUT, "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart TD\n")
    assert main(["explain", SPEC, "body", "--input", INPUT]) == 0
    assert "add test_cli.py" in capsys.readouterr().out
    assert main(["explain", SPEC, "head", "--input", INPUT, "--json"]) == 0
    assert "cannot shrink" in str(json.loads(capsys.readouterr().out)["explanation"])


@pytest.mark.filterwarnings("ignore")
def test_export(saved: Path, tmp_path: Path, capsys: Captured) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    target = tmp_path / "small.onnx"
    assert main(["export", str(saved), "--onnx", str(target), "--model", SPEC, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["max_rel_error"] < 1e-5
    assert found["bytes"] == target.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    assert "exists; pass --overwrite" in fails(["export", str(saved), "--onnx", str(target), "--model", SPEC], capsys)


@pytest.mark.filterwarnings("ignore")
def test_an_export_that_differs_is_not_written(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("structprune.export._difference", lambda *_: 0.5)
    assert main(["export", str(saved), "--onnx", str(tmp_path / "a.onnx"), "--model", SPEC]) == 1
    assert not list(tmp_path.iterdir())


def test_without_onnx(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = fails(["export", str(saved), "--onnx", str(tmp_path / "a.onnx"), "--model", SPEC], capsys)
    assert 'pip install "structprune[onnx]"' in error


# -- what does not --------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], str]] = {
    "no model": (["prune"], "required: MODEL"),
    "no spec": (["prune", "resnet18"], "'resnet18' is no model: write torchvision:NAME, timm:NAME"),
    "no name": (["prune", "torchvision:"], "is no model: write"),
    "an unknown module": (["prune", "nowhere:make"], "no module 'nowhere'"),
    "an unknown function": (["prune", "test_cli:smal"], "the closest are 'small'"),
    "a function that makes no model": (["prune", "test_cli:number"], "must make a torch.nn.Module, not int"),
    "no function": (["prune", "test_cli:text"], "must be a function or a class, not str"),
    "an unknown option of the model": (["prune", "test_cli:small?depth=3"], "unexpected keyword argument 'depth'"),
    "an option without a value": (["prune", "test_cli:small?width"], "options are written ?key=value"),
    "a function that fails": (["prune", "test_cli:fail"], "cannot be made: ZeroDivisionError: why (test_cli.py:"),
    "an input that cannot be made": (["prune", SPEC, "--input", "test_cli:fail"], "ZeroDivisionError: why"),
    "an input too large": (["prune", SPEC, "--input", "999999999x3x99999x9999"], "cannot be made"),
    "an input below nothing": (["prune", SPEC, "--input", "2x3x8x8:int64:0"], "below 0"),
    "a seed too large": (["prune", SPEC, "--seed", str(2**70)], "is not a whole number from 0"),
    "a ratio of a layer above one": (["prune", SPEC, "--ratios", "stem=2"], "'2' is not a number from 0"),
    "a page that is a folder": (["prune", SPEC, "--html", "."], "is a folder"),
    "no input": (["prune", SPEC], "pass --input, 1x3x224x224 for example"),
    "an input that is no shape": (["prune", SPEC, "--input", "3,8"], "is no shape: write 1x3x224x224"),
    "an input of an unknown dtype": (
        ["prune", SPEC, "--input", "2x3:int46"],
        "no dtype 'int46'; the closest are 'int64'",
    ),
    "an input that does not fit": (["prune", SPEC, "--input", "2x4x8x8"], "in stem"),
    "an input named twice": (["prune", SPEC, "--input", "x=2x3", "--input", "x=2x3"], "names 'x' twice"),
    "an input below too much": (["prune", SPEC, "--input", "2x3x8x8:int64:99999999999999999999"], "cannot be made"),
    "a target named twice": (
        ["prune", SPEC, "--input", INPUT, "--target", "macs=0.5", "--target", "macs=0.6"],
        "--target names 'macs' twice",
    ),
    "a ratio named twice": (
        ["prune", SPEC, "--input", INPUT, "--ratios", "stem=0.5", "--ratios", "stem=0.6"],
        "--ratios names 'stem' twice",
    ),
    "nowhere to save": (["prune", SPEC, "--input", INPUT, "--out", ""], "names no file or folder"),
    "nowhere for a page": (["prune", SPEC, "--input", INPUT, "--html", ""], "names no file or folder"),
    "inputs half named": (["prune", SPEC, "--input", "x=2x3", "--input", "2x3"], "name all of the arguments"),
    "an input that is not taken": (["prune", SPEC, "--input", "y=2x3x8x8"], "y"),
    "a ratio of one": (["prune", SPEC, "--ratio", "1"], "'1' is not a number from 0"),
    "a ratio that is none": (["prune", SPEC, "--ratio", "half"], "'half' is not a number from 0"),
    "a ratio of nan": (["prune", SPEC, "--ratio", "nan"], "'nan' is not a number from 0"),
    "a target without a number": (["prune", SPEC, "--target", "macs"], "'macs' is not COST=NUMBER"),
    "a target that is no number": (["prune", SPEC, "--target", "macs=x"], "'x' is not a number above 0"),
    "an unknown scope": (["prune", SPEC, "--scope", "all"], "invalid choice: 'all'"),
    "an unknown importance": (["prune", SPEC, "--importance", "l7"], "invalid choice: 'l7'"),
    "a pattern that matches nothing": (["prune", SPEC, "--input", INPUT, "--exclude", "stme"], "closest are 'stem'"),
    "weights that are not there": (["prune", SPEC, "--input", INPUT, "--weights", "no.pt"], "there is no file no.pt"),
    "an unknown layer": (["explain", SPEC, "stme", "--input", INPUT], "the closest are 'stem'"),
    "no layer": (["explain", SPEC], "required: LAYER"),
    "nothing saved": (["verify", "nowhere"], "there is no folder or file nowhere"),
    "an empty folder": (["report", "."], "holds no model.safetensors"),
    "no plan": (["diff", "nowhere.json", "nowhere.json"], "there is no file nowhere.json"),
    "one plan": (["diff", "nowhere"], "required: SECOND"),
    "no file for onnx": (["export", "nowhere"], "required: --onnx"),
    "no checkpoint": (["shrink", "no.pt", "--model", SPEC, "--input", INPUT], "there is no file no.pt"),
    "no model for a checkpoint": (["shrink", "no.pt"], "required: --model"),
    "an unknown command": (["pruen"], "invalid choice: 'pruen'"),
    "an unknown flag": (["prune", SPEC, "--rato", "0.5"], "unrecognized arguments: --rato"),
    "a zoo of an unknown library": (["zoo", "tensorflow", "--out", "zoo"], "no library whose models can be listed"),
    "a zoo without a folder": (["zoo", "timm"], "required: --out"),
    "a zoo with no time": (["zoo", "timm", "--out", "zoo", "--timeout", "0"], "'0' is not a number above 0"),
    "a zoo with no jobs": (["zoo", "timm", "--out", "zoo", "--jobs", "0"], "'0' is not a whole number from 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = WRONG[case]
    error = fails(arguments, capsys)
    assert words in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    out = capsys.readouterr().out
    doc = " ".join((COMMANDS[command].__doc__ or "").split())
    assert doc in " ".join(out.split())
    assert command == "demo" or f"example: structprune {command} " in " ".join(out.split())


def test_a_module_that_needs_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """The current folder is looked in; what a module there cannot import is not mistaken for the module."""
    (tmp_path / "needy_module.py").write_text("import absent_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert "importing needy_module fails: No module named 'absent_package'" in fails(
        ["prune", "needy_module:x"], capsys
    )


def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    for name in ("torchvision", "timm", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
        assert 'pip install "structprune[zoo]"' in fails(["inspect", f"{name}:x"], capsys)


# -- weights --------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


def wrapped(state: dict[str, Tensor]) -> Any:
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}


GOOD: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": dict,
    "wrapped": wrapped,
    "model": lambda s: {"model": s},
}
BAD: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (
        lambda s: {k: v for k, v in s.items() if k != "bn.bias"},
        "lacks 1 tensors of the model, 'bn.bias' first",
    ),
    "extra": (
        lambda s: {**s, "stem.wieght": s["stem.bias"]},
        "'stem.wieght', which the model does not have; the closest",
    ),
    "shape": (lambda s: {**s, "stem.bias": torch.zeros(9)}, "stem.bias has the shape (9,), the model (8,)"),
    "a list": (lambda s: [1, 2], "holds no state dict"),
    "a model": (lambda s: small(), "weights_only=True) refuses it"),
    "code": (lambda s: {"x": Bomb()}, "weights_only=True) refuses it"),
}


@pytest.mark.parametrize("case", GOOD)
def test_weights(case: str, tmp_path: Path) -> None:
    torch.save(GOOD[case](Small().state_dict()), tmp_path / "weights.pt")
    arguments = ["prune", SPEC, "--input", INPUT, "--weights", str(tmp_path / "weights.pt")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("case", BAD)
def test_weights_that_do_not_fit(case: str, tmp_path: Path, capsys: Captured) -> None:
    make, words = BAD[case]
    torch.save(make(Small().state_dict()), tmp_path / "weights.pt")
    assert words in fails(["prune", SPEC, "--input", INPUT, "--weights", str(tmp_path / "weights.pt")], capsys)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_none(suffix: str, tmp_path: Path, capsys: Captured) -> None:
    for content in (b"", b"hello", pickle.dumps(Bomb())):
        (tmp_path / f"weights{suffix}").write_bytes(content)
        error = fails(["prune", SPEC, "--input", INPUT, "--weights", str(tmp_path / f"weights{suffix}")], capsys)
        assert f"weights{suffix}" in error


# -- inputs and specs -----------------------------------------------------------------------------------------


def test_inputs() -> None:
    spec = parse(SPEC)
    one = make_inputs(["2x3x8x8"], spec, None)
    assert (one.shape, one.dtype) == ((2, 3, 8, 8), torch.float32)
    first, second = make_inputs(["2x3:float64", "4:int64:9"], spec, None)
    assert (first.dtype, second.dtype) == (torch.float64, torch.int64)
    assert 0 <= int(second.min()) <= int(second.max()) < 9
    named = make_inputs(["x=2x3x8x8", "words=2x5:int64:10"], spec, None)
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == {"x": (2, 3, 8, 8), "words": (2, 5)}
    assert make_inputs(["test_cli:inputs"], spec, None).shape == (2, 3, 8, 8)
    assert make_inputs(["3:bool"], spec, None).dtype == torch.bool


def test_named_inputs_are_used(capsys: Captured) -> None:
    assert main(["inspect", SPEC, "--input", "x=2x3x8x8", "--input", "words=2x5:int64:10", "--json"]) == 0
    slices = json.loads(capsys.readouterr().out)["groups"][0]["slices"]
    assert {"name": "embed.weight", "dim": 1, "produces": True} in slices


def test_specs_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    spec = parse("torchvision:squeezenet1_1?num_classes=7")
    model = spec.build()
    assert not model.training
    assert spec.inputs(model).shape == (1, 3, 224, 224)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    assert parse("torchvision:inception_v3").inputs(model).shape == (1, 3, 299, 299)
    assert parse("torchvision:r3d_18").inputs(model).shape == (1, 3, 16, 112, 112)
    assert len(parse("torchvision:raft_small").inputs(model)) == 2
    with pytest.raises(sp.UnknownNameError, match="'resnet18'"):
        parse("torchvision:resnet_18").build()
    assert [s.text for s in expand(["torchvision:resnet1*", "torchvision:resnet18"])] == ["torchvision:resnet101", "torchvision:resnet152", "torchvision:resnet18"]  # fmt: skip
    with pytest.raises(sp.UnknownNameError, match="matches no model"):
        expand(["torchvision:rasnet*"])
    assert not [s for s in expand(["torchvision"]) if "quantized" in s.name]


def test_a_transformer_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    size = "num_hidden_layers=1&hidden_size=16&num_attention_heads=2&intermediate_size=32&vocab_size=50"
    spec = parse(f"transformers:BertModel?{size}")
    model: Any = spec.build()
    assert spec.inputs(model)["input_ids"].shape == (1, 16)
    model.save_pretrained(tmp_path / "bert")
    local = parse(f"transformers:{tmp_path / 'bert'}")
    again = local.build()
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in model.state_dict().items())
    with pytest.raises(sp.UnknownNameError, match="the closest are 'BertModel'"):
        parse("transformers:BertModl").build()


# -- interrupted ----------------------------------------------------------------------------------------------


def test_prune_killed_while_it_writes(tmp_path: Path) -> None:
    """What was there can be loaded after every kill; then the command is run again, and is done."""
    target = tmp_path / "small"
    arguments = ["prune", SPEC, "--input", INPUT, "--out", str(target), "--overwrite"]
    assert main([*arguments, "--ratio", "0.25"]) == 0
    code = f"import sys; sys.path[:0] = {sys.path!r}; from structprune.cli import main; sys.exit(main({arguments!r}))"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.DEVNULL)
        while process.poll() is None and not any(target.glob(f"*{PARTIAL}")):
            time.sleep(0.001)
        process.kill()
        process.wait()
        model: Any = sp.load(target, small)
        assert model.stem.out_channels in (6, 4)
    assert main(arguments) == 0
    model = sp.load(target, small)
    assert model.stem.out_channels == 4
    assert sorted(path.name for path in target.iterdir()) == ["model.safetensors", "plan.json"]
