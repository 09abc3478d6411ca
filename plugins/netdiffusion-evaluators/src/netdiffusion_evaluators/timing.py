"""
Timing: 1-Wasserstein distances ("earth mover's distance") between what real and synthetic packets do in time, and
between their sizes.

Times are compared as powers of ten, since they span microseconds to hours: a distance of 1 means ten times too long or
too short on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic

from .features import Packets, packets, per_flow
from .groups import by_class, score

Array = NDArray[Any]
Samples = tuple[Array, ...]

LEAST_S, GREATEST_S = 1e-6, 1e4
"""Times are cut to what captures resolve and to some hours, so that distances have a bound."""

_DECADES = math.log10(GREATEST_S / LEAST_S)
_MAX_BYTES = 65_575.0  # an IPv6 packet that is no jumbogram (RFC 8200 section 3)


class Timing(Evaluator):
    """
    Wasserstein distances of inter-arrival times, durations and packet sizes, mean over classes.
    """

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return ``inter_arrival`` (all packets alike), ``turns`` (apart by who sent the packet and the one before it:
        response times are not think times), ``duration`` and ``packet_size``. A class in which no flow has two packets
        does not count in the first two.
        """
        groups, missing = by_class(real, synthetic, context, "timing")
        train, test, fake = (packets(traffic) for traffic in (real.train, real.test, synthetic))
        figures = (
            ("inter_arrival", "inter-arrival times, in powers of ten", _DECADES, inter_arrivals),
            ("turns", "inter-arrival times by who sends after whom, in powers of ten", _DECADES, turns),
            ("duration", "flow durations, in powers of ten", _DECADES, durations),
            ("packet_size", "IP packet sizes, in bytes", _MAX_BYTES, sizes),
        )
        scores = []
        with context.progress("timing", len(figures)) as advance:
            for name, what, upper, samples in figures:
                values, floors = {}, {}
                for label, group in groups.items():
                    expected = samples(test, group.test)
                    values[label] = distance(expected, samples(fake, group.synthetic))
                    floors[label] = distance(expected, samples(train, group.matched))
                summary = f"Wasserstein distance of {what}, mean over classes"
                scores.append(score(f"timing.{name}", summary, values, floors, upper=upper, missing_classes=missing))
                advance(note=name)
        return scores


def inter_arrivals(p: Packets, flows: Array) -> Samples:
    """
    Return the inter-arrival times of these flows.
    """
    return (_log_seconds(p.gaps_s[np.isin(p.flow, flows) & (p.position > 0)]),)


def turns(p: Packets, flows: Array) -> Samples:
    """
    Return the inter-arrival times apart by sender of this and of the previous packet: four samples.
    """
    chosen = np.isin(p.flow, flows) & (p.position > 0)
    turn = 2 * np.roll(p.from_initiator, 1) + p.from_initiator
    return tuple(_log_seconds(p.gaps_s[chosen & (turn == number)]) for number in range(4))


def durations(p: Packets, flows: Array) -> Samples:
    """
    Return the time from first to last packet of each of these flows.
    """
    return (_log_seconds(per_flow(np.add, p.gaps_s, p.starts)[flows]),)


def sizes(p: Packets, flows: Array) -> Samples:
    """
    Return the packet sizes of these flows in bytes.
    """
    return (p.sizes[np.isin(p.flow, flows)],)


def distance(expected: Samples, found: Samples) -> float:
    """
    Return the Wasserstein distance, mean over samples weighted by the size of the expected ones. A sample that is
    empty on one side does not count (that somebody never takes his turn shows in `fidelity.transitions`); NaN when none
    is left.
    """
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if len(a) and len(b)]
    if not pairs:
        return math.nan
    return float(np.average([wasserstein_distance(a, b) for a, b in pairs], weights=[len(a) for a, _ in pairs]))


def _log_seconds(seconds: Array) -> Array:
    return np.asarray(np.log10(np.clip(seconds, LEAST_S, GREATEST_S)))
