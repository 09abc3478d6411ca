"""
The Internet checksum (RFC 1071) of every packet at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import Dissection, uint
from netdiffusion_core.model import ICMP, TCP, UDP

Array = NDArray[Any]

_FIELD = {TCP: 16, UDP: 6}  # where the checksum is in its header; ICMP and ICMPv6: 2


def word_sums(data: Array, start: Array, end: Array) -> NDArray[np.int64]:
    """
    Return the sum of the big-endian 16-bit words of each ``data[start[i]:end[i]]``; an odd last byte is padded with 0.

    The words are added up at even positions and low byte first, as most machines read them. Both only exchange the
    halves of the sum in one's complement, and a region that begins at an odd position exchanges them once more
    (RFC 1071 section 2, byte order independence). 32 bits hold the sum of an IP packet.
    """
    if not len(start):
        return start
    words = data[: len(data) // 2 * 2].view("<u2")
    low, high, last = start // 2, end // 2, len(words) - 1
    until = np.minimum(high, last)  # reduceat takes no index behind the last word
    bounds = np.column_stack([np.minimum(low, last), until]).ravel()
    sums = np.add.reduceat(words, bounds, dtype=np.uint32)[::2].astype(np.int64)
    sums = np.where(low < until, sums, 0) + np.where((low <= last) & (last < high), int(words[-1]), 0)
    odd_start, odd_end = start & 1, end & 1
    folded = fold(sums - data[start - odd_start] * odd_start + data[end - 1] * odd_end)
    sums = np.where(odd_start > 0, folded, folded >> 8 | (folded & 0xFF) << 8)
    return np.where(end > start, sums, 0)


def short_sums(data: Array, start: Array, lengths: Array) -> NDArray[np.int64]:
    """
    Return the same sums for a few bytes, an even number of them, anywhere in `data`: those of headers.
    """
    column = np.arange(lengths.max(initial=0))
    octets = data[np.minimum(start[:, None] + column, len(data) - 1)] * (column < lengths[:, None])
    return octets @ np.where(column % 2 > 0, 1, 256)


def fold(sums: Array) -> NDArray[np.int64]:
    """
    Add the carries back in, as one's complement addition does, until 16 bits are left.
    """
    for _ in range(4):
        sums = (sums & 0xFFFF) + (sums >> 16)
    return sums


def ipv4_checksums(data: Array, at: Array, header_lengths: Array) -> NDArray[np.int64]:
    """
    Return what the checksum field of each IPv4 header at `at` must hold (RFC 791 section 3.1).
    """
    return fold(short_sums(data, at, header_lengths) - uint(data, at + 10, 2)) ^ 0xFFFF


def checksum_offsets(headers: Dissection, packets: Array) -> NDArray[np.int64]:
    """
    Return where the transport checksum of these packets is in the traffic's bytes.
    """
    protocol = headers.protocols[packets]
    field = np.where(protocol == TCP, _FIELD[TCP], np.where(protocol == UDP, _FIELD[UDP], 2))
    return headers.transport_offsets[packets] + field


def transport_checksums(data: Array, ends: Array, headers: Dissection, packets: Array) -> NDArray[np.int64]:
    """
    Return what the checksum field of the transport header of these packets must hold: TCP (RFC 9293 section 3.1), UDP
    (RFC 768), ICMP (RFC 792) and ICMPv6 (RFC 4443 section 2.3), the pseudo-header of RFC 8200 section 8.1 included.
    Bytes that were not captured, from `ends` (int64[all packets]) on, count as zeros.
    """
    ip, at = headers.ip_offsets[packets], headers.transport_offsets[packets]
    protocol, is4 = headers.protocols[packets], headers.ip_versions[packets] == 4
    length = headers.ip_lengths[packets] - headers.ip_header_lengths[packets]
    end = np.maximum(np.minimum(at + length, ends[packets]), at)
    sums = word_sums(data, at, end) - uint(data, checksum_offsets(headers, packets), 2)
    addresses = ip + np.where(is4, 12, 8)
    pseudo = short_sums(data, addresses, np.where(is4, 8, 32)) + protocol + length
    value = fold(sums + np.where(protocol == ICMP, 0, pseudo)) ^ 0xFFFF
    return np.where((protocol == UDP) & (value == 0), 0xFFFF, value)  # RFC 768: zero means no checksum


def differ(found: Array, expected: Array) -> Array:
    """
    Compare checksums as a receiver does: 0 and 0xFFFF are the same number in one's complement.
    """
    return np.not_equal((found - expected) % 0xFFFF, 0)
