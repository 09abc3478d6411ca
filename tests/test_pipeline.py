"""
The way of the data, with a toy plugin: what a run writes, what it repeats, and what it leaves behind when it fails.
"""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import netdiffusion_core
from netdiffusion_core import dataset, flow_files, pipeline, slices, storage
from netdiffusion_core.capture import read_capture
from netdiffusion_core.cli import main
from netdiffusion_core.config import RunConfig, load
from netdiffusion_core.context import Context
from netdiffusion_core.errors import ConfigError, DataError, PluginError, RunError
from netdiffusion_core.hookspecs import hookimpl
from netdiffusion_core.manifest import folder_digest
from netdiffusion_core.model import SampleRequest
from netdiffusion_core.plugins import Plugins
from netdiffusion_core.run_folder import new_folder

pytestmark = pytest.mark.usefixtures("alone")

MakeData = Callable[..., Path]


def toy_config(data: Path, **changes: Any) -> RunConfig:
    settings = {"encoder": "toy", "backend": "toy-model", "rules": ("toy-ttl",), "output": Path("out")}
    return RunConfig(data=data, **(settings | changes))


@pytest.fixture
def data(make_data: MakeData) -> Path:
    return make_data({"web": 7, "dns": 5})


@pytest.fixture
def traffic(data: Path) -> Any:
    return dataset.load(data)


def test_a_run_writes_everything_and_says_what_it_did(data: Path, toy: Plugins) -> None:
    result = netdiffusion_core.run(toy_config(data), toy)
    assert result.folder == Path("out")
    assert {p.name for p in Path("out").iterdir()} == {
        "config.toml", "manifest.json", "encoded", "model", "generated", "synthetic", "report.json", "report.html",
        "repairs.csv.gz",
    }  # fmt: skip
    # 30 % of 5 and 7 flows are held out; as many are made as were learned from
    assert [len(list(Path(f"out/synthetic/{c}").glob("*.pcap"))) for c in ("dns", "web")] == [3, 5]
    assert len(storage.load(Path("out/encoded/test"))) == 4
    again = dataset.load(Path("out/synthetic"))
    assert Counter(again.flows.labels.tolist()) == {"dns": 3, "web": 5}
    assert len(again) == len(result.synthetic)

    assert list(result.scores) == ["toy-model", "toy-baseline"]
    assert result.violations == ()
    (repair,) = result.repairs
    with gzip.open("out/repairs.csv.gz", "rt") as lines:
        first, *others = csv.DictReader(lines)
    assert (repair["rule"], repair["packets"]) == ("toy.ttl", 1 + len(others))
    assert first.items() >= {"rule": "toy.ttl", "field": "ipv4.ttl", "bits": "1"}.items()
    assert int(first["after"]) == int(first["before"]) + 1
    mended = read_capture(Path("out/synthetic") / first["file"]).packet(int(first["packet"]) - 1)
    assert mended[8] == int(first["after"])

    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["components"]["rules"] == ["toy-ip", "toy-ttl"]
    assert manifest["inputs"]["files"] == 12
    stages = {s["name"]: s for s in manifest["stages"]}
    assert stages["write"]["sha256"] == folder_digest(Path("out/synthetic"))
    assert all(s["seconds"] >= 0 for s in stages.values())
    assert json.loads(Path("out/report.json").read_text())["ours"] == "toy-model"


