"""
Fidelity: how near the distributions of single bits, of pairs of fields, and of what packet follows what, come to those
of real traffic.

The three distances per bit are the ones that the NetDiffusion paper reports. A generator that draws every bit on its
own gets them right, so they are never enough: see the baseline ``bernoulli``. Pairs and transitions are what it fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Encoder, Evaluator, RealTraffic
from netdiffusion_core.model import MISSING, Layout, Score, Traffic

from .features import ARTEFACT_FIELDS, Packets, in_chunks, packets, per_flow, require_encoder
from .groups import Sides, as_captured, compare, score
from .memory import once

Array = NDArray[Any]

SIZE_BUCKETS = (64, 128, 256, 512, 1024, 1400)
"""
Upper bounds in bytes of the IP packet, the last bucket is open: bare TCP segments and small queries, ..., full packets.
"""

LEVELS = 10
"""Levels that a field is cut into before it is compared together with another one; the last is absence."""

WORST = 10
"""Pairs and fields that are told of."""

_CHUNK_PACKETS = 1 << 15
_EDGE = 2 * (len(SIZE_BUCKETS) + 1)  # the state before a flow's first packet and after its last one


def jensen_shannon(p: Array, q: Array) -> Array:
    """
    Return the Jensen-Shannon divergence in bits (0 to 1) over the last axis.
    """
    m = (p + q) / 2
    return np.asarray(np.maximum((rel_entr(p, m) + rel_entr(q, m)).sum(-1) / (2 * np.log(2)), 0))


def total_variation(p: Array, q: Array) -> Array:
    """
    Return the total variation distance (0 to 1) over the last axis.
    """
    return np.asarray(np.abs(p - q).sum(-1) / 2)


def hellinger(p: Array, q: Array) -> Array:
    """
    Return the Hellinger distance (0 to 1) over the last axis.
    """
    return np.asarray(np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1) / 2))


DISTANCES = {
    "jsd": (jensen_shannon, "Jensen-Shannon divergence"),
    "tvd": (total_variation, "Total variation distance"),
    "hellinger": (hellinger, "Hellinger distance"),
}


@attrs.frozen(kw_only=True)
class FidelityOptions:
    """
    Options of the ``fidelity`` evaluator.
    """

    max_packets: int = attrs.field(
        default=300_000,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={
            "help": "packets of a side that are looked at; of more, flows are drawn, as many packets of each class"
        },
    )


class Fidelity(Evaluator):
    """
    Distances between distributions of bits, of pairs of fields and of transitions, mean over classes.
    """

    Options = FidelityOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return ``jsd``, ``tvd`` and ``hellinger`` over all header bits, the same over ``informative`` ones (not constant
        in the real flows of the class), ``pairs`` and ``transitions``. Raises ConfigError without an encoder.
        """
        encoder = require_encoder(context, "fidelity")
        seen = as_captured(synthetic, real)
        sides = compare(real, seen, context, "fidelity", max_packets=self.options.max_packets)
        with context.progress("fidelity", 3) as advance:
            scores = list(_bit_scores(sides, encoder))
            advance(note="bits")
            scores.append(_pair_score(sides, encoder))
            advance(note="pairs")
            scores.append(_transition_score(sides))
            advance(note="transitions")
        return scores


def _bit_scores(sides: Sides, encoder: Encoder) -> Iterator[Score]:
    layout = encoder.layout
    is_header = np.ones(layout.width, bool)  # direction and time have figures of their own
    if layout.has("trace"):
        is_header[layout.span("trace")] = False
    groups = sides.groups.values()
    test = bit_counts(sides.test, encoder, [g.test for g in groups])
    fake = bit_counts(sides.synthetic, encoder, [g.synthetic for g in groups])
    apart = [g.matched for g in groups], [np.setdiff1d(g.train, g.matched) for g in groups]
    matched, rest = np.split(bit_counts(sides.train, encoder, [*apart[0], *apart[1]]), 2)
    expected, found, floor, chosen = {}, {}, {}, {}
    for i, label in enumerate(sides.groups):
        expected[label], found[label], floor[label] = (_normalise(counts[i]) for counts in (test, fake, matched))
        real = test[i] + matched[i] + rest[i]
        chosen[label] = is_header & (real.max(-1) < real.sum(-1))
    for prefix in ("", "informative_"):
        for name, (distance, title) in DISTANCES.items():
            by_column = {label: distance(expected[label], found[label]) for label in sides.groups}
            columns = {label: chosen[label] if prefix else is_header for label in sides.groups}
            yield score(
                f"fidelity.{prefix}{name}",
                f"{title} of {prefix.replace('_', ' ')}header bits, mean over bits and classes",
                {label: _mean(by_column[label][columns[label]]) for label in sides.groups},
                {label: _mean(distance(expected[label], floor[label])[columns[label]]) for label in sides.groups},
                per_field={} if prefix else _per_field(layout, list(by_column.values())),
                missing_classes=sides.missing,
                drawn=sides.drawn,
            )


