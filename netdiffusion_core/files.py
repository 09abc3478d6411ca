"""
What commands do with captures file by file: pieces of work for an executor, some files each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from . import pipeline, repairs
from .capture import write_capture
from .columns import grouped
from .context import Context
from .errors import DataError
from .flow_files import cut
from .model import Traffic, Violation
from .plugins import Plugins

FILES = 16
"""Files of a piece of work."""

Some = tuple[tuple[str, Path], ...]
"""Captures by name."""


def pieces(files: Mapping[str, Path]) -> Iterator[Some]:
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
            mended, changes = pipeline.repair(broken, self.context.rules, self.context)
            tally += repairs.Tally.of(changes, len(broken))
            mended_files += bool(changes)
            target = (self.folder / name).with_suffix(".pcap")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_capture(target, mended)
        return tally, mended_files


@attrs.frozen(slots=False, kw_only=True)
class Check:
    """
    Looks for violations in captures. Returns them with the names of their files, and the reasons why files could not be
    read.
    """

    plugins: Plugins
    context: Context

    def __call__(self, some: Some) -> tuple[list[dict[str, Any]], list[str]]:
        found: list[dict[str, Any]] = []
        unread = []
        for name, path in some:
            try:
                violations = _violations(pipeline.read(path, self.plugins), self.context.rules)
                found += [{"file": name, **attrs.asdict(v)} for v in violations]
            except DataError as error:
                unread.append(str(error))
        return found, unread


def _violations(traffic: Traffic, rules: pipeline.Rules) -> list[Violation]:
    """
    Check traffic of any size, a slice of flows at a time; packets of no flow come first, together.
    """
    order, starts = grouped(traffic.flow_of, len(traffic.flows))
    slices = cut(starts)
    if len(slices) < 2:
        return list(pipeline.check(traffic, rules))
    loose = np.flatnonzero(traffic.flow_of < 0)
    parts = [(0, loose, traffic.flows.select(np.arange(0)))]
    parts += [(a, order[starts[a] : starts[b]], traffic.flows.select(np.arange(a, b))) for a, b in slices]
    found = []
    for first, packets, flows in parts:
        part = traffic.select_packets(packets)
        part = attrs.evolve(part, flow_of=np.where(part.flow_of < 0, -1, part.flow_of - first), flows=flows).packed()
        for v in pipeline.check(part, rules):
            packet = None if v.packet is None else int(packets[v.packet])
            found.append(attrs.evolve(v, flow=v.flow + first if v.flow >= 0 else -1, packet=packet))
    return found