def test_the_written_configuration_repeats_the_run_byte_for_byte(data: Path, toy: Plugins) -> None:
    pipeline.run(toy_config(data, seed=3, backend_options={"spread": 9.0}), toy)
    config, _ = load(Path("out/config.toml"), environ={}, flags={"output": "again"})
    assert config.backend_options == {"spread": 9.0, "steps": 3, "mood": "calm"}
    pipeline.run(config, toy)
    pipeline.run(attrs.evolve(config, seed=4, output=Path("other")), toy)
    digests = [folder_digest(Path(name) / "synthetic") for name in ("out", "again", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_a_trained_model_generates_later_what_the_run_generated(data: Path, toy: Plugins) -> None:
    pipeline.run(toy_config(data), toy)
    assert main(["generate", "out/model", "-o", "later", "--rules", "toy-ttl", "-q"], toy) == 0
    assert folder_digest(Path("later")) == folder_digest(Path("out/synthetic"))


def test_the_datas_own_split_is_kept(make_data: MakeData) -> None:
    make_data({"web/train": 3, "web/test": 1, "dns/train": 2, "dns/test": 2})
    real = pipeline.split(dataset.load(Path("data")), Context())
    assert Counter(real.train.flows.labels.tolist()) == {"web": 3, "dns": 2}
    assert Counter(real.test.flows.labels.tolist()) == {"web": 1, "dns": 2}
    assert set(real.test.flows.splits.tolist()) == {"test"}


def test_a_seeded_split_depends_on_the_seed_alone(traffic: Any) -> None:
    chosen = [pipeline.split(traffic, Context(seed=s)).test.flows.sources.tolist() for s in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    only_web = traffic.select_flows(traffic.flows.labels == "web")
    alone = pipeline.split(only_web, Context(seed=0)).test.flows.sources.tolist()
    assert alone == [s for s in chosen[0] if "web" in s]  # another class more or less moves nothing


def test_flows_of_one_capture_are_not_divided_where_a_class_has_captures_enough(traffic: Any) -> None:
    def captures(names: list[str]) -> tuple[list[str], list[str]]:
        web = traffic.select_flows(np.resize(np.flatnonzero(traffic.flows.labels == "web"), len(names)))
        real = pipeline.split(attrs.evolve(web, flows=attrs.evolve(web.flows, sources=names)), Context(seed=0))
        return real.train.flows.sources.tolist(), real.test.flows.sources.tolist()

    train, test = captures([f"{i // 3}.pcap" for i in range(30)])
    assert len(test) == 9
    assert not set(train) & set(test)
    assert len(captures(["all.pcap"] * 30)[1]) == 9  # one capture must be divided
    assert len(captures(["most.pcap"] * 29 + ["one.pcap"])[1]) == 9


@pytest.mark.parametrize(
    ("flows", "message"),
    [
        ({"web": 4, "rare": 1}, "class 'rare' has 1 flow; at least 2 to train on and 1 to test with"),
        ({"web": 4, "rare": 2}, "class 'rare' has 2 flows"),
        ({"web/train": 1, "web/test": 3}, "class 'web' has 1 flow to train on and 3 flows to test with"),
        ({"web/train": 4}, "class 'web' has 4 flows to train on and 0 flows to test with"),
    ],
)
def test_a_class_with_too_few_flows_is_named(
    make_data: MakeData, toy: Plugins, flows: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pipeline.run(toy_config(make_data(flows)), toy)
    assert os.listdir() == ["data"]


def test_long_flows_are_cut_everywhere(make_data: MakeData, toy: Plugins) -> None:
    result = pipeline.run(toy_config(make_data({"web": 4}, packets=30), max_packets=5, flows=40), toy)
    assert storage.load(Path("out/encoded/train")).lengths.tolist() == [5, 5, 5]
    assert storage.load(Path("out/generated")).lengths.max() <= 5
    assert len(result.synthetic.flows) == 40


def test_options_for_a_component_that_takes_no_part_are_refused(data: Path, toy: Plugins) -> None:
    with pytest.raises(ConfigError, match=r"\[rules\.tcp\] has options, but 'tcp' takes no part"):
        pipeline.run(toy_config(data, rules_options={"tcp": {"x": 1}}), toy)


class Lawless:
    """
    A backend that breaks its contract in a way of our choice.
    """

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def sample(self, request: SampleRequest, context: Context) -> Any:
        from netdiffusion_core.model import Encoded, Layout

        flow = {
            "rows": np.zeros((2, 8)),
            "starts": [0, 2],
            "labels": ["web"],
            "start_times": [0],
            "layout": Layout(name="toy", version=1, fields=(("ipv4.ttl", 8),)),
        }
        return Encoded(**(flow | self.changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["dns"]}, "one flow a label, in the order asked for"),
        ({"rows": np.zeros((9, 8)), "starts": [0, 9]}, "a flow of 9 packets .*; 1 to 5 were asked for"),
        ({"rows": np.zeros((0, 8)), "starts": [0, 0]}, "a flow of 0 packets"),
    ],
)
def test_a_backend_that_breaks_its_contract_is_a_plugin_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=f"Lawless.sample must return {message}|Lawless.sample returned {message}"):
        pipeline.generate(
            Lawless(**changes),
            SampleRequest(labels=("web",), max_packets=5, seed=0),
            Context(),  # type: ignore[arg-type]
        )


def test_an_error_says_in_which_stage_it_happened(data: Path, toy: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.load("backend", "toy-model"), "fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        pipeline.run(toy_config(data), toy)
    assert caught.value.__notes__ == ["in stage fit (toy-model)"]
    assert os.listdir() == ["data"]


def test_observers_see_every_stage_and_the_finished_folder(data: Path, toy_file: Path) -> None:
    class Observer:
        seen: list[Any] = []  # noqa: RUF012

        @hookimpl
        def netdiffusion_stage_started(self, stage: str, folder: Path) -> None:
            assert folder.name.startswith(".out.partial")
            self.seen.append(stage)

        @hookimpl
        def netdiffusion_stage_finished(self, stage: str) -> None:
            self.seen.append(stage)

        @hookimpl
        def netdiffusion_run_finished(self, folder: Path, manifest: Any) -> None:
            self.seen.append((folder / "manifest.json").is_file() and manifest["seed"])

    plugins = Plugins.discover({"NETDIFFUSION_PLUGINS": ""}, files=[toy_file])
    plugins.manager.register(Observer())
    pipeline.run(toy_config(data, seed=8, compare=()), plugins)
    names = ["load", "split", "encode", "fit", "generate", "repair", "check", "write", "evaluate", "report"]
    assert Observer.seen == [n for n in names for _ in range(2)] + [8]


# --- slices -----------------------------------------------------------------------------------------------------


def test_a_violation_is_found_in_the_same_place_by_slices(
    make_data: MakeData, toy: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_files, "SLICE_FLOWS", 3)
    context = Context(rules=(("toy-ttl", toy.create("rules", "toy-ttl")),))
    shop = slices.Workshop(plugins=toy, context=context, executor=slices.Here(), folder=tmp_path)
    folder = shop.keep("kept", dataset.load(make_data({"web": 7, "dns": 5})))
    found = shop.check(folder)
    assert len(found) > 20
    assert found == pipeline.check(flow_files.FlowFiles(folder).traffic, context.rules)


# --- folders that are whole or not there ------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_before_any_work_and_kept(toy: Plugins) -> None:
    Path("out").mkdir()
    Path("out/precious").write_text("mine")
    with pytest.raises(ConfigError, match=r"out exists already; choose another output, or replace it with --overwrite"):
        pipeline.run(toy_config(Path("no-such-data")), toy)
    assert Path("out/precious").read_text() == "mine"


def test_overwrite_removes_the_old_folder_only_when_the_new_one_stands(data: Path, toy: Plugins) -> None:
    Path("out").mkdir()
    Path("out/old").write_text("old")
    with pytest.raises(ConfigError):
        pipeline.run(toy_config(data, backend_options={"steps": 0}), toy, overwrite=True)
    assert Path("out/old").read_text() == "old"
    pipeline.run(toy_config(data), toy, overwrite=True)
    assert not Path("out/old").exists()
    assert Path("out/report.html").exists()
    assert sorted(os.listdir()) == ["data", "out"]


def test_overwrite_puts_the_old_folder_back_if_the_new_one_cannot_take_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("out").mkdir()
    Path("out/old").write_text("old")
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if ".partial" in Path(source).name:
            raise OSError(errno.EIO, "Input/output error", str(source))
        rename(source, target)

    with pytest.raises(RunError, match="Input/output error"), new_folder(Path("out"), overwrite=True):
        monkeypatch.setattr(os, "rename", refuse)
    assert Path("out/old").read_text() == "old"
    assert os.listdir() == ["out"]


def test_overwrite_never_removes_the_inputs_or_the_working_folder(data: Path, toy: Plugins, tmp_path: Path) -> None:
    for output in (data, tmp_path, tmp_path.parent):
        with pytest.raises(ConfigError, match="--overwrite would remove"):
            pipeline.run(toy_config(data, output=output), toy, overwrite=True)
    Path("file").write_text("mine")
    with pytest.raises(ConfigError, match="file is no folder"):
        pipeline.run(toy_config(data, output=Path("file")), toy, overwrite=True)
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(error: Exception) -> None:
    def work() -> None:
        with new_folder(Path("deep/out")) as folder:
            (folder / "half").write_text("written")
            raise error

    with pytest.raises(RunError, match=r"no space left on the device of .*deep .*out was not written"):
        work()
    assert os.listdir("deep") == []


def test_an_output_that_appears_meanwhile_is_left_alone() -> None:
    def work() -> None:
        with new_folder(Path("out")) as folder:
            (folder / "ours").write_text("ours")
            Path("out").mkdir()
            Path("out/theirs").write_text("theirs")

    with pytest.raises(ConfigError, match="appeared while the work went on"):
        work()
    assert os.listdir() == ["out"]
    assert os.listdir("out") == ["theirs"]


def test_messages_name_the_folder_that_was_asked_for() -> None:
    def work(error: Callable[[Path], Exception]) -> None:
        with new_folder(Path("out")) as folder:
            raise error(folder / "a.pcap")

    with pytest.raises(DataError, match=r"/out/a\.pcap holds nothing"):
        work(lambda path: DataError(f"{path} holds nothing"))
    with pytest.raises(RunError, match=r"/out/a\.pcap: Is a directory; .*/out was not written"):
        work(lambda path: IsADirectoryError(errno.EISDIR, "Is a directory", str(path)))


def test_the_new_folder_has_ordinary_permissions() -> None:
    os.mkdir("ordinary")
    with new_folder(Path("out")):
        pass
    assert Path("out").stat().st_mode == Path("ordinary").stat().st_mode


# --- encoded flows and models on disk ---------------------------------------------------------------------------


def test_encoded_flows_survive_the_disk(traffic: Any, toy: Plugins) -> None:
    encoder = toy.create("encoder", "toy")
    encoded = encoder.encode(traffic)
    Path("bits").mkdir()
    storage.save(encoded, Path("bits"), {"name": "toy", "options": {}})
    assert storage.load(Path("bits")) == encoded
    assert storage.read_encoder(Path("bits")) == {"name": "toy", "options": {}}
    assert encoder.decode(encoded, np.random.default_rng(0)).flows.labels.tolist() == traffic.flows.labels.tolist()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "rows.npy").unlink(), "rows.npy is missing"),
        (lambda d: _cut(d / "rows.npy"), "rows.npy is damaged"),
        (lambda d: _cut(d / "encoded.json"), "encoded.json is damaged"),
        (lambda d: (d / "encoded.json").unlink(), "was not made by netdiff encode"),
        (lambda d: np.save(d / "starts.npy", np.array([{"a": 1}], object), allow_pickle=True), "starts.npy is damaged"),
        (lambda d: np.save(d / "starts.npy", np.arange(3)), "do not fit each other"),
        (lambda d: np.save(d / "rows.npy", np.full_like(np.load(d / "rows.npy"), 7)), "other than -1, 0 and 1"),
        (lambda d: np.save(d / "rows.npy", np.load(d / "rows.npy").astype(float)), "holds float64, not int8"),
    ],
)
def test_damaged_folders_are_refused(traffic: Any, toy: Plugins, damage: Callable[[Path], None], message: str) -> None:
    Path("bits").mkdir()
    storage.save(toy.create("encoder", "toy").encode(traffic), Path("bits"))
    damage(Path("bits"))
    with pytest.raises(DataError, match=message):
        storage.load(Path("bits"))


def test_a_model_of_another_layout_version_is_refused(data: Path, toy: Plugins) -> None:
    pipeline.run(toy_config(data), toy)
    index = Path("out/model/model.json")
    index.write_text(index.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(
        DataError, match="trained on layout toy version 2, and the installed encoder writes toy version 1"
    ):
        pipeline.load_model(Path("out/model"), toy)
    with pytest.raises(DataError, match="was not made by netdiff fit"):
        pipeline.load_model(data, toy)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("web", "web"),
        ("a/b", "a%2Fb"),
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        ("50%", "50%25"),
        ("con", "%63on"),
        ("Nul.x", "%4Eul.x"),
        ("a.", "a%2E"),
    ],
)
def test_a_label_is_always_one_folder_below_the_output(label: str, name: str) -> None:
    assert dataset.folder_name(label) == name
    assert dataset.label_of(name) == label