def _pair_score(sides: Sides, encoder: Encoder) -> Score:
    names = [encoder.layout.fields[i][0] for i in pair_fields(encoder.layout)]
    train, test, fake = (field_values(part, encoder) for part in (sides.train, sides.test, sides.synthetic))
    values, floors = {}, {}
    pairs: list[dict[str, Any]] = []
    fields: list[dict[str, Any]] = []
    for label, g in sides.groups.items():
        own_train, own_test, own_fake = _of_flows(train, g.train), _of_flows(test, g.test), _of_flows(fake, g.synthetic)
        edges = [_edges(column) for column in np.concatenate([own_train, own_test]).T]
        chosen = [i for i, each in enumerate(edges) if each is not None]
        if len(chosen) < 2:
            values[label] = floors[label] = math.nan
            continue
        first, second = np.triu_indices(len(chosen), 1)
        expected, found, floor = (
            joint(part[:, chosen], [edges[i] for i in chosen])
            for part in (own_test, own_fake, _of_flows(train, g.matched))
        )
        by_pair = total_variation(_tables(expected), _tables(found))[first, second]
        values[label] = _mean(by_pair)
        floors[label] = _mean(total_variation(_tables(expected), _tables(floor))[first, second])
        dependence = [mutual_information(part)[first, second] for part in (expected, found)]
        pairs += [
            {
                "class": label,
                "fields": f"{names[chosen[first[i]]]}, {names[chosen[second[i]]]}",
                "distance": float(by_pair[i]),
                "real: mutual information (bit)": float(dependence[0][i]),
                "synthetic: mutual information (bit)": float(dependence[1][i]),
            }
            for i in np.argsort(-by_pair)[:WORST]
        ]
        fields += [
            {
                "class": label,
                "field": names[i],
                "distance": float(np.abs(np.einsum("iaia->ia", expected - found)[k]).sum() / 2),
                "real": _most_frequent(own_test[:, i]),
                "synthetic": _most_frequent(own_fake[:, i]),
            }
            for k, i in enumerate(chosen)
        ]
    return score(
        "fidelity.pairs",
        "Total variation distance of what two header fields of a packet say together, mean over pairs and classes",
        values,
        floors,
        worst_pairs=sorted(pairs, key=lambda row: -row["distance"])[:WORST],
        worst_fields=sorted(fields, key=lambda row: -row["distance"])[: 2 * WORST],
        missing_classes=sides.missing,
        drawn=sides.drawn,
    )


def _transition_score(sides: Sides) -> Score:
    train, test, fake = (packets(part) for part in (sides.train, sides.test, sides.synthetic))
    values, floors = {}, {}
    for label, g in sides.groups.items():
        expected = transitions(test, g.test)
        values[label] = float(total_variation(expected, transitions(fake, g.synthetic)))
        floors[label] = float(total_variation(expected, transitions(train, g.matched)))
    return score(
        "fidelity.transitions",
        "Total variation distance of which direction and size of packet follows which, mean over classes",
        values,
        floors,
        size_buckets_bytes=list(SIZE_BUCKETS),
        missing_classes=sides.missing,
        drawn=sides.drawn,
    )


def bit_counts(traffic: Traffic, encoder: Encoder, groups: Sequence[Array]) -> NDArray[np.int64]:
    """
    Count for each group of flows and each column the packets with -1, 0 and 1: int64[groups, columns, 3].
    """
    group_of = np.full(len(traffic.flows), -1)
    for i, flows in enumerate(groups):
        group_of[flows] = i

    def count() -> NDArray[np.int64]:
        counts = np.zeros((len(groups), encoder.layout.width, 3), np.int64)
        first = 0
        for e in in_chunks(traffic, encoder):
            own = group_of[first : first + len(e)]
            absent, ones = (per_flow(np.add, e.rows == v, e.starts, dtype=np.int64) for v in (MISSING, 1))
            of_flows = np.stack([absent, e.lengths[:, None] - absent - ones, ones], axis=-1)
            for i in np.unique(own[own >= 0]):
                counts[i] += of_flows[own == i].sum(0)
            first += len(e)
        return counts

    return once(traffic, ("bit counts", encoder, len(groups), group_of.tobytes()), count)


# --- pairs of fields ----------------------------------------------------------------------------------------------


def pair_fields(layout: Layout) -> list[int]:
    """
    Return which fields make pairs: numbers, no artefacts.
    """
    return [i for i, (name, bits) in enumerate(layout.fields) if bits <= 16 and name not in ARTEFACT_FIELDS]


