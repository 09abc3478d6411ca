"""
The Internet checksum (RFC 1071) of every packet at once.

A checksum fits if the sum of all that it covers, itself included, is a multiple of 0xFFFF, which is zero in one's
complement. Such a sum is taken once: what is written into a header afterwards changes it by as much (RFC 1624).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import Dissection
from netdiffusion_core.model import ICMP, TCP, UDP

Array = NDArray[Any]

_FIELD = np.full(256, 2)  # where the checksum is in the header of each protocol: that of ICMP and ICMPv6 at 2
_FIELD[[TCP, UDP]] = 16, 6


def word_sums(data: Array, start: Array, end: Array) -> NDArray[np.int64]:
    """
    Return, modulo 0xFFFF, the sum of the big-endian 16-bit words of each ``data[start[i]:end[i]]``, at least four bytes
    each; an odd last byte is padded with 0.

    The words are added up at even positions and low byte first, as most machines read them. Both only exchange the
    halves of the sum, which is to multiply it by 256, and a region that begins at an odd position exchanges them once
    more (RFC 1071 section 2, byte order independence). 32 bits hold the sum of an IP packet.
    """
    words = data[: len(data) // 2 * 2].view("<u2")
    low, high, last = start // 2, end // 2, len(words) - 1
    bounds = np.column_stack([low, np.minimum(high, last)])  # reduceat takes no index behind the last word
    backwards = bounds[::-1].ravel()  # so that nothing between two regions is added
    sums = np.add.reduceat(words, backwards, dtype=np.uint32)[::2][::-1].astype(np.int64)
    sums += np.where(high > last, int(words[-1]), 0)
    odd_start, odd_end = start & 1, end & 1
    sums += data[end - 1] * odd_end - data[start - odd_start] * odd_start
    return np.where(odd_start > 0, sums, sums << 8)


def short_sums(data: Array, start: Array, lengths: Array) -> NDArray[np.float64]:
    """
    Return the sums for a few bytes, an even number of them, anywhere in `data`: those of headers.
    """
    column = np.arange(lengths.max(initial=0))
    octets = data[np.minimum(start[:, None] + column, len(data) - 1)] * (column < lengths[:, None])
    return octets @ np.where(column % 2 > 0, 1.0, 256.0)


def ipv4_sums(data: Array, headers: Dissection, packets: Array) -> NDArray[np.float64]:
    """
    Return the sum over the IPv4 header of these packets (RFC 791 section 3.1).
    """
    return short_sums(data, headers.ip_offsets[packets], headers.ip_header_lengths[packets])


def transport_sums(data: Array, ends: Array, headers: Dissection, packets: Array) -> NDArray[np.float64]:
    """
    Return, modulo 0xFFFF, the sum over what the transport checksum of these packets covers: TCP (RFC 9293 section 3.1),
    UDP (RFC 768), ICMP (RFC 792) and ICMPv6 (RFC 4443 section 2.3), the pseudo-header of RFC 8200 section 8.1 included.
    Bytes that were not captured, from `ends` (int64[all packets]) on, count as zeros. The transport header is part of
    it, even where the IP header tells a length that ends within.
    """
    ip, at = headers.ip_offsets[packets], headers.transport_offsets[packets]
    protocol, is4 = headers.protocols[packets], headers.ip_versions[packets] == 4
    length = headers.ip_lengths[packets] - headers.ip_header_lengths[packets]
    end = np.maximum(np.minimum(at + length, ends[packets]), at + headers.transport_header_lengths[packets])
    addresses = ip + np.where(is4, 12, 8)
    pseudo = short_sums(data, addresses, np.where(is4, 8, 32)) + protocol + length
    return word_sums(data, at, end) + np.where(protocol == ICMP, 0, pseudo)


def checksum_offsets(headers: Dissection, packets: Array) -> NDArray[np.int64]:
    """
    Return where the transport checksum of these packets is in the traffic's bytes.
    """
    return headers.transport_offsets[packets] + _FIELD[headers.protocols[packets]]
