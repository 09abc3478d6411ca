"""
Which packets are rows of nPrint's text, and where the headers of each lie: as nPrint itself reads packets, or with what
it overlooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture import dissect
from netdiffusion_core.model import ICMP, ICMPV6, LINK_ETHERNET, LINK_RAW, TCP, UDP, Traffic

Array = NDArray[Any]
Compat = Literal["none", "nprint"]

_IPV4, _IPV6 = 0x0800, 0x86DD
_RAW = (12, 14, LINK_RAW, 228, 229)
_LINUX_COOKED = 113
_RADIOTAP = 127
_RADIOTAP_BYTES = 56  # whatever the radiotap header says of its length

HEADER_BYTES = 16 + 14 + 60 + 60
"""Where the payload of a packet that nPrint reads begins at the latest: behind Linux cooked, Ethernet, IP and TCP."""


@attrs.frozen(kw_only=True, eq=False)
class Rows:
    """
    The headers of the packets that are rows.

    packets    int64[rows]          index of the packet
    versions   int64[rows]          of IP; other than 4 and 6: there is no IP header
    protocols  int64[rows]          of the transport, -1: there is none
    at         name -> int64[rows]  where each header of `layout.HEADERS` and the payload begin in ``traffic.data``
    lengths    name -> int64[rows]  bytes of it that there are and were captured
    frames     int64[rows]          where the 802.11 frame begins, -1 where there is no radiotap header
    """

    packets: Array
    versions: Array
    protocols: Array
    at: Mapping[str, Array]
    lengths: Mapping[str, Array]
    frames: Array


@attrs.frozen(kw_only=True, eq=False)
class _Reading:
    """
    How each packet is read: arrays of one entry a packet.

    is_row     bool
    start      int64  where the packet begins
    ether      bool   it begins with an Ethernet header
    ip         int64  where the IP header begins
    version    int64  4, 6, other: no IP header
    ip_length  int64
    protocol   int64  of the transport, -1: none
    """

    is_row: Array
    start: Array
    ether: Array
    ip: Array
    version: Array
    ip_length: Array
    protocol: Array


def nprint_emits(traffic: Traffic) -> NDArray[np.bool_]:
    """
    Tell which packets nPrint writes a row for: bool[packets].
    """
    return np.asarray(_as_nprint(traffic).is_row)


def find_rows(traffic: Traffic, compat: Compat, payload_bytes: int, skip: int = 0) -> Rows:
    """
    Find the rows of nPrint's text and the headers that they show. What was not captured is not there; nPrint shows
    there what an earlier packet left in memory.

    compat  ``nprint``: by nPrint's own rules, its errors included; ``none``: by the packets' real headers, malformed
            ones as nPrint reads them
    skip    the first so many packets are no rows, they are known for what they left in memory
    """
    read = _as_nprint(traffic) if compat == "nprint" else _in_earnest(traffic)
    packets = np.flatnonzero(read.is_row)
    packets = packets[packets >= skip]
    link, first, end = traffic.link_types[packets], traffic.starts[packets], traffic.ends[packets]
    read = attrs.evolve(read, **{f.name: getattr(read, f.name)[packets] for f in attrs.fields(_Reading)})
    is4, is6 = read.version == 4, read.version == 6
    byte, word = _reader(traffic.select_packets(packets))

    transport = read.ip + read.ip_length
    is_tcp, is_udp = read.protocol == TCP, read.protocol == UDP
    is_icmp = np.isin(read.protocol, (ICMP, ICMPV6))
    # data offset in words of 32 bits; where it was not captured, all that was
    tcp_length = np.where(transport + 12 < end, byte(transport + 12) >> 4 << 2, 60)
    transport_length = np.where(is_tcp, tcp_length, np.where(is_udp | is_icmp, 8, 0))
    total = np.where(is4, word(read.ip + 2), np.where(is6, word(read.ip + 4) + 40, 0))
    payload = transport + transport_length
    if compat == "nprint":  # it counts the header of TCP over IPv6 in words of 20 bytes where it means bytes
        payload += np.where(is6 & is_tcp, 19 * transport_length, 0)
    payload_length = np.clip(total - read.ip_length - transport_length, 0, payload_bytes)
    is_radio = link == _RADIOTAP
    radiotap = np.where(is_radio, _RADIOTAP_BYTES, 0)

    at = {
        "radiotap": first, "eth": read.start, "ipv4": read.ip, "ipv6": read.ip, "tcp": transport, "udp": transport,
        "icmp": transport, "payload": payload,
    }  # fmt: skip
    lengths = {
        "radiotap": radiotap,
        "eth": np.where(read.ether, 14, 0),
        "ipv4": np.where(is4, read.ip_length, 0),
        "ipv6": np.where(is6, 40, 0),
        "tcp": np.where(is_tcp, transport_length, 0),
        "udp": np.where(is_udp, 8, 0),
        "icmp": np.where(is_icmp, 8, 0),
        "payload": payload_length,
    }
    frames = first + (_RADIOTAP_BYTES if compat == "nprint" else byte(first + 3) << 8 | byte(first + 2))
    return Rows(
        packets=packets,
        versions=read.version,
        protocols=read.protocol,
        at=at,
        lengths={name: np.clip(end - at[name], 0, length) for name, length in lengths.items()},
        frames=np.where(is_radio, frames, -1),
    )


def with_leftovers(traffic: Traffic, reach: int) -> Traffic:
    """
    Return the traffic as nPrint finds it in memory: packets too short to say what they are go on, up to `reach` bytes,
    with what earlier packets left there. (libpcap reads the packets of a pcap file into one buffer that it never
    clears, so each byte is that of the last packet that was long enough.)
    """
    read = _as_nprint(traffic)
    too_short = traffic.ends < np.maximum(read.start + 14, read.ip + 10)  # ethertype, IP version and protocol
    short = np.flatnonzero(too_short & (traffic.link_types != _RADIOTAP))
    if not len(short):
        return traffic
    traffic = traffic.packed()
    captured = traffic.captured_lengths
    left = np.minimum(np.maximum.accumulate(captured)[short], reach)
    memory = np.zeros((len(short), reach), np.uint8)
    for offset in range(int(left.max())):
        long_enough = np.flatnonzero(captured > offset)
        last = np.searchsorted(long_enough, short, "right") - 1
        i = np.flatnonzero(last >= 0)
        memory[i, offset] = traffic.data[traffic.starts[long_enough[last[i]]] + offset]
    starts, lengths = traffic.starts.copy(), captured.copy()
    starts[short] = len(traffic.data) + np.arange(len(short)) * reach
    lengths[short] = left
    data = np.concatenate([traffic.data, memory.ravel()])
    return attrs.evolve(traffic, data=data, starts=starts, captured_lengths=lengths)


def last_to_reach(captured_lengths: Array, reach: int) -> NDArray[np.int64]:
    """
    Return the packets that leave something in memory which no later packet overwrites, up to `reach` bytes; there are
    no more than `reach` of them.
    """
    lengths = np.minimum(captured_lengths, reach)
    longest_later = np.append(np.maximum.accumulate(lengths[::-1])[::-1][1:], 0)
    return np.flatnonzero(lengths > longest_later)


def _reader(traffic: Traffic) -> tuple[Any, Any]:
    """
    Return functions that read the byte, or the 16 bits, at a position in each packet, 0 behind its end: int64[packets].
    """
    end = traffic.ends

    def byte(at: Array) -> NDArray[np.int64]:
        inside = at < end
        return np.where(inside, traffic.data[np.where(inside, at, 0)], 0).astype(np.int64)

    return byte, lambda at: byte(at) << 8 | byte(at + 1)


def _as_nprint(traffic: Traffic) -> _Reading:
    """
    Read by nPrint's one rule: bytes 12 and 13 may say that the packet is Ethernet, the next four bits are the IP
    version. Radiotap is never read further.
    """
    byte, word = _reader(traffic)
    start = traffic.starts + np.where(traffic.link_types == _LINUX_COOKED, 16, 0)
    is_radio = traffic.link_types == _RADIOTAP
    ether = np.isin(word(start + 12), (_IPV4, _IPV6)) & ~is_radio
    ip = start + np.where(ether, 14, 0)
    first = byte(ip)
    version = np.where(is_radio, 0, first >> 4)
    protocol = np.where(version == 4, byte(ip + 9), byte(ip + 6))
    return _Reading(
        is_row=is_radio | np.isin(version, (4, 6)) & np.isin(protocol, (ICMP, TCP, UDP)),
        start=start,
        ether=ether,
        ip=ip,
        version=version,
        ip_length=np.where(version == 4, (first & 15) << 2, 40),
        protocol=np.where(is_radio, -1, protocol),
    )


def _in_earnest(traffic: Traffic) -> _Reading:
    """
    Read the real headers. A malformed IP header, which `dissect` does not take for one, is read as nPrint does where
    the link layer says that there is one.
    """
    headers, nprint = dissect(traffic), _as_nprint(traffic)
    _, word = _reader(traffic)
    link = traffic.link_types
    found = headers.ip_versions > 0
    protocol = headers.protocols
    known = np.isin(protocol, (ICMP, TCP, UDP)) | (protocol == ICMPV6) & (headers.ip_versions == 6)
    announced = (link == LINK_ETHERNET) & nprint.ether
    cooked = (link == _LINUX_COOKED) & np.isin(word(traffic.starts + 14), (_IPV4, _IPV6))
    announced |= (cooked | np.isin(link, _RAW)) & ~nprint.ether
    return _Reading(
        is_row=np.where(found, known, nprint.is_row & announced) | (link == _RADIOTAP),
        start=traffic.starts,
        ether=link == LINK_ETHERNET,
        ip=np.where(found, headers.ip_offsets, nprint.ip),
        version=np.where(found, headers.ip_versions, nprint.version),
        ip_length=np.where(found, headers.ip_header_lengths, nprint.ip_length),
        protocol=np.where(found, np.where(headers.fragment_offsets > 0, -1, protocol), nprint.protocol),
    )