def field_values(traffic: Traffic, encoder: Encoder) -> tuple[Array, Array]:
    """
    Return the `pair_fields` of all packets as numbers, -1 where absent, flow by flow: int32[packets, fields]; and where
    each flow begins: int64[flows + 1].
    """
    names = [encoder.layout.fields[i][0] for i in pair_fields(encoder.layout)]

    def compute() -> tuple[Array, Array]:
        parts, lengths = [np.empty((0, len(names)), np.int32)], [np.zeros(1, np.int64)]
        for encoded in in_chunks(traffic, encoder):
            parts.append(np.stack([encoded.values(name) for name in names], axis=1).astype(np.int32))
            lengths.append(encoded.lengths)
        return np.concatenate(parts), np.cumsum(np.concatenate(lengths))

    return once(traffic, ("field values", encoder), compute)


def joint(values: Array, edges: Sequence[Array]) -> Array:
    """
    Return how often two fields are in two levels at once: float64[fields, levels, fields, levels], each table of two
    fields summing to 1. The level of a number is how many of the field's edges it exceeds; one more is absence.
    """
    fields = len(edges)
    counts = np.zeros((fields * LEVELS, fields * LEVELS))
    for start in range(0, len(values), _CHUNK_PACKETS):
        part = values[start : start + _CHUNK_PACKETS].T
        levels = np.array(
            [np.where(v < 0, LEVELS - 1, np.searchsorted(e, v)) for v, e in zip(part, edges, strict=True)]
        )
        one_hot = (levels[:, None] == np.arange(LEVELS)[:, None]).reshape(fields * LEVELS, -1).astype(np.float32)
        counts += one_hot @ one_hot.T
    return counts.reshape(fields, LEVELS, fields, LEVELS) / max(len(values), 1)


def mutual_information(tables: Array) -> Array:
    """
    Return the mutual information in bits of each two fields: float64[fields, fields].
    """
    alone = np.einsum("iaia->ia", tables)
    independent = np.einsum("ia,jb->iajb", alone, alone)
    return np.asarray(rel_entr(tables, independent).sum((1, 3)) / np.log(2))


def _edges(values: Array) -> Array | None:
    """
    Return the numbers at which a field's levels end, at most `LEVELS` - 2: its values where they are few, else its
    quantiles. None for a field that is constant.
    """
    distinct = np.unique(values)
    if len(distinct) < 2:
        return None
    present = distinct[distinct >= 0]
    if len(present) >= LEVELS:
        present = np.unique(np.quantile(values[values >= 0], np.linspace(0, 1, LEVELS - 1), method="nearest"))
    return present[:-1]


def _tables(joint: Array) -> Array:
    fields = len(joint)
    return joint.transpose(0, 2, 1, 3).reshape(fields, fields, -1)


def _of_flows(values: tuple[Array, Array], flows: Array) -> Array:
    """
    Return the rows of these flows.
    """
    rows, starts = values
    return rows[np.repeat(np.isin(np.arange(len(starts) - 1), flows), np.diff(starts))]


def _most_frequent(values: Array) -> str:
    """
    Name the three most frequent values and their shares.
    """
    distinct, counts = np.unique(values, return_counts=True)
    top = np.argsort(-counts, kind="stable")[:3]
    return ", ".join(f"{'absent' if distinct[i] < 0 else distinct[i]} ({counts[i] / len(values):.0%})" for i in top)


# --- transitions --------------------------------------------------------------------------------------------------


def transitions(p: Packets, flows: Array) -> Array:
    """
    Return the distribution of (state, next state) over all neighbours in these flows. A state is a direction and a
    bucket of `SIZE_BUCKETS`; one more state stands before a flow's first packet and behind its last one, so that
    beginnings, endings and flows of one packet count too: float64[states * states].
    """
    state = np.searchsorted(SIZE_BUCKETS, p.sizes) + p.from_initiator * (len(SIZE_BUCKETS) + 1)
    last = np.append(p.position[1:] == 0, True)[: len(state)]
    before = np.where(p.position > 0, np.roll(state, 1), _EDGE)
    chosen = np.isin(p.flow, flows)
    pairs = np.concatenate([(before * (_EDGE + 1) + state)[chosen], (state * (_EDGE + 1) + _EDGE)[chosen & last]])
    return _normalise(np.bincount(pairs, minlength=(_EDGE + 1) ** 2))


def _per_field(layout: Layout, by_class: Sequence[Array]) -> dict[str, float]:
    """
    Return the mean distance of each field's columns over all classes: it tells a model's author what to mend.
    """
    by_column = np.mean(by_class, axis=0) if by_class else np.empty(0)
    return {name: float(by_column[layout.span(name)].mean()) for name, _ in layout.fields} if by_class else {}


def _normalise(counts: Array) -> Array:
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1))


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
