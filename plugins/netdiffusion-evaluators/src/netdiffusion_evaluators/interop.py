"""
Interop: do the tools that people use see the flows that are there? Each is asked for the conversations in a capture of
all flows; one that it finds with the same endpoints and the same number of packets each way is recognised.

No packet leaves the host: tcprewrite stands for tcpreplay, whose packets it reads and prepares.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from netdiffusion_core.capture import read_capture, write_capture
from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Evaluator, RealTraffic
from netdiffusion_core.model import TCP, UDP, Score, Traffic

from .groups import Sides, compare, score
from .memory import once

End = tuple[str, int, int]
"""Address, port, packets that it sent."""

Conversation = tuple[int, End, End]
"""Protocol and both ends, the lesser address first: nobody's opinion about who began counts."""

PROTOCOLS = {"tcp": TCP, "udp": UDP}


@attrs.frozen(kw_only=True)
class InteropOptions:
    """
    Options of the ``interop`` evaluator.
    """

    tool_timeout_s: float = attrs.field(
        default=120.0,
        validator=attrs.validators.gt(0),
        metadata={"help": "seconds that a tool may take to read one side's packets"},
    )
    max_packets: int = attrs.field(
        default=200_000,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={"help": "packets of a side that a tool reads; where there are more, flows are drawn"},
    )


@attrs.frozen(kw_only=True)
class Findings:
    """
    What one tool says of one capture.

    conversations  that it found
    applications   what it takes them for, where it has an opinion
    packets        that it accepted, where it is asked for packets
    reason         why nothing was measured
    """

    conversations: frozenset[Conversation] = frozenset()
    applications: dict[Conversation, str] = attrs.field(factory=dict)
    packets: int = 0
    reason: str = ""


class ToolError(Exception):
    """
    A tool cannot be asked, or gave no answer; the message says why.
    """


