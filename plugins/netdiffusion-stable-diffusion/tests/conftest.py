"""
What the tests of this distribution share.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from netdiffusion_core.model import Encoded, Layout
from netdiffusion_stable_diffusion.family import Family


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def layout() -> Layout:
    fields = (("ipv4.tl", 16), ("ipv4.id", 16), ("tcp.sprt", 16), ("udp.sport", 16), ("trace.iat_us", 64))
    return Layout(name="test", version=1, fields=fields)


@pytest.fixture(scope="session")
def data(layout) -> Encoded:
    """
    Two classes: "long" has TCP columns and 10 to 20 packets, "short" has UDP columns and 2 to 6.
    """
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(10, 21, 12), rng.integers(2, 7, 12)])
    labels = np.repeat(["long", "short"], 12)
    rows = rng.integers(0, 2, (lengths.sum(), layout.width)).astype(np.int8)
    long = np.repeat(labels, lengths) == "long"
    rows[long, layout.span("udp")] = -1
    rows[~long, layout.span("tcp")] = -1
    return Encoded(
        rows=rows,
        starts=np.cumsum([0, *lengths]),
        labels=labels,
        start_times=np.zeros(24),
        layout=layout,
    )


@pytest.fixture
def waiting(monkeypatch):
    """
    ``waiting(Class, ...)``: parts of these classes may only be used inside `Family.at_work`.
    """
    working: list[set[int]] = []

    @contextmanager
    def at_work(self, *parts):
        working.append({id(module) for part in parts for module in part.modules()})
        yield
        working.pop()

    def guarded(method):
        def call(self, *arguments, **more):
            assert any(id(self) in modules for modules in working), type(self)
            return method(self, *arguments, **more)

        return call

    def guard(*kinds):
        monkeypatch.setattr(Family, "at_work", at_work)
        for kind in kinds:
            for name in {"encode", "decode", "forward"} & set(dir(kind)):
                monkeypatch.setattr(kind, name, guarded(getattr(kind, name)))

    return guard
