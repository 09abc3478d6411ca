"""
A complete plugin in one file: a one-field encoder, two backends, two rule sets and an evaluator. The tests of the core
need no other plugin. A packet of a flow becomes the eight bits of its IPv4 TTL.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import attrs
import numpy as np

from netdiffusion_core import hookimpl
from netdiffusion_core.capture import dissect
from netdiffusion_core.context import Context
from netdiffusion_core.errors import NotFittedError
from netdiffusion_core.interfaces import Backend, Encoder, Evaluator, RealTraffic, Record, RuleSet, forget
from netdiffusion_core.model import (
    LINK_RAW,
    UDP,
    Encoded,
    FlowTable,
    Layout,
    Rule,
    SampleRequest,
    Score,
    Traffic,
    Violation,
)
from netdiffusion_core.specs import BackendSpec, EncoderSpec, EvaluatorSpec, RuleSetSpec


@hookimpl
def netdiffusion_register_encoders() -> list[EncoderSpec]:
    return [EncoderSpec(name="toy", target=f"{__name__}:ToyEncoder", summary="the TTL alone")]


@hookimpl
def netdiffusion_register_backends() -> list[BackendSpec]:
    return [
        BackendSpec(name="toy-model", target=f"{__name__}:ToyBackend", summary="normal TTLs"),
        BackendSpec(name="toy-baseline", target=f"{__name__}:ToyBackend", summary="the same", baseline=True),
    ]


@hookimpl
def netdiffusion_register_rules() -> list[RuleSetSpec]:
    return [
        RuleSetSpec(name="toy-ttl", target=f"{__name__}:ToyTtl", summary="TTL is odd", requires=("toy-ip",)),
        RuleSetSpec(name="toy-ip", target=f"{__name__}:ToyIp", summary="nothing"),
    ]


@hookimpl
def netdiffusion_register_evaluators() -> list[EvaluatorSpec]:
    return [EvaluatorSpec(name="toy-eye", target=f"{__name__}:ToyEvaluator", summary="mean TTL")]


class ToyEncoder(Encoder):
    layout = Layout(name="toy", version=1, fields=(("ipv4.ttl", 8),))

    def encode(self, traffic: Traffic) -> Encoded:
        order, starts = traffic.by_flow()
        ttl = traffic.data[dissect(traffic).ip_offsets[order] + 8]
        return Encoded(
            rows=np.unpackbits(ttl[:, None], axis=1),
            starts=starts,
            labels=traffic.flows.labels,
            start_times=np.zeros(len(traffic.flows)),
            layout=self.layout,
        )

    def decode(self, encoded: Encoded, rng: np.random.Generator) -> Traffic:
        n, flows = len(encoded.rows), len(encoded)
        packets = np.zeros((n, 28), np.uint8)  # IPv4 and UDP headers
        packets[:, [0, 3, 8, 9, 25]] = [0x45, 28, 0, UDP, 8]
        packets[:, 8] = encoded.values("ipv4.ttl")
        packets[:, 12:20] = rng.integers(1, 250, (flows, 8))[encoded.flow_of]
        addresses = np.zeros((flows, 16))
        return Traffic(
            data=packets.ravel(),
            starts=np.arange(n) * 28,
            captured_lengths=np.full(n, 28),
            timestamps=np.arange(n) * 1000,
            wire_lengths=np.full(n, 28),
            link_types=np.full(n, LINK_RAW),
            flow_of=encoded.flow_of,
            from_initiator=np.ones(n),
            flows=FlowTable(
                labels=encoded.labels,
                splits=np.full(flows, ""),
                ip_versions=np.full(flows, 4),
                protocols=np.full(flows, UDP),
                initiator_addresses=addresses,
                responder_addresses=addresses,
                initiator_ports=np.zeros(flows),
                responder_ports=np.zeros(flows),
                sources=np.full(flows, ""),
            ),
        )


@attrs.frozen(kw_only=True)
class ToyOptions:
    spread: float = attrs.field(default=4.0, metadata={"help": "standard deviation of the TTL"})
    steps: int = attrs.field(default=3, validator=attrs.validators.ge(1), metadata={"help": "steps of training"})
    mood: Literal["calm", "wild"] = "calm"


class ToyBackend(Backend):
    Options = ToyOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.mean: dict[str, float] = {}
        self.layout = ToyEncoder.layout

    def fit(self, data: Encoded, context: Context) -> None:
        with context.progress("fit", self.options.steps) as advance:
            ttl = data.values("ipv4.ttl")
            labels = data.labels[data.flow_of]
            self.mean = {str(c): float(ttl[labels == c].mean()) for c in np.unique(labels)}
            advance(self.options.steps, note="loss 0.1")

    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        if not self.mean:
            raise NotFittedError("fit first")
        ttl, starts = [], [0]
        for i, label in enumerate(request.labels):
            rng = np.random.default_rng([request.seed, i])
            length = rng.integers(1, min(9, request.max_packets + 1))
            ttl.append(rng.normal(self.mean[label], self.options.spread, length).clip(1, 255).astype(np.uint8))
            starts.append(starts[-1] + length)
        return Encoded(
            rows=np.unpackbits(np.concatenate(ttl)[:, None], axis=1),
            starts=starts,
            labels=request.labels,
            start_times=np.zeros(len(request.labels)),
            layout=self.layout,
        )

    def save(self, folder: Path) -> None:
        (folder / "mean.json").write_text(json.dumps(self.mean))

    @classmethod
    def load(cls, folder: Path, options: Any = None) -> Self:
        backend = cls(options)
        backend.mean = json.loads((folder / "mean.json").read_text())
        return backend


class ToyIp(RuleSet):
    def check(self, traffic: Traffic) -> Iterable[Violation]:
        return ()


class ToyTtl(RuleSet):
    rules = (Rule("toy.ttl", "ipv4.ttl", "error", "the TTL is odd", "this test"),)

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        if "toy.ttl" in self.off:
            return traffic
        data = traffic.data.copy()
        at = dissect(traffic).ip_offsets + 8
        even = np.flatnonzero(data[at] % 2 == 0)
        record("toy.ttl", "ipv4.ttl", even, data[at[even]], data[at[even]] | 1)
        data[at] |= 1
        return attrs.evolve(traffic, data=data)

    def check(self, traffic: Traffic) -> Iterable[Violation]:
        ttl = traffic.data[dissect(traffic).ip_offsets + 8]
        for i in np.flatnonzero(ttl % 2 == 0).tolist():
            yield Violation(
                rule="toy.ttl",
                flow=int(traffic.flow_of[i]),
                packet=i,
                field="ipv4.ttl",
                message=f"the TTL {ttl[i]} is even",
            )


class ToyEvaluator(Evaluator):
    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        def mean(traffic: Traffic) -> float:
            return float(traffic.data[dissect(traffic).ip_offsets + 8].mean())

        difference = abs(mean(real.test) - mean(synthetic))
        yield Score(
            name="toy-eye.ttl",
            value=difference,
            goal="minimize",
            lower=0,
            upper=255,
            floor=abs(mean(real.test) - mean(real.train)),
            summary="difference of mean TTLs",
        )
