"""
The report: honest grades, lossless pictures, valid JSON, a page that is whole, offline and safe to open.
"""

from __future__ import annotations

import base64
import errno
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from netdiffusion_core.errors import DataError, RunError
from netdiffusion_core.model import Encoded, Layout, Score, Violation
from netdiffusion_core.report import render_png, score_table, write_report
from netdiffusion_core.report.verdict import axes, grade

LAYOUT = Layout(
    name="test",
    version=1,
    fields=(
        ("ipv4.tl", 16), ("ipv6.len", 16), ("tcp.sprt", 16),
        ("trace.direction", 1), ("trace.iat_us", 48), ("trace.padding", 7),
    ),
)  # fmt: skip
BIT_OF = {(255, 0, 0): 1, (0, 255, 0): 0, (0, 0, 255): -1}  # the paper's colours
HOSTILE = "<script>alert('x')</script>\"><img src=https://evil.example onerror=alert(1)>"


def encoded(labels: list[str], seed: int = 0, layout: Layout = LAYOUT, size_bytes: int = 100) -> Encoded:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 90, len(labels))
    rows = rng.integers(0, 2, (lengths.sum(), layout.width)).astype(np.int8)
    spans = layout.spans()
    rows[:, spans["ipv4.tl"]] = (size_bytes >> np.arange(16)[::-1]) & 1
    rows[:, spans["ipv6.len"]] = -1
    return Encoded(
        rows=rows,
        starts=np.concatenate([[0], lengths.cumsum()]),
        labels=labels,
        start_times=np.zeros(len(labels)),
        layout=layout,
    )


def score(name: str, value: float, **fields: Any) -> Score:
    return Score(**{"name": name, "value": value, "goal": "minimize", "lower": 0, "upper": 1, "floor": 0.1} | fields)


SCORES = {
    "ours": [
        score("fidelity.jsd", 0.3, summary="How far", detail={"per_class": {"dns": {"value": 0.3, "floor": 0.1}}}),
        score("utility.f1", math.nan, goal="maximize", detail={"reason": "one class only", "n": np.int64(3)}),
        score("timing.gap", 0.2, upper=math.inf, detail={"per_field": {"tcp.sprt": 0.7}, "edges": np.arange(2)}),
    ],
    "bernoulli": [score("fidelity.jsd", 0.12)],
}


def report(folder: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    arguments: dict[str, Any] = {
        "rows": SCORES,
        "real": encoded(["dns"] * 3 + ["ssh"] * 3),
        "synthetic": encoded(["dns"] * 5 + ["ssh"] * 2, seed=1),
        "violations": [Violation(rule="tcp.checksum", flow=0, packet=1, field="tcp.cksum", message="wrong")] * 2,
        "repairs": [{"rule": "tcp.window", "packets": 3, "bits": 5}],
        "manifest": {"seed": 7, "versions": {"python": "3.11"}, "stages": [{"name": "fit", "seconds": 1.5}]},
        "classes": [{"label": "dns", "train_flows": 4321}],
    }
    write_report(folder, **arguments | changes)
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.json"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return (
        json.loads((folder / "report.json").read_text("utf-8"), parse_constant=refuse),
        (folder / "report.html").read_text("utf-8"),
    )


