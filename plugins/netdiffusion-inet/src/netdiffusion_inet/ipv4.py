"""
The rule set ``ipv4`` (RFC 791).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import uint
from netdiffusion_core.model import any_of_row

from .bits import Bits
from .headers import Draft, malformed, oversized
from .options import IPV4_LENGTHS, table, walk
from .rules import rules_of
from .ruleset import InetRules

Array = NDArray[Any]

DEFAULT_TTL = 64  # RFC 1700, "IP parameters"
_LEGAL_OPTIONS = table(IPV4_LENGTHS)
_WELL_FORMED = table({kind: tuple(range(2, 41)) for kind in range(2, 256)})


class Ipv4Rules(InetRules):
    """
    Each IPv4 header by itself.
    """

    name = header = "ipv4"
    checksums = ("ipv4", "icmp")  # ICMP is an integral part of IP: RFC 792
    rules = rules_of("ipv4")

    def settle(self, bits: Bits) -> None:
        """
        Give every packet of an IPv4 flow a whole IPv4 header and one transport header, and no packet of another flow.
        Options that are malformed are dropped.
        """
        mine, others = (np.flatnonzero(bits.live & is4) for is4 in (bits.ip_versions == 4, bits.ip_versions != 4))
        bits.clear("ipv4", others)
        if not len(mine):
            return
        bits.complete("ipv4", 96, mine)
        bits.keep_one_transport(mine)
        options, sizes = bits.options("ipv4.opt", mine)
        walked, _ = walk(options, sizes, _LEGAL_OPTIONS)
        sizes = np.where(any_of_row(walked != options), 0, sizes)
        bits.write_options("ipv4.opt", mine, options, sizes)
        bits.write("ipv4.ver", mine, 4)
        bits.write("ipv4.hl", mine, 5 + sizes // 4)
        bits.write("ipv4.mfbit", mine, 0)
        bits.write("ipv4.foff", mine, 0)
        ours = mine[bits.protocols[mine] >= 0]
        bits.write("ipv4.proto", ours, bits.protocols[ours])

    def mend(self, draft: Draft, rng: np.random.Generator) -> None:
        """
        Mend reserved bit, stray fragments, TTL 0, malformed options (blanked), total length, datagrams that are too
        long, and checksum; that of ICMP too.
        """
        stray = np.flatnonzero(_stray_fragments(draft))
        if len(stray):
            draft.put("ipv4.fragment", "ipv4.mf_foff", stray, 0)
            draft.reread()  # what is no fragment any more has a transport header
        draft.put("ipv4.reserved-bit", "ipv4.rbit", np.flatnonzero(draft.headers.ip_versions == 4), 0)
        draft.put("ipv4.ttl", "ipv4.ttl", _dead(draft), DEFAULT_TTL)
        draft.put_options("ipv4.options", "ipv4", *_malformed_options(draft))
        draft.put_lengths("ipv4.length", *_wrong_lengths(draft))
        draft.cut("ipv4.mtu", *oversized(draft.headers, 4))

    def faults(self, draft: Draft) -> Iterator[tuple[str, Array]]:
        """
        Yield what `rules` says.
        """
        i = np.flatnonzero(draft.headers.ip_versions == 4)
        yield "ipv4.header", malformed(draft.traffic, draft.headers, 4)
        yield "ipv4.length", _wrong_lengths(draft)[0]
        yield "ipv4.mtu", oversized(draft.headers, 4)[0]
        yield "ipv4.reserved-bit", i[draft.get("ipv4.rbit", i) > 0]
        yield "ipv4.fragment", np.flatnonzero(_stray_fragments(draft))
        yield "ipv4.ttl", _dead(draft)
        yield "ipv4.options", _malformed_options(draft)[0]
        yield "ipv4.checksum", draft.wrong_ipv4_checksums()[0]


def _dead(draft: Draft) -> Array:
    """
    Return the IPv4 packets with TTL 0.
    """
    i = np.flatnonzero(draft.headers.ip_versions == 4)
    return i[draft.get("ipv4.ttl", i) == 0]


def _wrong_lengths(draft: Draft) -> tuple[Array, Array]:
    """
    Return ``(packets, lengths)``: where the total length is shorter than the headers or longer than the packet, and
    what it should be: the headers alone, or all of the packet. A length of 0 (segmentation offload) stands for all.
    """
    h = draft.headers
    i = np.flatnonzero(h.ip_versions == 4)
    told = draft.get("ipv4.tl", i)
    least = h.ip_header_lengths[i] + h.transport_header_lengths[i]
    most = np.minimum(draft.traffic.wire_lengths[i] - h.link_lengths[i], 65_535)
    right = np.where((told == 0) | (told > most), most, np.maximum(told, least))
    return i[told != right], right[told != right]


def _malformed_options(draft: Draft) -> tuple[Array, Array]:
    """
    Return ``(packets, options)``: where options cannot be walked, and the same options with the unknown blanked. What
    is unknown but well-formed is left alone.
    """
    h = draft.headers
    i = np.flatnonzero((h.ip_versions == 4) & (h.ip_header_lengths > 20))
    options, sizes = draft.options("ipv4", i)
    walked, _ = walk(options, sizes, _WELL_FORMED)
    bad = any_of_row(walked != options)
    return i[bad], walked[bad]


def _stray_fragments(draft: Draft) -> Array:
    """
    Return bool[packets]: fragments of an IPv4 datagram that is not complete here (RFC 791 section 3.2: same addresses,
    protocol and identification; each begins where the one before ends, from 0 to one without more-fragments).
    """
    h = draft.headers
    stray = h.fragments & (h.ip_versions == 4)
    i = np.flatnonzero(stray)
    if not len(i):
        return stray
    key = [uint(draft.data, h.ip_offsets[i] + 12, 4), uint(draft.data, h.ip_offsets[i] + 16, 4), h.protocols[i]]
    order = np.lexsort((h.fragment_offsets[i], h.fragment_ids[i], *key))
    i = i[order]
    begin = h.fragment_offsets[i] * 8
    end = begin + h.ip_lengths[i] - h.ip_header_lengths[i]
    more = draft.get("ipv4.mf_foff", i) >= 0x2000
    identity = np.column_stack([*(k[order] for k in key), h.fragment_ids[i]])
    starts = np.ones(len(i), bool)
    starts[1:] = (identity[1:] != identity[:-1]).any(1)
    last = np.append(starts[1:], True)[: len(i)]
    continues = np.where(starts, begin == 0, np.concatenate([[0], end[:-1]])[: len(i)] == begin)
    complete = continues & (more == ~last)
    group = np.cumsum(starts) - 1
    stray[i[np.bincount(group, ~complete)[group] == 0]] = False
    return stray
