"""
What the rules need to mend encoded flows, before there are packets: header presence, fields and options as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import ICMP, ICMPV6, MISSING, TCP, UDP, Encoded, any_of_row, numbers

from .known import Known
from .segments import Flows, vote

Array = NDArray[Any]

_TRANSPORTS = ("tcp", "udp", "icmp")


@attrs.frozen(eq=False)
class Stack:
    """
    Which headers the packets of each flow have, as the rules see to it. That stays as it is while the rules put the
    bits right, so it is worked out once.

    spans        columns of every header and field
    flow         int64[packets]
    live         bool[packets]   rows that are packets. Where a flow has a row without any header, it ends there: what
                                 follows is padding and stays as it is.
    ip_versions  int64[packets]  the one IP version of the packet's flow, the one that more of its bits are of; 4 when
                                 in doubt
    protocols    int64[packets]  the one transport protocol of the packet's flow: of the header that more of its bits
                                 are of. Without any, the protocol that its IP headers name: if they agree on one that
                                 is none of ours, the flow has no transport header (-1), and if they do not agree it is
                                 UDP, which demands least.
    """

    spans: Mapping[str, slice]
    flow: Array
    live: Array
    ip_versions: Array
    protocols: Array

    @classmethod
    def of(cls, encoded: Encoded) -> Stack:
        """
        Read the headers that are present.
        """
        spans, rows, flow, count = encoded.layout.spans(), encoded.rows, encoded.flow_of, len(encoded)
        nothing = slice(0, 0)
        present = [
            np.bitwise_count(np.packbits(rows[:, spans.get(name, nothing)] != MISSING, axis=1)).sum(1)
            for name in ("ipv4", "ipv6", *_TRANSPORTS)
        ]
        empty = np.cumsum(np.sum(present, axis=0) == 0)
        live = empty == np.concatenate([[0], empty])[encoded.starts[:-1]][flow]
        votes = np.stack([np.bincount(flow, each * live, count) for each in present])
        ip_versions = np.where(votes[0] >= votes[1], 4, 6)[flow]
        is4 = ip_versions == 4
        icmp = np.where(is4, ICMP, ICMPV6)
        most = votes[2:].argmax(0)[flow]
        protocols = np.where(most == 0, TCP, np.where(most == 1, UDP, icmp))
        silent = votes[2:].sum(0)[flow] == 0
        if (silent & live).any():
            four, six = (encoded.values(f) if f in spans else 0 for f in ("ipv4.proto", "ipv6.nh"))
            told = np.where(is4, four, six)
            seen = live & (told >= 0)
            named = vote(flow[seen], told[seen], count, 8, UDP)[flow]
            agreed = (np.bincount(flow[seen & (told != named)], minlength=count) == 0)[flow]
            ours = (named == TCP) | (named == UDP) | (named == icmp)
            named = np.where(ours, named, np.where(agreed & ~np.isin(named, (0, ICMP, ICMPV6)), -1, UDP))
            protocols = np.where(silent, named, protocols)
        return cls(spans, flow, live, ip_versions, protocols)


_STACKS: Known[Stack] = Known()


class Bits:
    """
    Encoded flows while they are being changed, and their `stack`. Packets are given as rising indices.
    """

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded
        self.rows = encoded.rows  # copied before they are first written
        self.stack = _STACKS.get(encoded, Stack.of)
        self.spans = self.stack.spans
        self.flow, self.live = self.stack.flow, self.stack.live
        self.ip_versions, self.protocols = self.stack.ip_versions, self.stack.protocols

    def encoded(self) -> Encoded:
        """
        Return what was made of the flows, the same object if nothing was changed.
        """
        if self.rows is self._encoded.rows:
            return self._encoded
        encoded = attrs.evolve(self._encoded, rows=self.rows)
        _STACKS.put(encoded, self.stack)
        return encoded

    def _rows(self, packets: Array) -> Array | slice:
        """
        Return what selects these packets; of all packets a slice, which makes a view and no copy.
        """
        return slice(None) if len(packets) == len(self.rows) else packets

    def _put(self, packets: Array, columns: slice, bits: Array | int) -> None:
        """
        Write columns of these packets, if they differ.
        """
        i = self._rows(packets)
        if (self.rows[i, columns] != bits).any():
            if self.rows is self._encoded.rows:
                self.rows = self.rows.copy()
            self.rows[i, columns] = bits

    def values(self, field: str, packets: Array) -> NDArray[np.int64]:
        """
        Return a field of these packets as numbers: int64[n], -1 where a bit of it is missing.
        """
        span = self.spans[field]
        return self.number(span.start, span.stop - span.start, packets)

    def number(self, column: int, bits: int, packets: Array) -> NDArray[np.int64]:
        """
        Return so many columns as numbers, like `values`.
        """
        return numbers(self.rows[self._rows(packets), column : column + bits])

    def write(self, field: str, packets: Array, values: Array | int) -> None:
        """
        Write a field of these packets.
        """
        span = self.spans[field]
        self.write_number(span.start, span.stop - span.start, packets, values)

    def write_number(self, column: int, bits: int, packets: Array, values: Array | int) -> None:
        """
        Write so many columns of these packets, at most 32.
        """
        octets = np.asarray(values, ">u4")[..., None].view(np.uint8)
        digits = np.unpackbits(octets, axis=-1)[..., -bits:].view(np.int8)
        self._put(packets, slice(column, column + bits), digits)

    def clear(self, header: str, packets: Array) -> None:
        """
        Remove a header from these packets.
        """
        if header in self.spans:
            self._put(packets, self.spans[header], MISSING)

    def keep_one_transport(self, packets: Array) -> None:
        """
        Remove every transport header but the flow's own.
        """
        own = self.protocols[packets]
        for header, others in (("tcp", own != TCP), ("udp", own != UDP), ("icmp", (own != ICMP) & (own != ICMPV6))):
            self.clear(header, packets[others])

    def complete(self, header: str, bits: int, packets: Array) -> None:
        """
        Fill the gaps in a header's first `bits` columns with what the nearest packet of the same flow and direction
        has there (the one before, else the one behind), and with 0 where no packet has them all.
        """
        start = self.spans[header].start
        columns = slice(start, start + bits)
        part = self.rows[self._rows(packets), columns]
        missing = part == MISSING
        if not missing.any():
            return
        key = 2 * self.flow[packets]
        if "trace.direction" in self.spans:
            key += self.rows[packets, self.spans["trace.direction"].start] == 1
        order = np.argsort(key, kind="stable")
        groups, whole = Flows.sorted(order, key[order]), ~any_of_row(missing)[order]
        before, behind = groups.last(whole), groups.next(whole)
        donor = np.where(before >= 0, before, behind)
        gift = np.empty_like(part)
        gift[order] = np.where(donor[:, None] >= 0, part[order[donor]], 0)
        self._put(packets, columns, np.where(missing, gift, part))

    def options(self, field: str, packets: Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """
        Return ``(options, sizes)`` of these packets: uint8[n, the longest, at least 4], and the bytes that are present:
        whole words from the front.
        """
        bits = self.rows[self._rows(packets), self.spans[field]]
        sizes, i = np.zeros(len(bits), np.int64), np.flatnonzero(bits[:, 0] != MISSING)
        for word in range(0, bits.shape[1], 32):
            i = i[~any_of_row(bits[i, word : word + 32] == MISSING)]
            if not len(i):
                break
            sizes[i] += 4
        width = int(sizes.max(initial=4))
        return np.packbits(bits[:, : 8 * width] == 1, axis=1) * (np.arange(width) < sizes[:, None]), sizes

    def write_options(self, field: str, packets: Array, options: Array, sizes: Array) -> None:
        """
        Write ``options[i, :sizes[i]]`` of these packets; what is behind becomes absent.
        """
        span, width = self.spans[field], int(sizes.max(initial=0))
        bits = np.unpackbits(options[:, :width], axis=1).view(np.int8)
        middle = span.start + 8 * width
        inside = np.arange(8 * width, dtype=np.int16) < (8 * sizes[:, None]).astype(np.int16)
        self._put(packets, slice(span.start, middle), np.where(inside, bits, MISSING))
        self._put(packets, slice(middle, span.stop), MISSING)
