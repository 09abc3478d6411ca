"""
Join the packets of several traffics, whatever their size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..columns import Spool
from ..model import Traffic
from .pcapfile import NO_FLOWS

_PILED = {
    "data": np.uint8,
    "starts": np.int64,
    "captured_lengths": np.int32,
    "wire_lengths": np.int32,
    "timestamps": np.int64,
    "link_types": np.uint16,
    "number": np.int32,
}


class Pile:
    """
    Traffics, to be joined one behind the other: their packets, without flows; on disk where they are many.
    """

    def __init__(self) -> None:
        self._only: Traffic | None = None
        self._columns = {name: Spool(dtype) for name, dtype in _PILED.items()}
        self._traffics = self._octets = 0

    def add(self, traffic: Traffic) -> None:
        """
        Put a traffic on top.
        """
        self._traffics += 1
        if self._traffics == 1:
            self._only = traffic
            return
        if self._only is not None:
            self._write(self._only, 0)
            self._only = None
        self._write(traffic, self._traffics - 1)

    def traffic(self) -> tuple[Traffic, NDArray[Any]]:
        """
        Return all of it, and which one each packet is from: int32[packets].
        """
        if self._only is not None:
            return self._only, np.broadcast_to(np.int32(0), len(self._only))
        columns = {name: spool.array() for name, spool in self._columns.items()}
        number = columns.pop("number")
        traffic = Traffic(
            **columns,
            flow_of=np.broadcast_to(np.int32(-1), len(number)),
            from_initiator=np.broadcast_to(np.False_, len(number)),
            flows=NO_FLOWS,
        )
        return traffic, number

    def _write(self, traffic: Traffic, number: int) -> None:
        for name, spool in self._columns.items():
            if name == "starts":
                spool.append(traffic.starts + self._octets)
            elif name == "number":
                spool.append(np.full(len(traffic), number))
            else:
                spool.append(getattr(traffic, name))
        self._octets += len(traffic.data)
