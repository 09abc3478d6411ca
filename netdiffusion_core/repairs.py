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

import attrs
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


@attrs.frozen(kw_only=True)
class Tally:
    """
    How much rules changed; tallies of different flows can be added.

    packets   of the traffic
    bits      that were changed in it; checksums do not count
    of_rules  by the rule's id: packets and bits that it changed
    """

    packets: int = 0
    bits: int = 0
    of_rules: Mapping[str, tuple[int, int]] = attrs.field(factory=dict)

    @classmethod
    def of(cls, repairs: Iterable[Repair], packets: int) -> Tally:
        """
        Count what was changed in a traffic of so many packets.
        """
        by_rule: dict[str, list[Repair]] = defaultdict(list)
        for repair in repairs:
            by_rule[repair.rule].append(repair)
        of_rules = {
            rule: (
                len(np.unique(np.concatenate([r.flows << 32 | r.packets for r in mine]))),
                sum(int(r.bits.sum()) for r in mine),
            )
            for rule, mine in by_rule.items()
        }
        told = (r for mine in by_rule.values() for r in mine if not r.field.endswith(_CHECKSUMS))
        return cls(packets=packets, bits=sum(int(r.bits.sum()) for r in told), of_rules=of_rules)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tally:
        """
        Read what `attrs.asdict` made.
        """
        of_rules = {rule: (packets, bits) for rule, (packets, bits) in document["of_rules"].items()}
        return cls(packets=document["packets"], bits=document["bits"], of_rules=of_rules)

    def __add__(self, other: Tally) -> Tally:
        of_rules = dict(self.of_rules)
        for rule, (packets, bits) in other.of_rules.items():
            before = of_rules.get(rule, (0, 0))
            of_rules[rule] = before[0] + packets, before[1] + bits
        return Tally(packets=self.packets + other.packets, bits=self.bits + other.bits, of_rules=of_rules)

    @property
    def bits_per_packet(self) -> float:
        """
        How many bits of a packet the rules changed on average; NaN without packets.
        """
        return self.bits / self.packets if self.packets else float("nan")


def summary(tally: Tally, rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """
    Return one row a rule that changed something: what must hold, packets and bits that it changed.
    """
    known = {rule.id: rule.summary for rule in rules}
    return [
        {
            "rule": rule,
            "what must hold": known.get(rule, ""),
            "packets": packets,
            "of all packets": f"{packets / max(tally.packets, 1):.1%}",
            "bits": bits,
        }
        for rule, (packets, bits) in tally.of_rules.items()
    ]


def score(tally: Tally, floor: float) -> Score:
    """
    Return the figure `FIGURE`: a model that needs fewer repairs is a better model.

    floor  the same for real flows that were encoded and went the same way
    """
    return Score(
        name=FIGURE,
        value=tally.bits_per_packet,
        goal="minimize",
        lower=0,
        upper=float("inf"),
        floor=floor,
        summary="Bits that the protocol rules had to change, a packet, checksums not counted.",
    )


def write_csv(path: Path, repairs: Iterable[Repair], files: Sequence[str], with_head: bool = True) -> None:
    """
    Write every change as a line of a gzipped CSV file. Such files, one behind the other, are one.

    files      the name of each flow's capture
    with_head  whether a line with the names of the columns comes first
    """
    names: Mapping[int, str] = dict(enumerate(files))
    with gzip.GzipFile(path, "wb", compresslevel=5, mtime=0) as packed, io.TextIOWrapper(packed, "utf-8") as text:
        lines = csv.writer(text, lineterminator="\n")
        if with_head:
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
