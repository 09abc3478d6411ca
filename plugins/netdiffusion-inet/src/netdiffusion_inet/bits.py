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


def _chosen(mask: Array) -> Array | slice:
    """
    Return what selects the packets of a mask; of all packets a slice, which makes a view and no copy.
    """
    return slice(None) if mask.all() else np.flatnonzero(mask)


class Bits:
    """
    Encoded flows while they are being changed, and their `stack`.
    """

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded
        self.rows = encoded.rows  # copied before they are first written
        self.stack = _STACKS.get(encoded) or _STACKS.put(encoded, Stack.of(encoded))
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

    def _put(self, packets: Array | slice, columns: slice, bits: Array | int) -> None:
        """
        Write columns of these packets, if they differ.
        """
        if (self.rows[packets, columns] != bits).any():
            if self.rows is self._encoded.rows:
                self.rows = self.rows.copy()
            self.rows[packets, columns] = bits

    def values(self, field: str) -> NDArray[np.int64]:
        """
        Return a field as numbers: int64[packets], -1 where a bit of it is missing.
        """
        span = self.spans[field]
        return self.number(span.start, span.stop - span.start)

    def number(self, column: int, bits: int) -> NDArray[np.int64]:
        """
        Return so many columns as numbers, like `values`.
        """
        return numbers(self.rows[:, column : column + bits])

    def write(self, field: str, mask: Array, values: Array | int) -> None:
        """
        Write a field of the packets in the mask.
        """
        span = self.spans[field]
        self.write_number(span.start, span.stop - span.start, mask, values)

    def write_number(self, column: int, bits: int, mask: Array, values: Array | int) -> None:
        """
        Write so many columns of the packets in the mask.
        """
        i = _chosen(mask)
        values = np.full(len(mask), values)[i, None]
        self._put(i, slice(column, column + bits), values >> np.arange(bits)[::-1] & 1)

    def clear(self, header: str, mask: Array) -> None:
        """
        Remove a header from the packets in the mask.
        """
        if header in self.spans:
            self._put(_chosen(mask), self.spans[header], MISSING)

    def keep_one_transport(self, mask: Array) -> None:
        """
        Remove every transport header but the flow's own.
        """
        for header, protocols in (("tcp", (TCP,)), ("udp", (UDP,)), ("icmp", (ICMP, ICMPV6))):
            self.clear(header, mask & np.all([self.protocols != number for number in protocols], axis=0))

    def complete(self, header: str, bits: int, mask: Array) -> None:
        """
        Fill the gaps in a header's first `bits` columns with what the nearest packet of the same flow and direction
        has there (the one before, else the one behind), and with 0 where no packet has them all.
        """
        if not mask.any():
            return
        start = self.spans[header].start
        columns = slice(start, start + bits)
        part = self.rows[:, columns]
        missing = (part == MISSING) & mask[:, None]
        if not missing.any():
            return
        direction = self.rows[:, self.spans["trace.direction"].start] == 1 if "trace.direction" in self.spans else 0
        i = np.flatnonzero(mask)
        key = (2 * self.flow + direction)[i]
        order = np.argsort(key, kind="stable")
        groups = Flows.sorted(i[order], key[order])
        whole = ~any_of_row(missing[groups.packets])
        before, behind = groups.last(whole), groups.next(whole)
        donor = np.where(before >= 0, before, behind)
        gift = np.where(donor[:, None] >= 0, part[groups.packets[donor]], 0)
        self._put(groups.packets, columns, np.where(missing[groups.packets], gift, part[groups.packets]))

    def options(self, field: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """
        Return ``(options, sizes)``: uint8[packets, 40], and the bytes that are present: whole words from the front.
        """
        bits = self.rows[:, self.spans[field]]
        broken = np.ones((len(bits), 11), bool)
        broken[:, :10] = np.packbits(bits != MISSING, axis=1).view(np.uint32) != 0xFFFFFFFF
        sizes = 4 * broken.argmax(1)
        return np.packbits(bits == 1, axis=1) * (np.arange(40) < sizes[:, None]), sizes

    def write_options(self, field: str, mask: Array, options: Array, sizes: Array) -> None:
        """
        Write ``options[i, :sizes[i]]`` of the packets in the mask; what is behind becomes absent.
        """
        i, span = _chosen(mask), self.spans[field]
        width = int(sizes[i].max(initial=0))
        bits = np.unpackbits(options[i, :width], axis=1).view(np.int8)
        middle = span.start + 8 * width
        inside = np.arange(8 * width, dtype=np.int16) < (8 * sizes[i, None]).astype(np.int16)
        self._put(i, slice(span.start, middle), np.where(inside, bits, MISSING))
        self._put(i, slice(middle, span.stop), MISSING)
