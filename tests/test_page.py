"""
The report in a browser: headless Chromium opens it, clicks through it as a reader would, and takes screenshots.

The test talks to Chromium by its DevTools protocol (chromedevtools.github.io/devtools-protocol) over a pipe: JSON
messages that end in a zero byte, no port and no further library.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netdiffusion_core.model import Encoded, Layout, Score
from netdiffusion_core.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (tools/debian.sh chromium)")

PHONE, DESKTOP = (390, 844), (1280, 900)
PATIENCE_SECONDS = 30
HOSTILE = "<img src=https://evil.example/x onerror=document.title=1>"
LAYOUT = Layout(
    name="test",
    version=1,
    fields=(
        ("ipv4.tl", 16), ("ipv4.ttl", 8), ("tcp.sprt", 16), ("tcp.syn", 1), ("tcp.ackf", 1),
        ("trace.direction", 1), ("trace.iat_us", 48), ("trace.padding", 7),
    ),
)  # fmt: skip


class Browser:
    """
    One page in headless Chromium. `events` holds what the page reported: requests and exceptions among them.
    """

    def __init__(self, profile: Path) -> None:
        theirs, ours = os.pipe()
        answers, their_answers = os.pipe()
        flags = f"--headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir={profile}"
        self.process = subprocess.Popen(  # Chromium reads descriptor 3 and writes 4
            ["bash", "-c", f"exec {CHROMIUM} --remote-debugging-pipe {flags} 3<&{theirs} 4>&{their_answers}"],
            pass_fds=(theirs, their_answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(their_answers)
        self._in, self._out, self._buffer, self._session = ours, answers, b"", {}
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """
        Send one command and return its result.
        """
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], PATIENCE_SECONDS)
            chunk = os.read(self._out, 1 << 20) if ready else b""
            assert chunk, "chromium does not answer"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def js(self, expression: str) -> Any:
        """
        Return the value of a JavaScript expression, awaited.
        """
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """
        Wait until a JavaScript expression is true.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.js(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.05)

    def show(self, url: str, size: tuple[int, int]) -> None:
        """
        Open a page in a window of this size, and wait for it.
        """
        width, height = size
        phone = size == PHONE
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete' && location.href != 'about:blank'")

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """
        Scroll an element into view and return a point of it, in shares of its width and height.
        """
        element = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.js(f"(b => [b.x, b.y, b.width, b.height])({element}.getBoundingClientRect())")
        return box[0] + x * box[2], box[1] + y * box[3]

    def mouse(self, kind: str, at: tuple[float, float]) -> None:
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **button)

    def click(self, selector: str) -> None:
        at = self.place(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, at)

    def screenshot(self, path: Path) -> np.ndarray:
        """
        Write what the window shows, and return it: uint8[height, width, 3].
        """
        png = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        path.write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(PATIENCE_SECONDS)
        os.close(self._in)
        os.close(self._out)


