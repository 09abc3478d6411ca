"""
Flows as pictures, timelines and distributions: PNGs, rows of a flow graph and SVG paths for report.html.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ..model import MISSING, Encoded, Layout
from .image import packet_image

FLOWS_SHOWN = 4
"""Flows a class and side: at equal steps through the class's flow lengths, so nobody picks the prettiest."""

PACKETS_SHOWN = 64

BOX = {"width": 340, "height": 170, "left": 34, "right": 332, "top": 8, "bottom": 146}
"""A distribution plot and its frame, in SVG units."""

FULL_BYTES = 1500
"""The size of a packet whose bar in a timeline takes the whole width."""

FLAGS = {
    "tcp.syn": "SYN", "tcp.fin": "FIN", "tcp.rst": "RST", "tcp.psh": "PSH", "tcp.urg": "URG", "tcp.ackf": "ACK",
}  # fmt: skip
"""TCP flags by field, in Wireshark's words."""


# --- packets ----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, eq=False)
class Side:
    """
    Real or synthetic flows, and what the layout tells of each packet: int64[packets], None where it tells nothing.

    sizes       IP packet length in bytes (``ipv4.tl``, ``ipv6.len``), -1 without an IP header
    gaps_us     microseconds since the flow's packet before (``trace.iat_us``), -1 for the first
    directions  0 sent by the initiator, 1 by the responder (``trace.direction``)
    """

    encoded: Encoded
    sizes: NDArray[np.int64] | None
    gaps_us: NDArray[np.int64] | None
    directions: NDArray[np.int64] | None

    @classmethod
    def of(cls, encoded: Encoded) -> Side:
        """
        Read the fields.
        """
        names = dict(encoded.layout.fields)
        sizes, gaps_us, directions = (
            encoded.values(name) if name in names else None for name in ("ipv4.tl", "trace.iat_us", "trace.direction")
        )
        if sizes is not None and "ipv6.len" in names:
            payload = encoded.values("ipv6.len")
            sizes = np.where(sizes < 0, np.where(payload < 0, -1, payload + 40), sizes)
        if gaps_us is not None:
            gaps_us[encoded.starts[:-1][encoded.lengths > 0]] = -1
        return cls(encoded=encoded, sizes=sizes, gaps_us=gaps_us, directions=directions)


def headers(layout: Layout) -> list[dict[str, Any]]:
    """
    The ruler above packet images: each header and how many columns it takes.
    """
    spans = layout.spans()
    return [{"name": name, "bits": spans[name].stop - spans[name].start} for name in layout.headers]


