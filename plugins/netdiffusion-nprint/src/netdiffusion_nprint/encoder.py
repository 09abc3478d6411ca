"""
The encoder: packets to bits. Eight columns are one header byte, so a row of int8 columns, seen as int64, holds one byte
of the packet in each number, and encoding is one table look-up a byte.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from netdiffusion_core.capture import Dissection, dissect
from netdiffusion_core.errors import DataError
from netdiffusion_core.interfaces import Encoder
from netdiffusion_core.model import ICMP, ICMPV6, TCP, UDP, Encoded, Layout, Traffic

from .decoder import decode
from .layout import COLUMN, LAYOUTS, TRACE_COLUMN, chunks

Array = NDArray[Any]

_ABSENT = -1  # eight columns of MISSING, seen as one int64
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)).view(np.int64)  # byte -> its eight columns, seen as one int64
_MAX_IAT_US = 2**48 - 1


@attrs.frozen(kw_only=True)
class Options:
    """
    Options of `NprintEncoder`.
    """

    layout: Literal["trace", "paper"] = attrs.field(
        default="trace",
        validator=attrs.validators.in_(tuple(LAYOUTS)),
        metadata={"help": "trace: 1152 columns with direction and time; paper: the 1088 of the NetDiffusion paper"},
    )
    max_packets: int = attrs.field(
        default=1024,
        validator=attrs.validators.ge(1),
        metadata={"help": "encode the first so many packets of a flow"},
    )
    link: Literal["ethernet", "raw"] = attrs.field(
        default="ethernet",
        validator=attrs.validators.in_(("ethernet", "raw")),
        metadata={"help": "link layer of decoded packets; raw: they begin with the IP header"},
    )
    payload: Literal["random", "zeros", "none"] = attrs.field(
        default="zeros",  # random bytes on a known port are malformed packets to a dissector
        validator=attrs.validators.in_(("random", "zeros", "none")),
        metadata={"help": "bytes behind the headers of decoded packets; none: cut there, as a snap length does"},
    )


class NprintEncoder(Encoder):
    """
    The encoder ``nprint``.
    """

    Options = Options

    @property
    def layout(self) -> Layout:
        """
        `layout.TRACE` or `layout.PAPER`.
        """
        return LAYOUTS[self.options.layout]

    def encode(self, traffic: Traffic) -> Encoded:
        """
        Return one row for each IP packet of a flow, for the first `max_packets` of it. A transport header that was not
        captured, or is in another fragment, is absent; of a TCP header that was cut within its options the whole words
        count.
        """
        headers = dissect(traffic)
        transport_at, transport_lengths = _transport(traffic, headers)
        order, _ = traffic.by_flow()
        order = order[headers.ip_versions[order] > 0]
        starts = np.searchsorted(traffic.flow_of[order], np.arange(len(traffic.flows) + 1))
        order = order[np.arange(len(order)) - starts[traffic.flow_of[order]] < self.options.max_packets]
        starts = np.concatenate([[0], np.cumsum(np.minimum(np.diff(starts), self.options.max_packets))])

        microseconds = traffic.timestamps[order] // 1000
        iat_us = np.diff(microseconds, prepend=microseconds[:1])
        iat_us[starts[:-1][np.diff(starts) > 0]] = 0
        octets = np.empty((len(order), self.layout.width // 8), np.int64)  # one int64 a byte, see _BITS
        for part in chunks(len(order)):
            packets, out = order[part], octets[part]
            out.fill(_ABSENT)
            at = headers.ip_offsets[packets]
            version = headers.ip_versions[packets]
            header_lengths = headers.ip_header_lengths[packets]
            is4, is6 = version == 4, version == 6
            data = traffic.data
            _copy_bits(out, COLUMN["ipv4"], data, at, np.where(is4, 12, 0))
            _copy_bits(out, COLUMN["ipv4.opt"], data, at + 20, np.where(is4, header_lengths - 20, 0))
            _copy_bits(out, COLUMN["ipv6"], data, at, np.where(is6, 8, 0))
            at, length = transport_at[packets], transport_lengths[packets]
            protocol = headers.protocols[packets]
            _copy_bits(out, COLUMN["tcp"], data, at, np.where(protocol == TCP, length, 0))
            _copy_bits(out, COLUMN["udp"], data, at, np.where(protocol == UDP, length, 0))
            _copy_bits(out, COLUMN["icmp"], data, at, np.where((protocol == ICMP) | (protocol == ICMPV6), length, 0))
            if self.layout.has("trace"):
                wire = headers.link_lengths[packets] + headers.ip_lengths[packets]
                trace = (~traffic.from_initiator[packets]).astype(np.uint64) << 63
                trace |= np.minimum(iat_us[part], _MAX_IAT_US).astype(np.uint64) << 15
                trace |= np.clip(traffic.wire_lengths[packets] - wire, 0, 127).astype(np.uint64) << 8
                trace |= np.where(is6, np.minimum((header_lengths - 40) // 8, 255), 0).astype(np.uint64)
                out[:, TRACE_COLUMN:] = _BITS[trace.astype(">u8").view(np.uint8).reshape(-1, 8)]

        start_times = np.zeros(len(traffic.flows), np.int64)
        filled = np.diff(starts) > 0
        start_times[filled] = traffic.timestamps[order[starts[:-1][filled]]]
        return Encoded(
            rows=octets.view(np.int8),
            starts=starts,
            labels=traffic.flows.labels,
            start_times=start_times,
            layout=self.layout,
        )

    def decode(self, encoded: Encoded, rng: np.random.Generator) -> Traffic:
        """
        Return one packet for each row, up to a flow's first row without an IP header.

        The bits decide by their presence: a header's fixed part is always whole, its options reach to the first 32-bit
        word that is not whole, and of two headers that exclude each other the one with more bits is taken. A bit that
        is missing within a header is 0. A packet is as long as its IP header says, but not shorter than its headers.

        Drawn from `rng`: an initiator in 10.0.0.0/8 or fd00::/8 and a responder in 198.18.0.0/15 (RFC 2544) or
        2001:db8::/32 (RFC 3849) for each flow, and the payload. MAC addresses are locally administered.

        Raises DataError for rows of another layout.
        """
        if encoded.layout != self.layout:
            raise DataError(
                f"these rows have the layout {encoded.layout.name} version {encoded.layout.version}, the encoder reads "
                f"{self.layout.name} version {self.layout.version}: choose another encoder.layout or encode again"
            )
        return decode(encoded, rng, ethernet=self.options.link == "ethernet", payload=self.options.payload)


def _transport(traffic: Traffic, headers: Dissection) -> tuple[Array, Array]:
    """
    Return ``(at, lengths)``, int64[packets] each, of the transport headers as far as they were captured. A short snap
    length cuts the options of most SYNs, and a flow without its SYN would be another flow.
    """
    at, lengths = headers.transport_offsets.copy(), headers.transport_header_lengths.copy()
    expected = headers.ip_offsets + headers.ip_header_lengths
    captured = traffic.offsets[1:] - expected
    i = np.flatnonzero((at < 0) & (headers.protocols == TCP) & (headers.fragment_offsets == 0) & (captured >= 20))
    i = i[traffic.data[expected[i] + 12] >> 4 >= 5]
    at[i], lengths[i] = expected[i], captured[i] // 4 * 4
    return at, lengths


def _copy_bits(out: Array, column: int, data: Array, at: Array, lengths: Array) -> None:
    """
    Write the bits of ``data[at[i]:at[i] + lengths[i]]`` into ``out[i, column:]``, for all packets of one length at once
    (a header has at most eleven lengths).
    """
    for size in (np.flatnonzero(np.bincount(lengths)[1:]) + 1).tolist():
        i = np.flatnonzero(lengths == size)
        out[i, column : column + size] = _BITS[sliding_window_view(data, size)[at[i]]]
