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

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic

from .features import Packets, packets, per_flow
from .groups import compare, score

Array = NDArray[Any]
Samples = tuple[Array, ...]

LEAST_S, GREATEST_S = 1e-6, 1e4
"""Times are cut to what captures resolve and to some hours, so that distances have a bound."""

PAUSE_S = 1.0
"""A silence that ends a burst."""

GREATEST_BURST_BYTES = 1e9
LAGS = (1, 2, 3, 4, 5)

_BYTE_DECADES = math.log10(GREATEST_BURST_BYTES)
_DECADES = math.log10(GREATEST_S / LEAST_S)
_MAX_BYTES = 65_575.0  # an IPv6 packet that is no jumbogram (RFC 8200 section 3)


@attrs.frozen(kw_only=True)
class TimingOptions:
    """
    Options of the ``timing`` evaluator.
    """

    max_packets: int = attrs.field(
        default=300_000,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={
            "help": "packets of a side that are looked at; of more, flows are drawn, as many packets of each class"
        },
    )


class Timing(Evaluator):
    """
    Wasserstein distances of inter-arrival times, durations, sizes and bursts, mean over classes.
    """

    Options = TimingOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return ``inter_arrival`` (all packets alike), ``turns`` (apart by who sent the packet and the one before it:
        response times are not think times), ``duration``, ``packet_size``, ``burst`` and ``autocorrelation``. A class
        without flows long enough for a figure does not count in it.
        """
        sides = compare(real, synthetic, context, "timing", max_packets=self.options.max_packets)
        train, test, fake = (packets(part) for part in (sides.train, sides.test, sides.synthetic))
        figures = (
            ("inter_arrival", "inter-arrival times, in powers of ten", _DECADES, inter_arrivals),
            ("turns", "inter-arrival times by who sends after whom, in powers of ten", _DECADES, turns),
            ("duration", "flow durations, in powers of ten", _DECADES, durations),
            ("packet_size", "IP packet sizes, in bytes", _MAX_BYTES, sizes),
            ("burst", "bytes that one side sends without pause or answer, in powers of ten", _BYTE_DECADES, bursts),
            ("autocorrelation", "the autocorrelation of inter-arrival times within flows", 2.0, autocorrelations),
        )
        scores = []
        with context.progress("timing", len(figures)) as advance:
            for name, what, upper, samples in figures:
                values, floors = {}, {}
                for label, group in sides.groups.items():
                    expected = samples(test, group.test)
                    values[label] = distance(expected, samples(fake, group.synthetic))
                    floors[label] = distance(expected, samples(train, group.matched))
                summary = f"Wasserstein distance of {what}, mean over classes"
                told = {"missing_classes": sides.missing, "drawn": sides.drawn}
                scores.append(score(f"timing.{name}", summary, values, floors, upper=upper, **told))
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


def bursts(p: Packets, flows: Array) -> Samples:
    """
    Return the bytes of each burst, by initiator and by responder: packets of one sender with no packet of the other and
    no pause of `PAUSE_S` between them.
    """
    begins = (p.position == 0) | (p.gaps_s >= PAUSE_S) | np.diff(p.from_initiator, prepend=False)
    first = np.flatnonzero(begins)
    size = np.add.reduceat(p.sizes, first) if len(first) else np.empty(0)
    chosen = np.isin(p.flow[first], flows)
    return tuple(
        np.log10(np.clip(size[chosen & (p.from_initiator[first] == sender)], 1, GREATEST_BURST_BYTES))
        for sender in (True, False)
    )


def autocorrelations(p: Packets, flows: Array) -> Samples:
    """
    Return for each of `LAGS` the autocorrelation coefficients (-1 to 1) of the logarithms of inter-arrival times, one a
    flow: flows with at least twice as many inter-arrival times as the lag, and at least 4, not all of them alike.
    """
    log = np.where(p.position > 0, _log_seconds(p.gaps_s), 0)
    gaps = np.maximum(np.diff(p.starts) - 1, 0)
    mean = per_flow(np.add, log, p.starts) / np.maximum(gaps, 1)
    deviation = np.where(p.position > 0, log - mean[p.flow], 0)
    variance = per_flow(np.add, deviation**2, p.starts)
    chosen = np.isin(np.arange(len(gaps)), flows) & (variance > 1e-9)
    samples = []
    for lag in LAGS:
        product = np.where(p.position > lag, deviation * np.roll(deviation, lag), 0)
        long = chosen & (gaps >= max(2 * lag, 4))
        samples.append(np.clip(per_flow(np.add, product, p.starts)[long] / variance[long], -1, 1))
    return tuple(samples)


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