class Page(HTMLParser):
    """
    Collects tags, the text between them and what the attributes point to.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "action", "data", "srcset", "poster")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> list[np.ndarray]:
        urls = [link for link in self.links if link.startswith("data:image/png;base64,")]
        return [pixels(base64.b64decode(url.split(",")[1])) for url in urls]


def pixels(png: bytes) -> np.ndarray:
    rgb = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    bits = np.full(rgb.shape[:2], -9)
    for colour, bit in BIT_OF.items():
        bits[(rgb == colour).all(-1)] = bit
    return bits


# --- pictures ---------------------------------------------------------------------------------------------------


def test_a_png_holds_exactly_the_bits(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(-1, 2, (5, LAYOUT.width)).astype(np.int8)
    render_png(rows, LAYOUT, tmp_path / "flow.png")
    assert (pixels((tmp_path / "flow.png").read_bytes()) == rows).all()
    assert Image.open(tmp_path / "flow.png").mode == "RGB"

    large = io.BytesIO()
    render_png(rows, LAYOUT, large, scale=3)
    assert (pixels(large.getvalue()) == rows.repeat(3, 0).repeat(3, 1)).all()


@pytest.mark.parametrize("shape", [(0, LAYOUT.width), (4, LAYOUT.width - 1), (LAYOUT.width,)])
def test_rows_of_another_layout_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=rf"{LAYOUT.width} columns"):
        render_png(np.zeros(shape, np.int8), LAYOUT, io.BytesIO())


def test_the_page_shows_typical_flows_of_each_side_bit_by_bit(tmp_path: Path) -> None:
    real, synthetic = encoded(["dns"] * 9), encoded(["dns"] * 2, seed=1)
    pictures = Page(report(tmp_path, real=real, synthetic=synthetic)[1]).pictures
    order = np.argsort(real.lengths, kind="stable")
    expected = [real.flow(order[i])[:64] for i in (1, 3, 5, 7)]  # not the shortest, not the longest
    expected += [synthetic.flow(i)[:64] for i in np.argsort(synthetic.lengths, kind="stable")]
    assert len(pictures) == len(expected)
    assert all((a == b).all() for a, b in zip(pictures, expected, strict=True))


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    _, html = report(tmp_path)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    page = Page(html)
    assert all(link.startswith(("#", "data:image/png;")) for link in page.links)
    assert "link" not in page.tags
    assert "How far: 0.300 (real against real: 0.100, ideal: 0)." in page.text  # and it says something
    assert "4,321" in page.text
    assert "one class only" in page.text


def test_markup_from_outside_is_shown_as_text(tmp_path: Path) -> None:
    labels = [HOSTILE] * 3
    _, html = report(
        tmp_path,
        rows={HOSTILE: [score(f"a.{HOSTILE}", 0.3, summary=HOSTILE, detail={HOSTILE: {HOSTILE: 1.0}, "x": HOSTILE})]},
        real=encoded(labels),
        synthetic=encoded(labels),
        violations=[Violation(rule=HOSTILE, flow=0, packet=0, field="x", message=HOSTILE)],
        repairs=[{HOSTILE: HOSTILE}],
        manifest={HOSTILE: {HOSTILE: HOSTILE}, "rows": [{HOSTILE: HOSTILE}]},
        classes=[{"label": HOSTILE, HOSTILE: HOSTILE}],
    )
    clean, attacked = Page(report(tmp_path)[1]), Page(html)
    assert attacked.tags.count("script") == clean.tags.count("script") == 2
    assert attacked.tags.count("img") == len(attacked.pictures)
    assert attacked.handlers == []
    assert attacked.text.count(HOSTILE) >= 10


def test_a_name_that_is_not_unicode_does_not_stop_the_report(tmp_path: Path) -> None:
    label = b"caf\xe9".decode("utf-8", "surrogateescape")  # a folder's name in Latin-1
    document, html = report(tmp_path, real=encoded([label]), classes=[{"label": label}])
    assert document["classes"] == [{"label": label}]
    assert "caf" in html


def test_what_the_layout_or_a_side_lacks_is_left_out(tmp_path: Path) -> None:
    _, html = report(tmp_path)
    assert html.count('<figure class="graph') == 3 + 4 + 3 + 2  # one a picture: four flows of a class and side at most
    assert html.count('<figure class="plot"') == 2 * 3
    paper = Layout(name="bits only", version=1, fields=(("ipv4.tl", 16), ("ipv6.len", 16), ("tcp.sprt", 16)))
    _, html = report(tmp_path, real=encoded(["a", "b"], layout=paper), synthetic=encoded(["b", "c"], layout=paper))
    assert '<figure class="graph' not in html
    assert html.count('<figure class="plot"') == 3 * 2
    assert html.count("no flows") == 2  # none synthetic of a, none real of c


def test_distributions_tell_equal_from_different(tmp_path: Path) -> None:
    real = encoded(["dns"] * 4)
    _, same = report(tmp_path, real=real, synthetic=real)
    assert same.count("largest gap 0<") == 3
    _, other = report(tmp_path, real=real, synthetic=encoded(["dns"] * 4, size_bytes=1400))
    assert other.count("largest gap 1.000<") == 1


def test_what_gives_a_class_away_is_shown_with_the_class(tmp_path: Path) -> None:
    detail = {
        "telltale": {"dns": {"udp.len": 0.5, "ipv4.ttl": 0.7}, "ssh": {"tcp.wsize": 0.2}},
        "nearest": {"dns": {"real": 0.25, "synthetic": 0.5}, "ssh": {"real": 1.0, "synthetic": 2.0}},
        "per_class": {"dns": {"value": 0.95, "floor": 0.5}, "ssh": {"value": 0.5, "floor": 0.5}},
    }
    _, html = report(tmp_path, rows={"ours": [score("detectability.auc", 0.9, lower=0.5, detail=detail)]})
    dns, ssh, rest = re.split(r'<section class="class"|<section id="scores"', html)[1:]
    assert dns.index("ipv4.ttl") < dns.index("udp.len")  # the largest first
    assert "tcp.wsize" not in dns
    assert "tcp.wsize" in ssh
    cells = [" ".join(row.split()) for row in Page(rest.replace("</tr>", "\n")).text.splitlines()]
    assert "detectability.auc0.950 0.5000.500 0.500" in cells
    assert "dns0.2500.500" in cells
    assert 'class="n poor">0.950' in rest
    assert 'class="n good">0.500' in rest


# --- figures ----------------------------------------------------------------------------------------------------


def test_json_says_it_all_and_is_valid(tmp_path: Path) -> None:
    document, _ = report(tmp_path)
    assert document["ours"] == "ours"
    assert list(document["scores"]) == ["ours", "bernoulli"]
    _, utility, timing = document["scores"]["ours"]
    assert utility["value"] is None
    assert utility["detail"] == {"reason": "one class only", "n": 3}
    assert timing["upper"] is None
    assert timing["detail"]["edges"] == [0, 1]
    assert document["verdict"][0]["values"] == {"ours": 0.3, "bernoulli": 0.12}
    assert document["verdict"][0]["better"] == ["bernoulli"]
    assert document["violations"][0] | {"example": ""} == {
        "rule": "tcp.checksum", "severity": "error", "count": 2, "flows": 1, "repairable": True, "example": "",
    }  # fmt: skip
    assert document["manifest"]["seed"] == 7


@pytest.mark.parametrize(
    ("fields", "baselines", "expected"),
    [
        # divergence per bit of published output, held-out real flows and independent bits: tiny, but far off
        ({"value": 0.036, "floor": 0.007}, [0.007], "poor"),
        ({"value": 0.008, "floor": 0.007}, [0.007], "good"),
        # a classifier's AUC: 0.5 is ideal, real against real 0.59, independent bits 1.0
        ({"value": 0.93, "floor": 0.59, "lower": 0.5}, [1.0], "poor"),
        ({"value": 0.66, "floor": 0.59, "lower": 0.5}, [1.0], "fair"),
        ({"value": 0.60, "floor": 0.59, "lower": 0.5}, [1.0], "good"),
        # better than real traffic is no worse than real traffic
        ({"value": 1.0, "floor": 0.998, "goal": "maximize"}, [0.03], "good"),
        ({"value": 0.8, "floor": 1.0, "goal": "maximize"}, [0.1], "fair"),
        ({"value": 0.5, "floor": 1.0, "goal": "maximize"}, [0.1], "poor"),
        # no floor: the ideal stands in; no goal; not measured
        # the same distance in bytes, whatever a packet's greatest size; floor and ideal alike, nothing to compare with
        ({"value": 28.0, "floor": 11.0, "upper": 65_575}, [40.0], "poor"),
        ({"value": 0.999, "floor": 1.0, "goal": "maximize"}, [], "good"),
        ({"value": 0.9, "floor": 1.0, "goal": "maximize"}, [1.0], "poor"),
        ({"value": 0.0, "floor": None}, [], "good"),
        ({"value": 0.4, "floor": None}, [], "poor"),
        ({"value": 0.15, "floor": 0.1, "upper": math.inf}, [], "fair"),
        ({"value": 0.15, "goal": "none"}, [], "none"),
        ({"value": math.nan}, [], "none"),
    ],
)
def test_grades(fields: dict[str, Any], baselines: list[float], expected: str) -> None:
    assert grade(score("x.y", **fields), baselines) == expected


def test_an_axis_is_spoken_for_by_its_first_figure_that_was_measured() -> None:
    first = score("utility.f1", math.nan)
    second = score("utility.accuracy", 0.9)
    assert axes({"ours": [first, second]})[0].headline == "utility.accuracy"
    assert axes({"ours": [first]})[0].sentence.endswith("not measured: the evaluator gave no reason.")


def test_the_table_shows_every_backend_and_what_is_missing() -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(score_table({"[ours]": SCORES["ours"], "bernoulli": SCORES["bernoulli"]}))
    header, *lines = (line for line in console.export_text().splitlines() if "┃" in line or "│" in line)
    assert [c.strip() for c in header.strip("┃").split("┃")] == ["figure", "", "[ours]", "floor", "bernoulli"]
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in lines]
    assert cells == [
        ["fidelity.jsd", "↓", "0.300", "0.100", "0.120"],
        ["utility.f1", "↑", "–", "0.100", "–"],
        ["timing.gap", "↓", "0.200", "0.100", "–"],
    ]


# --- a full disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_at", ["report.json", "report.html"])
def test_a_full_disk_leaves_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str) -> None:
    new, old, real = tmp_path / "new", tmp_path / "old", encoded(["dns"])
    new.mkdir()
    old.mkdir()
    (old / "report.html").write_text("last week's")
    write_text = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        if full_at not in self.name:
            return write_text(self, text, **options)
        write_text(self, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        for folder in (new, old):
            with pytest.raises(RunError, match="No space left on device; free some space"):
                write_report(folder, rows=SCORES, real=real, synthetic=real, violations=[], repairs=[], manifest={})
    assert list(new.iterdir()) == []
    assert [(p.name, p.read_text()) for p in old.iterdir()] == [("report.html", "last week's")]


def test_the_same_run_gives_the_same_report(tmp_path: Path) -> None:
    assert report(tmp_path) == report(tmp_path)


def test_scores_and_flows_may_be_missing_altogether(tmp_path: Path) -> None:
    none = encoded(["dns"]).select(np.array([], np.int64))
    document, html = report(tmp_path, rows={}, real=none, synthetic=none, repairs=[], violations=[], classes=())
    assert document["verdict"] == []
    assert "Nothing was evaluated." in html
