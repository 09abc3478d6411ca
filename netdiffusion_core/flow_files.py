"""
Traffic as a folder of .npy arrays, flow by flow, so that some flows can be read without the others.

It is for the length of a run and for its workers: nobody but a run reads what it wrote.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from . import columns
from .columns import Column, grouped, mapped
from .model import FlowTable, Traffic

SLICE_FLOWS, SLICE_PACKETS = 512, 1 << 15
"""
A slice is that many flows, or fewer where they have that many packets. Results depend on it, since each slice draws
from a stream of its own, so it depends on nothing: not on cores, memory or settings.
"""

_OF_PACKETS = {
    "starts": np.int64,
    "captured_lengths": np.int32,
    "wire_lengths": np.int32,
    "timestamps": np.int64,
    "link_types": np.uint16,
    "flow_of": np.int32,
    "from_initiator": np.bool_,
}
_OF_FLOWS = tuple(field.name for field in attrs.fields(FlowTable))
_FLOW_STARTS = "flow_starts"


class Writer:
    """
    Writes traffic into an existing folder, a few flows after the others. The packets of a flow stay in the order that
    they have; those of no flow are left out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._octets = self._packets = self._flows = 0
        self._columns = {name: Column(folder / f"{name}.npy", dtype) for name, dtype in _OF_PACKETS.items()}
        self._data = Column(folder / "data.npy", np.uint8)
        self._flow_starts = Column(folder / f"{_FLOW_STARTS}.npy", np.int64)
        self._flow_starts.append(np.zeros(1))
        self._tables: list[FlowTable] = []

    def append(self, traffic: Traffic) -> None:
        """
        Write flows behind those that are there.
        """
        order, starts = grouped(traffic.flow_of, len(traffic.flows))
        part = traffic.select_packets(order).packed()
        self._data.append(part.data)
        for name, column in self._columns.items():
            column.append(getattr(part, name) + {"starts": self._octets, "flow_of": self._flows}.get(name, 0))
        self._flow_starts.append(starts[1:] + self._packets)
        self._tables.append(part.flows)
        self._octets += len(part.data)
        self._packets += len(part)
        self._flows += len(part.flows)

    def close(self) -> None:
        """
        Make the folder whole.
        """
        for column in (*self._columns.values(), self._data, self._flow_starts):
            column.close()
        for name in _OF_FLOWS:
            parts = [getattr(table, name) for table in self._tables]
            np.save(self._folder / f"{name}.npy", np.concatenate(parts or [np.empty(0)]), allow_pickle=False)


class FlowFiles:
    """
    What `Writer` wrote, mapped.

    starts   int64[flows+1]: flow i has the packets ``starts[i]`` to ``starts[i + 1]``
    traffic  all of it
    """

    def __init__(self, folder: Path) -> None:
        self.starts = mapped(folder / f"{_FLOW_STARTS}.npy")
        packets = {name: mapped(folder / f"{name}.npy") for name in _OF_PACKETS}
        flows = {name: mapped(folder / f"{name}.npy") for name in _OF_FLOWS}
        self.traffic = Traffic(data=mapped(folder / "data.npy"), **packets, flows=FlowTable(**flows))

    def select(self, first: int, last: int) -> Traffic:
        """
        Return the traffic of the flows from `first` to before `last`, without looking at others.
        """
        part = self.traffic.select_packets(slice(int(self.starts[first]), int(self.starts[last])))
        begin, end = (int(part.starts[0]), int(part.ends[-1])) if len(part) else (0, 0)
        return attrs.evolve(
            part,
            data=part.data[begin:end],
            starts=part.starts - begin,
            flow_of=part.flow_of - first,
            flows=self.traffic.flows.select(slice(first, last)),
        )


def save(traffic: Traffic, folder: Path) -> None:
    """
    Write traffic of any size into an existing folder.
    """
    order, starts = grouped(traffic.flow_of, len(traffic.flows))
    writer = Writer(folder)
    for first, last in cut(starts):
        part = traffic.select_packets(order[starts[first] : starts[last]])
        flows = traffic.flows.select(slice(first, last))
        writer.append(attrs.evolve(part, flow_of=part.flow_of - first, flows=flows))
    writer.close()


def cut(starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """
    Return the slices of flows, from one flow to before another.

    starts  int64[flows+1]: where the packets of each flow begin
    """
    return list(columns.cut(starts, SLICE_PACKETS, SLICE_FLOWS))
