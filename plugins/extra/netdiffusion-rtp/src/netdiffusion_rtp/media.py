"""
Find the media among UDP flows, and read the headers of RTP (RFC 3550 section 5.1) and RTCP (section 6.4), all at once.

A direction of a flow is media because the user says so (classes, ports), because its packets already are RTP, or
because they look like media and their payload is nobody's: zeros.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import dissect, uint
from netdiffusion_core.capture.payload import writable
from netdiffusion_core.model import UDP, Traffic

Array = NDArray[Any]

HEADER = 12
RTCP_HEADER = 8
RTCP_TYPES = (192, 224)  # RFC 5761 section 4: the second octet, from … to less than
TYPES_OF_RTCP = (64, 96)  # RFC 5761 section 4: payload types that look like those with a marker
SR, RR, SDES = 200, 201, 202

_STUN_COOKIE = 0x2112A442  # RFC 8489 section 5
_ZRTP_COOKIE = 0x5A525450  # RFC 6189 section 5
_DTLS = (0xFEFF, 0xFEFD)  # RFC 6347 section 4.1: versions, behind the types 20 to 26
_MAX_DROPOUT, _MAX_MISORDER = 3000, 100  # RFC 3550 appendix A.1
_LEAST_IN_ORDER = 3
_LEAST_PACKETS, _LONGEST_GAP_NS = 10, 200_000_000  # of what looks like media
_OTHER_PORTS = (1194, 1812, 1900, 3478, 4500, 4789, 5060, 5678)  # even ports that other protocols are registered for

_CLOCKS_HZ = np.zeros(128, np.int64)  # RFC 3551 section 6; 0: dynamic, or it changes
_CLOCKS_HZ[[0, 3, 4, 5, 7, 8, 9, 12, 13, 15, 18]] = 8_000
_CLOCKS_HZ[[6, 10, 11, 16, 17]] = 16_000, 44_100, 44_100, 11_025, 22_050
_CLOCKS_HZ[[25, 26, 28, 31, 32, 33, 34]] = 90_000


@attrs.frozen(kw_only=True, eq=False, slots=False)
class Media:
    """
    Packets of media, in the order of flows, directions and time. A direction of a flow is a unit.

    packets   int64[n]  indices into the traffic's packets
    unit      int64[n]  twice the row of the flow table, and one more for what the responder sent: rising
    ours      bool[n]   the unit holds media and nothing else, by the user's word or because it is empty
    control   bool[n]   ours, and both ports are odd: RTCP (RFC 3550 section 11)
    times     int64[n]  nanoseconds
    lengths   int64[n]  octets of payload on the wire
    captured  int64[n]  of these, octets captured
    whole     bool[n]   all of them, so that other octets can be written in their place
    head      int64[n, 8]  the first 16 octets in words of 16 bits, zeros where they were not captured
    at        int64[n]  where the payload begins in `data`
    data      uint8[bytes]  that of the traffic
    """

    packets: Array
    unit: Array
    ours: Array
    control: Array
    times: Array
    lengths: Array
    captured: Array
    whole: Array
    head: Array
    at: Array
    data: Array

    def __len__(self) -> int:
        return len(self.packets)

    @cached_property
    def is_two(self) -> NDArray[np.bool_]:
        """
        bool[n]: the version is 2.
        """
        return self.head[:, 0] >> 14 == 2

    @cached_property
    def rtcp(self) -> NDArray[np.bool_]:
        """
        bool[n]: has an RTCP header.
        """
        kind = self.head[:, 0] & 255
        return self.is_two & (kind >= RTCP_TYPES[0]) & (kind < RTCP_TYPES[1]) & (self.captured >= RTCP_HEADER)

    @cached_property
    def rtp(self) -> NDArray[np.bool_]:
        """
        bool[n]: has an RTP header.
        """
        return self.is_two & ~self.rtcp & (self.captured >= HEADER)

    @cached_property
    def other(self) -> NDArray[np.bool_]:
        """
        bool[n]: STUN, ZRTP or DTLS, which share ports with RTP (RFC 7983), or an empty packet that keeps a port open
        (RFC 6263 section 4.1).
        """
        first, cookie = self.head[:, 0] >> 8, self.head[:, 2] << 16 | self.head[:, 3]
        stun = (first < 4) & (cookie == _STUN_COOKIE) | (first == 16) & (cookie == _ZRTP_COOKIE)
        version = (self.head[:, 0] & 255) << 8 | self.head[:, 1] >> 8
        dtls = (first >= 20) & (first < 27) & np.isin(version, _DTLS)
        return stun | dtls | (self.lengths == 0)

    @cached_property
    def types(self) -> NDArray[np.int64]:
        """
        int64[n]: payload type of an RTP packet.
        """
        return self.head[:, 0] & 127

    @cached_property
    def sequence(self) -> NDArray[np.int64]:
        """
        int64[n]: sequence number of an RTP packet.
        """
        return self.head[:, 1]

    @cached_property
    def stamps(self) -> NDArray[np.int64]:
        """
        int64[n]: time stamp of an RTP packet.
        """
        return self.head[:, 2] << 16 | self.head[:, 3]

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """
        int64[n]: SSRC of an RTP packet.
        """
        return self.head[:, 4] << 16 | self.head[:, 5]

    @cached_property
    def clocks_hz(self) -> NDArray[np.int64]:
        """
        int64[n]: the clock that the payload type of an RTP packet has, 0 where none is fixed.
        """
        return _CLOCKS_HZ[self.types]


def find(traffic: Traffic, classes: tuple[str, ...], ports: tuple[int, ...]) -> Media:
    """
    Find media.
    """
    table, headers = traffic.flows, dissect(traffic)
    order, _ = traffic.by_flow()
    udp = (headers.protocols == UDP) & (headers.transport_offsets >= 0) & ~headers.fragments
    packets = order[udp[order]]
    forth = traffic.from_initiator[packets]
    packets = packets[np.lexsort((np.arange(len(packets)), ~forth, traffic.flow_of[packets]))]
    flow, forth = traffic.flow_of[packets], traffic.from_initiator[packets]
    at = headers.transport_offsets[packets] + 8
    lengths = np.minimum(headers.payload_lengths[packets], np.maximum(uint(traffic.data, at - 4, 2) - 8, 0))
    captured = np.minimum(at + lengths, traffic.ends[packets]) - at
    column = np.arange(16)
    octets = np.zeros((len(packets), 16), np.uint8)
    inside = column < captured[:, None]
    octets[inside] = traffic.data[(at[:, None] + column)[inside]]

    here = np.column_stack([table.initiator_ports, table.responder_ports]).astype(np.int64)
    named = np.isin(table.labels, classes) | np.isin(here, ports).any(1)
    even = (here % 2 == 0).all(1) & (here >= 1024).all(1) & ~np.isin(here, _OTHER_PORTS).any(1)
    media = Media(
        packets=packets,
        unit=2 * flow.astype(np.int64) + ~forth,
        ours=named[flow],
        control=named[flow] & (here % 2 == 1).all(1)[flow],
        times=traffic.timestamps[packets],
        lengths=lengths,
        captured=captured,
        whole=writable(traffic, headers)[packets],
        head=octets.view(">u2").astype(np.int64),
        at=at,
        data=traffic.data,
    )
    plain = even[flow] & _steady(media, flow, len(table))
    told = flow[plain & ~_zeros(traffic, media, plain)]
    media = attrs.evolve(media, ours=media.ours | plain & ~np.isin(flow, told))
    return part(media, media.ours | _is_rtp(media))


def part(media: Media, chosen: Array) -> Media:
    """
    Return these packets.
    """
    columns = (field.name for field in attrs.fields(Media) if field.name != "data")
    return attrs.evolve(media, **{name: getattr(media, name)[chosen] for name in columns})


def _zeros(traffic: Traffic, media: Media, asked: Array) -> NDArray[np.bool_]:
    """
    Return bool[n]: of the packets asked for, those whose payload is zeros and was captured.
    """
    zeros = asked & media.whole & (media.head == 0).all(1)
    i = np.flatnonzero(zeros & (media.lengths > 16))
    if len(i):
        own = traffic.select_packets(media.packets[i]).packed()
        at = media.at[i] - traffic.starts[media.packets[i]] + own.starts
        bounds = np.column_stack(
            [at, at + media.lengths[i]]
        ).ravel()  # of each payload, and of what lies before the next
        zeros[i] = np.maximum.reduceat(np.append(own.data, np.uint8(0)), bounds)[::2] == 0
    return zeros


def _steady(media: Media, flow: Array, flows: int) -> NDArray[np.bool_]:
    """
    Return bool[n]: the flow has at least ten packets, and on average five a second.
    """
    count = np.bincount(flow, minlength=flows)
    first, last = np.full(flows, np.iinfo(np.int64).max), np.zeros(flows, np.int64)
    np.minimum.at(first, flow, media.times)
    np.maximum.at(last, flow, media.times)
    return ((count >= _LEAST_PACKETS) & (last - first <= _LONGEST_GAP_NS * (count - 1)))[flow]


def _is_rtp(media: Media) -> NDArray[np.bool_]:
    """
    Return bool[n]: at least three packets of the unit, and half of those with a payload, continue a source of RTP.
    """
    units = int(media.unit.max(initial=-1)) + 1
    i = by_source(media, media.rtp)
    same = (np.diff(media.sources[i]) == 0) & (np.diff(media.unit[i]) == 0)
    step = signed(np.diff(media.sequence[i]), 16)
    going_on = np.bincount(media.unit[i[1:]], same & (step > 0) & in_order(step), units)
    spoken = np.bincount(media.unit, media.lengths > 0, units)
    return ((going_on >= _LEAST_IN_ORDER) & (2 * going_on >= spoken))[media.unit]


def by_source(media: Media, chosen: Array) -> NDArray[np.int64]:
    """
    Return the chosen packets (bool[n]) by unit, source and time: int64[k].
    """
    i = np.flatnonzero(chosen)
    return i[np.lexsort((i, media.sources[i], media.unit[i]))]


def signed(values: Array, bits: int) -> NDArray[np.int64]:
    """
    Return differences of numbers of so many bits that wrap around.
    """
    half = 1 << bits - 1
    return (values + half & (1 << bits) - 1) - half


def in_order(step: Array) -> NDArray[np.bool_]:
    """
    Return which steps of a sequence number a receiver takes for loss and disorder, and not for another beginning.
    """
    return (step < _MAX_DROPOUT) & (step > -_MAX_MISORDER)
