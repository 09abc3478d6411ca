"""
What the rules changed: recording it, counting it, writing it down.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model import Encoded, Repair, Rule, Score, Traffic, numbers

WORD_BITS = 32
"""A field of more bits than an integer holds is recorded in words of so many, ``tcp.opt.0`` first."""

FIGURE = "repairs.bits"
_CHECKSUMS = ".cksum"  # they follow from everything else, drawn addresses included


class Recorder:
    """
    The `interfaces.Record` that keeps what it is told about a traffic, in `repairs`.
    """

    def __init__(self, traffic: Traffic) -> None:
        self.repairs: list[Repair] = []
        self._traffic = traffic

    def follow(self, traffic: Traffic) -> None:
        """
        Hear of this traffic from now on, which was made of the one before.
        """
        before, self._traffic = self._traffic, traffic
        if not all(np.array_equal(getattr(before, name), getattr(traffic, name)) for name in ("flow_of", "timestamps")):
            self.__dict__.pop("_position", None)

    @cached_property
    def _position(self) -> NDArray[np.int64]:
        order, starts = self._traffic.by_flow()
        position = np.full(len(self._traffic), -1)
        position[order] = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
        return position

    def __call__(
        self,
        rule: str,
        field: str,
        packets: NDArray[Any],
        before: NDArray[Any],
        after: NDArray[Any],
        bits: NDArray[Any] | None = None,
    ) -> None:
        """
        See `interfaces.Record`.
        """
        if not len(packets):
            return
        before, after = np.asarray(before, np.int64), np.asarray(after, np.int64)
        self.repairs.append(
            Repair(
                rule=rule,
                field=field,
                flows=self._traffic.flow_of[packets],
                packets=self._position[packets],
                before=before,
                after=after,
                bits=np.bitwise_count(before ^ after) if bits is None else bits,
            )
        )


def compare_rows(rule: str, before: Encoded, after: Encoded) -> list[Repair]:
    """
    Find what changed between two encodings of the same packets, field by field.
    """
    if before.rows is after.rows:
        return []
    differs = before.rows != after.rows
    changed_columns = np.append(0, np.cumsum(differs.any(0))).tolist()
    repairs = []
    flow_of = before.flow_of
    for field, start, stop in _words(before):
        if changed_columns[stop] > changed_columns[start]:
            bits = differs[:, start:stop] @ np.ones(stop - start, np.float32)  # integers have no fast product
            i = np.flatnonzero(bits)
            both = np.concatenate([encoded.rows[i, start:stop] for encoded in (before, after)])
            old, new = numbers(both).reshape(2, -1)
            repairs.append(
                Repair(
                    rule=rule,
                    field=field,
                    flows=flow_of[i],
                    packets=i - before.starts[flow_of[i]],
                    before=old,
                    after=new,
                    bits=bits[i],
                )
            )
    return repairs


def summary(repairs: Iterable[Repair], rules: Sequence[Rule], packets: int) -> list[dict[str, Any]]:
    """
    Return one row a rule that changed something: what must hold, packets and bits that it changed.

    packets  of the traffic, for the share
    """
    known = {rule.id: rule.summary for rule in rules}
    of_rule: dict[str, list[Repair]] = defaultdict(list)
    for repair in repairs:
        of_rule[repair.rule].append(repair)
    rows = []
    for rule, mine in of_rule.items():
        places = np.unique(np.concatenate([r.flows << 32 | r.packets for r in mine]))
        rows.append(
            {
                "rule": rule,
                "what must hold": known.get(rule, ""),
                "packets": len(places),
                "of all packets": f"{len(places) / max(packets, 1):.1%}",
                "bits": sum(int(r.bits.sum()) for r in mine),
            }
        )
    return rows


def bits_per_packet(repairs: Iterable[Repair], packets: int) -> float:
    """
    Return how many bits of a packet the rules changed on average; checksums do not count.
    """
    changed = sum(int(r.bits.sum()) for r in repairs if not r.field.endswith(_CHECKSUMS))
    return changed / packets if packets else float("nan")


def score(repairs: Iterable[Repair], packets: int, floor: float) -> Score:
    """
    Return the figure `FIGURE`: a model that needs fewer repairs is a better model.

    floor  the same for real flows that were encoded and went the same way
    """
    return Score(
        name=FIGURE,
        value=bits_per_packet(repairs, packets),
        goal="minimize",
        lower=0,
        upper=float("inf"),
        floor=floor,
        summary="Bits that the protocol rules had to change, a packet, checksums not counted.",
    )


def write_csv(path: Path, repairs: Iterable[Repair], files: Sequence[str]) -> None:
    """
    Write every change as a line of a gzipped CSV file.

    files  the name of each flow's capture
    """
    names: Mapping[int, str] = dict(enumerate(files))
    with gzip.GzipFile(path, "wb", compresslevel=5, mtime=0) as packed, io.TextIOWrapper(packed, "utf-8") as text:
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["file", "packet", "rule", "field", "before", "after", "bits"])
        for r in repairs:
            columns = (r.flows, r.packets + 1, r.before, r.after, r.bits)
            lines.writerows(
                (names.get(flow, ""), packet, r.rule, r.field, before, after, bits)
                for flow, packet, before, after, bits in zip(*(c.tolist() for c in columns), strict=True)
            )


def _words(encoded: Encoded) -> Iterable[tuple[str, int, int]]:
    """
    Yield each field's name and columns, long fields word by word.
    """
    start = 0
    for name, bits in encoded.layout.fields:
        if bits <= 62:
            yield name, start, start + bits
        else:
            for word in range(0, bits, WORD_BITS):
                yield f"{name}.{word // WORD_BITS}", start + word, start + min(word + WORD_BITS, bits)
        start += bits
