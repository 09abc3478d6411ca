"""
The way of the data, top to bottom: each stage is a public function from one frozen data type to the next.

    captures - load -> Traffic - split -> RealTraffic - encode -> Encoded - fit -> a backend that has learned
    backend - generate -> Encoded - constrain -> Encoded - decode -> Traffic - repair -> Traffic - check -> violations
    Traffic - write -> LABEL/*.pcap          (RealTraffic, Traffic) - evaluate -> scores -> report

`run` does all of it and writes a run folder; the command line offers each stage alone.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from . import dataset, gates, manifest, repairs, storage
from .capture import assemble, read_capture, write_capture
from .capture.pcapfile import is_capture
from .columns import filled, pieces, spooled
from .config import RunConfig, plain, to_toml
from .context import Advance, Context, silent, stream_seed
from .errors import ConfigError, DataError, PluginError, did_you_mean
from .flow_files import FlowFiles
from .interfaces import Backend, Encoder, Evaluator, Executor, RealTraffic, RuleSet
from .model import Encoded, Repair, Rule, SampleRequest, Score, Traffic, Violation, counts_by_label
from .plugins import Plugins
from .run_folder import CHECKPOINTS, Run, resumable_folder, working_folder

T = TypeVar("T")
Progress = Callable[[str, int], AbstractContextManager[Advance]]
Rules = Sequence[tuple[str, RuleSet]]

TEST_SHARE = 0.3
MIN_TRAIN, MIN_TEST = 2, 1
DEFAULT_FLOWS = 100
REHEARSAL_FLOWS = 6
REPORT_PACKETS = 1 << 16
"""Of more packets a side, report.html shows some flows."""
LEAST_BYTES_A_FLOW = 1 << 8
"""What memory keeps of each flow whose slice is done: its label, number, place and the name of its file. Measured."""
MODEL_INDEX, MODEL_WEIGHTS = "model.json", "weights"

logger = logging.getLogger("netdiffusion")


@attrs.frozen(kw_only=True)
class Components:
    """
    What a run works with: one encoder, one backend, rule sets in order, evaluators, and baseline backends.
    """

    encoder: Encoder
    backend: Backend
    rules: tuple[tuple[str, RuleSet], ...]
    evaluators: tuple[tuple[str, Evaluator], ...]
    baselines: tuple[tuple[str, Backend], ...]


@attrs.frozen(kw_only=True)
class RunResult:
    """
    folder      the run folder, under its final name
    scores      the scores of each backend by its name, ours first
    synthetic   the generated traffic, as written to ``folder/synthetic``
    violations  what the rules still find in it
    repairs     what the rules changed in the model's output, one row a rule, see `repairs.summary`
    gates       which of `config.gate` hold, see `gates.judge`
    manifest    what ``folder/manifest.json`` says
    """

    folder: Path
    scores: Mapping[str, tuple[Score, ...]]
    synthetic: Traffic
    violations: tuple[Violation, ...]
    repairs: Sequence[Mapping[str, Any]]
    gates: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Judgement:
    """
    scores  the scores of the synthetic captures under the name ``synthetic``, baselines behind it
    gates   which of `config.gate` hold, see `gates.judge`
    """

    scores: Mapping[str, tuple[Score, ...]]
    gates: Sequence[Mapping[str, Any]]


def run(
    config: RunConfig,
    plugins: Plugins | None = None,
    progress: Progress = silent,
    overwrite: bool = False,
    resume: bool = False,
) -> RunResult:
    """
    Do the main job: labelled captures in, a trained model, labelled synthetic pcaps and a report out.

    The run folder appears under its name when everything in it is done. One that was interrupted goes on with `resume`
    and ends as it would have. Raises ConfigError for an output that exists (unless `overwrite`), and what the stages
    raise.
    """
    from . import report, slices

    started = datetime.now(UTC)
    plugins = plugins or Plugins.discover()
    data = require_data(config)
    with (
        resumable_folder(config.output, overwrite, resume, [p for p in (data, config.labels) if p]) as folder,
        prepare_executor(config, plugins) as executor,
    ):
        parts, config = prepare(config, plugins)
        course = Run(plugins=plugins, folder=folder)
        context = Context(seed=config.seed, progress=progress, encoder=parts.encoder, rules=parts.rules)
        shop = slices.Workshop(plugins=plugins, context=context, executor=executor, folder=working_folder(folder))
        index, kept = encoder_index(config), folder / CHECKPOINTS
        (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")

        with course.stage("load") as row:
            traffic = load(config, plugins, progress)
            inputs = input_files(traffic, data)
            row |= {"flows": len(traffic.flows), "packets": len(traffic)}
            course.begin(work(config, inputs, plugins))
        with course.stage("split") as row:
            real = split(traffic, context)
            row |= {"train": len(real.train.flows), "test": len(real.test.flows)}
            classes = class_table(real)
            if config.gate:
                gates.require_figures(config.gate, [*figures(real, parts.evaluators, context), repairs.FIGURE])
            real_files = shop.keep("train", real.train), shop.keep("test", real.test)
            del traffic, real  # from here on they are read from these files, a slice at a time
            slices.give_back()
        with course.stage("encode", config.encoder) as row:
            if (folder / "encoded").exists():  # half-written before an interruption
                shutil.rmtree(folder / "encoded")
            for name, files in zip(("train", "test"), real_files, strict=True):
                shop.encode(files, folder / "encoded" / name, index)
            train = storage.load(folder / "encoded" / "train")
            row["sha256"] = train.digest()
        with course.stage("fit", config.backend) as row:
            model = parts.backend
            if (folder / "model").exists():
                model = load_model(folder / "model", plugins, config.backend_options)[0]
            else:
                fit(model, train, attrs.evolve(context, checkpoints=kept))
                course.keep("model", lambda path: save_model(path, model, train, config, plugins))
            row["sha256"] = manifest.folder_digest(folder / "model")

        request = sample_request(counts_by_label(train.labels), config.flows, config.max_packets, config.seed)
        with course.stage("generate", config.backend) as row:
            course.keep("generated", lambda path: shop.generate(model, request, path, index, folder / "model"))
            generated = storage.load(folder / "generated")
            row |= {"flows": len(generated), "sha256": generated.digest()}
        with course.stage("repair"):
            finished = course.keep(f"{CHECKPOINTS}/ours", lambda path: shop.finish(folder / "generated", path, True))
            ours = slices.Synthesis(folder=finished)
        with course.stage("check"):
            violations = shop.check(ours.folder)
        with course.stage("write") as row:
            course.keep("synthetic", lambda path: shop.write(ours.folder, path))
            shutil.copyfile(ours.changes, folder / "repairs.csv.gz")
            row["sha256"] = manifest.folder_digest(folder / "synthetic")

        made = {config.backend: ours}
        for name, baseline in parts.baselines:
            with course.stage(f"{name}: fit, generate", name):

                def make(path: Path, baseline: Backend = baseline) -> None:
                    fit(baseline, train, context)
                    shop.synthesize(baseline, request, path)

                made[name] = slices.Synthesis(folder=course.keep(f"{CHECKPOINTS}/made-{name}", make))
        with course.stage("evaluate"):
            again = course.keep(f"{CHECKPOINTS}/again", lambda path: shop.finish(folder / "encoded" / "test", path))
            floor = slices.Synthesis(folder=again).tally.bits_per_packet
            left = [(name, e) for name, e in parts.evaluators if not (kept / f"scores-{name}.json").exists()]
            for name, found in shop.evaluate(real_files, {n: m.folder for n, m in made.items()}, left):
                course.keep(f"{CHECKPOINTS}/scores-{name}.json", _write_scores(found))
            every = [_read_scores(kept / f"scores-{name}.json") for name, _ in parts.evaluators]
            scores: dict[str, tuple[Score, ...]] = {
                name: (*(s for some in every for s in some[name]), repairs.score(m.tally, floor))
                for name, m in made.items()
            }

        judged = gates.judge(config.gate, {s.name: s.value for s in scores[config.backend]})
        synthetic, changes = ours.traffic, repairs.summary(ours.tally, all_rules(parts.rules))
        with course.stage("report"):
            document = manifest.build(
                config=config,
                plugins=plugins,
                components={
                    "encoder": config.encoder,
                    "backend": config.backend,
                    "rules": [name for name, _ in parts.rules],
                    "evaluators": [name for name, _ in parts.evaluators],
                    "compare": [name for name, _ in parts.baselines],
                },
                inputs=inputs,
                stages=course.stages,
                started=started,
            )
            report.write_report(
                folder,
                rows=scores,
                **_shown(FlowFiles(real_files[1]).traffic, synthetic, context),
                violations=violations,
                repairs=changes,
                manifest=document,
                classes=classes,
                gates=judged,
            )
        write_manifest(folder, document)
    plugins.notify("netdiffusion_run_finished", folder=config.output, manifest=document)
    return RunResult(
        folder=config.output,
        scores=scores,
        synthetic=synthetic,
        violations=violations,
        repairs=changes,
        gates=judged,
        manifest=document,
    )


def judge(
    config: RunConfig, synthetic: Path, plugins: Plugins, progress: Progress = silent, folder: Path | None = None
) -> Judgement:
    """
    Measure captures from anywhere, labelled like `config.data`, against these; no model takes part but the baselines
    of `config.compare`, which are trained on the real training flows.

    folder  where to write report.html, report.json and manifest.json; it must exist

    Raises DataError when the two have no class in common, and what the stages raise.
    """
    from . import report, slices

    started = datetime.now(UTC)
    encoder, config = prepare_encoder(config, plugins)
    rules, config = prepare_rules(config, plugins)
    evaluators, config = prepare_evaluators(config, plugins)
    baselines = [(name, plugins.create("backend", name)) for name in dict.fromkeys(config.compare or ())]
    context = Context(seed=config.seed, progress=progress, encoder=encoder, rules=rules)

    other = attrs.evolve(config, data=synthetic, labels=None, classes=())
    with _working(folder) as place, prepare_executor(config, plugins) as executor:
        shop = slices.Workshop(plugins=plugins, context=context, executor=executor, folder=place)
        traffic = load(config, plugins, progress)
        inputs = input_files(traffic, require_data(config))
        real = split(traffic, context)
        classes, labels = class_table(real), traffic.flows.labels
        if config.gate:
            gates.require_figures(config.gate, figures(real, evaluators, context))
        real_files = shop.keep("train", real.train), shop.keep("test", real.test)
        del traffic, real  # from here on they are read from these files, a slice at a time
        slices.give_back()
        made = same_classes(labels, load(other, plugins, progress))
        inputs["synthetic"] = input_files(made, synthetic)
        counts = counts_by_label(made.flows.labels)
        folders = {"synthetic": shop.keep("synthetic", made)}
        del made
        slices.give_back()
        if baselines:
            wanted = tuple(label for label, n in counts.items() for _ in range(n))
            seed = stream_seed(config.seed, "generate")
            request = SampleRequest(labels=wanted, max_packets=config.max_packets, seed=seed)
            shop.encode(real_files[0], place / "bits", {})
            for name, baseline in baselines:
                fit(baseline, storage.load(place / "bits"), context)
                folders[name] = shop.synthesize(baseline, request, place / f"made-{name}").folder
        scores: dict[str, tuple[Score, ...]] = dict.fromkeys(folders, ())
        for _, found in shop.evaluate(real_files, folders, evaluators):
            scores = {name: (*before, *found[name]) for name, before in scores.items()}
        if folder is not None:
            violations = shop.check(folders["synthetic"])
            shown = _shown(FlowFiles(real_files[1]).traffic, FlowFiles(folders["synthetic"]).traffic, context)
    judged = gates.judge(config.gate, {s.name: s.value for s in scores["synthetic"]})
    if folder is not None:
        document = manifest.build(
            config=config,
            plugins=plugins,
            components={
                "encoder": config.encoder,
                "rules": [name for name, _ in rules],
                "evaluators": [name for name, _ in evaluators],
                "compare": [name for name, _ in baselines],
            },
            inputs=inputs,
            stages=(),
            started=started,
        )
        for key in ("backend", "backend_options", "flows"):  # they took no part
            document["config"].pop(key, None)
        report.write_report(
            folder,
            rows=scores,
            **shown,
            violations=violations,
            repairs=None,
            manifest=document,
            classes=classes,
            gates=judged,
        )
        write_manifest(folder, document)
    return Judgement(scores=scores, gates=judged)


# --- what the stages work with ----------------------------------------------------------------------------------


def require_data(config: RunConfig) -> Path:
    """
    Return the data's path. Raises ConfigError when none is set.
    """
    if config.data is None:
        raise ConfigError(
            "no DATA: give a folder with one folder of captures a class (DATA/LABEL/*.pcap), a folder of captures or "
            'one capture, on the command line or as data = "..." in netdiff.toml'
        )
    return config.data


def prepare(config: RunConfig, plugins: Plugins) -> tuple[Components, RunConfig]:
    """
    Build all components. Also return the configuration with every option filled in.

    Raises ConfigError for an option that is wrong, or set for a component that takes no part.
    """
    encoder, config = prepare_encoder(config, plugins)
    rules, config = prepare_rules(config, plugins)
    evaluators, config = prepare_evaluators(config, plugins)
    backend, config = prepare_backend(config, plugins)
    names = config.compare
    if names is None:
        names = tuple(s.name for s in plugins.specs("backend") if getattr(s, "baseline", False))
    baselines = tuple((n, plugins.create("backend", n)) for n in dict.fromkeys(names) if n != config.backend)
    parts = Components(encoder=encoder, backend=backend, rules=rules, evaluators=evaluators, baselines=baselines)
    return parts, attrs.evolve(config, compare=tuple(n for n, _ in baselines))


def prepare_encoder(config: RunConfig, plugins: Plugins) -> tuple[Encoder, RunConfig]:
    """
    Build the encoder. One that has an option ``max_packets`` takes the run's, if it was given none of its own.
    """
    values = dict(config.encoder_options)
    if "max_packets" in (f.alias for f in attrs.fields(plugins.load("encoder", config.encoder).Options)):
        values.setdefault("max_packets", config.max_packets)
    encoder = plugins.create("encoder", config.encoder, values)
    if getattr(encoder.options, "max_packets", 0) > config.max_packets:
        raise ConfigError(
            f"encoder.max_packets is {encoder.options.max_packets}, but flows are cut to max_packets = "
            f"{config.max_packets} before; raise max_packets instead"
        )
    return encoder, attrs.evolve(config, encoder_options=options_of(encoder))


def prepare_backend(config: RunConfig, plugins: Plugins) -> tuple[Backend, RunConfig]:
    """
    Build the backend.
    """
    backend = plugins.create("backend", config.backend, config.backend_options)
    return backend, attrs.evolve(config, backend_options=options_of(backend))


def prepare_executor(config: RunConfig, plugins: Plugins) -> Executor:
    """
    Build the executor; one that works in this process where ``local`` is not installed.
    """
    from .slices import Here

    if config.executor == "local" and "local" not in plugins.names("executor"):
        return Here()
    executor: Executor = plugins.create("executor", config.executor, config.executor_options)
    return executor


def prepare_rules(config: RunConfig, plugins: Plugins) -> tuple[tuple[tuple[str, RuleSet], ...], RunConfig]:
    """
    Build the rule sets, and those that they require, in the order in which they apply.
    """
    names, added = plugins.resolve_rules(config.rules)
    if added:
        logger.info("rules: %s added, because the others require it", ", ".join(added))
    _refuse_unused("rules", config.rules_options, names)
    rules = tuple((n, plugins.create("rules", n, config.rules_options.get(n))) for n in names)
    known = [rule.id for rule in all_rules(rules)]
    for rule_id in config.rules_off:
        if rule_id not in known:
            raise ConfigError(f"rules.off: no active rule is called {rule_id!r}.{did_you_mean(rule_id, known)}")
    for _, chosen in rules:
        chosen.off = frozenset(config.rules_off)
    return rules, attrs.evolve(config, rules=names, rules_options={n: o for n, r in rules if (o := options_of(r))})


def prepare_evaluators(config: RunConfig, plugins: Plugins) -> tuple[tuple[tuple[str, Evaluator], ...], RunConfig]:
    """
    Build the evaluators: all that are installed, if the configuration names none.
    """
    names = plugins.names("evaluator") if config.evaluators is None else config.evaluators
    _refuse_unused("evaluators", config.evaluators_options, names)
    evaluators = tuple(
        (n, plugins.create("evaluator", n, config.evaluators_options.get(n))) for n in dict.fromkeys(names)
    )
    options = {n: o for n, e in evaluators if (o := options_of(e))}
    return evaluators, attrs.evolve(config, evaluators=tuple(n for n, _ in evaluators), evaluators_options=options)


def sample_request(learned: Mapping[str, int], flows: int | None, max_packets: int, seed: int) -> SampleRequest:
    """
    Ask for this many flows of each class; by default as many as were learned from, at most 100.

    learned  training flows by class

    Raises ConfigError for more flows than this machine's memory can keep a list of.
    """
    total = sum(flows or min(n, DEFAULT_FLOWS) for n in learned.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total * LEAST_BYTES_A_FLOW > memory:
        raise ConfigError(
            f"{total} flows are more than the memory of this machine can keep a list of ({memory >> 30} GiB, "
            f"{LEAST_BYTES_A_FLOW} bytes a flow): ask for fewer, several times, with another --seed each"
        )
    labels = tuple(label for label, n in learned.items() for _ in range(flows or min(n, DEFAULT_FLOWS)))
    return SampleRequest(labels=labels, max_packets=max_packets, seed=stream_seed(seed, "generate"))


# --- the stages -------------------------------------------------------------------------------------------------


def load(config: RunConfig, plugins: Plugins, progress: Progress = silent) -> Traffic:
    """
    Read labelled flows, each cut to its first `config.max_packets` packets. Raises DataError.
    """
    traffic = dataset.load(
        require_data(config),
        labels=config.labels,
        classes=config.classes,
        open_capture=plugins.open_capture,
        progress=progress,
    )
    order, starts = traffic.by_flow()
    if np.diff(starts).max(initial=0) <= config.max_packets:
        return traffic
    early = filled(len(traffic), False, np.bool_)
    for piece in pieces(len(order)):
        rows = np.arange(piece.start, piece.stop)
        rank = rows - starts[np.searchsorted(starts, rows, side="right") - 1]
        early[order[piece][rank < config.max_packets]] = True
    return traffic.select_packets(spooled(np.int64, (p.start + np.flatnonzero(early[p]) for p in pieces(len(early)))))


def split(traffic: Traffic, context: Context) -> RealTraffic:
    """
    Divide the flows into train and test: by the data's own splits, else by a seeded draw of 30 % of each class. Flows
    of one capture stay together where a class has captures enough: they share hosts and sessions, and a test with
    neighbours of what was trained on is too easy.

    Raises DataError for a class with fewer than two flows to train on or none to test with.
    """
    labels, splits = traffic.flows.labels, traffic.flows.splits
    is_test = splits == "test"
    for label in np.unique(labels).tolist():
        own = np.flatnonzero((labels == label) & (splits == ""))
        shuffled = context.rng(f"split:{label}").permutation(own)
        is_test[_draw_captures(shuffled, traffic.flows.sources[shuffled], round(TEST_SHARE * len(own)))] = True
        n_test = int(is_test[labels == label].sum())
        n_train = int((labels == label).sum()) - n_test
        if n_train < MIN_TRAIN or n_test < MIN_TEST:
            have = (
                f"{_flows(n_train)} to train on and {_flows(n_test)} to test with"
                if (splits[labels == label] != "").any()
                else _flows(n_train + n_test)
            )
            raise DataError(
                f"class {label!r} has {have}; at least {MIN_TRAIN} to train on and {MIN_TEST} to test with are needed. "
                "Capture more, or leave the class out with --classes"
            )
    return RealTraffic(train=traffic.select_flows(~is_test), test=traffic.select_flows(is_test))


def _draw_captures(shuffled: NDArray[Any], captures: NDArray[np.str_], count: int) -> NDArray[Any]:
    """
    Return at most so many flows, whole captures in the order in which they appear; or the first flows, where less than
    half as many would be returned.
    """
    count, drawn = max(count, MIN_TEST), 0
    chosen: list[str] = []
    names, first, sizes = np.unique(captures, return_index=True, return_counts=True)
    for i in np.argsort(first):
        if drawn + sizes[i] <= count:
            chosen.append(names[i])
            drawn += int(sizes[i])
    return shuffled[np.isin(captures, chosen)] if 2 * drawn >= count else shuffled[:count]


def encode(traffic: Traffic, encoder: Encoder, progress: Progress = silent) -> Encoded:
    """
    Turn traffic into rows of bits. Raises PluginError when the encoder loses or invents flows.
    """
    with progress("encode", 1) as advance:
        encoded = _returned(encoder.encode(traffic), Encoded, f"{type(encoder).__name__}.encode")
        advance()
    if encoded.labels.tolist() != traffic.flows.labels.tolist() or encoded.layout != encoder.layout:
        raise PluginError(f"{type(encoder).__name__}.encode must return one flow a flow, in its own layout")
    return encoded


def fit(backend: Backend, data: Encoded, context: Context) -> None:
    """
    Train a backend on flows; those without a packet that the encoder knows are left out.
    """
    empty = data.lengths == 0
    if empty.any():
        logger.warning("%d of %d flows have no packet that the encoder can encode: left out", empty.sum(), len(data))
        # They have no rows, so that those of the others stay where they are: perhaps on a disk, and large.
        starts = np.append(data.starts[:-1][~empty], len(data.rows))
        data = attrs.evolve(data, starts=starts, labels=data.labels[~empty], start_times=data.start_times[~empty])
    if not len(data):
        raise DataError("no flow has a packet that the encoder can encode: nothing to train on")
    backend.fit(data, context)


def generate(backend: Backend, request: SampleRequest, context: Context) -> Encoded:
    """
    Generate flows. Raises PluginError when the backend does not deliver what was asked for.
    """
    name = type(backend).__name__
    encoded = _returned(backend.sample(request, context), Encoded, f"{name}.sample")
    if encoded.labels.tolist() != list(request.labels):
        raise PluginError(f"{name}.sample must return one flow a label, in the order asked for")
    if len(encoded) and not 1 <= encoded.lengths.min() <= encoded.lengths.max() <= request.max_packets:
        raise PluginError(
            f"{name}.sample returned a flow of {encoded.lengths.max()} packets ({encoded.lengths.min()} "
            f"in the shortest); 1 to {request.max_packets} were asked for"
        )
    return encoded


def constrain(encoded: Encoded, rules: Rules) -> tuple[Encoded, tuple[Repair, ...]]:
    """
    Let each rule set mend what shows in bits. Also return what each changed.
    """
    changes: list[Repair] = []
    for name, rule in rules:
        before, encoded = encoded, _returned(rule.constrain(encoded), Encoded, f"rule set {name!r}: constrain")
        if encoded.rows.shape != before.rows.shape:
            raise PluginError(f"rule set {name!r}: constrain must return the rows that it was given")
        changes += repairs.compare_rows(f"{name}.bits", before, encoded)
    return encoded, tuple(changes)


def decode(encoded: Encoded, encoder: Encoder, context: Context) -> Traffic:
    """
    Turn rows of bits into packets; addresses and payload come from the stream ``decode``.
    """
    traffic = _returned(encoder.decode(encoded, context.rng("decode")), Traffic, f"{type(encoder).__name__}.decode")
    if traffic.flows.labels.tolist() != encoded.labels.tolist():
        raise PluginError(f"{type(encoder).__name__}.decode must return one flow a flow, with its label")
    return traffic


def repair(traffic: Traffic, rules: Rules, context: Context) -> tuple[Traffic, tuple[Repair, ...]]:
    """
    Let each rule set mend packets. Also return what each changed.
    """
    record = repairs.Recorder(traffic)
    with context.progress("repair", len(rules)) as advance:
        for name, rule in rules:
            repaired = rule.repair(traffic, context.rng(f"repair:{name}"), record)
            traffic = _returned(repaired, Traffic, f"rule set {name!r}: repair")
            record.follow(traffic)
            advance(note=name)
    return traffic, tuple(record.repairs)


def check(traffic: Traffic, rules: Rules) -> tuple[Violation, ...]:
    """
    Return every violation of the rules, in the order of packets.
    """
    found = []
    for name, rule in rules:
        violations = _returned(rule.check(traffic), Iterable, f"rule set {name!r}: check")
        found += [v for v in violations if v.rule not in rule.off]
    return tuple(sorted(found, key=lambda v: (v.flow, -1 if v.packet is None else v.packet, v.rule)))


def _returned(value: T, kind: type[Any], who: str) -> T:
    """
    Return what a plugin returned. Raises PluginError when it is of another kind, most often None.
    """
    if not isinstance(value, kind):
        raise PluginError(f"{who} returned {type(value).__name__}; it must return {kind.__name__}")
    return value


def write(traffic: Traffic, folder: Path, progress: Progress = silent) -> None:
    """
    Write one pcap a flow: ``folder/LABEL/00001.pcap``, numbered in the order of the flows.
    """
    order, starts = traffic.by_flow()
    names = capture_names(traffic.flows.labels.tolist())
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True)
    with progress("write", len(names)) as advance:
        for i, name in enumerate(names):
            write_capture(folder / name, traffic, order[starts[i] : starts[i + 1]])
            advance()


def export(traffic: Traffic, encoder: Encoder, form: str, folder: Path, progress: Progress = silent) -> None:
    """
    Write one file a flow in a format of the encoder: ``folder/LABEL/00001.npt``, numbered in the order of the flows.
    """
    order, starts = traffic.by_flow()
    names = flow_names(traffic.flows.labels.tolist())
    with progress("write", len(names)) as advance:
        for i, (label, number) in enumerate(names):
            (folder / label).mkdir(parents=True, exist_ok=True)
            path = folder / label / f"{number:05d}{encoder.formats[form]}"
            encoder.write(traffic.select_packets(order[starts[i] : starts[i + 1]]), path, form)
            advance()


def evaluate(
    real: RealTraffic, synthetic: Traffic, evaluators: Sequence[tuple[str, Evaluator]], context: Context
) -> tuple[Score, ...]:
    """
    Return the scores of all evaluators. Raises PluginError for a score outside of its own bounds.
    """
    scores: list[Score] = []
    with context.progress("evaluate", len(evaluators)) as advance:
        for name, evaluator in evaluators:
            scores += scores_of(real, synthetic, name, evaluator, context)
            advance(note=name)
    return tuple(scores)


def scores_of(real: RealTraffic, synthetic: Traffic, name: str, evaluator: Evaluator, context: Context) -> list[Score]:
    """
    Return the scores of one evaluator. Raises PluginError for a score outside of its own bounds.
    """
    scores = list(_returned(evaluator.evaluate(real, synthetic, context), Iterable, f"evaluator {name!r}: evaluate"))
    for score in scores:
        if score.value < score.lower or score.value > score.upper:
            raise PluginError(
                f"evaluator {name!r}: {score.name} is {score.value}, outside of {score.lower} to {score.upper}"
            )
    return scores


def figures(real: RealTraffic, evaluators: Sequence[tuple[str, Evaluator]], context: Context) -> list[str]:
    """
    Return the names of all figures that a run will measure: what evaluators say of a few real flows, in seconds.
    """
    few = []
    for traffic in (real.train, real.test):
        labels = traffic.flows.labels
        first = [np.flatnonzero(labels == label)[:REHEARSAL_FLOWS] for label in np.unique(labels)]
        few.append(traffic.select_flows(np.concatenate(first)))
    quiet = attrs.evolve(context, progress=silent)
    return [s.name for s in evaluate(RealTraffic(train=few[0], test=few[1]), few[1], evaluators, quiet)]


def same_classes(real: NDArray[np.str_], synthetic: Traffic) -> Traffic:
    """
    Return the synthetic flows of classes that are among the real ones, and warn of what only one of the two has.

    real  the labels of real flows

    Raises DataError when they have none in common.
    """
    ours, theirs = (np.unique(labels).tolist() for labels in (real, synthetic.flows.labels))
    common = sorted(set(ours) & set(theirs))
    if not common:
        hint = next((h for label in theirs if (h := did_you_mean(label, ours))), "")
        raise DataError(
            f"no class is in both: the real captures have {', '.join(ours)}; the synthetic ones have "
            f"{', '.join(theirs)}.{hint} Name the synthetic folders like the real classes"
        )
    if missing := sorted(set(ours) - set(theirs)):
        logger.warning("no synthetic flows of %s: not measured", ", ".join(missing))
    if extra := sorted(set(theirs) - set(ours)):
        logger.warning("no real flows of %s: left out", ", ".join(extra))
    return synthetic.select_flows(np.isin(synthetic.flows.labels, common))


# --- models -----------------------------------------------------------------------------------------------------


def save_model(folder: Path, backend: Backend, train: Encoded, config: RunConfig, plugins: Plugins) -> None:
    """
    Write what a backend learned, and what `load_model` must know to use it, into a new folder.
    """
    weights = folder / MODEL_WEIGHTS
    if weights.exists():  # half-written before an interruption
        shutil.rmtree(weights)
    weights.mkdir(parents=True)
    backend.save(weights)
    origin = plugins.origin("backend", config.backend)
    index = {
        "format": storage.FORMAT,
        "backend": {"name": config.backend, "options": plain(config.backend_options), "made_by": str(origin)},
        "encoder": encoder_index(config),
        "layout": storage.layout_to_json(train.layout),
        "classes": counts_by_label(train.labels),
        "max_packets": config.max_packets,
        "seed": config.seed,
    }
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    (folder / MODEL_INDEX).write_text(text, encoding="utf-8")


def load_model(
    folder: Path,
    plugins: Plugins,
    backend_options: Mapping[str, Any] | None = None,
    encoder_options: Mapping[str, Any] | None = None,
) -> tuple[Backend, Encoder, dict[str, Any]]:
    """
    Return a trained backend, the encoder that it was trained with, and the model's index.

    backend_options, encoder_options  replace some of the recorded ones; an option that gives a consent (``consent`` in
    its metadata) is never taken from the folder, which may be a stranger's

    Raises DataError for a folder that is no model, or one of another layout or version of it.
    """
    keys = ("backend", "encoder", "layout", "classes", "max_packets")
    storage.require_files(folder)
    index = storage.read_json(folder / MODEL_INDEX, keys, "netdiff fit")
    if not (
        storage.is_component(index["backend"])
        and storage.is_component(index["encoder"])
        and isinstance(index["classes"], dict)
        and all(type(n) is int and n > 0 for n in (index["max_packets"], *index["classes"].values()))
    ):
        raise DataError(f"{folder / MODEL_INDEX} is damaged: train it again with netdiff fit")
    encoder = plugins.create(
        "encoder", index["encoder"]["name"], {**index["encoder"]["options"], **(encoder_options or {})}
    )
    layout = storage.layout_from_json(index["layout"], folder / MODEL_INDEX)
    if encoder.layout != layout:
        raise DataError(
            f"the model {folder} was trained on layout {layout.name} version {layout.version}, and the installed "
            f"encoder writes {encoder.layout.name} version {encoder.layout.version}: train it again with netdiff fit"
        )
    name = index["backend"]["name"]
    kind = plugins.load("backend", name)
    consents = {field.alias for field in attrs.fields(kind.Options) if field.metadata.get("consent")}
    recorded = {key: value for key, value in index["backend"]["options"].items() if key not in consents}
    options = plugins.options("backend", name, {**recorded, **(backend_options or {})})
    return kind.load(folder / MODEL_WEIGHTS, options), encoder, index


def choose_classes(wanted: Sequence[str], learned: Sequence[str]) -> tuple[str, ...]:
    """
    Return the classes to generate; all when none is named. Raises DataError for one that was never learned.
    """
    for label in wanted:
        if label not in learned:
            raise DataError(
                f"the model knows no class {label!r}.{did_you_mean(label, learned)} It knows: {', '.join(learned)}"
            )
    return tuple(wanted) or tuple(learned)


# --- small parts ------------------------------------------------------------------------------------------------


def all_rules(rules: Rules) -> list[Rule]:
    """
    Return every rule of these rule sets.
    """
    return [rule for _, chosen in rules for rule in chosen.rules]


def encoder_index(config: RunConfig) -> dict[str, Any]:
    """
    Return the encoder's name and options as JSON's own types, for folders that must be decoded later.
    """
    return {"name": config.encoder, "options": plain(config.encoder_options)}


def capture_files(path: Path) -> dict[str, Path]:
    """
    Return the captures at a path by name: the file itself, or all below a folder. Raises DataError when there is none.
    """
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise DataError(f"there is no file or folder {path}; give a capture or a folder of captures")
    files = (f for f in sorted(path.rglob("*")) if f.is_file() and not f.name.startswith("."))
    found = {str(f.relative_to(path)): f for f in files if is_capture(f)}
    if not found:
        raise DataError(f"{path} holds no capture (*.pcap, *.pcapng)")
    return found


def read_packets(path: Path, plugins: Plugins) -> Traffic:
    """
    Read one capture, whatever its format, as it is. Raises DataError.
    """
    other = None if is_capture(path) else plugins.open_capture(path)
    return read_capture(path) if other is None else other


def read(path: Path, plugins: Plugins) -> Traffic:
    """
    Read one capture with its flows assembled. Raises DataError.
    """
    return assemble(read_packets(path, plugins), source=path.name)


def flow_names(labels: Sequence[str]) -> list[tuple[str, int]]:
    """
    Return for each flow the folder of its label, and its number in it, from 1.
    """
    last: dict[str, int] = {}
    names = []
    for label in labels:
        last[label] = last.get(label, 0) + 1
        names.append((dataset.folder_name(label), last[label]))
    return names


def capture_names(labels: Sequence[str]) -> list[str]:
    """
    Return for each flow the name of its capture below a folder: ``LABEL/00001.pcap``.
    """
    return [f"{label}/{number:05d}.pcap" for label, number in flow_names(labels)]


def work(config: RunConfig, inputs: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """
    Return what decides a run's result: an interrupted run goes on only with the same.
    """
    return {
        "settings": plain(attrs.asdict(config.decisive)),
        "data": dict(inputs),
        "versions of plugins": manifest.versions(plugins),
    }


def input_files(traffic: Traffic, data: Path) -> dict[str, Any]:
    """
    Return how many capture files the flows came from, and one digest over them.
    """
    base = data if data.is_dir() else data.parent
    files = [base / source for source in np.unique(traffic.flows.sources).tolist() if (base / source).is_file()]
    return {"data": str(data), "files": len(files), "sha256": manifest.files_digest(files, base)}


def write_manifest(folder: Path, document: Mapping[str, Any]) -> None:
    """
    Write manifest.json into a folder.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def class_table(real: RealTraffic) -> list[dict[str, Any]]:
    """
    Return one row a class: its label, flows to train and test with, packets and bytes.
    """
    rows: dict[str, dict[str, Any]] = {}
    for part, traffic in (("train", real.train), ("test", real.test)):
        for summary in dataset.summary(traffic):
            row = rows.setdefault(summary.label, {"label": summary.label})
            row[f"{part}_flows"] = int((traffic.flows.labels == summary.label).sum())
            row[f"{part}_packets"] = summary.packets
            row["median_packets"] = summary.median_packets
    return list(rows.values())


