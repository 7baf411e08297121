"""Reports: as data and back, as a page that needs nothing else, and as Mermaid."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import OrderedDict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import randomise
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import structprune as sp
from structprune.diagram import Diagram, Layer, draw
from structprune.html import LANES, ROW, lanes

VOID = {"meta", "circle", "path", "br"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Block(nn.Module):
    """A residual block, and a layer whose size is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.last, self.fc = nn.Conv2d(8, 4, 1), nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x).relu())
        out: Tensor = self.fc(self.last(x).view(-1, 256))
        return out


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def result() -> sp.Result:
    torch.manual_seed(0)
    return sp.prune(randomise(Block()), images())


@pytest.fixture
def page(result: sp.Result, tmp_path: Path) -> str:
    result.report.to_html(tmp_path / "deep" / "report.html", title="a <block> & more")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]
    return (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")


# -- the diagram ----------------------------------------------------------------------------------------------


def test_the_diagram(result: sp.Result) -> None:
    """Layers in order with what feeds them, the sum as a ring of the same group, and what is in the way."""
    found = result.report.diagram
    rows = {layer.name if layer.width[0] else layer.op: layer for layer in found.layers}
    assert list(rows) == ["input", "stem", "a", "b", "add", "last", "fc", "output"]
    names = [layer.name if layer.width[0] else layer.op for layer in found.layers]
    feeds = {name: [names[i] for i in layer.inputs] for name, layer in rows.items()}
    assert feeds == {
        "input": [], "stem": ["input"], "a": ["stem"], "b": ["a"], "add": ["stem", "b"], "last": ["add"], "fc": ["last"],
        "output": ["fc"],
    }  # fmt: skip
    assert rows["stem"].group == rows["b"].group == rows["add"].group != rows["a"].group
    assert (rows["stem"].width, rows["a"].width, rows["last"].width) == ((8, 4), (6, 3), (4, 4))
    assert rows["stem"].macs == (2 * 64 * 8 * 27, 2 * 64 * 4 * 27)
    assert rows["b"].macs == (2 * 64 * 48, 2 * 64 * 12)
    assert rows["last"].group == -1
    assert "view is given the size 256, written in the code (view test_report.py:" in rows["last"].fixed
    assert sum(layer.macs[0] for layer in found.layers) == result.report.macs[0]
    assert sum(layer.macs[1] for layer in found.layers) == result.report.macs[1]
    group = found.groups[rows["stem"].group]
    assert (group.name, group.units, group.filters, group.readers) == ("stem", (8, 4), ("stem", "b"), ("a", "last"))
    assert re.fullmatch(r"add in add, test_report\.py:\d+", group.through[0])


def test_what_blocks_is_ranked_by_macs(result: sp.Result) -> None:
    found = result.report.diagram.blockers
    assert [b.macs for b in found] == sorted((b.macs for b in found), reverse=True)
    reasons = {b.reason.partition(" (")[0]: b for b in found}
    view = reasons["view is given the size 256, written in the code"]
    assert "last.weight[0]" in view.dims
    assert view.macs == next(layer.macs[1] for layer in result.report.diagram.layers if layer.name == "last")
    assert reasons["it meets the model's input, whose size is fixed"].dims == ("stem.weight[1]",)


def test_without_a_plan_nothing_shrinks() -> None:
    found = draw(sp.analyze(Block(), images()))
    assert all(layer.width[0] == layer.width[1] and layer.macs[0] == layer.macs[1] for layer in found.layers)
    assert [kind.units for kind in found.groups] == [(8, 8), (6, 6)]


def test_it_comes_back_from_json(result: sp.Result) -> None:
    data = json.loads(json.dumps(result.report.to_dict()))
    again = sp.Report.from_dict(data)
    assert json.loads(json.dumps(again.to_dict())) == data
    assert again.diagram == result.report.diagram
    assert again.fixed == result.report.fixed
    assert str(again) == str(result.report)
    assert Diagram.from_dict(result.report.diagram.to_dict()) == result.report.diagram


@pytest.mark.parametrize("data", [None, [], {}, {"params": 3}, "report"], ids=repr)
def test_what_is_no_report(data: Any) -> None:
    with pytest.raises(sp.FileFormatError, match="this is no report of structprune"):
        sp.Report.from_dict(data)


def test_a_damaged_report(result: sp.Result) -> None:
    data = json.loads(json.dumps(result.report.to_dict()))
    for key in data:
        with pytest.raises(sp.FileFormatError):
            sp.Report.from_dict({k: v for k, v in data.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"), [("message", None), ("max_rel_error", "much"), ("comparisons", [3]), ("first_difference", 3)]
)
def test_a_verification_of_odd_parts(key: str, value: Any, result: sp.Result, tmp_path: Path) -> None:
    """They are refused, or are texts and numbers then."""
    data = json.loads(json.dumps(result.report.to_dict()))
    data["verification"][key] = value
    data["fixed"] = {"a": 3}
    try:
        again = sp.Report.from_dict(data)
    except sp.FileFormatError:
        return
    again.to_html(tmp_path / "report.html")
    assert "kept, 1 x: 3" in str(again)


def test_names_that_look_like_markup() -> None:
    names = ["[bold]", "[/x]", "[mask]"]
    model = nn.Sequential(OrderedDict(zip(names, [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)], strict=True)))
    result = sp.prune(randomise(model), torch.randn(2, 4), ratio=0.5)
    assert "[bold]" in str(result.report)
    assert "[mask].weight" in str(sp.sparsity(model, torch.randn(2, 4)))
    graph = sp.analyze(model, torch.randn(2, 4))
    found = sp.sensitivity(graph, lambda m: float(m(torch.ones(1, 4)).sum().detach()), ratios=[0.5])
    assert "[bold]" in str(found)
    with pytest.raises(sp.NothingToPruneError, match="1 groups are excluded"):
        sp.plan(graph, exclude=["[bold]"])


def test_a_model_pruned_in_place_has_its_report() -> None:
    model = randomise(Block())
    report = sp.prune(model, images(), inplace=True).report
    assert report.diagram.layers[1].width == (8, 4)
    assert report.fixed


# -- the page -------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects texts and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_a_page_that_is_whole(page: str, result: sp.Result) -> None:
    found = read(page)
    assert found.texts["title"] == ["a <block> & more"]
    assert "".join(found.texts["h1"]) == "a <block> & more"
    rows = sum(tag == "button" and "row" in value.split() for tag, key, value in found.attributes if key == "class")
    assert rows == len(result.report.diagram.layers)
    for words in ("8 → 4", "6 → 3", "equal", "last.weight[0]", "float64", "view is given the size 256"):
        assert words in "".join(text for texts in found.texts.values() for text in texts)


def test_a_page_that_needs_nothing(page: str) -> None:
    """No address, no source, and a policy that would not allow one."""
    found = read(page)
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"<script.*?</script>", "", page, flags=re.S))
    assert not [key for _, key, _ in found.attributes if key in ("src", "href")]
    assert (
        "meta",
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    ) in found.attributes
    assert "prefers-color-scheme: dark" in page
    assert ("meta", "content", "width=device-width, initial-scale=1") in found.attributes


