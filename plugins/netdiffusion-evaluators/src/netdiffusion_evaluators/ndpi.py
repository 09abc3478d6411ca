"""
A program of its own, for the evaluator ``interop``: nDPI's flows in a capture, by PyPI's nfstream.

    python -m netdiffusion_evaluators.ndpi packets.pcap

prints a line a flow: JSON ``[protocol, address, port, packets sent, address, port, packets sent, application]``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from nfstream import NFStreamer

_FOREVER_S = 10**9


def flows(path: str) -> Iterator[str]:
    """
    Yield the lines.
    """
    for f in NFStreamer(path, decode_tunnels=False, n_meters=1, idle_timeout=_FOREVER_S, active_timeout=_FOREVER_S):
        ends = f.src_ip, f.src_port, f.src2dst_packets, f.dst_ip, f.dst_port, f.dst2src_packets
        yield json.dumps([f.protocol, *ends, f.application_name])


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in flows(sys.argv[1]))
