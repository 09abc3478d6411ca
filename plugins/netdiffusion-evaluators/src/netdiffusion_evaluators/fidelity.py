"""
Fidelity: how near the distributions of single bits, and of what packet follows what, come to those of real traffic.

The three distances per bit are the ones that the NetDiffusion paper reports. A generator that draws every bit on its
own gets them right, so they are never enough: see the baseline ``bernoulli``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Encoder, Evaluator, RealTraffic
from netdiffusion_core.model import MISSING, Layout, Score, Traffic

from .features import Packets, in_chunks, packets, per_flow, require_encoder
from .groups import Groups, Missing, by_class, score

Array = NDArray[Any]

SIZE_BUCKETS = (64, 128, 256, 512, 1024, 1400)
"""
Upper bounds in bytes of the IP packet, the last bucket is open: bare TCP segments and small queries, ..., full packets.
"""

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


class Fidelity(Evaluator):
    """
    Distances between distributions of bits and of transitions, mean over columns and then over classes.
    """

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return ``jsd``, ``tvd`` and ``hellinger`` over all header bits, the same over ``informative`` ones (not constant
        in the real flows of the class), and ``transitions``. Raises ConfigError without an encoder.
        """
        encoder = require_encoder(context, "fidelity")
        groups, missing = by_class(real, synthetic, context, "fidelity")
        with context.progress("fidelity", 3) as advance:
            sides = []
            for traffic in (real.train, real.test, synthetic):
                sides.append((bit_counts(traffic, encoder), packets(traffic)))
                advance()
        (train_bits, train), (test_bits, test), (fake_bits, fake) = sides
        return [
            *_bit_scores(train_bits, test_bits, fake_bits, groups, encoder.layout, missing),
            _transition_score(train, test, fake, groups, missing),
        ]


def _bit_scores(
    train: Array, test: Array, fake: Array, groups: Groups, layout: Layout, missing: Missing
) -> Iterator[Score]:
    is_header = np.ones(layout.width, bool)  # direction and time have figures of their own
    if layout.has("trace"):
        is_header[layout.span("trace")] = False
    expected, found, floor, chosen = {}, {}, {}, {}
    for label, g in groups.items():
        expected[label] = _normalise(test[g.test].sum(0))
        found[label] = _normalise(fake[g.synthetic].sum(0))
        floor[label] = _normalise(train[g.matched].sum(0))
        real = test[g.test].sum(0) + train[g.train].sum(0)
        chosen[label] = is_header & (real.max(-1) < real.sum(-1))
    for prefix in ("", "informative_"):
        for name, (distance, title) in DISTANCES.items():
            by_column = {label: distance(expected[label], found[label]) for label in groups}
            columns = {label: chosen[label] if prefix else is_header for label in groups}
            yield score(
                f"fidelity.{prefix}{name}",
                f"{title} of {prefix.replace('_', ' ')}header bits, mean over bits and classes",
                {label: _mean(by_column[label][columns[label]]) for label in groups},
                {label: _mean(distance(expected[label], floor[label])[columns[label]]) for label in groups},
                per_field={} if prefix else _per_field(layout, list(by_column.values())),
                missing_classes=missing,
            )


def _transition_score(train: Packets, test: Packets, fake: Packets, groups: Groups, missing: Missing) -> Score:
    values, floors = {}, {}
    for label, g in groups.items():
        expected = transitions(test, g.test)
        values[label] = float(total_variation(expected, transitions(fake, g.synthetic)))
        floors[label] = float(total_variation(expected, transitions(train, g.matched)))
    return score(
        "fidelity.transitions",
        "Total variation distance of which direction and size of packet follows which, mean over classes",
        values,
        floors,
        size_buckets_bytes=list(SIZE_BUCKETS),
        missing_classes=missing,
    )


def bit_counts(traffic: Traffic, encoder: Encoder) -> NDArray[np.int32]:
    """
    Count for each flow and column the packets with -1, 0 and 1: int32[flows, columns, 3].
    """
    parts = [np.empty((0, encoder.layout.width, 3), np.int32)]
    for encoded in in_chunks(traffic, encoder):
        counts = [per_flow(np.add, encoded.rows == v, encoded.starts, dtype=np.int32) for v in (MISSING, 0, 1)]
        parts.append(np.stack(counts, axis=-1))
    return np.concatenate(parts)


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