def test_names_are_no_markup(tmp_path: Path) -> None:
    """Names of modules and reasons may hold anything."""
    evil = "</script><script>alert(1)</script>"
    layers = (Layer(evil, "conv2d", evil, (4, 2), (8, 4), -1, (), evil),)
    report = sp.Report((1, 1), (1, 1), {}, None, dict, (evil,), 0.0, find_diagram=lambda: Diagram(layers))
    report.to_html(tmp_path / "evil.html", title=evil)
    found = read((tmp_path / "evil.html").read_text())
    assert len(found.texts["script"]) == 2
    assert json.loads(found.texts["script"][0])["layers"][0]["text"][0] == evil


def test_a_model_without_anything_to_draw(tmp_path: Path) -> None:
    sp.Report((0, 0), (0, 0), {}, None, dict, (), 0.0).to_html(tmp_path / "empty.html")
    assert "not verified" in (tmp_path / "empty.html").read_text()


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=30))
def test_lanes_do_not_cross(rows: list[list[int]]) -> None:
    """Edges that pass by layers share a lane only if they are apart, or there are no lanes left."""
    layers = [Layer("", "", "", (0, 0), (0, 0), -1, tuple({j for j in row if j < i}), "") for i, row in enumerate(rows)]
    found = lanes(layers)
    assert set(found) == {(j, i) for i, layer in enumerate(layers) for j in layer.inputs}
    for (start, end), lane in found.items():
        assert (lane == 0) == (end == start + 1)
        for (a, b), other in found.items():
            if lane == other != 0 and lane < LANES and (a, b) != (start, end):
                assert end <= a or b <= start


def test_in_a_browser(page: str, tmp_path: Path) -> None:
    """The script runs: a click opens the explanation, and every dot lies beside its row."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium to look at the page with")
    probe = (
        "<script>rows[1].click(); const seen = [panel.textContent, document.querySelector('svg').getBoundingClientRect()"
        ".top, rows[0].getBoundingClientRect().top, rows[1].getBoundingClientRect().top];"
        "document.title = JSON.stringify(seen);</script></body>"
    )
    (tmp_path / "probe.html").write_text(page.replace("</body>", probe))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(read(done.stdout).texts["title"][0])
    assert "The group stem: 8 units, 4 of them are left." in seen[0]
    assert seen[1] == seen[2]
    assert seen[3] - seen[2] == ROW


# -- Mermaid --------------------------------------------------------------------------------------------------


def test_mermaid() -> None:
    text = sp.analyze(Block(), images()).to_mermaid()
    lines = text.splitlines()
    assert lines[0] == "flowchart TD"
    assert '    n1["stem<br/>conv2d, 8"]' in lines
    assert '    n4(("add"))' in lines
    assert "    n1 --> n4" in lines
    assert "    class n1,n3,n4 g0" in lines
    assert len({line.split("fill:")[1][:7] for line in lines if "classDef" in line}) == 2
