"""
The encoder: packets to bits. Eight columns are one header byte, so a row of int8 columns, seen as int64, holds one byte
of the packet in each number, and encoding is one table look-up a byte.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from netdiffusion_core.capture import Dissection, dissect
from netdiffusion_core.errors import DataError
from netdiffusion_core.interfaces import Encoder
from netdiffusion_core.model import ICMP, ICMPV6, TCP, UDP, Encoded, Layout, Traffic

from .arguments import parse
from .decoder import decode, networks
from .layout import COLUMN, LAYOUTS, PAPER, TRACE_COLUMN
from .rows import nprint_emits

Array = NDArray[Any]

log = logging.getLogger("netdiffusion")

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
    client_net: str = attrs.field(
        default="10.0.0.0/8,fd00::/8",
        validator=lambda _, attribute, value: (networks(attribute.name, value), None)[1],
        metadata={"help": "networks of initiators in decoded packets: one of IPv4, one of IPv6, or both"},
    )
    server_net: str = attrs.field(
        default="198.18.0.0/15,2001:db8::/32",  # RFC 2544, RFC 3849
        validator=lambda _, attribute, value: (networks(attribute.name, value), None)[1],
        metadata={"help": "networks of responders, likewise"},
    )
    compat: Literal["none", "nprint"] = attrs.field(
        default="none",
        validator=attrs.validators.in_(("none", "nprint")),
        metadata={"help": "nprint: read packets by nPrint's own rules, for comparison; it overlooks VLAN and the like"},
    )
    nprint_args: str = attrs.field(
        default="-4 -i -6 -t -u -p 0",
        validator=lambda _, __, value: (parse(value), None)[1],
        metadata={"help": "which columns and packets the format nprint writes, in nPrint's words"},
    )


class NprintEncoder(Encoder):
    """
    The encoder ``nprint``.
    """

    Options = Options
    formats: ClassVar[Mapping[str, str]] = {"nprint": ".npt", "netdiffusion": ".nprint", "png": ".png"}

    @property
    def layout(self) -> Layout:
        """
        `layout.TRACE` or `layout.PAPER`.
        """
        return LAYOUTS[self.options.layout]

    def encode(self, traffic: Traffic) -> Encoded:
        """
        Return one row for each of the first `max_packets` packets of a flow. A transport header that was not
        captured, or is in another fragment, is absent; of a TCP header that was cut within its options the whole words
        count. With the option compat=nprint only packets that nPrint writes a row for count.
        """
        order, starts = traffic.by_flow()
        if self.options.compat == "nprint":
            order = order[nprint_emits(traffic)[order]]
            starts = np.searchsorted(traffic.flow_of[order], np.arange(len(traffic.flows) + 1))
        counts = np.minimum(np.diff(starts), self.options.max_packets)
        order = order[np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts)) < self.options.max_packets]
        starts = np.concatenate([[0], np.cumsum(counts)])
        chosen = traffic.select_packets(order)
        microseconds = chosen.timestamps // 1000
        iat_us = np.diff(microseconds, prepend=microseconds[:1])
        first = starts[:-1][counts > 0]
        iat_us[first] = 0
        octets = np.empty((len(order), self.layout.width // 8), np.int64)  # one int64 a byte, see _BITS
        for part in chosen.chunks():
            packets, out = chosen.select_packets(part), octets[part]
            headers = dissect(packets)
            _copy_headers(out, packets, headers)
            if self.layout.has("trace"):
                wire = headers.link_lengths + headers.ip_lengths
                trace = (~packets.from_initiator).astype(np.uint64) << 63
                trace |= np.minimum(iat_us[part], _MAX_IAT_US).astype(np.uint64) << 15
                trace |= np.clip(packets.wire_lengths - wire, 0, 127).astype(np.uint64) << 8
                extensions = np.minimum((headers.ip_header_lengths - 40) // 8, 255)
                trace |= np.where(headers.ip_versions == 6, extensions, 0).astype(np.uint64)
                out[:, TRACE_COLUMN:] = _BITS[trace.astype(">u8").view(np.uint8).reshape(-1, 8)]

        start_times = np.zeros(len(traffic.flows), np.int64)
        start_times[counts > 0] = chosen.timestamps[first]
        return Encoded(
            rows=octets.view(np.int8),
            starts=starts,
            labels=traffic.flows.labels,
            start_times=start_times,
            layout=self.layout,
        )

    def write(self, traffic: Traffic, path: Path, form: str) -> None:
        """
        Write packets as nPrint's text (``nprint``, as the options nprint_args and compat say), or the first
        `max_packets` IP packets as NetDiffusion's text (``netdiffusion``) or image (``png``, 1024 packets at most): the
        1088 columns of `layout.PAPER`, whatever the option layout says.

        Raises KeyError for another format.
        """
        if form not in self.formats:
            raise KeyError(form)
        with path.open("wb") as file:
            if form == "nprint":
                from .text import write_text

                write_text(file, traffic, parse(self.options.nprint_args), self.options.compat)
            elif form == "netdiffusion":
                from .text import write_paper_text

                write_paper_text(file, self._paper_rows(traffic, self.options.max_packets))
            else:
                from .image import IMAGE_ROWS, write_image

                write_image(file, self._paper_rows(traffic, min(IMAGE_ROWS, self.options.max_packets)))

    def _paper_rows(self, traffic: Traffic, most: int) -> Iterator[NDArray[np.int8]]:
        """
        Yield the first IP packets, at most so many, as int8[packets, 1088], in the traffic's own order.
        """
        left = most
        for chunk in traffic.chunks(4096):
            part = traffic.select_packets(chunk)
            chosen = dissect(part).ip_versions > 0
            if self.options.compat == "nprint":
                chosen &= nprint_emits(part)
            packets = np.flatnonzero(chosen)
            part = part.select_packets(packets[:left])
            out = np.empty((len(part), PAPER.width // 8), np.int64)
            _copy_headers(out, part, dissect(part))
            yield out.view(np.int8)
            if len(packets) > left:
                log.warning("only the first %d IP packets are written; the rest is cut", most)
                return
            left -= len(packets)

    def decode(self, encoded: Encoded, rng: np.random.Generator) -> Traffic:
        """
        Return one packet for each row, up to a flow's first row without an IP header.

        The bits decide by their presence: a header's fixed part is always whole, its options reach to the first 32-bit
        word that is not whole, and of two headers that exclude each other the one with more bits is taken. A bit that
        is missing within a header is 0. A packet is as long as its IP header says, but not shorter than its headers.

        Drawn from `rng`: an initiator in `client_net` and a responder in `server_net` for each flow, and the payload.
        MAC addresses are locally administered.

        Raises DataError for rows of another layout.
        """
        if encoded.layout != self.layout:
            raise DataError(
                f"these rows have the layout {encoded.layout.name} version {encoded.layout.version}, the encoder reads "
                f"{self.layout.name} version {self.layout.version}: choose another encoder.layout or encode again"
            )
        return decode(
            encoded,
            rng,
            ethernet=self.options.link == "ethernet",
            payload=self.options.payload,
            nets=(self.options.client_net, self.options.server_net),
        )


def _copy_headers(out: Array, traffic: Traffic, headers: Dissection) -> None:
    """
    Write the 1088 columns of `layout.PAPER` of all packets into ``out``, int64[packets, at least 136].
    """
    out.fill(_ABSENT)
    data = traffic.data
    at, size = headers.ip_offsets, headers.ip_header_lengths
    is4, is6 = headers.ip_versions == 4, headers.ip_versions == 6
    _copy_bits(out, COLUMN["ipv4"], data, at, np.where(is4, 12, 0))
    _copy_bits(out, COLUMN["ipv4.opt"], data, at + 20, np.where(is4, size - 20, 0))
    _copy_bits(out, COLUMN["ipv6"], data, at, np.where(is6, 8, 0))
    at, size = _transport(traffic, headers)
    for name, numbers in (("tcp", (TCP,)), ("udp", (UDP,)), ("icmp", (ICMP, ICMPV6))):
        _copy_bits(out, COLUMN[name], data, at, np.where(np.isin(headers.protocols, numbers), size, 0))


def _transport(traffic: Traffic, headers: Dissection) -> tuple[Array, Array]:
    """
    Return ``(at, lengths)``, int64[packets] each, of the transport headers as far as they were captured. A short snap
    length cuts the options of most SYNs, and a flow without its SYN would be another flow.
    """
    at, lengths = headers.transport_offsets.copy(), headers.transport_header_lengths.copy()
    expected = headers.ip_offsets + headers.ip_header_lengths
    captured = traffic.ends - expected
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
