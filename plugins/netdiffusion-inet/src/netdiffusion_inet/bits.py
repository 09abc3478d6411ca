"""
What the rules need to mend encoded flows, before there are packets: header presence, fields and options as numbers.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import ICMP, ICMPV6, MISSING, TCP, UDP, Encoded

from .segments import Flows, vote

Array = NDArray[Any]

_TRANSPORTS = ("tcp", "udp", "icmp")
_CHUNK = 65_536


class Bits:
    """
    Encoded flows while they are being changed.

    live  bool[packets]: rows that are packets. Where a flow has a row without any header, it ends there: what follows
          is padding and stays as it is.
    """

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded
        self.rows = encoded.rows.copy()
        self.spans = encoded.layout.spans()
        self.flow = encoded.flow_of
        headers = [self._present(name) for name in ("ipv4", "ipv6", *_TRANSPORTS)]
        empty = np.cumsum(np.sum(headers, axis=0) == 0)
        before = np.concatenate([[0], empty])[encoded.starts[:-1]]
        self.live = empty == before[self.flow]
        self._counts = dict(zip(("ipv4", "ipv6", *_TRANSPORTS), headers, strict=True))

    def encoded(self) -> Encoded:
        """
        Return what was made of the flows.
        """
        return attrs.evolve(self._encoded, rows=self.rows)

    @cached_property
    def ip_versions(self) -> NDArray[np.int64]:
        """
        int64[packets]: the one IP version of the packet's flow, the one that more of its bits are of; 4 when in doubt.
        """
        votes = [self._per_flow(self._counts[name]) for name in ("ipv4", "ipv6")]
        return np.where(votes[0] >= votes[1], 4, 6)[self.flow]

    @cached_property
    def protocols(self) -> NDArray[np.int64]:
        """
        int64[packets]: the one transport protocol of the packet's flow: of the header that more of its bits are of.
        Without any, the protocol that its IP headers name: if they agree on one that is none of ours, the flow has no
        transport header (-1), and if they do not agree it is UDP, which demands least.
        """
        votes = np.stack([self._per_flow(self._counts[name]) for name in _TRANSPORTS])
        is4 = self.ip_versions == 4
        icmp = np.where(is4, ICMP, ICMPV6)
        most = votes.argmax(0)[self.flow]
        chosen = np.where(most == 0, TCP, np.where(most == 1, UDP, icmp))
        told = np.where(is4, self.values("ipv4.proto"), self.values("ipv6.nh") if "ipv6" in self.spans else 0)
        count = len(self._encoded)
        seen = self.live & (told >= 0)
        named = vote(self.flow[seen], told[seen], count, 8, UDP)[self.flow]
        agreed = (np.bincount(self.flow[seen & (told != named)], minlength=count) == 0)[self.flow]
        ours = (named == TCP) | (named == UDP) | (named == icmp)
        named = np.where(ours, named, np.where(agreed & ~np.isin(named, (0, ICMP, ICMPV6)), -1, UDP))
        return np.where((votes.sum(0) > 0)[self.flow], chosen, named)

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
        part = self.rows[:, column : column + bits]
        return np.where((part == MISSING).any(1), -1, (part == 1) @ (1 << np.arange(bits)[::-1]))

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
        i = np.flatnonzero(mask)
        values = np.broadcast_to(values, len(mask))[i]
        self.rows[i, column : column + bits] = values[:, None] >> np.arange(bits)[::-1] & 1

    def clear(self, header: str, mask: Array) -> None:
        """
        Remove a header from the packets in the mask.
        """
        if header in self.spans:
            self.rows[mask, self.spans[header]] = MISSING

    def keep_one_transport(self, mask: Array) -> None:
        """
        Remove every transport header but the flow's own.
        """
        for header, numbers in (("tcp", (TCP,)), ("udp", (UDP,)), ("icmp", (ICMP, ICMPV6))):
            self.clear(header, mask & ~np.isin(self.protocols, numbers))

    def complete(self, header: str, bits: int, mask: Array) -> None:
        """
        Fill the gaps in a header's first `bits` columns with what the nearest packet of the same flow and direction
        has there (the one before, else the one behind), and with 0 where no packet has them all.
        """
        start = self.spans[header].start
        part = self.rows[:, start : start + bits]
        missing = (part == MISSING) & mask[:, None]
        if not missing.any():
            return
        direction = self.rows[:, self.spans["trace.direction"].start] == 1 if "trace.direction" in self.spans else 0
        i = np.flatnonzero(mask)
        key = (2 * self.flow + direction)[i]
        order = np.argsort(key, kind="stable")
        groups = Flows.sorted(i[order], key[order])
        whole = ~missing[groups.packets].any(1)
        before, behind = groups.last(whole), groups.next(whole)
        donor = np.where(before >= 0, before, behind)
        gift = np.where(donor[:, None] >= 0, part[groups.packets[donor]], 0)
        part[groups.packets] = np.where(missing[groups.packets], gift, part[groups.packets])

    def options(self, field: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """
        Return ``(options, sizes)``: uint8[packets, 40], and the bytes that are present: whole words from the front.
        """
        bits = self.rows[:, self.spans[field]]
        whole = (bits != MISSING).reshape(len(bits), 10, 32).all(2)
        sizes = 4 * np.logical_and.accumulate(whole, axis=1).sum(1)
        options = np.packbits(bits == 1, axis=1)
        return np.where(np.arange(40) < sizes[:, None], options, 0).astype(np.uint8), sizes

    def write_options(self, field: str, mask: Array, options: Array, sizes: Array) -> None:
        """
        Write ``options[i, :sizes[i]]`` of the packets in the mask; what is behind becomes absent.
        """
        i = np.flatnonzero(mask)
        bits = np.unpackbits(options[i], axis=1).view(np.int8)
        self.rows[i, self.spans[field]] = np.where(np.arange(320) < 8 * sizes[i, None], bits, MISSING)

    def _present(self, header: str) -> NDArray[np.int64]:
        count = np.zeros(len(self.rows), np.int64)
        if header in self.spans:
            for start in range(0, len(count), _CHUNK):
                part = self.rows[start : start + _CHUNK, self.spans[header]]
                count[start : start + _CHUNK] = np.count_nonzero(part != MISSING, axis=1)
        return count

    def _per_flow(self, counts: Array) -> NDArray[np.int64]:
        return np.bincount(self.flow, counts * self.live, len(self._encoded)).astype(np.int64)
