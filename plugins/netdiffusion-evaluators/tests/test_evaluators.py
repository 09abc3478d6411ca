"""
Each evaluator must object to what it is made for, and to nothing else.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
from itertools import pairwise

import attrs
import numpy as np
import pytest

from netdiffusion_core.capture import assemble
from netdiffusion_core.capture.dissect import dissect
from netdiffusion_core.capture.pcapfile import NO_FLOWS
from netdiffusion_core.context import Context
from netdiffusion_core.errors import ConfigError
from netdiffusion_core.interfaces import RealTraffic, RuleSet
from netdiffusion_core.model import LINK_RAW, MISSING, Score, Traffic, Violation, concatenate
from netdiffusion_evaluators import memory
from netdiffusion_evaluators.compliance import Compliance, ComplianceOptions
from netdiffusion_evaluators.detectability import Detectability, DetectabilityOptions
from netdiffusion_evaluators.features import ClassifierOptions, packets
from netdiffusion_evaluators.fidelity import Fidelity, hellinger, jensen_shannon, total_variation
from netdiffusion_evaluators.groups import as_captured
from netdiffusion_evaluators.novelty import Novelty
from netdiffusion_evaluators.plugin import netdiffusion_register_evaluators
from netdiffusion_evaluators.timing import LAGS, Timing, autocorrelations, bursts
from netdiffusion_evaluators.utility import Utility

pytestmark = pytest.mark.filterwarnings("error")

FLOWS = 30
EVALUATORS = [
    Fidelity(),
    Utility(ClassifierOptions(trees=5)),
    Detectability(DetectabilityOptions(trees=5, folds=3)),
    Timing(),
    Novelty(),
]


@pytest.fixture(scope="module")
def real(make_traffic) -> RealTraffic:
    return RealTraffic(train=make_traffic(10, FLOWS), test=make_traffic(11, FLOWS))


def judge(real: RealTraffic, synthetic: Traffic, context: Context, evaluators=EVALUATORS) -> dict[str, Score]:
    return {s.name: s for e in evaluators for s in e.evaluate(real, synthetic, context)}


@pytest.fixture(scope="module")
def honest(real, make_traffic, context) -> dict[str, Score]:
    """
    What a perfect generator gets: new flows from the very source of the real ones.
    """
    return judge(real, make_traffic(12, FLOWS), context)


def failed(scores: dict[str, Score], honest: dict[str, Score]) -> set[str]:
    """
    Return the figures that are clearly worse than the perfect generator's and than the floor.
    """
    margins = {"timing.packet_size": 30.0}
    for figure in ("jsd", "tvd", "hellinger"):  # a mean over 1088 bits moves little
        margins |= {f"fidelity.{figure}": 0.003, f"fidelity.informative_{figure}": 0.01}
    result = set()
    for name, score in scores.items():
        if score.floor is None:
            continue
        sign = 1 if score.goal == "minimize" else -1
        expected = max(sign * honest[name].value, sign * score.floor)
        if sign * score.value > expected + margins.get(name, 0.08):
            result.add(name)
    return result


def by_axis(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_a_perfect_generator_is_told_so(honest):
    assert failed(honest, honest) == set()
    assert honest["utility.macro_f1"].value > 0.95
    assert honest["utility.statistics_macro_f1"].value > 0.95
    assert honest["utility.ratio"].value == pytest.approx(1, abs=0.05)
    assert honest["detectability.auc"].value < 0.7
    assert honest["detectability.statistics_auc"].value < 0.7
    assert honest["novelty.copies"].value == 0
    assert honest["novelty.distinct"].value == 1
    assert honest["novelty.distance"].value > 0.95
    assert "first hyphen" in honest.pop("utility.service_macro_f1").detail["reason"]
    for score in honest.values():
        assert score.lower <= score.value <= score.upper
        assert score.lower <= score.floor <= score.upper
        assert score.summary


def test_the_same_flows_are_at_distance_zero(real, context):
    scores = judge(real, real.test, context, [Fidelity(), Timing()])
    assert all(score.value == pytest.approx(0, abs=1e-12) for score in scores.values())
    assert all(score.floor > 0 for score in scores.values())


def test_a_copy_in_disguise_is_a_copy(real, context):
    rng = np.random.default_rng(0)
    copies = real.train.packed()
    data = copies.data.copy()
    for at in (4, 5, 10, 11):  # fresh identification and checksums
        data[copies.starts + at] = rng.integers(0, 256, len(copies))
    scores = judge(real, attrs.evolve(copies, data=data), context, [Novelty()])
    assert scores["novelty.copies"].value == 1
    assert scores["novelty.distance"].value == 0
    assert scores["novelty.membership_auc"].value == 1


def test_swapped_labels_fail_utility(real, make_traffic, context):
    scores = judge(real, swapped(make_traffic(12, FLOWS)), context, [EVALUATORS[1]])
    for name in ("accuracy", "macro_f1", "statistics_accuracy", "statistics_macro_f1", "ratio"):
        assert scores[f"utility.{name}"].value < 0.05, name
    assert scores["utility.accuracy"].floor > 0.95
    mixing = {row["synthetic training flows"]: row for row in scores["utility.mixed_macro_f1"].detail["mixing"]}
    assert mixing["0 %"]["header bits: macro F1"] > 0.95
    assert mixing["90 %"]["flow statistics: macro F1"] < 0.05
    cut, topped_up, ideal = scores["utility.balanced_recall"].detail["balancing"]
    assert topped_up["header bits: macro F1"] < cut["header bits: macro F1"] <= ideal["header bits: macro F1"]
    assert {row["classifier"] for row in scores["utility.macro_f1"].detail["classifiers"]} == {
        "random forest", "decision tree", "linear SVM",
    }  # fmt: skip


def swapped(traffic: Traffic) -> Traffic:
    labels = np.where(traffic.flows.labels == "web", "call", "web")
    return attrs.evolve(traffic, flows=attrs.evolve(traffic.flows, labels=labels))


def test_services_are_what_stands_before_the_first_hyphen(make_traffic, context):
    def renamed(traffic: Traffic) -> Traffic:
        odd = np.arange(len(traffic.flows)) % 2
        labels = np.where(traffic.flows.labels == "web", np.where(odd, "web-shop", "web-mail"), "call")
        return attrs.evolve(traffic, flows=attrs.evolve(traffic.flows, labels=labels))

    real = RealTraffic(train=renamed(make_traffic(10, FLOWS)), test=renamed(make_traffic(11, FLOWS)))
    scores = judge(real, renamed(make_traffic(12, FLOWS)), context, [EVALUATORS[1]])
    assert scores["utility.macro_f1"].value < 0.9  # nobody can tell shops from mail
    assert scores["utility.service_macro_f1"].value > 0.95
    assert scores["utility.service_macro_f1"].floor > 0.95


def test_random_bits_fail_fidelity_and_are_detected_by_name(real, honest, make_traffic, context):
    encoder, rng = context.encoder, np.random.default_rng(0)
    encoded = encoder.encode(make_traffic(12, FLOWS))
    rows = encoded.rows.copy()
    for field in ("ipv4.tos", "ipv4.ttl", "tcp.wsize"):
        bits = rows[:, encoded.layout.span(field)]
        bits[:] = np.where(bits == MISSING, MISSING, rng.integers(0, 2, bits.shape))
    noisy = encoder.decode(attrs.evolve(encoded, rows=rows), rng)
    scores = judge(real, noisy, context, [Fidelity(), EVALUATORS[2]])
    missed = failed(scores, honest)
    bits = {"fidelity.jsd", "fidelity.tvd", "fidelity.hellinger", "fidelity.pairs"}
    assert missed == bits | {"detectability.auc"}  # not the informative bits: real ones are as random
    assert scores["detectability.auc"].value > 0.99
    for label in ("web", "call"):
        telltales = " ".join(scores["detectability.auc"].detail["telltale_features"][label])
        assert "ipv4_ttl" in telltales or "ipv4_tos" in telltales
    assert {"ipv4.tos", "ipv4.ttl"} <= set([*scores["detectability.auc"].detail["telltale_fields"]][:3])
    worst = scores["fidelity.jsd"].detail["per_field"]
    assert {"ipv4.tos", "ipv4.ttl"} <= set(sorted(worst, key=worst.get)[-3:])
    assert scores["fidelity.pairs"].detail["worst_fields"][0]["field"] == "ipv4.ttl"


def test_time_reversal_fails_what_knows_order_and_nothing_else(real, honest, make_traffic, context):
    fresh = make_traffic(12, FLOWS)
    first, last = (
        f.reduceat(fresh.timestamps, np.unique(fresh.flow_of, return_index=True)[1]) for f in (np.minimum, np.maximum)
    )
    backwards = attrs.evolve(fresh, timestamps=(first + last)[fresh.flow_of] - fresh.timestamps)
    scores = judge(real, backwards, context, [Fidelity(), Timing()])
    assert failed(scores, honest) == {"fidelity.transitions", "timing.turns"}


def test_wrong_times_fail_timing_only(real, honest, make_traffic, context):
    fresh = make_traffic(12, FLOWS)
    start = fresh.timestamps.min()
    slow = attrs.evolve(fresh, timestamps=start + (fresh.timestamps - start) * 10)
    scores = judge(real, slow, context, [Fidelity(), Timing(), Novelty()])
    assert failed(scores, honest) == {"timing.inter_arrival", "timing.turns", "timing.duration"}
    assert scores["timing.duration"].value == pytest.approx(1, abs=0.15)  # ten times is one power of ten


def test_shuffled_pauses_fail_what_knows_their_order(real, honest, make_traffic, context):
    fresh, rng = make_traffic(12, FLOWS), np.random.default_rng(0)
    order, starts = fresh.by_flow()
    times = fresh.timestamps.copy()
    for a, b in pairwise(starts):
        gaps = rng.permutation(np.diff(times[order[a:b]]))
        times[order[a + 1 : b]] = times[order[a]] + np.cumsum(gaps)
    scores = judge(real, attrs.evolve(fresh, timestamps=times), context, [Fidelity(), Timing(), Novelty()])
    assert failed(scores, honest) == {"timing.turns", "timing.autocorrelation"}


def test_bursts_end_with_an_answer_or_a_pause(make_traffic):
    traffic = make_traffic(3, 1, ("web",), least=6, most=6)  # > < < < > <, the fifth after a pause
    times = traffic.timestamps.copy()
    times[2:] += 2_000_000_000
    p = packets(attrs.evolve(traffic, timestamps=times))
    initiator, responder = bursts(p, np.array([0]))
    sizes = traffic.wire_lengths
    assert 10**initiator == pytest.approx(sizes[[0, 4]])
    assert 10**responder == pytest.approx([sizes[1], sizes[2] + sizes[3], sizes[5]])


def test_autocorrelation_is_that_of_the_textbook(make_traffic):
    traffic = make_traffic(5, 1, ("web",), least=24, most=24)
    gaps = np.log10(np.diff(traffic.timestamps) / 1e9)
    for lag, found in zip(LAGS, autocorrelations(packets(traffic), np.array([0])), strict=True):
        deviation = gaps - gaps.mean()
        assert found == pytest.approx([(deviation[lag:] * deviation[:-lag]).sum() / (deviation**2).sum()])


def test_a_generator_of_one_flow_fails_distinct_and_diversity(real, honest, make_traffic, context):
    one = make_traffic(12, 1)
    scores = judge(real, concatenate([one] * FLOWS), context, [Novelty()])
    assert {"novelty.distinct", "novelty.diversity"} <= failed(scores, honest)
    assert "novelty.copies" not in failed(scores, honest)
    assert scores["novelty.diversity"].value == 0
    assert scores["novelty.distinct"].value == pytest.approx(1 / FLOWS)


def test_the_same_seed_gives_the_same_scores(real, make_traffic, context, honest):
    anew = RealTraffic(train=attrs.evolve(real.train), test=attrs.evolve(real.test))  # nothing is remembered of it
    again = judge(anew, make_traffic(12, FLOWS), context)
    for name, score in honest.items():  # as text, where nan equals nan
        assert json.dumps(attrs.asdict(again[name])) == json.dumps(attrs.asdict(score))


def test_real_flows_are_looked_at_once_and_forgotten_with_them(make_traffic):
    pytest.importorskip("netdiffusion_nprint.encoder", reason="netdiffusion-nprint is not installed")
    from netdiffusion_nprint.encoder import NprintEncoder

    class Counting(NprintEncoder):
        seen = 0

        def encode(self, traffic: Traffic):
            self.seen += len(traffic.flows)
            return super().encode(traffic)

    context, before = Context(seed=1, encoder=Counting()), len(memory._known)
    real = RealTraffic(train=make_traffic(20, 8), test=make_traffic(21, 8))
    sets = [make_traffic(22, 8), make_traffic(23, 8)]
    seen = []
    for synthetic in sets:
        judge(real, synthetic, context, [Fidelity(), Novelty(), EVALUATORS[1]])
        seen.append(context.encoder.seen)
    assert seen[1] - seen[0] == seen[0] / 3
    del real, sets, synthetic
    assert len(memory._known) == before


# --- leaks --------------------------------------------------------------------------------------------------------


def test_a_test_flow_among_training_or_synthetic_flows_is_not_learned(real, make_traffic, context):
    """
    Random labels teach nothing, unless the very test flows are among them with the right ones.
    """
    rng = np.random.default_rng(0)

    def mislabelled(traffic: Traffic) -> Traffic:
        return attrs.evolve(traffic, flows=attrs.evolve(traffic.flows, labels=rng.permutation(traffic.flows.labels)))

    train, fake = mislabelled(real.train), mislabelled(make_traffic(12, FLOWS))
    leaky = RealTraffic(train=concatenate([train, real.test]), test=real.test)
    scores = judge(leaky, concatenate([fake, real.test]), context, [EVALUATORS[1]])
    score = scores["utility.accuracy"]
    assert score.detail["leaked_flows_left_out"] == {"train": 2 * FLOWS, "synthetic": 2 * FLOWS}
    assert score.value < 0.8
    assert score.floor < 0.8
    everything = judge(real, real.test, context, [EVALUATORS[1]])["utility.accuracy"]
    assert math.isnan(everything.value)
    assert "no test flows" in everything.detail["reason"]


def test_flows_that_were_stored_twice_are_not_learned_by_heart(real, make_traffic, context):
    """
    Learned from one copy and judged by the other, any flow would be recognised.
    """
    once = make_traffic(12, FLOWS // 2)
    score = judge(real, concatenate([once, once]), context, [EVALUATORS[2]])["detectability.auc"]
    assert score.value < 0.65


def test_captures_are_not_learned_by_heart(make_traffic, context):
    """
    Each capture has a TTL of its own. Within captures it would give every flow away; between captures it says nothing.
    """

    def captured(seed: int, name: str) -> Traffic:
        traffic = make_traffic(seed, 80, ("web",))
        capture = np.arange(80) // 8
        data = traffic.data.copy()
        ttls = np.random.default_rng(seed).permutation(200)[:10] + 20
        data[traffic.starts + 8] = ttls[capture[traffic.flow_of]]
        sources = [f"{name}/{i}.pcap" for i in capture]
        return attrs.evolve(traffic, data=data, flows=attrs.evolve(traffic.flows, sources=sources))

    real = RealTraffic(train=captured(1, "train"), test=captured(2, "test"))
    score = judge(real, captured(3, "fake"), context, [Detectability()])["detectability.auc"]
    assert score.value < 0.6
    assert score.floor < 0.6


def in_captures(make_traffic, seed: int, heaps: tuple[int, ...]) -> Traffic:
    """
    Captures of five flows, in heaps of so many; all captures of a heap begin with the same flow.
    """
    parts, sources = [], []
    for i, captures in enumerate(heaps):
        shared, own = make_traffic(seed + i, 1, ("web",)), make_traffic(seed + 50 + i, 4 * captures, ("web",))
        for j in range(captures):
            parts += [shared, own.select_flows(np.arange(4 * j, 4 * j + 4))]
            sources += [f"{seed}/{i}-{j}.pcap"] * 5
    traffic = concatenate(parts)
    return attrs.evolve(traffic, flows=attrs.evolve(traffic.flows, sources=sources))


@pytest.mark.parametrize(
    ("heaps", "measured"), [((6, 6), True), ((4, 4, 4), True), ((9, 1, 1, 1), False), ((12,), False)]
)
def test_captures_that_share_a_copy_make_fewer_folds(make_traffic, context, heaps, measured):
    """
    What is judged needs half of each side to learn from that shares no copy with it: without, any AUC would look good.
    """
    real = RealTraffic(train=in_captures(make_traffic, 100, heaps), test=in_captures(make_traffic, 200, heaps))
    fresh = in_captures(make_traffic, 300, heaps).packed()
    data = fresh.data.copy()
    data[fresh.starts + 8] = 99  # a TTL that no real packet has
    good, bad = (
        judge(real, made, context, [Detectability(DetectabilityOptions(trees=5))])["detectability.auc"]
        for made in (fresh, attrs.evolve(fresh, data=data))
    )
    if measured:
        assert good.value < 0.7
        assert bad.value > 0.9
    else:
        assert math.isnan(bad.value)
        assert "copies of flows hold more than half of web together" in bad.detail["reason"]


# --- what is missing ----------------------------------------------------------------------------------------------


def test_classes_that_one_side_lacks_are_named_and_left_out(real, make_traffic, context):
    lacking = RealTraffic(train=real.train, test=real.test.select_flows(real.test.flows.labels == "web"))
    scores = judge(lacking, make_traffic(12, FLOWS), context)
    for score in scores.values():
        assert score.detail["missing_classes"] == {"test": ["call"]}
    assert set(scores["fidelity.jsd"].detail["per_class"]) == {"web"}
    assert math.isnan(scores["utility.accuracy"].value)
    assert "needs two classes" in scores["utility.accuracy"].detail["reason"]


def test_nothing_in_common_gives_no_figure_but_a_reason(real, make_traffic, context):
    stranger = make_traffic(12, 2)
    stranger = attrs.evolve(stranger, flows=attrs.evolve(stranger.flows, labels=["other"] * len(stranger.flows)))
    for score in judge(real, stranger, context).values():
        assert math.isnan(score.value)
        assert score.floor is None or math.isnan(score.floor)
        assert score.detail["reason"]
        json.dumps(score.detail, allow_nan=False)


def test_few_and_short_flows_are_judged_as_far_as_possible(make_traffic, context):
    tiny = RealTraffic(train=make_traffic(1, 3, least=1, most=1), test=make_traffic(2, 3, least=1, most=1))
    scores = judge(tiny, make_traffic(3, 3, least=1, most=1), context)
    assert scores["fidelity.transitions"].value <= 1
    assert scores["utility.accuracy"].value > 0.9
    assert math.isnan(scores["timing.inter_arrival"].value)
    assert math.isnan(scores["detectability.auc"].value)
    assert scores["detectability.auc"].detail["classes_with_too_few_flows"] == {"call": 3, "web": 3}


def test_bits_need_an_encoder(real):
    for evaluator in (Fidelity(), Utility(), Detectability(), Novelty()):
        with pytest.raises(ConfigError, match="--encoder"):
            evaluator.evaluate(real, real.test, Context())


def test_distances_are_those_of_the_textbook():
    p, q = np.array([[1.0, 0, 0], [0.5, 0.5, 0]]), np.array([[0, 1.0, 0], [0.5, 0, 0.5]])
    assert jensen_shannon(p, q) == pytest.approx([1, 0.5])
    assert total_variation(p, q) == pytest.approx([1, 0.5])
    assert hellinger(p, q) == pytest.approx([1, math.sqrt(0.5)])


def test_every_registered_evaluator_can_be_built():
    specs = netdiffusion_register_evaluators()
    for spec in specs:
        module, name = spec.target.split(":")
        assert getattr(importlib.import_module(module), name)()
    assert [s.name for s in specs] == [
        "fidelity", "utility", "detectability", "compliance", "timing", "novelty", "interop",
    ]  # fmt: skip


# --- compliance -------------------------------------------------------------------------------------------------


class OddPorts(RuleSet):
    """
    Objects to every flow whose initiator's port is odd, and warns of every other.
    """

    def check(self, traffic: Traffic):
        for flow, port in enumerate(traffic.flows.initiator_ports):
            severity = "error" if port % 2 else "warning"
            yield Violation(rule="toy.port", flow=flow, packet=None, field="port", message="odd", severity=severity)


def test_flows_with_errors_are_counted_and_warnings_are_not(real, make_traffic):
    synthetic = make_traffic(12, FLOWS)
    context = Context(rules=(("toy", OddPorts()),))
    score = judge(real, synthetic, context, [Compliance()])["compliance.flows"]
    odd = synthetic.flows.initiator_ports % 2
    assert score.value == pytest.approx(1 - odd.mean())
    assert score.floor == pytest.approx(1 - (real.test.flows.initiator_ports % 2).mean())
    packets_and_flows = judge(real, synthetic, context, [Compliance()])
    assert packets_and_flows["compliance.packets"].value == 1  # the whole flow is meant, no packet of it
    assert packets_and_flows["compliance.usual_flows"].value == 0
    counts = {row["objection"]: row["synthetic"] for row in score.detail["rules"]}
    assert counts == {"toy.port (error)": odd.sum(), "toy.port (warning)": len(odd) - odd.sum()}


def scapy_traffic(*packets) -> Traffic:
    scapy_bytes = [bytes(p) for p in packets]
    lengths = [len(b) for b in scapy_bytes]
    return assemble(
        Traffic(
            data=np.frombuffer(b"".join(scapy_bytes), np.uint8),
            starts=np.cumsum([0, *lengths[:-1]]),
            captured_lengths=lengths,
            timestamps=1_700_000_000_000_000_000 + np.arange(len(packets)) * 1_000_000,
            wire_lengths=lengths,
            link_types=np.full(len(packets), LINK_RAW),
            flow_of=np.full(len(packets), -1),
            from_initiator=np.zeros(len(packets), bool),
            flows=NO_FLOWS,
        )
    )


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
def test_tshark_finds_bad_checksums_and_malformed_packets():
    from scapy.layers.dns import DNS, DNSQR
    from scapy.layers.inet import IP, TCP, UDP

    ip = IP(src="10.0.0.1", dst="198.18.0.1")
    good = [ip / TCP(sport=4000 + i, dport=80, flags="S") for i in range(4)]
    cut_query = bytes(DNS(qd=DNSQR(qname="example.org")))[:-3]
    bad = [
        good[0],
        ip / TCP(sport=5000, dport=80, flags="S", chksum=0xBEEF),
        IP(src="10.0.0.1", dst="198.18.0.1", chksum=0xBEEF) / UDP(sport=40001, dport=40002) / b"x",
        ip / UDP(sport=5002, dport=53) / cut_query,
    ]
    real = RealTraffic(train=scapy_traffic(*good), test=scapy_traffic(*good))
    scores = judge(real, scapy_traffic(*bad), Context(), [Compliance()])
    checksum, malformed = scores["compliance.tshark_bad_checksum"], scores["compliance.tshark_malformed"]
    assert (checksum.value, checksum.floor) == (0.5, 0)
    assert {row["objection"]: row["synthetic"] for row in checksum.detail["bad_checksums"]} == {"ip": 1, "tcp": 1}
    assert (malformed.value, malformed.floor) == (0.25, 0)
    assert "DNS" in malformed.detail["malformed"][0]["objection"]
    assert "no rule set" in scores["compliance.flows"].detail["reason"]


def test_without_tshark_it_says_so(real, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    score = judge(real, real.test, Context(), [Compliance()])["compliance.tshark_malformed"]
    assert math.isnan(score.value)
    assert "not installed" in score.detail["reason"]


def test_a_tshark_that_hangs_is_not_waited_for(real, monkeypatch, tmp_path):
    program = tmp_path / "tshark"
    program.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    evaluator = Compliance(ComplianceOptions(tshark_timeout_s=0.2))
    score = judge(real, real.test, Context(), [evaluator])["compliance.tshark_malformed"]
    assert "more than 0.2 s" in score.detail["reason"]


@pytest.mark.parametrize("lifted_by", [0, 4])
def test_what_a_short_snap_length_hid_gives_nobody_away(real, make_traffic, context, lifted_by):
    """
    Nor does a single packet of which a little more was captured lift the snap length of its class.
    """

    def cut(traffic: Traffic, more: int = 0) -> Traffic:
        captured = np.minimum(traffic.captured_lengths, 20 + 16)  # raw IP: the end of the TCP header is lost
        captured[np.argmax(traffic.wire_lengths)] += more  # which is cut all the same
        return attrs.evolve(traffic, captured_lengths=captured.astype(np.int32))

    short = RealTraffic(train=cut(real.train, lifted_by), test=cut(real.test))
    whole = make_traffic(13, FLOWS)
    seen, told = (judge(short, made, context, [Detectability(), Fidelity()]) for made in (cut(whole), whole))
    assert {name: score.value for name, score in seen.items()} == {name: score.value for name, score in told.items()}


def test_captures_of_headers_alone_hide_nothing(real, make_traffic, context):
    """
    Where each packet was cut behind its own headers, longer headers of synthetic packets are seen whole.
    """

    def headers_alone(traffic: Traffic) -> Traffic:
        found = dissect(traffic)
        ends = found.transport_offsets + found.transport_header_lengths - traffic.starts
        return attrs.evolve(traffic, captured_lengths=ends.astype(np.int32))

    short = RealTraffic(train=headers_alone(real.train), test=headers_alone(real.test))
    made = make_traffic(13, FLOWS)
    assert (as_captured(made, short).captured_lengths == made.captured_lengths).all()
