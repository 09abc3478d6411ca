"""
The encoder: a few numbers of each IPv4 packet, as bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture import dissect
from netdiffusion_core.errors import DataError
from netdiffusion_core.interfaces import Encoder
from netdiffusion_core.model import LINK_RAW, MISSING, TCP, UDP, Encoded, FlowTable, Layout, Traffic

Array = NDArray[Any]

LAYOUT = Layout(
    name="newplugin",
    version=1,
    fields=(
        ("packet.length", 16),  # IP header, transport header and data, in bytes
        ("packet.ttl", 8),
        ("packet.protocol", 8),
        ("packet.source_port", 16),  # of TCP and UDP
        ("packet.destination_port", 16),
        ("packet.flags", 8),  # of TCP
        ("packet.window", 16),
        ("trace.direction", 1),  # 0: sent by the flow's initiator
        ("trace.iat_us", 32),  # microseconds since the flow's packet before; 0 for the first
    ),
)

IPV4 = np.dtype(
    [("version", "u1"), ("tos", "u1"), ("length", ">u2"), ("id", ">u2"), ("fragment", ">u2"), ("ttl", "u1"),
     ("protocol", "u1"), ("checksum", ">u2"), ("source", "u1", 4), ("target", "u1", 4)]
)  # fmt: skip
PORTS = np.dtype([("source_port", ">u2"), ("destination_port", ">u2")])
REST = np.dtype(
    [("sequence", ">u4"), ("acknowledgment", ">u4"), ("offset", "u1"), ("flags", "u1"), ("window", ">u2"),
     ("checksum", ">u2"), ("urgent", ">u2")]
)  # fmt: skip
HEADERS = np.dtype([("ip", IPV4), ("ports", PORTS), ("tcp", REST)])


class NewpluginEncoder(Encoder):
    """
    Packets of TCP and UDP with their ports, others with sizes and times only.
    """

    layout = LAYOUT

    def encode(self, traffic: Traffic) -> Encoded:
        """
        Return one row an IPv4 packet. Fields that its protocol does not have are missing.
        """
        headers = dissect(traffic)
        order, _ = traffic.by_flow()
        order = order[headers.ip_versions[order] == 4]
        starts = np.searchsorted(traffic.flow_of[order], np.arange(len(traffic.flows) + 1))
        first = starts[:-1][np.diff(starts) > 0]

        rows = np.full((len(order), LAYOUT.width), MISSING, np.int8)
        at, l4, protocol = headers.ip_offsets[order], headers.transport_offsets[order], headers.protocols[order]
        everywhere, whole = np.arange(len(order)), l4 >= 0
        with_ports = np.flatnonzero(whole & np.isin(protocol, (TCP, UDP)))
        tcp = np.flatnonzero(whole & (protocol == TCP))
        for dtype, i, begin in (
            (IPV4, everywhere, at),
            (PORTS, with_ports, l4[with_ports]),
            (REST, tcp, l4[tcp] + PORTS.itemsize),
        ):
            read = traffic.data[begin[:, None] + np.arange(dtype.itemsize)].view(dtype)[:, 0]
            for name in dtype.names or ():
                if f"packet.{name}" in LAYOUT.spans():
                    write(rows, f"packet.{name}", i, read[name])

        iat_us = np.diff(traffic.timestamps[order] // 1000, prepend=0)
        iat_us[first] = 0
        write(rows, "trace.iat_us", everywhere, np.minimum(iat_us, 2**32 - 1))
        write(rows, "trace.direction", everywhere, ~traffic.from_initiator[order])
        start_times = np.zeros(len(traffic.flows), np.int64)
        start_times[np.diff(starts) > 0] = traffic.timestamps[order][first]
        return Encoded(rows=rows, starts=starts, labels=traffic.flows.labels, start_times=start_times, layout=LAYOUT)

    def decode(self, encoded: Encoded, rng: np.random.Generator) -> Traffic:
        """
        Return packets of raw IP, captured as far as their headers reach. Addresses are drawn from `rng`: initiators in
        10.0.0.0/8, responders in 198.18.0.0/15 (RFC 2544). What the layout does not have is 0.

        Raises DataError for rows of another layout.
        """
        if encoded.layout != LAYOUT:
            raise DataError(
                f"these rows have the layout {encoded.layout.name} version {encoded.layout.version}, and the encoder "
                f"newplugin reads {LAYOUT.name} version {LAYOUT.version}: encode again"
            )
        packets, flows, flow = len(encoded.rows), len(encoded), encoded.flow_of
        value = {name: np.maximum(encoded.values(name), 0) for name, _ in LAYOUT.fields}
        protocol, forth = value["packet.protocol"], value["trace.direction"] == 0
        headers = np.zeros(packets, HEADERS)
        for dtype, part in (("ip", IPV4), ("ports", PORTS), ("tcp", REST)):
            for name in part.names or ():
                if f"packet.{name}" in value:
                    headers[dtype][name] = value[f"packet.{name}"]
        hosts = rng.integers(0, 256, (2, flows, 4), np.uint8)
        hosts[0, :, 0], hosts[1, :, 0], hosts[1, :, 1] = 10, 198, 18 + hosts[1, :, 1] % 2
        headers["ip"]["source"] = np.where(forth[:, None], *hosts[:, flow])
        headers["ip"]["target"] = np.where(forth[:, None], *hosts[::-1, flow])
        headers["ip"]["version"] = 0x45
        sizes = np.where(protocol == TCP, 40, 28)
        lengths = np.maximum(value["packet.length"], sizes)
        headers["ip"]["length"] = lengths
        headers["tcp"]["offset"] = 5 << 4
        headers["tcp"]["sequence"][protocol == UDP] = (lengths[protocol == UDP] - 20) << 16  # there UDP has its length

        has = encoded.lengths > 0
        first = encoded.starts[:-1][has]
        clock_us = np.cumsum(value["trace.iat_us"])
        since_us = clock_us - np.repeat(clock_us[first], encoded.lengths[has])

        def of_first(values: Array) -> Array:
            found = np.zeros(flows, np.int64)
            found[has] = values[first]
            return found

        source, target = value["packet.source_port"], value["packet.destination_port"]
        addresses = np.pad(hosts, ((0, 0), (0, 0), (0, 12)))
        return Traffic(
            data=headers.view(np.uint8),
            starts=np.arange(packets) * HEADERS.itemsize,
            captured_lengths=sizes.astype(np.int32),
            wire_lengths=lengths.astype(np.int32),
            timestamps=encoded.start_times[flow] + 1000 * since_us,
            link_types=np.full(packets, LINK_RAW, np.uint16),
            flow_of=flow.astype(np.int32),
            from_initiator=forth,
            flows=FlowTable(
                labels=encoded.labels,
                splits=np.full(flows, ""),
                ip_versions=np.full(flows, 4, np.uint8),
                protocols=of_first(protocol).astype(np.uint8),
                initiator_addresses=addresses[0],
                responder_addresses=addresses[1],
                initiator_ports=of_first(np.where(forth, source, target)).astype(np.uint16),
                responder_ports=of_first(np.where(forth, target, source)).astype(np.uint16),
                sources=np.full(flows, ""),
            ),
        )


def write(rows: NDArray[np.int8], field: str, packets: Array, numbers: Array) -> None:
    """
    Write a field of these packets as bits, the most significant first.
    """
    span = LAYOUT.span(field)
    bits = np.unpackbits(numbers.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    rows[packets, span] = bits[:, 64 - (span.stop - span.start) :]