def typical(flows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[int]:
    """
    Choose some of these flows, from the 10th to the 90th percentile of length in equal steps.
    """
    order = flows[np.argsort(lengths[flows], kind="stable")]
    places = np.linspace(0.1, 0.9, FLOWS_SHOWN) * (len(order) - 1)
    return order[np.unique(places.round().astype(int))].tolist() if len(order) else []


def class_view(label: str, sides: Mapping[str, Side], plots: Sequence[Plot]) -> dict[str, Any]:
    """
    Everything that the report shows of one class.
    """
    flows = {name: np.flatnonzero(side.encoded.labels == label) for name, side in sides.items()}
    shown = {name: typical(flows[name], side.encoded.lengths) for name, side in sides.items()}
    return {
        "label": label,
        "counts": {name: len(f) for name, f in flows.items()},
        "flows": {name: [flow_view(side, i) for i in shown[name]] for name, side in sides.items()},
        "plots": [plot.draw({name: plot.values(side, flows[name]) for name, side in sides.items()}) for plot in plots],
    }


def flow_view(side: Side, flow: int) -> dict[str, Any]:
    """
    One flow as a picture and, where the layout tells direction, size and time, as a timeline.
    """
    whole = slice(*side.encoded.starts[flow : flow + 2].tolist())
    shown = slice(whole.start, min(whole.start + PACKETS_SHOWN, whole.stop))
    picture = io.BytesIO()
    packet_image(side.encoded.rows[shown]).save(picture, format="PNG", optimize=True)
    return {
        "packets": whole.stop - whole.start,
        "shown": shown.stop - shown.start,
        "png": "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode(),
        "seconds": None if side.gaps_us is None else float(np.maximum(side.gaps_us[whole], 0).sum() / 1e6),
        "timeline": timeline(side, shown),
    }


def timeline(side: Side, packets: slice) -> list[dict[str, Any]] | None:
    """
    Return one row a packet, as a flow graph tells it: seconds since the first, who sent it, its size, and what it is.
    """
    if side.sizes is None or side.gaps_us is None or side.directions is None:
        return None
    seconds = np.maximum(side.gaps_us[packets], 0).cumsum() / 1e6
    sizes, directions = side.sizes[packets].tolist(), side.directions[packets].tolist()
    return [
        {
            "seconds": f"{at:.6f}",
            "back": direction == 1,
            "text": f"{name} {size:,}",
            "percent": round(100 * min(max(size, 0) / FULL_BYTES, 1)),
        }
        for at, direction, size, name in zip(
            seconds.tolist(), directions, sizes, packet_names(side.encoded, packets), strict=True
        )
    ]


def packet_names(encoded: Encoded, packets: slice) -> list[str]:
    """
    Name each packet by its TCP flags, where it has any, else by its transport header.
    """
    names = []
    spans = encoded.layout.spans()
    transports = [header for header in encoded.layout.headers if header not in ("ipv4", "ipv6", "trace")]
    for row in encoded.rows[packets]:
        flags = [word for field, word in FLAGS.items() if field in spans and row[spans[field].start] == 1]
        present = [header.upper() for header in transports if row[spans[header].start] != MISSING]
        names.append(", ".join(flags) or " ".join(present) or "IP")
    return names


# --- distributions ----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Plot:
    """
    A cumulative distribution on an axis that all classes share.

    values  (side, flows) -> the numbers of these flows, negative ones to be left out
    ticks   (value, text), in order
    """

    title: str
    values: Callable[[Side, NDArray[np.int64]], NDArray[np.int64]]
    ticks: Sequence[tuple[float, str]]
    low: float
    high: float
    log: bool

    def x(self, value: Any) -> NDArray[Any]:
        """
        Map values to SVG units.
        """
        ends = np.array([self.low, self.high])
        at = np.clip(value, *ends)
        if self.log:
            ends, at = np.log10(ends), np.log10(at)
        share: NDArray[Any] = (at - ends[0]) / (ends[1] - ends[0])
        return BOX["left"] + share * (BOX["right"] - BOX["left"])

    def path(self, values: NDArray[np.int64]) -> str:
        """
        Draw the empirical distribution as a staircase of at most 160 steps.
        """
        points, counts = np.unique(self.x(values).round(1), return_counts=True)
        share = counts.cumsum() / counts.sum()
        keep = np.unique(np.linspace(0, len(points) - 1, 160).round().astype(int))
        y = BOX["bottom"] - share[keep] * (BOX["bottom"] - BOX["top"])
        steps = "".join(f"H{a:g}V{b:.1f}" for a, b in zip(points[keep], y, strict=True))
        return f"M{BOX['left']} {BOX['bottom']}{steps}H{BOX['right']}"

    def draw(self, values: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
        """
        Return title, ticks, one path a side, and how far the two curves are apart at most.
        """
        known = {name: v[v >= 0] for name, v in values.items() if (v >= 0).any()}
        return {
            "title": self.title,
            "ticks": [(round(float(self.x(at)), 1), text) for at, text in self.ticks],
            "paths": {name: self.path(v) for name, v in known.items()},
            "gap": largest_gap(*known.values()) if len(known) == 2 else None,
        }


def largest_gap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """
    Return the Kolmogorov-Smirnov distance of two samples.
    """
    at = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(v), at, side="right") / len(v) for v in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def distributions(sides: Mapping[str, Side]) -> list[Plot]:
    """
    Return the distributions that the layout can tell.
    """

    def of_packets(name: str) -> Callable[[Side, NDArray[np.int64]], NDArray[np.int64]]:
        return lambda side, flows: getattr(side, name)[np.isin(side.encoded.flow_of, flows)]

    some = next(iter(sides.values()))
    longest = max(2, *(int(side.encoded.lengths.max(initial=2)) for side in sides.values()))
    decades = [10**d for d in range(int(np.ceil(np.log10(longest))) + 1)]
    sizes = Plot(
        title="packet size, bytes",
        values=of_packets("sizes"),
        ticks=[(size, f"{size:,}") for size in (0, 500, 1000, 1500)],
        low=0,
        high=1520,
        log=False,
    )
    gaps = Plot(
        title="time between packets",
        values=of_packets("gaps_us"),
        ticks=[(1, "1 µs"), (100, "100 µs"), (10_000, "10 ms"), (1_000_000, "1 s"), (100_000_000, "100 s")],
        low=1,
        high=1e9,
        log=True,
    )
    lengths = Plot(
        title="packets a flow",
        values=lambda side, flows: side.encoded.lengths[flows],
        ticks=[(n, f"{n:,}") for n in decades],
        low=1,
        high=decades[-1],
        log=True,
    )
    return [sizes] * (some.sizes is not None) + [gaps] * (some.gaps_us is not None) + [lengths]
