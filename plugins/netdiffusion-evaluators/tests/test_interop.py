"""
Tools see the flows that are there, and miss those that are not as they seem.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path

import attrs
import numpy as np
import pytest

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import RealTraffic
from netdiffusion_core.model import TCP, UDP, Score, Traffic
from netdiffusion_evaluators.interop import Interop, InteropOptions, ask, conversations

TOOLS = ("tshark", "tcptrace", "tcpreplay", "ndpi", "zeek", "suricata")


@pytest.fixture(scope="module")
def real(make_traffic) -> RealTraffic:
    return RealTraffic(train=make_traffic(1, 6), test=make_traffic(2, 6))


def judge(real: RealTraffic, synthetic: Traffic) -> dict[str, Score]:
    return {score.name: score for score in Interop().evaluate(real, synthetic, Context())}


def needs(tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")


@pytest.mark.parametrize("tool", ["tshark", "tcptrace"])
def test_a_flow_whose_packets_go_elsewhere_is_not_found(tool, make_traffic):
    needs(tool)
    traffic = make_traffic(3, 6, ("web",))
    asked = conversations(traffic)
    assert len(asked) == 6
    assert ask(tool, traffic, 60).conversations == set(asked)

    data = traffic.data.copy()
    stray = np.flatnonzero(traffic.flow_of == 2)[3]
    data[traffic.starts[stray] + 19] ^= 1  # its destination address
    spoilt = attrs.evolve(traffic, data=data)
    assert set(conversations(spoilt)) - ask(tool, spoilt, 60).conversations == {
        each for each, row in asked.items() if row == 2
    }


def test_ndpi_finds_flows_and_tells_what_they_are(real, make_traffic):
    pytest.importorskip("nfstream", reason="nfstream is not installed (netdiffusion-evaluators[interop] has it)")
    traffic = make_traffic(3, 6)
    found = ask("ndpi", traffic, 60)
    assert found.conversations == set(conversations(traffic))
    assert {found.applications[each] for each in found.applications if each[0] == TCP} == {"TLS"}  # guessed by the port


def test_tcpreplays_tools_take_every_packet_of_a_capture(make_traffic):
    needs("tcprewrite")
    traffic = make_traffic(3, 6)
    assert ask("tcpreplay", traffic, 60).packets == len(traffic)


def test_flows_with_the_endpoints_of_another_are_not_asked_for(make_traffic):
    traffic = make_traffic(3, 2)
    flows = traffic.flows
    ports = flows.initiator_ports.copy()
    ports[1] = ports[0]
    twins = attrs.evolve(traffic, flows=attrs.evolve(flows, initiator_ports=ports))
    assert sorted(conversations(twins).values()) == [2, 3]


def test_a_tool_that_is_missing_is_named(real, make_traffic, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scores = judge(real, make_traffic(3, 6))
    assert set(scores) == {f"interop.{tool}" for tool in (*TOOLS, "ndpi_applications")}
    for name, score in scores.items():
        assert math.isnan(score.value), name
        assert "is not installed" in score.detail["reason"]
        assert set(score.detail["not_asked"]) == set(TOOLS)


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_zeek_and_suricata_are_asked_where_a_user_has_them(real, make_traffic, monkeypatch, tmp_path):
    """
    Stand-ins that write what zeek 6 (conn.log) and suricata 7 (eve.json) document. They see every flow but one; of that
    they saw a packet less.
    """
    traffic = make_traffic(3, 6)
    conn, eve = [], [json.dumps({"event_type": "stats", "stats": {}})]
    for (protocol, a, b), row in conversations(traffic).items():
        (client, port, sent), (server, other, answered) = (
            (a, b) if a[1] != traffic.flows.responder_ports[row] else (b, a)
        )
        sent, name = sent - (row == 0), {TCP: "tcp", UDP: "udp"}[protocol]
        ends = {"id.orig_h": client, "id.orig_p": port, "id.resp_h": server, "id.resp_p": other}
        conn.append(json.dumps({"proto": name, "orig_pkts": sent, "resp_pkts": answered, **ends}))
        seen = {"pkts_toserver": sent, "pkts_toclient": answered}
        ends = {"src_ip": client, "src_port": port, "dest_ip": server, "dest_port": other}
        eve.append(json.dumps({"event_type": "flow", "proto": name.upper(), "flow": seen, **ends}))
    for name, lines in (("conn.log", conn), ("eve.json", eve)):
        (tmp_path / name).write_text("\n".join(lines))
    copy = Path(shutil.which("cp") or "cp")
    program(tmp_path / "zeek", f'{copy} "{tmp_path}/conn.log" .')  # into the folder where it is called
    program(tmp_path / "suricata", f'{copy} "{tmp_path}/eve.json" "$4"')  # suricata -r FILE -l FOLDER
    monkeypatch.setenv("PATH", str(tmp_path))
    for tool in ("zeek", "suricata"):
        found = ask(tool, traffic, 60)
        assert not found.reason
        assert len(set(conversations(traffic)) - found.conversations) == 1


def test_a_tool_that_fails_or_hangs_or_babbles_is_a_reason_and_no_crash(real, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for text, timeout_s, reason in (
        ("echo no such option >&2; exit 2", 60, "tshark failed: no such option"),
        ("exec /bin/sleep 60", 0.2, "tshark took more than 0.2 s"),
        ("echo what?", 60, "cannot be read"),
    ):
        program(tmp_path / "tshark", text)
        assert reason in ask("tshark", attrs.evolve(real.test), timeout_s).reason


def test_the_report_tells_the_share_of_each_class(real, make_traffic):
    needs("tshark")
    scores = judge(real, make_traffic(3, 6))
    score = scores["interop.tshark"]
    assert score.detail["per_class"] == {label: {"value": 1.0, "floor": 1.0} for label in ("call", "web")}
    assert score.detail["flows_asked_for"] == {"synthetic": 12, "test": 12}
    assert Interop.Options is InteropOptions
