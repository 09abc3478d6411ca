"""
Write what stands behind UDP headers, into packets whose lengths and checksums fit afterwards: for rule sets of
protocols that UDP carries.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..interfaces import Record, forget
from ..model import UDP, Traffic
from .dissect import Dissection, dissect, uint

Array = NDArray[Any]


def writable(traffic: Traffic, headers: Dissection) -> NDArray[np.bool_]:
    """
    Return bool[packets]: UDP packets that were captured whole, are no fragments, and whose two lengths agree.
    """
    chosen: NDArray[np.bool_] = (headers.protocols == UDP) & (headers.transport_offsets >= 0) & ~headers.fragments
    chosen &= headers.ip_offsets + headers.ip_lengths <= traffic.ends
    i = np.flatnonzero(chosen)
    chosen[i] = uint(traffic.data, headers.transport_offsets[i] + 4, 2) == 8 + headers.payload_lengths[i]
    return chosen


def write_payloads(
    traffic: Traffic, packets: Array, octets: Array, sizes: Array, rules: Array, record: Record = forget
) -> Traffic:
    """
    Return the traffic with ``octets[i, :sizes[i]]`` at the beginning of the payload of UDP packet ``packets[i]``. What
    lies behind them stays; a payload that is shorter grows. A packet in which nothing changes stays as it is, to the
    byte; a traffic in which nothing changes is returned itself.

    packets  int64[n]     those that are `writable`
    octets   uint8[n, m]
    sizes    int64[n]     at most m
    rules    str[n]       id of the rule that wants it. `record` is told of ``payload`` (bytes before and after), of the
                          lengths, and of the checksums in the name of ``udp.checksum`` and ``ipv4.checksum``
    """
    headers = dissect(traffic)
    lengths = headers.payload_lengths[packets]
    bits = 8 * np.maximum(sizes - lengths, 0)
    for size, i in _by_size(np.minimum(sizes, lengths)):
        old = sliding_window_view(traffic.data, size)[headers.transport_offsets[packets[i]] + 8]
        bits[i] += np.bitwise_count(old ^ octets[i, :size]).sum(1, np.int64)
    changed = bits > 0
    if not changed.any():
        return traffic
    columns = (packets, octets, sizes, rules, lengths, bits)
    packets, octets, sizes, rules, before, bits = (values[changed] for values in columns)
    after = np.maximum(before, sizes)

    grown = _grow(traffic, packets[after > before], (after - before)[after > before])
    data = grown.data.copy()
    headers = dissect(grown)
    for size, i in _by_size(sizes):
        sliding_window_view(data, size, writeable=True)[headers.transport_offsets[packets[i]] + 8] = octets[i, :size]

    def tell(rule: Array, field: str, i: Array, old: Array, new: Array, differ: Array | None = None) -> None:
        for name in np.unique(rule).tolist():
            mine = rule == name
            record(name, field, packets[i[mine]], old[mine], new[mine], None if differ is None else differ[mine])

    def put(rule: Array | str, field: str, i: Array, where: Array, values: Array) -> None:
        old = uint(data, where, 2)
        data[where], data[where + 1] = values >> 8, values & 255
        new = old != values
        tell(np.broadcast_to(rule, len(i))[new], field, i[new], old[new], values[new])

    every = np.arange(len(packets))
    tell(rules, "payload", every, before, after, bits)
    ip, at = headers.ip_offsets[packets], headers.transport_offsets[packets]
    is4, of_ip = headers.ip_versions[packets] == 4, headers.ip_header_lengths[packets]
    four, six, length = np.flatnonzero(is4), np.flatnonzero(~is4), 8 + after
    put(rules, "udp.len", every, at + 4, length)
    put(rules[four], "ipv4.tl", four, ip[four] + 2, (of_ip + length)[four])
    put(rules[six], "ipv6.len", six, ip[six] + 4, (of_ip + length)[six] - 40)
    rest = _word_sums(data, ip[four], of_ip[four]) - uint(data, ip[four] + 10, 2)
    put("ipv4.checksum", "ipv4.cksum", four, ip[four] + 10, 0xFFFF - _folded(rest))
    summed = np.flatnonzero(~is4 | (uint(data, at + 6, 2) > 0))  # RFC 768: 0 means none, and may over IPv4
    pseudo = _word_sums(data, ip + np.where(is4, 12, 8), np.where(is4, 8, 32)) + UDP + length  # RFC 8200 section 8.1
    rest = (pseudo + _word_sums(data, at, length) - uint(data, at + 6, 2))[summed]
    checksums = 0xFFFF - _folded(rest)
    put("udp.checksum", "udp.cksum", summed, at[summed] + 6, np.where(checksums == 0, 0xFFFF, checksums))
    return attrs.evolve(grown, data=data)


def _grow(traffic: Traffic, packets: Array, by: Array) -> Traffic:
    """
    Return the traffic, packed, with so many bytes more in these packets, behind their IP packets, which are told to be
    as long as before. What lay there (the padding of Ethernet) goes.
    """
    if not len(packets):
        return traffic.packed()
    headers = dissect(traffic)
    captured, wire = traffic.captured_lengths.copy(), traffic.wire_lengths.copy()
    captured[packets] = wire[packets] = (headers.link_lengths + headers.ip_lengths)[packets] + by
    data = np.append(traffic.data, np.zeros(by.max(), np.uint8))  # the last packet may grow beyond the end
    return attrs.evolve(traffic, data=data, captured_lengths=captured, wire_lengths=wire).packed()


def _by_size(sizes: Array) -> list[tuple[int, Array]]:
    """
    Return each size above 0 that occurs, and where.
    """
    return [(size, np.flatnonzero(sizes == size)) for size in np.unique(sizes[sizes > 0]).tolist()]


def _word_sums(data: Array, at: Array, lengths: Array) -> NDArray[np.int64]:
    """
    Return the sum of the big-endian 16-bit words of each ``data[at[i]:][:lengths[i]]``, an odd last byte padded with 0
    (RFC 1071).
    """
    sums = np.zeros(len(at), np.int64)
    for size, i in _by_size(lengths):
        octets = sliding_window_view(data, size)[at[i]]
        sums[i] = (octets[:, ::2].sum(1, np.int64) << 8) + octets[:, 1::2].sum(1, np.int64)
    return sums


def _folded(sums: Array) -> NDArray[np.int64]:
    """
    Return the one's complement sum of 16 bits; that of anything but nothing is not 0.
    """
    return np.where(sums > 0, (sums - 1) % 0xFFFF + 1, 0)
