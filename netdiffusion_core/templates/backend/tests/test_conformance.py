"""
NetDiffusion's conformance kit on the backend, and what the model is worth.
"""

from __future__ import annotations

import numpy as np
from netdiffusion_newplugin.backend import NewpluginBackend
from netdiffusion_newplugin.plugin import NEWPLUGIN

from netdiffusion_core.context import Context
from netdiffusion_core.model import SampleRequest
from netdiffusion_core.testing import BackendConformance, example_bits, example_traffic


class TestNewplugin(BackendConformance):
    spec = NEWPLUGIN


def test_no_transition_is_drawn_that_was_never_seen() -> None:
    data = example_bits(example_traffic())
    model = NewpluginBackend()
    model.fit(data, Context())
    drawn = model.sample(SampleRequest(labels=("web",) * 20, max_packets=9, seed=0), Context())
    first = drawn.rows[drawn.starts[:-1]]
    real = data.rows[data.starts[:-1][data.labels == "web"]]
    assert (first[:, (real == real[0]).all(axis=0)] == real[0, (real == real[0]).all(axis=0)]).all()
    assert np.isin(drawn.values("tcp.syn")[drawn.starts[:-1]], [1]).all()  # every connection begins with SYN
