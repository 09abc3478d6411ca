"""
What commands do with captures file by file: pieces of work for an executor, some files each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from . import pipeline, repairs
from .capture import write_capture
from .capture.pile import Pile
from .columns import Spool, argsort, grouped, pieces, spooled, taken
from .context import Context
from .errors import DataError
from .flow_files import SLICE_PACKETS, cut
from .model import Traffic, Violation
from .plugins import Plugins

Array = NDArray[Any]

FILES = 16
"""Files of a piece of work."""

WHOLE_PACKETS = 1 << 17
"""A capture of more packets is mended a slice at a time: rules take up to 3 KB a packet."""

Some = tuple[tuple[str, Path], ...]
"""Captures by name."""


def divided(files: Mapping[str, Path]) -> Iterator[Some]:
    """
    Divide captures into pieces of work.
    """
    items = list(files.items())
    for first in range(0, len(items), FILES):
        yield tuple(items[first : first + FILES])


@attrs.frozen(slots=False, kw_only=True)
class Repair:
    """
    Mends captures, each into a file of the same name in `folder`. Returns what was changed, and in how many files.
    """

    plugins: Plugins
    context: Context
    folder: Path

    def __call__(self, some: Some) -> tuple[repairs.Tally, int]:
        tally, mended_files = repairs.Tally(), 0
        for name, path in some:
            broken = pipeline.read(path, self.plugins)
            mended, order, changed = _mended(broken, self.context)
            tally += changed
            mended_files += bool(changed.of_rules)
            target = (self.folder / name).with_suffix(".pcap")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_capture(target, mended, order)
        return tally, mended_files


@attrs.frozen(slots=False, kw_only=True)
class Check:
    """
    Looks for violations in captures. Returns them with the names of their files, their number by rule and severity, and
    the reasons why files could not be read.

    every  whether each violation is returned, and not the first of each rule
    """

    plugins: Plugins
    context: Context
    every: bool

    def __call__(self, some: Some) -> tuple[list[dict[str, Any]], Counter[tuple[str, str]], list[str]]:
        found: dict[Any, dict[str, Any]] = {}
        counts: Counter[tuple[str, str]] = Counter()
        unread = []
        for name, path in some:
            try:
                for v in _violations(pipeline.read(path, self.plugins), self.context.rules):
                    counts[v.rule, v.severity] += 1
                    key = counts.total() if self.every else v.rule
                    if key not in found:
                        found[key] = {"file": name, **attrs.asdict(v)}
            except DataError as error:
                unread.append(str(error))
        return list(found.values()), counts, unread


def _mended(traffic: Traffic, context: Context) -> tuple[Traffic, Array | None, repairs.Tally]:
    """
    Repair traffic of any size, a slice of flows at a time where it is large, and each slice with random streams of its
    own. Also return the order in which to write the packets, and what was changed.
    """
    if len(traffic) <= WHOLE_PACKETS:
        mended, changes = pipeline.repair(traffic, context.rules, context)
        return mended, None, repairs.Tally.of(changes, len(traffic))
    pile, places, tally, in_place = Pile(), Spool(np.int64), repairs.Tally(), True
    for number, (_, packets, part) in enumerate(_parts(traffic)):
        mended, changes = pipeline.repair(part, context.rules, context.of_slice(number))
        tally += repairs.Tally.of(changes, len(part))
        in_place &= np.array_equal(mended.timestamps, part.timestamps)
        pile.add(mended)
        places.append(np.resize(packets, len(mended)))
    mended, _ = pile.traffic()
    order = argsort(places.array())
    if not in_place:
        order = taken(order, argsort(taken(mended.timestamps, order)))
    return mended, order, tally


def _violations(traffic: Traffic, rules: pipeline.Rules) -> Iterator[Violation]:
    """
    Check traffic of any size, a slice of flows at a time; packets of no flow come first.
    """
    for first, packets, part in _parts(traffic):
        for v in pipeline.check(part, rules):
            packet = None if v.packet is None else int(packets[v.packet])
            yield attrs.evolve(v, flow=v.flow + first if v.flow >= 0 else -1, packet=packet)


def _parts(traffic: Traffic) -> Iterator[tuple[int, Array, Traffic]]:
    """
    Yield packets of no flow, and behind them flow by flow, a slice at a time: the first flow, where its packets are in
    the traffic, and the slice.
    """
    order, starts = grouped(traffic.flow_of, len(traffic.flows))
    loose = spooled(np.int64, (p.start + np.flatnonzero(traffic.flow_of[p] < 0) for p in pieces(len(traffic))))
    some = [(0, 0, loose[i : i + SLICE_PACKETS]) for i in range(0, len(loose), SLICE_PACKETS)]
    some += [(a, b, order[starts[a] : starts[b]]) for a, b in cut(starts)]
    if len(some) == 1:
        yield 0, np.arange(len(traffic)), traffic
        return
    for first, last, unsorted in some:
        packets = np.sort(unsorted)
        part = traffic.select_packets(packets)
        flow_of = np.where(part.flow_of < 0, -1, part.flow_of - first)
        yield (
            first,
            packets,
            attrs.evolve(part, flow_of=flow_of, flows=traffic.flows.select(slice(first, last))).packed(),
        )
