"""
Find the headers in every packet at once: link layer, IPv4 or IPv6, transport.

Each step moves all packets one header further, so the Python loop runs over the depth of the nesting, not over
packets. A header that was not captured whole counts as absent.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ..model import ICMP, ICMPV6, TCP, UDP, Traffic

Array = NDArray[Any]

_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN = (0x8100, 0x88A8, 0x9100)
_MPLS = (0x8847, 0x8848)
_PPPOE = 0x8864
_IPV4_IN_IP, _IPV6_IN_IP = 4, 41
_BY_VERSION = -2  # raw IP: the version nibble decides
_NOT_IP = -1
_EXTENSIONS = (0, 43, 44, 51, 60, 135)  # RFC 8200 section 4.1, RFC 4302 (51), RFC 6275 (135)
_MAX_NESTING = 12

_RADIO = (127, 192)  # radiotap, PPI
_LINK_RAW = (12, 14, 101)
_LINK_FIXED = {228: _IPV4, 229: _IPV6}


def uint(data: Array, at: Array, size: int) -> NDArray[np.int64]:
    """
    Read big-endian unsigned integers of `size` bytes at these absolute positions; the caller knows they are inside.
    """
    value = data[at].astype(np.int64)
    for i in range(1, size):
        value <<= 8
        value |= data[at + i]
    return value


@attrs.frozen(kw_only=True, eq=False)
class Dissection:
    """
    Where the headers of each packet are. Offsets are absolute positions in ``traffic.data``, -1 where absent.

    link_lengths              int64[packets]  bytes before the IP header; the whole packet where there is no IP
    vlans                     int64[packets]  outer VLAN id, -1 for none
    ip_versions               int64[packets]  4, 6, or 0 for no IP
    ip_offsets                int64[packets]
    ip_header_lengths         int64[packets]  IPv4: with options; IPv6: with extension headers
    ip_lengths                int64[packets]  total length as the header tells it (IPv6: payload length + 40); where
                                              it tells 0 (segmentation offload), what was on the wire
    protocols                 int64[packets]  transport protocol number behind all extension headers, -1 for no IP
    fragments                 bool[packets]   part of a fragmented datagram
    fragment_offsets          int64[packets]  where in the datagram the part begins, in units of eight bytes
    fragment_ids              int64[packets]  which datagram the part is of
    transport_offsets         int64[packets]  TCP, UDP, ICMP or ICMPv6 header, if it was captured whole
    transport_header_lengths  int64[packets]  TCP: with options; UDP, ICMP: 8; 0 where absent
    payload_lengths           int64[packets]  bytes behind the transport header on the wire, by ip_lengths; 0 where
                                              absent, never negative
    """

    link_lengths: Array
    vlans: Array
    ip_versions: Array
    ip_offsets: Array
    ip_header_lengths: Array
    ip_lengths: Array
    protocols: Array
    fragments: Array
    fragment_offsets: Array
    fragment_ids: Array
    transport_offsets: Array
    transport_header_lengths: Array
    payload_lengths: Array


def dissect(traffic: Traffic) -> Dissection:
    """
    Find link layer (Ethernet with LLC, VLAN, QinQ, PPPoE and MPLS; Linux cooked 1 and 2, PPP, BSD loopback, 802.11 data
    that is not encrypted, raw IP), IP and transport headers of all packets. Of IP in IP (RFC 2003, RFC 4213) the inner
    packet counts, and the outer header is part of the link layer.
    """
    data, start, end = traffic.data, traffic.starts, traffic.ends
    at, kind, vlans = _link_layer(traffic, data, start, end)
    headers = _ip_headers(data, at, end, kind)
    for _ in range(_MAX_NESTING):
        version, header, _, protocol, fragment, _, _ = headers
        i = np.flatnonzero(((protocol == _IPV4_IN_IP) | (protocol == _IPV6_IN_IP)) & (fragment == 0))
        inner = _ip_headers(data, at[i] + header[i], end[i], np.where(protocol[i] == _IPV4_IN_IP, _IPV4, _IPV6))
        whole = inner[0] > 0
        i = i[whole]
        if not len(i):
            break
        at[i] += header[i]
        headers[:, i] = inner[:, whole]
    version, header, length, protocol, fragment, fragment_offset, fragment_id = headers
    is4, is6 = version == 4, version == 6

    is_ip = is4 | is6
    length = np.where(is_ip & (length == 0), start + traffic.wire_lengths - at, length)

    # TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792), ICMPv6 (RFC 4443)
    l4 = at + header
    later = fragment_offset > 0  # a fragment without the transport header
    size = np.zeros(len(traffic), np.int64)
    i = np.flatnonzero(is_ip & ~later & (protocol == TCP) & (l4 + 20 <= end))
    size[i] = (data[l4[i] + 12] >> 4).astype(np.int64) * 4
    size[(size < 20) | (l4 + size > end)] = 0
    icmp = ((protocol == ICMP) & is4) | ((protocol == ICMPV6) & is6)
    size[is_ip & ~later & ((protocol == UDP) | icmp) & (l4 + 8 <= end)] = 8
    present = size > 0
    return Dissection(
        link_lengths=np.where(is_ip, at - start, end - start),
        vlans=vlans,
        ip_versions=version,
        ip_offsets=np.where(is_ip, at, -1),
        ip_header_lengths=header,
        ip_lengths=length,
        protocols=protocol,
        fragments=fragment > 0,
        fragment_offsets=fragment_offset,
        fragment_ids=fragment_id,
        transport_offsets=np.where(present, l4, -1),
        transport_header_lengths=size,
        payload_lengths=np.where(present, np.maximum(length - header - size, 0), 0),
    )


def _ip_headers(data: Array, at: Array, end: Array, kind: Array) -> NDArray[np.int64]:
    """
    Read IPv4 (RFC 791) or IPv6 (RFC 8200) headers at these positions: int64[7, n], each packet's version, header
    length, total length, protocol, whether it is a fragment, its fragment offset and identification. Zeros, and
    protocol -1, where the header is not there or was not captured whole.
    """
    headers = np.zeros((7, len(at)), np.int64)
    version, header, length, protocol, fragment, fragment_offset, fragment_id = headers
    protocol.fill(-1)
    captured = np.flatnonzero((at + 20 <= end) & (kind != _NOT_IP))
    nibble = data[at[captured]] >> 4

    i = captured[(nibble == 4) & np.isin(kind[captured], (_IPV4, _BY_VERSION))]
    size = (data[at[i]] & 15).astype(np.int64) * 4
    whole = (size >= 20) & (at[i] + size <= end[i])
    i = i[whole]
    here = at[i]
    version[i] = 4
    header[i] = size[whole]
    length[i] = uint(data, here + 2, 2)
    protocol[i] = data[here + 9]
    flags = uint(data, here + 6, 2)
    fragment_offset[i] = flags & 0x1FFF
    fragment[i] = (flags & 0x3FFF) > 0
    fragment_id[i] = uint(data, here + 4, 2)

    i = captured[(nibble == 6) & np.isin(kind[captured], (_IPV6, _BY_VERSION))]
    i = i[at[i] + 40 <= end[i]]
    version[i] = 6
    header[i] = 40
    length[i] = uint(data, at[i] + 4, 2)
    length[i] += np.where(length[i] > 0, 40, 0)
    protocol[i] = data[at[i] + 6]
    for _ in range(_MAX_NESTING):
        i = i[np.isin(protocol[i], _EXTENSIONS) & (at[i] + header[i] + 8 <= end[i]) & (fragment_offset[i] == 0)]
        if not len(i):
            break
        here = at[i] + header[i]
        is_fragment, is_auth = protocol[i] == 44, protocol[i] == 51
        words = data[here + 1].astype(np.int64)
        fragment[i] |= is_fragment
        fragment_offset[i] = np.where(is_fragment, uint(data, here + 2, 2) >> 3, 0)
        fragment_id[i] = np.where(is_fragment, uint(data, here + 4, 4), fragment_id[i])
        protocol[i] = data[here]
        header[i] += np.where(is_fragment, 8, np.where(is_auth, (words + 2) * 4, (words + 1) * 8))
    return headers


def _link_layer(traffic: Traffic, data: Array, start: Array, end: Array) -> tuple[Array, Array, Array]:
    """
    Return ``(at, kind, vlans)``: where the network header begins and its ethertype.
    """
    n = len(traffic)
    at = start.copy()
    kind = np.full(n, _NOT_IP, np.int64)
    vlans = np.full(n, -1, np.int64)
    link = traffic.link_types
    present = set(np.unique(link).tolist())

    for number in present & set(_LINK_RAW):
        kind[link == number] = _BY_VERSION
    for number, ethertype in _LINK_FIXED.items():
        kind[link == number] = ethertype
    # (link type, header bytes, position of the ethertype): Ethernet, Cisco HDLC, Linux cooked 1 and 2
    for number, size, position in ((1, 14, 12), (104, 4, 2), (113, 16, 14), (276, 20, 0)):
        i = np.flatnonzero((link == number) & (start + size <= end))
        kind[i] = uint(data, start[i] + position, 2)
        at[i] += size
    i = np.flatnonzero((link == 1) & (kind >= 0) & (kind <= 1500))  # a length: LLC follows (IEEE 802.3)
    i = i[at[i] + 8 <= end[i]]
    at, kind = _snap(data, at, kind, i)
    for number in present & {0, 108}:  # BSD loopback: four bytes of address family, in the host's byte order
        i = np.flatnonzero((link == number) & (start + 4 <= end))
        kind[i] = _BY_VERSION
        at[i] += 4
    for number in present & {9, 50}:  # PPP, with or without address and control bytes (RFC 1662)
        i = np.flatnonzero((link == number) & (start + 4 <= end))
        at[i] += np.where((data[at[i]] == 0xFF) & (data[at[i] + 1] == 3), 2, 0)
        at, kind = _ppp(data, at, kind, i)
    kind[link == 51] = _PPPOE
    if present & {105, *_RADIO}:
        at, kind = _wireless(data, at, end, kind, link)

    for _ in range(_MAX_NESTING):
        tagged = np.flatnonzero(np.isin(kind, (*_VLAN, *_MPLS, _PPPOE)))
        if not len(tagged):
            break
        kind[tagged[at[tagged] + 8 > end[tagged]]] = _NOT_IP
        now = kind[tagged]
        i = tagged[np.isin(now, _VLAN)]
        vlans[i] = np.where(vlans[i] < 0, uint(data, at[i], 2) & 0xFFF, vlans[i])
        kind[i] = uint(data, at[i] + 2, 2)
        at[i] += 4
        i = tagged[np.isin(now, _MPLS)]
        kind[i] = np.where(data[at[i] + 2] & 1, _BY_VERSION, kind[i])
        at[i] += 4
        i = tagged[now == _PPPOE]
        at[i] += 6
        at, kind = _ppp(data, at, kind, i)
    return at, kind, vlans


def _wireless(data: Array, at: Array, end: Array, kind: Array, link: Array) -> tuple[Array, Array]:
    """
    Read IEEE 802.11 data frames (link type 105), also behind a radiotap or PPI header, whose bytes 2 and 3 hold its
    length, low byte first.
    """
    i = np.flatnonzero(np.isin(link, _RADIO) & (at + 4 <= end))
    at[i] += uint(data, at[i] + 3, 1) << 8 | uint(data, at[i] + 2, 1)
    i = np.flatnonzero(np.isin(link, (105, *_RADIO)) & (at + 36 + 8 <= end))
    control, flags = data[at[i]], data[at[i] + 1]
    # data, not null, not protected, not a fragment's later part
    i = i[(control & 0x4C == 0x08) & (flags & 0x44 == 0)]
    control, flags = data[at[i]], data[at[i] + 1]
    qos = control >> 7
    at[i] += 24 + 6 * (flags & 3 == 3) + 2 * qos + 4 * (qos & flags >> 7)
    return _snap(data, at, kind, i)


def _snap(data: Array, at: Array, kind: Array, i: Array) -> tuple[Array, Array]:
    """
    Read the LLC and SNAP header of packets `i` (RFC 1042): eight bytes that end in an ethertype.
    """
    i = i[(uint(data, at[i], 3) == 0xAAAA03) & (uint(data, at[i] + 3, 3) == 0)]
    kind[i] = uint(data, at[i] + 6, 2)
    at[i] += 8
    return at, kind


def _ppp(data: Array, at: Array, kind: Array, i: Array) -> tuple[Array, Array]:
    """
    Read the two-byte PPP protocol of packets `i` (one byte when compressed, RFC 1661 section 6.5).
    """
    short = (data[at[i]] & 1) > 0
    protocol = np.where(short, data[at[i]], uint(data, at[i], 2))
    at[i] += np.where(short, 1, 2)
    kind[i] = np.select([protocol == 0x21, protocol == 0x57, protocol == 0x281], [_IPV4, _IPV6, _MPLS[0]], _NOT_IP)
    return at, kind