def encoded(labels: list[str], seed: int) -> Encoded:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 70, len(labels))
    rows = rng.integers(0, 2, (lengths.sum(), LAYOUT.width)).astype(np.int8)
    spans = LAYOUT.spans()
    rows[:, spans["ipv4.tl"]] = (1420 >> np.arange(16)[::-1]) & 1
    rows[:, spans["ipv4.ttl"]] = (57 >> np.arange(8)[::-1]) & 1
    rows[:, spans["trace.iat_us"]] = (2500 >> np.arange(48)[::-1]) & 1
    return Encoded(
        rows=rows,
        starts=np.concatenate([[0], lengths.cumsum()]),
        labels=labels,
        start_times=np.zeros(len(labels)),
        layout=LAYOUT,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """
    A report with a class whose name is markup, and figures that no evaluator of ours has.
    """
    folder = tmp_path_factory.mktemp("report")
    telltale = {"dns": {"ipv4.ttl": 0.7}, HOSTILE: {"tcp.sprt": 0.2}}
    scores = [
        Score(name="a.auc", value=0.9, goal="minimize", lower=0.5, upper=1, floor=0.6, detail={"telltale": telltale}),
        Score(
            name="b.x",
            value=3.0,
            goal="none",
            lower=0,
            upper=9,
            detail={"odd": [[1, {"deep": HOSTILE}]], "spread": 0.25},
        ),
    ]
    labels = ["dns"] * 5 + [HOSTILE] * 5
    write_report(
        folder,
        rows={"ours": scores, "bernoulli": scores},
        real=encoded(labels, 0),
        synthetic=encoded(labels, 1),
        violations=[],
        repairs=[{"rule": "tcp.window", "packets": 3}],
        manifest={"seed": 7, "config": {"backend": HOSTILE}},
    )
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def luminance(picture: np.ndarray) -> float:
    return float(np.median(picture))


def test_a_reader_clicks_through_the_report(browser: Browser, page: str, tmp_path: Path) -> None:
    browser.show(page, DESKTOP)
    assert browser.js("document.querySelector('h1').textContent") == "How real is this synthetic traffic?"
    assert luminance(browser.screenshot(tmp_path / "light.png")) > 200

    browser.click("#theme")
    assert luminance(browser.screenshot(tmp_path / "dark.png")) < 60
    browser.click("#theme")
    assert luminance(browser.screenshot(tmp_path / "light-again.png")) > 200

    for section in browser.js("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))"):
        browser.click(f"nav a[href='{section}']")
        browser.wait(f"document.querySelector('{section}').getBoundingClientRect().top < innerHeight")
        assert browser.js(f"document.querySelector('{section}').getBoundingClientRect().top") >= 0

    # one class at a time, and the one whose name is markup
    visible = "[...document.querySelectorAll('.class h3')].filter(h => h.offsetParent).map(h => h.textContent)"
    assert len(browser.js(visible)) == 1
    browser.click(".picker button:nth-child(1)")
    assert browser.js(visible) == [HOSTILE]
    browser.click(".picker button:nth-child(2)")
    assert browser.js(visible) == ["dns"]
    browser.screenshot(tmp_path / "class.png")

    # hover names the field, its value and the bit: column 16 + 7 is the last of the TTL, 57
    image = ".class:not([hidden]) .strip img"
    browser.mouse("mouseMoved", browser.place(image, (16 + 7.5) / LAYOUT.width, 0.01))
    assert browser.js("document.getElementById('tip').innerText") == "ipv4.ttl = 57\nbit 7: 1, packet 1, column 23"
    browser.screenshot(tmp_path / "hover.png")

    # zoom: the real flow and its synthetic counterpart, and hovering there
    browser.click(image)
    assert browser.js("document.getElementById('zoom').open")
    titles = browser.js("[...document.querySelectorAll('.zoomed h5')].map(h => h.textContent.split(' flow')[0])")
    assert titles == ["real", "synthetic"]
    assert browser.js("document.querySelector('.zoomed img').width") == 8 * LAYOUT.width
    browser.mouse("mouseMoved", browser.place(".zoomed img", 0.001, 0.01))
    assert browser.js("document.getElementById('tip').innerText").startswith("ipv4.tl = 1420\nbit 0: 0, packet 1")
    browser.screenshot(tmp_path / "zoom.png")
    browser.click("#zoom button")
    assert not browser.js("document.getElementById('zoom').open")

    # the flow graph: 2.5 ms between packets of 1,420 bytes
    second = browser.js("document.querySelector('.class:not([hidden]) .graph li:nth-child(2)').innerText").split()
    assert (second[0], second[-1]) == ("0.002500", "1,420")


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, page: str, tmp_path: Path) -> None:
    browser.show(page, PHONE)
    assert browser.js("document.documentElement.scrollWidth") == PHONE[0]
    assert browser.screenshot(tmp_path / "phone.png").shape[1] == PHONE[0]
    for selector in ("#theme", ".picker button"):
        assert browser.js(f"document.querySelector('{selector}').getBoundingClientRect().right") <= PHONE[0]


def test_the_page_asks_the_network_for_nothing_and_runs_no_stranger(browser: Browser, page: str) -> None:
    browser.events.clear()
    browser.show(page, DESKTOP)
    browser.click(".class:not([hidden]) .strip")
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} == {"file", "data"}
    assert [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown"] == []
    assert browser.js("document.title") == "NetDiffusion report: ours"
    assert "blocked" in browser.js("fetch('https://evil.example').catch(() => 'blocked')")
