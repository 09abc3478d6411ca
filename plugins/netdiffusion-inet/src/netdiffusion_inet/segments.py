"""
Array tricks for packets in flow order: what a loop over each flow's packets would compute, for all flows at once.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import Traffic

Array = NDArray[Any]

_NEVER = -(1 << 40)  # below any value that `Flows.running_max` is asked about
_STRIDE = 1 << 42  # keeps the flows apart: above the spread of those values


@attrs.frozen(eq=False, slots=False)
class Flows:
    """
    Some packets in flow order (by flow, then by time).

    packets  int64[n]  indices into the traffic's packets
    flow     int64[n]  rank of the flow among the flows that have packets here, 0, 1, 2 …
    first    int64[n]  position (0 … n-1) of the first packet of the same flow
    row      int64[k]  row of the flow table of each rank
    """

    packets: Array
    flow: Array
    first: Array
    row: Array

    @classmethod
    def of(cls, traffic: Traffic, chosen: Array | None = None) -> Flows:
        """
        Put the packets of all flows (of those that the mask `chosen` has) in order.
        """
        packets, _ = traffic.by_flow()
        if chosen is not None:
            packets = packets[chosen[packets]]
        return cls.sorted(packets, traffic.flow_of[packets].astype(np.int64))

    @classmethod
    def sorted(cls, packets: Array, row: Array) -> Flows:
        """
        Build from packets that are in order already, and the row of each: int64[n], rising.
        """
        begins = np.ones(len(row), bool)
        begins[1:] = row[1:] != row[:-1]
        flow = np.cumsum(begins) - 1
        return cls(packets, flow, np.flatnonzero(begins)[flow], row[begins])

    def part(self, chosen: Array) -> Flows:
        """
        Return the packets where the mask holds, in the same order.
        """
        if chosen.all():
            return self
        return Flows.sorted(self.packets[chosen], self.row[self.flow[chosen]])

    def __len__(self) -> int:
        return len(self.packets)

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """
        int64[n]: 0 for the first packet of a flow, 1 for the second …
        """
        return np.arange(len(self)) - self.first

    @cached_property
    def heads(self) -> NDArray[np.int64]:
        """
        int64[k]: position of each flow's first packet.
        """
        return np.flatnonzero(self.position == 0)

    def any_in_flow(self, mask: Array) -> NDArray[np.bool_]:
        """
        Return for each packet whether the mask holds for any packet of its flow.
        """
        return np.logical_or.reduceat(mask, self.heads)[self.flow] if len(self) else mask

    def before(self, values: Array) -> NDArray[np.int64]:
        """
        Return the sum of `values` over the packets of the same flow before each packet.
        """
        total = np.cumsum(values) - values
        return total - total[self.first]

    def after(self, mask: Array) -> NDArray[np.int64]:
        """
        Return how many packets of the same flow behind each packet the mask holds for.
        """
        return np.bincount(self.flow, mask, len(self.row)).astype(np.int64)[self.flow] - self.before(mask) - mask

    def running_max(self, values: Array, where: Array) -> Array:
        """
        Return the largest of the values up to and with each packet of the same flow, looking only at packets where the
        mask holds; `none` (far below any value) before the first of them. Values are below 2 ** 40 in size.
        """
        base = self.flow * _STRIDE
        return np.maximum.accumulate(np.where(where, values, _NEVER) + base) - base

    def last(self, mask: Array) -> NDArray[np.int64]:
        """
        Return the position of the last packet of the same flow before each packet for which the mask holds, -1 for
        none.
        """
        here = np.maximum.accumulate(np.where(mask, np.arange(len(self)), -1))
        found = np.concatenate([[-1], here[:-1]]) if len(here) else here
        return np.where(found >= self.first, found, -1)

    def next(self, mask: Array) -> NDArray[np.int64]:
        """
        Return the position of the next packet of the same flow behind each packet for which the mask holds, -1 for
        none.
        """
        n = len(self)
        here = np.minimum.accumulate(np.where(mask, np.arange(n), n)[::-1])[::-1]
        found = np.concatenate([here[1:], [n]]) if n else here
        return np.where((found < n) & (np.append(self.flow, -1)[found] == self.flow), found, -1)

    def final(self, where: Array) -> NDArray[np.int64]:
        """
        Return for each packet the position of the last packet of its flow where the mask holds, -1 for none.
        """
        i = np.flatnonzero(where)
        found = np.full(len(self.row), -1)
        found[self.flow[i]] = i
        return found[self.flow]

    def initial(self, values: Array, where: Array, default: Array | int = 0) -> NDArray[np.int64]:
        """
        Return for each packet the value of the first packet of its flow where the mask holds, else the default.
        """
        i = np.flatnonzero(where)[::-1]
        found = np.full(len(self.row), -1)
        found[self.flow[i]] = i
        found = found[self.flow]
        return np.where(found >= 0, values[found], default)


def first_alike(*keys: Array) -> NDArray[np.int64]:
    """
    Return the index of the first element that has the same keys: int64[n].
    """
    order = np.lexsort(keys)  # which is stable
    begins = np.ones(len(order), bool)
    begins[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return first


def vote(groups: Array, values: Array, count: int, bits: int, default: int = 0) -> NDArray[np.int64]:
    """
    Return the most frequent value of each group; among equally frequent ones the nearest, in bits, to the majority of
    every bit. A group without votes gets the default.

    groups  int[n], 0 … count-1, rising
    values  int[n], of so many bits
    """
    winners = np.full(count, default, np.int64)
    winners[groups] = values
    split = np.bincount(groups, winners[groups] != values, count)[groups] > 0
    groups, values = groups[split], values[split]
    if not len(groups):
        return winners
    pairs, votes = np.unique(groups.astype(np.int64) << bits | values, return_counts=True)
    most = np.zeros(count, np.int64)
    np.maximum.at(most, pairs >> bits, votes)
    best = votes == most[pairs >> bits]
    group, value = pairs[best] >> bits, pairs[best] & (1 << bits) - 1
    winners[group] = value
    tied = np.bincount(group, minlength=count) > 1
    if not tied.any():
        return winners
    groups, values = groups[tied[groups]], values[tied[groups]]
    group, value = group[tied[group]], value[tied[group]]
    weights = np.arange(bits)
    ones = np.zeros((count, bits), np.int64)
    heads = np.flatnonzero(np.diff(groups, prepend=-1))
    ones[groups[heads]] = np.add.reduceat(values[:, None] >> weights & 1, heads)
    majority = 2 * ones > np.bincount(groups, minlength=count)[:, None]
    distance = (majority[group] != (value[:, None] >> weights & 1)).sum(1)
    order = np.lexsort((-distance, group))
    winners[group[order]] = value[order]  # the last of a group stands
    return winners
