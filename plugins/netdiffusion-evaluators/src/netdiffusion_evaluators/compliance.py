"""
Compliance: would a receiver accept the packets? Judged by the run's own rule sets, and by tshark where it is installed.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture import write_capture
from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Evaluator, RealTraffic, RuleSet
from netdiffusion_core.model import Score, Traffic

from .features import in_parts
from .groups import at_most
from .memory import once

NO_PACKETS = "there are no packets"
CHECKSUMS = ("ip", "tcp", "udp", "icmp")
_FIELDS = ("_ws.malformed", *(f"{protocol}.checksum.status" for protocol in CHECKSUMS))
_PACKETS_AT_ONCE = 1 << 16  # of more, what holds between flows is checked among those that are looked at together
_BAD, _UNVERIFIED = "0", "2"  # a checksum status; unverified: the packet was cut. 1: good, 3: not present


@attrs.frozen(kw_only=True)
class ComplianceOptions:
    """
    Options of the ``compliance`` evaluator.
    """

    tshark_timeout_s: float = attrs.field(
        default=120.0,
        validator=attrs.validators.gt(0),
        metadata={"help": "seconds that tshark may take to read one side's packets"},
    )
    tshark_packets: int = attrs.field(
        default=200_000,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={"help": "packets of a side that tshark reads; where there are more, flows are drawn"},
    )


@attrs.frozen(kw_only=True)
class Verdict:
    """
    figures     shares, by the name of the score
    objections  how often who objected, by kind
    reason      why nothing was measured
    """

    figures: Mapping[str, float] = attrs.field(factory=dict)
    objections: Mapping[str, Counter[str]] = attrs.field(factory=dict)
    reason: str = ""


class Compliance(Evaluator):
    """
    Share of flows without errors by the rule sets, and of packets that tshark objects to.
    """

    Options = ComplianceOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return ``flows`` (share without any error by `context.rules`), ``packets`` (share that no error names),
        ``usual_flows`` (share without an error or a warning: what is legal and hardly seen, such as a connection that
        begins with its end), ``tshark_malformed`` and ``tshark_bad_checksum`` (shares of packets). The floor is what
        real test traffic gets, which is not perfect either: network cards fill in checksums behind the capture's back.
        Without rules, or without tshark, the figures are NaN with a reason.
        """
        by_rules, by_tshark = [], []
        with context.progress("compliance", 4) as advance:
            program, timeout_s = shutil.which("tshark"), self.options.tshark_timeout_s
            for traffic in (synthetic, real.test):  # remembered: the real side is the same for ours and for baselines
                by_rules.append(once(traffic, ("rules", context.rules), partial(check, traffic, context.rules)))
                advance(note="rules")
                some = at_most(traffic, context, None, self.options.tshark_packets)
                by_tshark.append(once(some, ("tshark", program, timeout_s), partial(tshark, some, timeout_s)))
                advance(note="tshark")
        return [
            _score("flows", "Share of flows without an error by the run's rule sets", "maximize", *by_rules),
            _score("packets", "Share of packets that no error of the run's rule sets names", "maximize", *by_rules),
            _score("usual_flows", "Share of flows without an error or warning by the rule sets", "maximize", *by_rules),
            _score("tshark_malformed", "Share of packets that tshark calls malformed", "minimize", *by_tshark),
            _score("tshark_bad_checksum", "Share of packets with a bad checksum by tshark", "minimize", *by_tshark),
        ]


def check(traffic: Traffic, rules: Sequence[tuple[str, RuleSet]]) -> Verdict:
    """
    Return the shares of ``flows`` without an error, of ``packets`` that no error names and of ``usual_flows`` without a
    warning either, and how often each rule is broken.
    """
    if not rules or not len(traffic.flows):
        return Verdict(
            reason="no rule set is active; pass --rules, such as --rules tcp,udp" if not rules else NO_PACKETS
        )
    bad_flows = bad_packets = odd_flows = 0
    objections: Counter[str] = Counter()
    # Packed, because checksums are sums over all bytes that a part has.
    parts = (part.packed() for part in in_parts(traffic)) if len(traffic) > _PACKETS_AT_ONCE else (traffic,)
    for part in parts:
        found = [v for _, rule_set in rules for v in rule_set.check(part) if v.rule not in rule_set.off]
        errors = [v for v in found if v.severity == "error"]
        bad_flows += len({v.flow for v in errors} - {-1})
        bad_packets += len({v.packet for v in errors} - {None})
        odd_flows += len({v.flow for v in found} - {-1})
        objections += Counter(f"{v.rule} ({v.severity})" for v in found)
    flows, packets = len(traffic.flows), max(len(traffic), 1)
    return Verdict(
        figures={
            "flows": 1 - bad_flows / flows,
            "packets": 1 - bad_packets / packets,
            "usual_flows": 1 - odd_flows / flows,
        },
        objections={"rules": objections},
    )


def tshark(traffic: Traffic, timeout_s: float) -> Verdict:
    """
    Return the shares of packets that tshark finds malformed (``tshark_malformed``) and with a bad checksum
    (``tshark_bad_checksum``), and how often which dissector objects.
    """
    if not (program := shutil.which("tshark")):
        return Verdict(reason="tshark is not installed; it comes with Wireshark")
    order, _ = traffic.by_flow()
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="netdiffusion-") as folder:
        path = Path(folder) / "packets.pcap"
        for link_type in np.unique(traffic.link_types[order]):  # a pcap file has one
            write_capture(path, traffic, order[traffic.link_types[order] == link_type])
            command = [program, "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=f"]
            command += [f"-o{protocol}.check_checksum:TRUE" for protocol in ("ip", "tcp", "udp")]  # off by default
            command += [f"-e{field}" for field in _FIELDS]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
            except subprocess.TimeoutExpired:
                return Verdict(reason=f"tshark took more than {timeout_s:g} s; raise tshark_timeout_s")
            except (OSError, subprocess.CalledProcessError) as error:
                return Verdict(reason=f"tshark failed: {getattr(error, 'stderr', '') or error}")
            lines += [line.split("\t") for line in done.stdout.splitlines()]
    if not lines:
        return Verdict(reason=NO_PACKETS)
    table = np.array(lines)
    malformed, status = table[:, 0] != "", table[:, 1:]
    return Verdict(
        figures={
            "tshark_malformed": float(malformed.mean()),
            "tshark_bad_checksum": float((status == _BAD).any(axis=1).mean()),
        },
        objections={
            "malformed": Counter(table[malformed, 0].tolist()),
            "bad_checksums": _by_protocol(status == _BAD),
            "unverified_checksums": _by_protocol(status == _UNVERIFIED),
        },
    )


def _by_protocol(marked: NDArray[np.bool_]) -> Counter[str]:
    return Counter(dict(zip(CHECKSUMS, marked.sum(axis=0).tolist(), strict=True)))


def _score(name: str, summary: str, goal: Literal["minimize", "maximize"], ours: Verdict, real: Verdict) -> Score:
    """
    Return one figure, with tables of the objections to both sides in its detail, the most frequent first.
    """
    detail: dict[str, Any] = {"reason": ours.reason} if ours.reason else {}
    for kind, counts in ours.objections.items():
        expected = real.objections.get(kind, Counter())
        detail[kind] = [
            {"objection": what, "synthetic": counts[what], "real_test": expected[what]}
            for what, _ in (counts + expected).most_common()
        ]
    return Score(
        name=f"compliance.{name}",
        value=ours.figures.get(name, math.nan),
        goal=goal,
        lower=0.0,
        upper=1.0,
        floor=real.figures.get(name),
        summary=summary,
        detail=detail,
    )
