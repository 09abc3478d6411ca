"""
The conformance kit finds each planted fault, says it in words, and finds nothing in components without one.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import netdiffusion_core
from netdiffusion_core import hookimpl
from netdiffusion_core.capture import dissect
from netdiffusion_core.context import Context
from netdiffusion_core.errors import RunError
from netdiffusion_core.interfaces import Executor, RealTraffic, Record, RuleSet, forget
from netdiffusion_core.model import Encoded, Rule, SampleRequest, Score, Traffic, Violation
from netdiffusion_core.plugins import HOOKS, Plugins
from netdiffusion_core.specs import KINDS
from netdiffusion_core.testing import (
    BackendConformance,
    Conformance,
    EncoderConformance,
    EvaluatorConformance,
    ExecutorConformance,
    RuleSetConformance,
)

BASES: dict[str, type[Conformance]] = {
    base.kind: base
    for base in (EncoderConformance, BackendConformance, RuleSetConformance, EvaluatorConformance, ExecutorConformance)
}


def template(kind: str) -> Any:
    """
    Import what `netdiff plugins new` starts from.
    """
    folder = Path(netdiffusion_core.__file__).parent / "templates" / kind / "src" / "netdiffusion_newplugin"
    spec = importlib.util.spec_from_file_location(f"template_{kind}", folder / f"{kind}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


GoodEncoder = template("encoder").NewpluginEncoder
GoodBackend = template("backend").NewpluginBackend
GoodEvaluator = template("evaluator").NewpluginEvaluator


class GoodTtl(RuleSet):
    """
    The TTL is even, as it is in the example traffic.
    """

    rules = (Rule("newplugin.ttl", "ipv4.ttl", "error", "the TTL is even", "this test"),)

    def wrong(self, traffic: Traffic) -> Any:
        headers = dissect(traffic)
        four = np.flatnonzero(headers.ip_versions == 4)
        at = headers.ip_offsets[four] + 8
        odd = traffic.data[at] % 2 == 1 if "newplugin.ttl" not in self.off else np.zeros(len(at), bool)
        return four[odd], at[odd]

    def check(self, traffic: Traffic) -> Iterable[Violation]:
        yield from self.rules[0].broken(traffic, self.wrong(traffic)[0])

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        packets, at = self.wrong(traffic)
        record("newplugin.ttl", "ipv4.ttl", packets, traffic.data[at], self.mended(traffic.data[at]))
        data = traffic.data.copy()
        data[at] = self.mended(data[at])
        return attrs.evolve(traffic, data=data)

    def mended(self, ttl: Any) -> Any:
        return ttl - 1


class GoodExecutor(Executor):
    """
    Works in this process.
    """

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        yield from map(function, items)


GOOD = {
    "encoder": GoodEncoder,
    "backend": GoodBackend,
    "rules": GoodTtl,
    "evaluator": GoodEvaluator,
    "executor": GoodExecutor,
}


def findings(kind: str, component: type, required: type | None = None) -> dict[str, str]:
    """
    Let the kit loose on a component, and return what each check that failed says.

    required  a rule set that the component, another one, requires
    """
    setattr(sys.modules[__name__], component.__name__, component)
    spec = KINDS[kind](name="newplugin", target=f"{__name__}:{component.__name__}", summary="planted")
    specs = [spec]
    if required:
        specs = [spec := attrs.evolve(spec, requires=("required",))]
        specs.append(attrs.evolve(spec, name="required", target=f"{__name__}:{required.__name__}", requires=()))

    class Plugin:
        pass

    setattr(Plugin, HOOKS[kind], hookimpl(lambda self: specs, specname=HOOKS[kind]))
    plugins = Plugins.of(Plugin())
    test = type("TestPlanted", (BASES[kind],), {"spec": spec, "plugins": classmethod(lambda cls: plugins)})
    found = {}
    for name in sorted(n for n in dir(test) if n.startswith("test_")):
        assert getattr(test, name).__doc__, f"{name} does not say what it means"
        try:
            getattr(test(), name)()
        except AssertionError as error:
            found[name] = str(error)
        except pytest.skip.Exception:
            assert name == "test_the_plugin_imports_nothing_heavy"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_found_where_nothing_is_wrong(kind: str) -> None:
    assert findings(kind, GOOD[kind]) == {}


# --- planted faults: the component, the check that must find it, and what that must say ----------------------------


class ForgetsTheTtl(GoodEncoder):
    def decode(self, encoded: Encoded, rng: np.random.Generator) -> Traffic:
        rows = encoded.rows.copy()
        rows[:, encoded.layout.span("packet.ttl")] = 0
        return super().decode(attrs.evolve(encoded, rows=rows), rng)


class WritesIntoItsInput(GoodEncoder):
    def encode(self, traffic: Traffic) -> Encoded:
        traffic.data[0] = 0
        return super().encode(traffic)


class UnlocksItsInput(GoodEncoder):
    def encode(self, traffic: Traffic) -> Encoded:
        traffic.timestamps.flags.writeable = True
        traffic.timestamps[:] += 1
        return super().encode(traffic)


class DrawsOnItsOwn(GoodEncoder):
    def decode(self, encoded: Encoded, rng: np.random.Generator) -> Traffic:
        return super().decode(encoded, np.random.default_rng())


class IgnoresTheSeed(GoodEncoder):
    def decode(self, encoded: Encoded, rng: np.random.Generator) -> Traffic:
        return super().decode(encoded, np.random.default_rng(0))


class SwapsFlows(GoodEncoder):
    def encode(self, traffic: Traffic) -> Encoded:
        return attrs.evolve(super().encode(traffic), labels=traffic.flows.labels[::-1])


class StumblesOverNothing(GoodEncoder):
    def encode(self, traffic: Traffic) -> Encoded:
        assert len(traffic), "no packets"
        return super().encode(traffic)


class Pickles(GoodBackend):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "model.npy").write_bytes(pickle.dumps({"a": 1}))


class SavesAnUnknownFile(GoodBackend):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "model.pkl").write_bytes(b"")


class NeverLearnsTheSame(GoodBackend):
    def fit(self, data: Encoded, context: Context) -> None:
        keep = np.sort(np.random.default_rng().choice(len(data), len(data) // 2, replace=False))
        super().fit(data.select(keep), context)


class DependsOnTheBatch(GoodBackend):
    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        return super().sample(attrs.evolve(request, seed=request.seed + len(request.labels)), context)


class AnswersInOrderOfLabels(GoodBackend):
    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        return super().sample(attrs.evolve(request, labels=sorted(request.labels)), context)


class ForgetsItsLengths(GoodBackend):
    @classmethod
    def load(cls, folder: Path, options: Any = None) -> Any:
        model = super().load(folder, options)
        model.lengths = [np.ones_like(lengths) for lengths in model.lengths]
        return model


class LoadsAnything(GoodBackend):
    @classmethod
    def load(cls, folder: Path, options: Any = None) -> Any:
        try:
            return super().load(folder, options)
        except netdiffusion_core.errors.DataError:
            return cls(options)


class CrashesOnDamage(GoodBackend):
    @classmethod
    def load(cls, folder: Path, options: Any = None) -> Any:
        (folder / "chances.npy").read_bytes()
        return super().load(folder, options)


class SamplesBeforeFit(GoodBackend):
    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        return super().sample(request, context) if self.labels else None


class NeverContent(GoodTtl):
    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        traffic = super().repair(traffic, rng, record)
        at = dissect(traffic).ip_offsets[:1] + 8
        record("newplugin.ttl", "ipv4.ttl", np.array([0]), traffic.data[at], traffic.data[at] - 2)
        data = traffic.data.copy()
        data[at] -= 2
        return attrs.evolve(traffic, data=data)


class MendsNothing(GoodTtl):
    def mended(self, ttl: Any) -> Any:
        return ttl - 2


class ForgetsToReturn(GoodTtl):
    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        super().repair(traffic, rng, record)


class DrawsTtls(GoodTtl):
    def mended(self, ttl: Any) -> Any:
        return np.random.default_rng().choice([32, 64, 128], len(ttl)).astype(np.uint8)


class RecordsWhatIsNot(GoodTtl):
    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        return super().repair(
            traffic, rng, lambda rule, field, i, before, after: record(rule, field, i, before, after + 2)
        )


class MendsInSilence(GoodTtl):
    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        return super().repair(traffic, rng)


class ReportsUndeclaredRules(GoodTtl):
    def check(self, traffic: Traffic) -> Iterable[Violation]:
        return (attrs.evolve(violation, rule="newplugin.tll") for violation in super().check(traffic))


class IsNeverOff(GoodTtl):
    off = property(lambda self: frozenset(), lambda self, value: None)


class NamesNoSource(GoodTtl):
    rules = (attrs.evolve(GoodTtl.rules[0], source=""),)


class Unbounded(GoodEvaluator):
    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        for score in super().evaluate(real, synthetic, context):
            yield attrs.evolve(score, value=1 + score.value)


class GivesNoReason(GoodEvaluator):
    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        for score in super().evaluate(real, synthetic, context):
            yield attrs.evolve(score, detail={})


class HasAnotherName(GoodEvaluator):
    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        for score in super().evaluate(real, synthetic, context):
            yield attrs.evolve(score, name="packets")


class FloorOfAnotherScale(GoodEvaluator):
    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        for score in super().evaluate(real, synthetic, context):
            yield attrs.evolve(score, floor=score.floor and 1.0)


class CrashesWithoutFlows(GoodEvaluator):
    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        synthetic.flows.labels[0]
        return super().evaluate(real, synthetic, context)


class DrawsItsScore(GoodEvaluator):
    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        for score in super().evaluate(real, synthetic, context):
            yield attrs.evolve(score, value=score.value * np.random.default_rng().uniform(0.9, 1))


class AnswersOutOfOrder(GoodExecutor):
    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        yield from sorted(map(function, items), reverse=True, key=str)


class WrapsErrors(GoodExecutor):
    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from map(function, items)
        except Exception as error:
            raise RunError(f"a worker failed: {error}") from error


class AnswersTooSoon(GoodExecutor):
    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        results = [function(item) for item in items]
        for result in results:
            if isinstance(result, Path):
                result.write_bytes(b"")
            yield result


FAULTS = [
    ("encoder", ForgetsTheTtl, "what_is_decoded_is_encoded_as_it_was", "packet.ttl is lost in"),
    ("encoder", WritesIntoItsInput, "encode_gives_rows_flow_by_flow", "encode writes into its input: copy"),
    ("encoder", UnlocksItsInput, "encode_gives_rows_flow_by_flow", "encode changed Traffic.timestamps of its input"),
    ("encoder", DrawsOnItsOwn, "the_seed_decides_what_is_drawn", "the same seed gave other packets: data"),
    ("encoder", IgnoresTheSeed, "the_seed_decides_what_is_drawn", "two seeds gave the same packets"),
    ("encoder", SwapsFlows, "encode_gives_rows_flow_by_flow", "the labels are not those of the flow table"),
    ("encoder", StumblesOverNothing, "empty_and_odd_traffic", "no packets"),
    ("backend", Pickles, "no_pickle_is_saved", "model.npy is no npy file"),
    ("backend", SavesAnUnknownFile, "no_pickle_is_saved", "model.pkl is none of .json, .npy, .safetensors, .toml"),
    ("backend", NeverLearnsTheSame, "fit_twice_gives_the_same_model", "a second fit with the same seed"),
    ("backend", DependsOnTheBatch, "a_flow_depends_on_its_place_and_no_other_flow", "among other flows"),
    ("backend", AnswersInOrderOfLabels, "the_request_is_answered", "was asked for"),
    ("backend", ForgetsItsLengths, "a_saved_model_samples_the_same", "the loaded model samples other flows"),
    ("backend", LoadsAnything, "a_damaged_folder_is_refused", "load of an empty folder raises nothing"),
    ("backend", CrashesOnDamage, "a_damaged_folder_is_refused", "raises FileNotFoundError, not DataError"),
    ("backend", SamplesBeforeFit, "nothing_is_sampled_before_fit", "it must raise NotFittedError"),
    ("rules", NeverContent, "repair_is_idempotent", "a second repair changes more: data"),
    ("rules", MendsNothing, "repair_leaves_nothing_to_repair", "violations are left: newplugin.ttl in packet"),
    ("rules", ForgetsToReturn, "valid_traffic_stays_as_it_is", "repair returned NoneType; it must return Traffic"),
    ("rules", DrawsTtls, "the_seed_decides_what_is_drawn", "the same seed gave other packets: data"),
    ("rules", RecordsWhatIsNot, "each_change_is_told_and_true", "it is recorded that ipv4.ttl of packet"),
    ("rules", MendsInSilence, "each_change_is_told_and_true", "packets were changed and record was not told"),
    (
        "rules",
        ReportsUndeclaredRules,
        "what_is_reported_is_declared",
        "'newplugin.tll', which `rules` does not",
    ),
    ("rules", IsNeverOff, "a_rule_that_is_off_is_silent", "newplugin.ttl is off, and check reports it"),
    ("rules", NamesNoSource, "rules_are_declared", "the rule newplugin.ttl has no source"),
    ("evaluator", Unbounded, "scores_are_well_formed", "beyond its bounds 0 and 1"),
    ("evaluator", GivesNoReason, "no_flows_and_missing_labels", 'is NaN, and detail["reason"] does not say why'),
    ("evaluator", HasAnotherName, "scores_are_well_formed", "must be named newplugin.<figure>"),
    ("evaluator", FloorOfAnotherScale, "real_against_real_is_at_its_floor", "and its floor is 1"),
    ("evaluator", CrashesWithoutFlows, "no_flows_and_missing_labels", "no flows raises IndexError"),
    ("evaluator", DrawsItsScore, "the_seed_decides_what_is_drawn", "the same seed gave newplugin.packets the value"),
    ("executor", AnswersOutOfOrder, "results_come_in_the_order_of_the_items", "squared, are [9, 81"),
    (
        "executor",
        WrapsErrors,
        "an_error_comes_through_with_its_message",
        "raises RunError, not DataError",
    ),
    ("executor", AnswersTooSoon, "work_is_the_same_wherever_it_is_done", "1 holds something else"),
]


@pytest.mark.parametrize(
    ("kind", "component", "check", "says"), FAULTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_each_fault_is_found_and_told(kind: str, component: type, check: str, says: str) -> None:
    assert says in findings(kind, component)[f"test_{check}"]


class FarHops(RuleSet):
    """
    No packet has fewer than nine hops to go.
    """

    rules = (Rule("required.hops", "ipv4.ttl", "error", "the TTL is at least 9", "this test"),)

    def check(self, traffic: Traffic) -> Iterable[Violation]:
        headers = dissect(traffic)
        four = np.flatnonzero(headers.ip_versions == 4)
        yield from self.rules[0].broken(traffic, four[traffic.data[headers.ip_offsets[four] + 8] < 9])


class MendsToZero(GoodTtl):
    def mended(self, ttl: Any) -> Any:
        return ttl * 0


def test_a_rule_set_that_breaks_what_it_requires_is_found() -> None:
    assert findings("rules", GoodTtl, required=FarHops) == {}
    said = findings("rules", MendsToZero, required=FarHops)
    assert said.keys() == {"test_repair_keeps_what_required_rule_sets_have_mended"}
    assert "rules of required, which ran before: required.hops in packet" in next(iter(said.values()))


@attrs.frozen(kw_only=True)
class Mute:
    speed: int = 3


@attrs.frozen(kw_only=True)
class Untypable:
    table: dict[str, int] = attrs.field(factory=dict, metadata={"help": "a table"})


@pytest.mark.parametrize(("options", "says"), [(Mute, "speed has no help text"), (Untypable, "table cannot be typed")])
def test_options_must_be_described_and_typable(options: type, says: str) -> None:
    component = type("WithOptions", (GoodEvaluator,), {"Options": options})
    assert says in findings("evaluator", component)["test_options_are_described_and_can_be_typed"]


def test_a_heavy_import_is_found_and_so_is_a_plugin_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "slow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[netdiffusion]\nslow = slow_plugin\n")
    hooks = (
        "import numpy\nfrom netdiffusion_core import hookimpl\nfrom netdiffusion_core.specs import EvaluatorSpec\n"
        f"SLOW = EvaluatorSpec(name='slow', target='{__name__}:Unbounded', summary='slow')\n"
        "@hookimpl\ndef netdiffusion_register_evaluators():\n    return [SLOW]\n"
    )
    (tmp_path / "slow_plugin.py").write_text(hooks)
    monkeypatch.syspath_prepend(tmp_path)
    plugins = Plugins.discover({"NETDIFFUSION_PLUGINS": "slow"})

    class TestSlow(EvaluatorConformance):
        spec = plugins.find("evaluator", "slow")

    TestSlow.plugins = classmethod(lambda cls: plugins)
    with pytest.raises(AssertionError, match=r"slow_plugin\.py imports numpy, for which every netdiff command"):
        TestSlow().test_the_plugin_imports_nothing_heavy()
    TestSlow.plugins = classmethod(lambda cls: Plugins.of())
    with pytest.raises(AssertionError, match="no plugin offers the evaluator 'slow'"):
        TestSlow().test_the_plugin_offers_the_spec()


def test_a_test_class_needs_a_spec_of_its_kind() -> None:
    with pytest.raises(TypeError, match=r"TestMine needs a line `spec = \.\.\.` with the RuleSetSpec"):
        type("TestMine", (RuleSetConformance,), {})
