"""
NetDiffusion's conformance kit on the encoder, and what its bits mean.
"""

from __future__ import annotations

import numpy as np
from netdiffusion_newplugin.encoder import NewpluginEncoder
from netdiffusion_newplugin.plugin import NEWPLUGIN

from netdiffusion_core.testing import EncoderConformance, example_traffic


class TestNewplugin(EncoderConformance):
    spec = NEWPLUGIN


def test_a_connection_reads_as_what_it_is() -> None:
    encoded = NewpluginEncoder().encode(example_traffic(flows=1).select_flows(np.array([0])))
    assert encoded.values("packet.flags")[:3].tolist() == [0x02, 0x12, 0x10]  # SYN, SYN-ACK, ACK
    assert encoded.values("trace.direction")[:3].tolist() == [0, 1, 0]
    assert encoded.values("packet.destination_port")[0] == 80
    assert encoded.values("packet.length")[0] == 44  # IPv4, TCP and the maximum segment size
