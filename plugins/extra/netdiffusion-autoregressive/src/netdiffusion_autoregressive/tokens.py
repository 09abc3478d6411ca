"""
Packets as tokens: each field of a packet becomes one token, or two, and comes back from it.

What a field is worth is measured on the training data, never known beforehand. A value that is typical of a class has
a token of its own; the others share tokens that stand for an interval, and are drawn inside it. Where it saves bits, a
value is told by what it adds to one of the last values of the flow: 0 for a port, 1 for an identification, the size of
a segment for a sequence number. What remains uniform (a checksum) is drawn and costs the model nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import MISSING, Encoded, Layout, numbers

Array = NDArray[Any]

NUMBER_BITS = 53
"""Wider fields are cut into words; up to here a float64 draws every value."""
WORD_BITS = 32
"""RFC 9293 section 3.1: options are padded to 32 bits, and so is every header of the IETF."""

TYPICAL_SHARES, TYPICAL_FLOWS = (0.05, 0.01), 3
"""
A value is typical of a class when so many of its flows have it, in a share and in a number. The smaller share counts
where it leaves less than half of the packets with other values: of a counter, it would take values by chance.
"""
MAX_TYPICAL = 384
BINS, GAPS = 96, 16
"""Other values share so many intervals of equal frequency, cut once more at the widest gaps that no value is in."""
RECENT = 4
"""How many of a flow's last distinct values of a field can be referred to."""
WORTH = 0.08
"""A finer description of a field must save such a share of the bits of its values."""

_FAR = np.iinfo(np.int64).max


@attrs.frozen
class Number:
    """
    One number in a row: a field, a word of a wide field, or the neighbouring one-bit fields of a header.
    """

    name: str
    start: int
    bits: int


def split(layout: Layout) -> tuple[Number, ...]:
    """
    Cut the columns of a layout into numbers.
    """
    found, start = [], 0
    for name, group in groupby(layout.fields, lambda field: field[0].split(".")[0] if field[1] == 1 else field[0]):
        total = sum(bits for _, bits in group)
        width = total if total <= NUMBER_BITS else WORD_BITS
        found += [Number(name, start + at, min(width, total - at)) for at in range(0, total, width)]
        start += total
    return tuple(found)


def entropy_bits(tokens: Array) -> float:
    """
    Return the entropy of the distribution of these tokens.
    """
    counts = np.unique(tokens, return_counts=True)[1]
    return float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())