class Interop(Evaluator):
    """
    Share of TCP and UDP flows that tshark, tcptrace, nDPI, Zeek and Suricata find as they are, and of packets that
    tcpreplay's tools take.
    """

    Options = InteropOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return a figure a tool, and ``ndpi_applications``: 1 less the total variation distance between what nDPI takes
        real test and synthetic flows of a class for. The floor is what real test flows get; of the applications, real
        training against test flows. A tool that is not installed is NaN with a reason. Flows whose endpoints another
        flow of the capture has are not asked for, nor are classes without TCP and UDP.
        """
        timeout_s = self.options.tool_timeout_s
        sides = compare(real, synthetic, context, "interop", max_packets=self.options.max_packets)
        found: dict[str, dict[str, Findings]] = {}
        with context.progress("interop", len(TOOLS)) as advance:
            for tool in TOOLS:
                asked = ("synthetic", "test", "train") if tool == "ndpi" else ("synthetic", "test")
                found[tool] = {side: ask(tool, getattr(sides, side), timeout_s) for side in asked}
                advance(note=tool)
        missing = {tool: answer["synthetic"].reason for tool, answer in found.items() if answer["synthetic"].reason}
        scores = [_flow_score(tool, sides, found[tool], missing) for tool in TOOLS if tool != "tcpreplay"]
        scores.insert(2, _packet_score(sides, found["tcpreplay"], missing))
        return [*scores, _application_score(sides, found["ndpi"], missing)]


def ask(tool: str, traffic: Traffic, timeout_s: float) -> Findings:
    """
    Let a tool read all flows of some traffic, one capture a link type.
    """

    def compute() -> Findings:
        order = np.argsort(traffic.timestamps, kind="stable")
        order = order[traffic.flow_of[order] >= 0]
        found: list[Findings] = []
        try:
            for link_type in np.unique(traffic.link_types[order]):  # a pcap file has one
                with tempfile.TemporaryDirectory(prefix="netdiffusion-") as folder:
                    path = Path(folder) / "packets.pcap"
                    write_capture(path, traffic, order[traffic.link_types[order] == link_type])
                    found.append(TOOLS[tool](path, timeout_s))
        except ToolError as error:
            return Findings(reason=str(error))
        except (ValueError, KeyError, TypeError) as error:
            return Findings(reason=f"{tool} gave an answer that cannot be read: {error}")
        return Findings(
            conversations=frozenset().union(*(each.conversations for each in found)),
            applications={key: name for each in found for key, name in each.applications.items()},
            packets=sum(each.packets for each in found),
            reason="" if found else "there are no packets",
        )

    return once(traffic, ("interop", tool, os.environ.get("PATH"), timeout_s), compute)


def conversations(traffic: Traffic) -> dict[Conversation, int]:
    """
    Return the TCP and UDP flows that have their endpoints for themselves, each with its row of the flow table.
    """
    flows, own = traffic.flows, traffic.flow_of >= 0
    sent = (
        np.bincount(traffic.flow_of[own & (traffic.from_initiator == who)], minlength=len(flows)).tolist()
        for who in (True, False)
    )
    addresses = (
        [
            str(ip_address(row[: 4 if version == 4 else 16].tobytes()))
            for row, version in zip(side, versions, strict=True)
        ]
        for versions in [flows.ip_versions.tolist()]
        for side in (flows.initiator_addresses, flows.responder_addresses)
    )
    ends = zip(*addresses, flows.initiator_ports.tolist(), flows.responder_ports.tolist(), *sent, strict=True)
    found = [
        conversation(protocol, (a, port_a, sent_a), (b, port_b, sent_b))
        for protocol, (a, b, port_a, port_b, sent_a, sent_b) in zip(flows.protocols.tolist(), ends, strict=True)
    ]
    places = [(protocol, a[:2], b[:2]) for protocol, a, b in found]
    alone = Counter(places)
    return {
        each: row
        for row, (each, place) in enumerate(zip(found, places, strict=True))
        if each[0] in PROTOCOLS.values() and alone[place] == 1
    }


def conversation(protocol: int, a: End, b: End) -> Conversation:
    """
    Return a conversation, whichever end is named first.
    """
    return (protocol, *sorted((a, b)))  # type: ignore[return-value]


# --- the tools ----------------------------------------------------------------------------------------------------


def tshark(path: Path, timeout_s: float) -> Findings:
    """
    Ask Wireshark's dissectors for packets by TCP stream; of UDP by endpoints, since SNMP's dissector cuts its streams.
    """
    names = ("tcp.stream", "ip.src", "ipv6.src", "tcp.srcport", "udp.srcport")
    names += ("ip.dst", "ipv6.dst", "tcp.dstport", "udp.dstport")
    complete = "(ip.dst || ipv6.dst) && (tcp.dstport || udp.dstport)"
    not_quoted = "!icmp && !icmpv6"  # an ICMP error quotes the packet that it is about
    words = ["tshark", "-n", "-r", path, "-Y", f"{complete} && {not_quoted}", "-T", "fields", "-E", "occurrence=f"]
    streams: dict[tuple[int, str, frozenset[Any]], Counter[tuple[str, int]]] = {}
    for line, count in Counter(_run([*words, *(f"-e{n}" for n in names)], timeout_s).stdout.splitlines()).items():
        stream, *ends = line.split("\t")
        source, destination = ((_address(ip or ipv6), int(tcp or udp)) for ip, ipv6, tcp, udp in (ends[:4], ends[4:]))
        sent = streams.setdefault((TCP if stream else UDP, stream, frozenset((source, destination))), Counter())
        sent[source] += count
        sent[destination] += 0
    return Findings(
        conversations=frozenset(
            conversation(protocol, *((*end, count) for end, count in sent.items()))
            for (protocol, _, ends), sent in streams.items()
            if len(ends) == 2
        )
    )


def tcptrace(path: Path, timeout_s: float) -> Findings:
    """
    Ask tcptrace for all TCP connections.
    """
    lines = _run(["tcptrace", "-l", "-n", "--csv", path], timeout_s).stdout.splitlines()
    rows = csv.DictReader([line for line in lines if line and not line.startswith("#")], skipinitialspace=True)
    return Findings(
        conversations=frozenset(
            conversation(
                TCP,
                *(
                    (_address(row[f"host_{end}"]), int(row[f"port_{end}"]), int(row[f"total_packets_{way}"]))
                    for end, way in (("a", "a2b"), ("b", "b2a"))
                ),
            )
            for row in rows
        )
    )


def tcpreplay(path: Path, timeout_s: float) -> Findings:
    """
    Let tcpreplay's tools tell clients from servers, and write what tcpreplay would send, with checksums anew.
    """
    cache, out = path.with_suffix(".cache"), path.with_suffix(".out")
    _run(["tcpprep", "--auto=first", "-i", path, "-o", cache], timeout_s)
    words = ["tcprewrite", "-i", path, "-o", out, "-c", cache, "--fixcsum"]
    _run(words, timeout_s, check=False)  # it stops at a packet that it does not take
    return Findings(packets=len(read_capture(out)) if out.exists() else 0)


def ndpi(path: Path, timeout_s: float) -> Findings:
    """
    Ask nDPI, which PyPI's nfstream brings along, in a process of its own: it may run into its time limit.
    """
    if importlib.util.find_spec("nfstream") is None:
        raise ToolError("nfstream is not installed; pip install 'netdiffusion-evaluators[interop]'")
    lines = _run([sys.executable, "-m", "netdiffusion_evaluators.ndpi", path], timeout_s).stdout.splitlines()
    applications = {}
    for protocol, a, port_a, sent_a, b, port_b, sent_b, application in map(json.loads, lines):
        key = conversation(protocol, (_address(a), port_a, sent_a), (_address(b), port_b, sent_b))
        applications[key] = application
    return Findings(conversations=frozenset(applications), applications=applications)


def zeek(path: Path, timeout_s: float) -> Findings:
    """
    Ask Zeek for its conn.log. Checksums are not looked at: `compliance` does that.
    """
    code = "redef LogAscii::use_json = T; redef tcp_inactivity_timeout = 1 day; redef udp_inactivity_timeout = 1 day;"
    _run(["zeek", "-C", "-r", path, "-e", code], timeout_s, path.parent)
    rows = _json_lines(path.with_name("conn.log"))
    return _by_initiator(
        (
            row["proto"], row["id.orig_h"], row["id.orig_p"], row["orig_pkts"],
            row["id.resp_h"], row["id.resp_p"], row["resp_pkts"],
        )
        for row in rows
    )  # fmt: skip


def suricata(path: Path, timeout_s: float) -> Findings:
    """
    Ask Suricata, with its own configuration, for the flow events of its eve.json.
    """
    _run(["suricata", "-r", path, "-l", path.parent, "-k", "none"], timeout_s)
    rows = (row for row in _json_lines(path.with_name("eve.json")) if row["event_type"] == "flow")
    return _by_initiator(
        (
            row["proto"], row["src_ip"], row.get("src_port", 0), row["flow"]["pkts_toserver"],
            row["dest_ip"], row.get("dest_port", 0), row["flow"]["pkts_toclient"],
        )
        for row in rows
    )  # fmt: skip


TOOLS: dict[str, Callable[[Path, float], Findings]] = {
    "tshark": tshark,
    "tcptrace": tcptrace,
    "tcpreplay": tcpreplay,
    "ndpi": ndpi,
    "zeek": zeek,
    "suricata": suricata,
}
_NAMES = {"ndpi": "nDPI", "zeek": "Zeek", "suricata": "Suricata"}


def _run(
    words: Sequence[str | Path], timeout_s: float, folder: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """
    Run a tool. Raises ToolError when it is not installed, fails or takes too long.
    """
    program = str(words[0])
    if not shutil.which(program):
        raise ToolError(f"{program} is not installed")
    command = [str(word) for word in words]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=check, cwd=folder
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{program} took more than {timeout_s:g} s; raise tool_timeout_s") from None
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise ToolError(f"{program} failed: {said[-1] if said else error}") from None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _by_initiator(rows: Iterable[tuple[str, str, int, int, str, int, int]]) -> Findings:
    return Findings(
        conversations=frozenset(
            conversation(PROTOCOLS[protocol.lower()], (_address(a), p, n), (_address(b), q, m))
            for protocol, a, p, n, b, q, m in rows
            if protocol.lower() in PROTOCOLS
        )
    )


def _address(text: str) -> str:
    return str(ip_address(text.strip()))


# --- the figures --------------------------------------------------------------------------------------------------


def _flow_score(tool: str, sides: Sides, found: Mapping[str, Findings], missing: Mapping[str, str]) -> Score:
    shares: dict[str, dict[str, float]] = {}
    asked: dict[str, int] = {}
    for side in ("synthetic", "test"):
        traffic = getattr(sides, side)
        ours = {key: row for key, row in conversations(traffic).items() if tool != "tcptrace" or key[0] == TCP}
        rows = np.array([*ours.values()], np.int64)
        right = np.array([key in found[side].conversations for key in ours], bool)
        labels = traffic.flows.labels[rows]
        asked[side] = len(rows)
        shares[side] = {
            label: float(right[labels == label].mean()) if (labels == label).any() else math.nan
            for label in sides.groups
        }
        if found[side].reason:
            shares[side] = dict.fromkeys(sides.groups, math.nan)
    name, kind = _NAMES.get(tool, tool), "TCP" if tool == "tcptrace" else "TCP and UDP"
    return score(
        f"interop.{tool}",
        f"Share of {kind} flows that {name} finds with the same endpoints and packets, mean over classes",
        shares["synthetic"],
        shares["test"],
        goal="maximize",
        flows_asked_for=asked,
        not_asked=missing,
        missing_classes=sides.missing,
        drawn=sides.drawn,
        **_reason(found["synthetic"]),
    )


def _packet_score(sides: Sides, found: Mapping[str, Findings], missing: Mapping[str, str]) -> Score:
    shares = {}
    for side in ("synthetic", "test"):
        packets = int((getattr(sides, side).flow_of >= 0).sum())
        shares[side] = math.nan if found[side].reason else found[side].packets / packets
    return Score(
        name="interop.tcpreplay",
        value=shares["synthetic"],
        goal="maximize",
        lower=0.0,
        upper=1.0,
        floor=None if math.isnan(shares["test"]) else shares["test"],
        summary="Share of packets that tcpreplay's tools prepare for sending",
        detail={"not_asked": missing, **_reason(found["synthetic"])},
    )


def _application_score(sides: Sides, found: Mapping[str, Findings], missing: Mapping[str, str]) -> Score:
    """
    Compare what nDPI takes flows for. Its own ``TLS.Google`` counts as it is.
    """
    names: dict[str, dict[int, str]] = {}
    for side in ("synthetic", "test", "train"):
        taken_for = found[side].applications
        names[side] = {row: taken_for.get(key, "not found") for key, row in conversations(getattr(sides, side)).items()}
    values, floors = {}, {}
    table: list[dict[str, Any]] = []
    for label, g in sides.groups.items():
        expected, ours, real = (
            Counter(names[side][row] for row in flows.tolist() if row in names[side])
            for side, flows in (("test", g.test), ("synthetic", g.synthetic), ("train", g.matched))
        )
        values[label], floors[label] = _overlap(expected, ours), _overlap(expected, real)
        if found["synthetic"].reason:
            values[label] = math.nan
        table += [
            {"class": label, "application": name, "synthetic": ours[name], "real_test": expected[name]}
            for name, _ in (ours + expected).most_common()
            if not found["synthetic"].reason
        ]
    return score(
        "interop.ndpi_applications",
        "Overlap of what nDPI takes real and synthetic flows of a class for, mean over classes",
        values,
        floors,
        goal="maximize",
        applications=table,
        not_asked=missing,
        missing_classes=sides.missing,
        drawn=sides.drawn,
        **_reason(found["synthetic"]),
    )


def _overlap(a: Counter[str], b: Counter[str]) -> float:
    """
    Return 1 less the total variation distance, NaN where a side is empty.
    """
    n, m = a.total(), b.total()
    return sum(min(a[name] / n, b[name] / m) for name in a) if n and m else math.nan


def _reason(findings: Findings) -> dict[str, str]:
    return {"reason": findings.reason} if findings.reason else {}
