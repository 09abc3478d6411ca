"""
On the bundled sample: sets that are wrong in a known way must fail on the axes that look there, and on no other.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import attrs
import numpy as np
import pytest

from netdiffusion_core import dataset
from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import RealTraffic
from netdiffusion_core.model import MISSING, Score, Traffic, concatenate
from netdiffusion_evaluators.compliance import Compliance
from netdiffusion_evaluators.detectability import Detectability, DetectabilityOptions
from netdiffusion_evaluators.features import ClassifierOptions
from netdiffusion_evaluators.fidelity import Fidelity
from netdiffusion_evaluators.novelty import Novelty
from netdiffusion_evaluators.timing import Timing
from netdiffusion_evaluators.utility import Utility

CLASSES = ("https-page", "mqtt", "rtp-call")
STRUCTURE = (  # without these a packet's bits mean something else, and its size and time are another's
    "ipv4.ver", "ipv4.hl", "ipv4.tl", "ipv4.mfbit", "ipv4.foff", "ipv4.proto", "ipv4.opt", "tcp.doff", "tcp.opt",
    "udp.len", "trace",
)  # fmt: skip
EVALUATORS = (
    Fidelity(),
    Timing(),
    Utility(ClassifierOptions(trees=5)),
    Detectability(DetectabilityOptions(trees=5, folds=3)),
    Compliance(),
    Novelty(),
)
MARGINS = {"timing.packet_size": 40.0, "timing.duration": 0.2, "detectability": 0.12, "novelty.distance": 0.2} | {
    f"fidelity.{distance}": 0.004
    for distance in ("jsd", "tvd", "hellinger")  # a mean over 1088 bits moves little
}
BIT_DISTANCES = {f"fidelity.{i}{d}" for i in ("", "informative_") for d in ("jsd", "tvd", "hellinger")}
TIMES_AND_SIZES = {f"timing.{n}" for n in ("inter_arrival", "duration", "packet_size", "burst", "autocorrelation")}

Judge = Callable[[Traffic], dict[str, Score]]
Failed = Callable[[Traffic], set[str]]


@pytest.fixture(scope="module")
def train_test_fresh() -> tuple[Traffic, Traffic, Traffic]:
    """
    Real flows: to train on, to compare with, and what a perfect generator would make.
    """
    lab = dataset.load(Path(str(files("netdiffusion_core"))) / "samples/lab", classes=CLASSES)
    is_test = lab.flows.splits == "test"
    others = np.flatnonzero(~is_test)
    return lab.select_flows(others[::2]), lab.select_flows(is_test), lab.select_flows(others[1::2])


@pytest.fixture(scope="module")
def judge(context: Context, train_test_fresh: tuple[Traffic, Traffic, Traffic]) -> Judge:
    inet = pytest.importorskip("netdiffusion_inet.tcp", reason="netdiffusion-inet is not installed")
    rules = attrs.evolve(context, rules=(("tcp", inet.TcpRules()),))
    real = RealTraffic(train=train_test_fresh[0], test=train_test_fresh[1])
    return lambda synthetic: {s.name: s for e in EVALUATORS for s in e.evaluate(real, synthetic, rules)}


@pytest.fixture(scope="module")
def honest(judge: Judge, train_test_fresh: tuple[Traffic, Traffic, Traffic]) -> dict[str, Score]:
    return judge(train_test_fresh[2])


@pytest.fixture(scope="module")
def failed(judge: Judge, honest: dict[str, Score]) -> Failed:
    """
    Tell which figures are clearly worse than the perfect generator's, and than the floor.
    """

    def tell(synthetic: Traffic) -> set[str]:
        result = set()
        for name, found in judge(synthetic).items():
            sign = 1 if found.goal == "minimize" else -1
            margin = MARGINS.get(name, MARGINS.get(name.split(".")[0], 0.08))
            limits = [sign * limit for limit in (honest[name].value, found.floor) if limit is not None]
            if sign * found.value > max(limits) + margin:
                result.add(name)
        return result

    return tell


def changed(traffic: Traffic, context: Context, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Traffic:
    """
    Replace each column of bits, class by class, but for those of `STRUCTURE`, by what `change` makes of it.
    """
    encoded = context.encoder.encode(traffic)
    rows, spans = encoded.rows.copy(), encoded.layout.spans()
    loose = np.setdiff1d(np.arange(encoded.layout.width), np.concatenate([np.r_[spans[n]] for n in STRUCTURE]))
    rng = np.random.default_rng(0)
    for label in CLASSES:
        own = np.flatnonzero((encoded.labels == label)[encoded.flow_of])
        for column in loose:
            rows[own, column] = change(rows[own, column], rng)
    return context.encoder.decode(attrs.evolve(encoded, rows=rows), rng)


def test_real_flows_look_ideal(honest):
    for name, score in honest.items():
        if score.floor is None:
            assert score.detail["reason"], name
        elif name not in ("timing.packet_size", "timing.duration"):
            assert score.value == pytest.approx(score.floor, abs=0.15), name
    assert honest["novelty.copies"].value == 0
    assert honest["compliance.flows"].value == 1


def test_shuffled_bits_are_right_one_by_one_and_wrong_together(failed, train_test_fresh, context):
    """
    What a generator of independent bits makes: the bit distances cannot tell.
    """
    missed = failed(changed(train_test_fresh[2], context, lambda bits, rng: rng.permutation(bits)))
    assert missed >= {"fidelity.pairs", "detectability.auc", "compliance.flows"}
    assert not missed & (BIT_DISTANCES | TIMES_AND_SIZES | {"fidelity.transitions", "novelty.copies"})


def test_random_bits_fail_but_times_and_sizes(failed, train_test_fresh, context):
    def noise(bits, rng):
        return np.where(bits == MISSING, bits, rng.integers(0, 2, len(bits)))

    missed = failed(changed(train_test_fresh[2], context, noise))
    assert missed >= {"fidelity.jsd", "fidelity.pairs", "detectability.auc", "compliance.flows"}
    assert "utility" in {name.split(".")[0] for name in missed}
    assert not missed & (TIMES_AND_SIZES | {"fidelity.transitions"})
    assert not {name for name in missed if name.startswith("novelty")}  # noise is new


def test_copied_flows_fail_novelty_only(failed, train_test_fresh):
    train = train_test_fresh[0]
    drawn = np.random.default_rng(0).integers(0, len(train.flows), len(train.flows))
    missed = failed(concatenate([train.select_flows([i]).packed() for i in drawn]))
    assert missed == {f"novelty.{name}" for name in ("copies", "distinct", "distance", "diversity", "membership_auc")}


def test_reversed_flows_fail_where_order_matters(failed, train_test_fresh):
    fresh = train_test_fresh[2]
    order, starts = fresh.by_flow()
    first, last = fresh.timestamps[order[starts[:-1]]], fresh.timestamps[order[starts[1:] - 1]]
    backwards = attrs.evolve(fresh, timestamps=(first + last)[fresh.flow_of] - fresh.timestamps)
    missed = failed(backwards.select_packets(np.argsort(backwards.timestamps, kind="stable")))
    assert missed >= {
        "fidelity.transitions", "timing.turns", "detectability.auc", "detectability.statistics_auc",
        "compliance.usual_flows",
    }  # fmt: skip
    assert not missed & (BIT_DISTANCES | TIMES_AND_SIZES | {"fidelity.pairs", "novelty.copies"})