# --- one number -------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Intervals:
    """
    A vocabulary of numbers: first the typical values, then intervals of the others.

    exact      int64[typical]  ascending
    low, high  int64[bins]     bounds, both included; ascending, apart
    """

    exact: Array
    low: Array
    high: Array

    def __len__(self) -> int:
        return len(self.exact) + len(self.low)

    @classmethod
    def learn(cls, values: Array, typical: Array, bits: int) -> Self:
        """
        Give the values that are not typical to `BINS` intervals and a few, or to a single one of all numbers of so many
        bits, if that is hardly longer to tell, or if there are no values at all.
        """
        rest = np.sort(values[~np.isin(values, typical)])
        low = high = rest
        if len(rest):
            before_gaps = rest[:-1][np.argsort(-np.diff(rest), kind="stable")[:GAPS]]
            high = np.union1d(rest[np.arange(1, BINS + 1) * len(rest) // BINS - 1], before_gaps)
            low = rest[np.searchsorted(rest, np.concatenate([[-1], high[:-1]]), side="right")]
        found = cls(typical, low, high)
        tokens = found.tokens(rest)
        if len(found) and (
            len(rest) < BINS or entropy_bits(tokens) + found.width_bits[tokens].mean() < bits * (1 - WORTH)
        ):
            return found
        return cls(typical, np.zeros(1, np.int64), np.array([(1 << bits) - 1]))

    def tokens(self, values: Array) -> Array:
        """
        Return the token of each value that it was learned from: int64, from 0.
        """
        at = np.searchsorted(self.exact, values).clip(max=max(len(self.exact) - 1, 0))
        is_exact = self.exact[at] == values if len(self.exact) else np.zeros(len(values), bool)
        return np.where(is_exact, at, len(self.exact) + np.searchsorted(self.high, values))

    def draw(self, tokens: Array, u: Array) -> Array:
        """
        Return a value for each token. Between bounds above 0 the draw is uniform in the logarithm, as times and sizes
        are spread, else in the number.

        u  float64, uniform in [0, 1)
        """
        low, high = np.concatenate([self.exact, self.low])[tokens], np.concatenate([self.exact, self.high])[tokens]
        at_log = np.exp(np.log(np.maximum(low, 1)) * (1 - u) + np.log(high + 1.0) * u)
        return np.where(low > 0, at_log, low + u * (high - low + 1.0)).astype(np.int64).clip(low, high)

    @property
    def width_bits(self) -> Array:
        """
        float64[typical + bins]: the bits that draw a value inside each token.
        """
        return np.log2(np.concatenate([np.ones(len(self.exact)), self.high - self.low + 1.0]))


@attrs.frozen(eq=False)
class Vocabulary:
    """
    How one number is told: token 0 where it is absent, then one a value or interval, then one a recent value.

    values   Intervals
    sources  the numbers whose `RECENT` values can be referred to; the first is the number itself
    added    Intervals of what is added to a recent value; empty without sources
    reach    the most that can be added
    """

    values: Intervals
    sources: tuple[int, ...]
    added: Intervals
    reach: int

    @property
    def sizes(self) -> tuple[int, int]:
        """
        The number of tokens of the two columns: which value, and what is added to it.
        """
        return 1 + len(self.values) + RECENT * len(self.sources), 1 + len(self.added) * (self.reach > 0)

    @classmethod
    def learn(
        cls, values: Array, typical: Array, bits: int, sources: tuple[int, ...], recent: Array, reach: int
    ) -> Self:
        """
        Learn from values that are present: int64[n], and what is recent at each: int64[n, RECENT * sources].
        """
        _, added = _nearest(values, typical, recent, reach)
        told = added < _FAR
        counts = np.unique(added[told], return_counts=True)
        frequent = np.sort(counts[0][np.argsort(-counts[1], kind="stable")][: BINS // 2])
        return cls(
            Intervals.learn(values[~told], typical, bits),
            sources,
            Intervals.learn(added[told], frequent, bits),
            reach,
        )

    def tokens(self, values: Array, recent: Array) -> Array:
        """
        Return both columns for values, -1 where absent: int64[n, 2].
        """
        result = np.zeros((len(values), 2), np.int64)
        nearest, added = _nearest(values, self.values.exact, recent, self.reach)
        literal, told = (values >= 0) & (added == _FAR), (values >= 0) & (added < _FAR)
        result[literal, 0] = 1 + self.values.tokens(values[literal])
        result[told, 0] = 1 + len(self.values) + nearest[told]
        if self.reach:
            result[told, 1] = 1 + self.added.tokens(added[told])
        return result

    def draw(self, tokens: Array, recent: Array, u: Array) -> Array:
        """
        Return values for both columns, int64[n, 2]; -1 where absent. A reference to what is not there, which training
        never saw, is drawn like any other value.
        """
        which, literals = tokens[:, 0] - 1, len(self.values)
        base = np.full(len(tokens), MISSING)
        if self.sources:
            base = np.where(which < literals, MISSING, recent[np.arange(len(recent)), (which - literals).clip(0)])
        anywhere = u * literals
        lost = (which >= literals) & (base < 0)
        literal = np.where(lost, anywhere.astype(np.int64), which.clip(0, literals - 1))
        result = self.values.draw(literal, np.where(lost, anywhere % 1, u))
        if self.reach:
            base = np.where(base < 0, base, base + self.added.draw((tokens[:, 1] - 1).clip(0), u))
        return np.where(tokens[:, 0] == 0, MISSING, np.where(base < 0, result, base))

    def cost_bits(self, values: Array, recent: Array) -> float:
        """
        Return what telling these values takes, in bits a value.
        """
        tokens = self.tokens(values, recent)
        pairs = tokens[:, 0] * self.sizes[1] + tokens[:, 1]
        literal, added = tokens[tokens[:, 0] <= len(self.values), 0], tokens[tokens[:, 1] > 0, 1]
        inside = self.values.width_bits[literal - 1].sum() + self.added.width_bits[added - 1].sum()
        return entropy_bits(pairs) + float(inside) / len(values)


def _nearest(values: Array, typical: Array, recent: Array, reach: int) -> tuple[Array, Array]:
    """
    Return for each value which recent one it is nearest above, and by how much; far where it is typical, where none is
    within reach, or where nothing is recent.
    """
    if not recent.shape[1]:
        return np.zeros(len(values), np.int64), np.full(len(values), _FAR)
    added = values[:, None] - recent
    added = np.where((recent >= 0) & (added >= 0) & (added <= reach), added, _FAR)
    nearest = added.argmin(1)
    return nearest, np.where(np.isin(values, typical), _FAR, added[np.arange(len(values)), nearest])


def typical_values(values: Array, flow_of: Array, class_of: Array) -> Array:
    """
    Return the values that are typical of a class, ascending, at most `MAX_TYPICAL`: those in most flows.

    values, flow_of  int64[n]
    class_of         int64[flows]
    """
    known, index = np.unique(values, return_inverse=True)
    pairs = np.unique(index * len(class_of) + flow_of)  # a value counts once a flow
    index, flow = pairs // len(class_of), pairs % len(class_of)
    classes, flows_of_class = np.unique(class_of, return_counts=True)
    cells, counts = np.unique(index * len(classes) + class_of[flow], return_counts=True)
    flows = np.bincount(index)

    def typical(share: float) -> Array:
        needed = np.maximum(TYPICAL_FLOWS, share * flows_of_class)[cells % len(classes)]
        found = np.unique(cells[counts >= needed] // len(classes))
        return np.sort(known[found[np.argsort(-flows[found], kind="stable")][:MAX_TYPICAL]])

    coarse, fine = (typical(share) for share in TYPICAL_SHARES)
    return fine if (~np.isin(values, fine)).sum() < 0.5 * (~np.isin(values, coarse)).sum() else coarse


# --- whole packets ----------------------------------------------------------------------------------------------


def remember(recent: Array, values: Array) -> Array:
    """
    Put a new value in front of the recent ones of each flow, or move it there: int64[..., RECENT], -1 where none.
    Absent values change nothing.
    """
    same = recent == values[..., None]
    until = np.where(same.any(-1), same.argmax(-1), RECENT - 1)[..., None]
    moved = np.where(np.arange(RECENT) <= until, np.roll(recent, 1, -1), recent)
    moved[..., 0] = values
    return np.where((values >= 0)[..., None], moved, recent)


def histories(values: Array, starts: Array) -> Array:
    """
    Return what `remember` knows before each packet: int64[packets, numbers, RECENT].
    """
    lengths = np.diff(starts)
    longest_first = np.argsort(-lengths, kind="stable")
    recent = np.full((len(lengths), values.shape[1], RECENT), MISSING, np.int64)
    result = np.empty((*values.shape, RECENT), np.int64)
    for position in range(int(lengths.max())):
        going = longest_first[: np.searchsorted(-lengths[longest_first], -position)]
        at = starts[going] + position
        result[at] = recent[going]
        recent[going] = remember(recent[going], values[at])
    return result


@attrs.frozen(eq=False, kw_only=True)
class Codec:
    """
    Turns packets into tokens and back.

    layout        Layout
    numbers       what `split` makes of it
    vocabularies  one a number
    columns       which of the 2 * numbers token columns a model sees, those of least entropy first
    like          int64[2 * numbers]: a column that has one token besides "absent" is present where this one is;
                  itself where it is told, -1 where it has one token only
    constant      int64[2 * numbers]: the token of a column that is not told, where it is present
    """

    layout: Layout
    numbers: tuple[Number, ...]
    vocabularies: tuple[Vocabulary, ...]
    columns: Array
    like: Array
    constant: Array

    @property
    def sizes(self) -> list[int]:
        """
        The number of tokens of each column that a model sees.
        """
        sizes = [size for vocabulary in self.vocabularies for size in vocabulary.sizes]
        return [sizes[column] for column in self.columns]

    @classmethod
    def learn(cls, data: Encoded) -> tuple[Self, Array]:
        """
        Learn all vocabularies. Return also the tokens of the training packets: int64[packets, columns].
        """
        parts = split(data.layout)
        values = _values(data.rows, parts)
        flow_of, class_of = data.flow_of, np.unique(data.labels, return_inverse=True)[1]
        typical = [typical_values(v[v >= 0], flow_of[v >= 0], class_of) for v in values.T]
        rare = [(v >= 0) & ~np.isin(v, t) for v, t in zip(values.T, typical, strict=True)]
        open_ = [i for i, mask in enumerate(rare) if mask.any()]
        recent = dict(zip(open_, histories(values[:, open_], data.starts).swapaxes(0, 1), strict=True))
        vocabularies, tokens = [], []
        for i, part in enumerate(parts):
            same_width = [j for j in open_ if parts[j].bits == part.bits and j != i]
            learned = _choose(i, values[:, i], typical[i], rare[i], part.bits, recent, same_width)
            vocabularies.append(learned)
            tokens.append(learned.tokens(values[:, i], _joined(recent, learned.sources, len(values))))
        table = np.concatenate(tokens, axis=1)
        columns, like, constant = _dependence(table)
        codec = cls(
            layout=data.layout, numbers=parts, vocabularies=tuple(vocabularies), columns=columns, like=like,
            constant=constant,
        )  # fmt: skip
        return codec, table[:, columns]

    def draw(self, tokens: Array, recent: Array, u: Array) -> tuple[Array, Array]:
        """
        Return the rows of one packet a flow, int8[flows, width], and what is recent after it.

        tokens  int64[flows, columns]
        recent  int64[flows, numbers, RECENT]
        u       float64[flows, numbers], uniform in [0, 1)
        """
        table = np.zeros((len(tokens), len(self.like)), np.int64)
        table[:, self.columns] = tokens
        follows = np.flatnonzero(self.like != np.arange(len(self.like)))
        present = (table[:, self.like[follows]] > 0) | (self.like[follows] < 0)
        table[:, follows] = np.where(present, self.constant[follows], 0)
        values = np.empty((len(tokens), len(self.numbers)), np.int64)
        for i, vocabulary in enumerate(self.vocabularies):
            known = recent[:, list(vocabulary.sources)].reshape(len(tokens), -1)
            values[:, i] = vocabulary.draw(table[:, 2 * i : 2 * i + 2], known, u[:, i])
        values = np.where(values < 0, MISSING, values % [1 << part.bits for part in self.numbers])
        rows = np.empty((len(tokens), self.layout.width), np.int8)
        for part, value in zip(self.numbers, values.T, strict=True):
            bits = value[:, None] >> np.arange(part.bits)[::-1] & 1
            rows[:, part.start : part.start + part.bits] = np.where(value[:, None] < 0, MISSING, bits)
        return rows, remember(recent, values)

    def to_arrays(self) -> dict[str, Array]:
        """
        Return all that was learned as arrays by name.
        """
        arrays = {"columns": self.columns, "like": self.like, "constant": self.constant}
        for i, vocabulary in enumerate(self.vocabularies):
            arrays[f"{i}/sources"] = np.array(vocabulary.sources, np.int64)
            arrays[f"{i}/reach"] = np.array([vocabulary.reach], np.int64)
            for kind in ("values", "added"):
                for name, array in attrs.asdict(getattr(vocabulary, kind)).items():
                    arrays[f"{i}/{kind}/{name}"] = array
        return arrays

    @classmethod
    def from_arrays(cls, layout: Layout, arrays: Mapping[str, Array]) -> Self:
        """
        Undo `to_arrays`. Raises KeyError for an array that is missing.
        """
        parts = split(layout)
        vocabularies = []
        for i in range(len(parts)):
            values, added = (
                Intervals(*(arrays[f"{i}/{kind}/{name}"] for name in ("exact", "low", "high")))
                for kind in ("values", "added")
            )
            sources = tuple(arrays[f"{i}/sources"].tolist())
            vocabularies.append(Vocabulary(values, sources, added, int(arrays[f"{i}/reach"][0])))
        facts = {name: arrays[name] for name in ("columns", "like", "constant")}
        return cls(layout=layout, numbers=parts, vocabularies=tuple(vocabularies), **facts)


def _values(rows: Array, parts: Sequence[Number]) -> Array:
    """
    Return the numbers of each packet: int64[packets, numbers], -1 where a bit is absent.
    """
    return np.stack([numbers(rows[:, part.start : part.start + part.bits]) for part in parts], axis=1)


def _joined(recent: Mapping[int, Array], sources: Sequence[int], packets: int) -> Array:
    """
    Return the recent values of several numbers side by side: int64[packets, RECENT * sources].
    """
    return np.concatenate([np.empty((packets, 0), np.int64), *(recent[source] for source in sources)], axis=1)


def _choose(
    own: int,
    values: Array,
    typical: Array,
    rare: Array,
    bits: int,
    recent: Mapping[int, Array],
    others: Sequence[int],
) -> Vocabulary:
    """
    Return the vocabulary that tells the rare values of a number in the fewest bits; of those that differ little, the
    simplest.
    """
    present = values >= 0
    counted = np.flatnonzero(rare)

    def learn(sources: tuple[int, ...], reach: int) -> tuple[Vocabulary, float]:
        known = _joined(recent, sources, len(values))
        learned = Vocabulary.learn(values[present], typical, bits, sources, known[present], reach)
        return learned, learned.cost_bits(values[counted], known[counted]) if len(counted) else 0.0

    best, least = learn((), 0)
    if not len(counted):
        return best
    for reach in (0, 1 << bits // 2):
        _, added = _nearest(values[counted], typical, recent[own][counted], reach)
        left = counted[added == _FAR]
        found = [int((_nearest(values[left], typical, recent[j][left], reach)[1] < _FAR).sum()) for j in others]
        chosen = [(own,)]
        if found and max(found) > 0:
            chosen.append((own, others[int(np.argmax(found))]))
        for sources in chosen:
            learned, cost = learn(sources, reach)
            if cost < least * (1 - WORTH):
                best, least = learned, cost
    return best


def _dependence(table: Array) -> tuple[Array, Array, Array]:
    """
    Find the token columns that tell no more than whether a header is there. Return ``(columns, like, constant)`` of
    `Codec`.

    table  int64[packets, 2 * numbers]
    """
    everything = range(table.shape[1])
    like, constant = np.arange(table.shape[1]), table.max(0)
    absent = [column.tobytes() for column in (table.T == 0)]
    many = [len(np.unique(column)) for column in table.T]
    varied = [c for c in everything if many[c] > 2 or (many[c] == 2 and table[:, c].min() > 0)]
    first: dict[bytes, int] = {}
    for c in [*varied, *(c for c in everything if many[c] == 2 and c not in varied)]:
        kept = first.setdefault(absent[c], c)
        if c not in varied:
            like[c] = kept
    like[[c for c in everything if many[c] == 1]] = -1
    told = np.flatnonzero(like == np.arange(len(like)))
    return told[np.argsort([entropy_bits(table[:, c]) for c in told], kind="stable")], like, constant