@contextmanager
def _working(folder: Path | None) -> Iterator[Path]:
    """
    Yield a folder for the time of the work: in an output folder, which workers elsewhere see too, or a temporary one.
    """
    if folder is None:
        with TemporaryDirectory(prefix="netdiffusion-") as name:
            yield Path(name)
    else:
        place = working_folder(folder)
        yield place
        shutil.rmtree(place)


def _shown(real: Traffic, synthetic: Traffic, context: Context) -> dict[str, Any]:
    """
    Return what `report.write_report` shows of flows: all, or of many some of each class, drawn at random.
    """
    from .report import Totals

    shown: dict[str, Any] = {"totals": {}}
    for side, traffic in (("real", real), ("synthetic", synthetic)):
        shown["totals"][side] = Totals.of(traffic)
        if len(traffic) > REPORT_PACKETS:
            labels = traffic.flows.labels
            order = context.rng(f"report:{side}").permutation(len(labels))
            lengths = np.diff(traffic.by_flow()[1])
            names = np.unique(labels)
            mine = [order[labels[order] == name] for name in names]
            few = [m[: max(1, int((np.cumsum(lengths[m]) <= REPORT_PACKETS // len(names)).sum()))] for m in mine]
            traffic = traffic.select_flows(np.sort(np.concatenate(few)))
        assert context.encoder is not None
        shown[side] = encode(traffic, context.encoder)
    return shown


def options_of(component: Any) -> dict[str, Any]:
    """
    Return a component's options by name, as its constructor took them.
    """
    return {f.alias: getattr(component.options, f.name) for f in attrs.fields(type(component.options)) if f.init}


def _refuse_unused(table: str, options: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in options:
        if name not in names:
            raise ConfigError(
                f"[{table}.{name}] has options, but {name!r} takes no part.{did_you_mean(name, names)} "
                f"In use: {', '.join(names) or 'none'}"
            )


def _write_scores(found: Mapping[str, Sequence[Score]]) -> Callable[[Path], Any]:
    rows = {name: [attrs.asdict(score) for score in scores] for name, scores in found.items()}
    text = json.dumps(rows, default=lambda value: value.tolist())
    return lambda path: path.write_text(text, encoding="utf-8")


def _read_scores(path: Path) -> dict[str, list[Score]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {name: [Score(**score) for score in scores] for name, scores in rows.items()}


def _flows(n: int) -> str:
    return f"{n} flow" if n == 1 else f"{n} flows"
