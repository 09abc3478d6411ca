"""
Labels, names, files, settings and model folders of somebody who means harm: refused in one sentence or made harmless.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import pickle
import re
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdiffusion_core import dataset, hookimpl
from netdiffusion_core.capture import pcapfile
from netdiffusion_core.cli import main
from netdiffusion_core.errors import DataError
from netdiffusion_core.plugins import Plugins

pytestmark = pytest.mark.usefixtures("alone")

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "netdiffusion_core/samples/lab"
BERNOULLI = ["--backend", "bernoulli", "--max-packets", "4", "-q"]
RUN = ["run", "data", "-o", "out", "--compare=", "--evaluators=", "--flows", "1", *BERNOULLI]
HOSTILE = ["../../x", "/etc/x", "..", "a\\b", "x" * 300, "😀" * 99, "\x1b[31mred\x1b[0m", "a\nb", "\u202egpj", "a\0b"]
ODD = ["con", "Aux.pcap", "nul", "😀", "a:b", "<script>", '"x"', "-rf", "$(x)", "%2F", "50%", "end.", "[bold]", "é"]


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def sentence(self) -> str:
        """
        The one line that a refusal is.
        """
        assert self.code in (1, 2), self.err
        assert "should not have happened" not in self.err
        line, *more = [line for line in self.err.splitlines() if "warning: " not in line]
        assert not more
        assert len(line) < 2200
        return line


Netdiff = Callable[..., Answer]


@pytest.fixture
def netdiff(capsys: pytest.CaptureFixture[str]) -> Iterator[Netdiff]:
    """
    Run the command line; what takes longer than a minute has been caught in a trap.
    """

    def call(*words: Any, plugins: Plugins | None = None) -> Answer:
        signal.alarm(60)
        code = main([str(word) for word in words], plugins)
        signal.alarm(0)
        answer = Answer(code, *capsys.readouterr())
        for text in (answer.out, answer.err):  # nothing moves the cursor, rings, or turns the reading direction
            assert all(c.isprintable() or c == "\n" for c in text)
        return answer

    yield call
    signal.alarm(0)


@pytest.fixture
def data() -> Path:
    for label in ("ntp", "redis"):
        shutil.copytree(SAMPLE / label, Path("data", label))
    return Path("data")


@pytest.fixture(scope="module")
def a_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for label in ("ntp", "redis"):
        shutil.copytree(SAMPLE / label, folder / "data" / label)
    for backend in ("bernoulli", "bootstrap"):
        assert main(["fit", f"{folder}/data", "-o", f"{folder}/{backend}", *BERNOULLI, "--backend", backend]) == 0
    return folder


@pytest.fixture
def model(a_model: Path) -> Path:
    shutil.copytree(a_model / "bernoulli", "model")
    return Path("model")


# --- names ------------------------------------------------------------------------------------------------------


def label_by_file(label: str) -> None:
    quoted = label.replace('"', '""')
    files = [f"data/{c}/{half}.pcap" for c in ("ntp", "redis") for half in ("train", "test")]
    lines = [f'{file[5:]},"{quoted if "ntp" in file else "redis"}"' for file in files]
    Path("labels.csv").write_text("\n".join(["file,label", *lines]), newline="")


@pytest.mark.parametrize("label", HOSTILE)
def test_a_label_that_is_no_name_is_refused(netdiff: Netdiff, data: Path, label: str) -> None:
    before = sorted(os.listdir())
    label_by_file(label)
    assert "cannot name a folder" in netdiff(*RUN, "--labels", "labels.csv").sentence
    Path("labels.csv").unlink()
    if "/" not in label and "\0" not in label and len(label.encode()) < 256 and label != "..":
        shutil.move("data/ntp", f"data/{label}")
        assert "cannot name a folder" in netdiff(*RUN).sentence
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("label", ODD)
def test_an_odd_label_stays_one_folder_and_comes_back(netdiff: Netdiff, data: Path, label: str) -> None:
    label_by_file(label)
    assert netdiff(*RUN, "--labels", "labels.csv").code == 0
    folders = sorted(os.listdir("out/synthetic"))
    assert len(folders) == 2
    assert not any(set(name) & set('<>:"/\\|?*') or name.endswith((".", " ")) for name in folders)
    assert not {"con", "aux", "nul"} & {name.split(".")[0].lower() for name in folders}
    assert set(dataset.load(Path("out/synthetic")).flows.labels) == {label, "redis"}
    assert "<script>" not in re.sub(r"<script>\s", "", Path("out/report.html").read_text())
    assert sorted(os.listdir()) == ["data", "labels.csv", "out"]


@pytest.mark.parametrize("name", ["\x1b[31mred.pcap", "[bold]x.pcap", "a\nb.pcap", "\udcff\udcfe.pcap", "\u202e.pcap"])
def test_names_of_files_are_printed_as_they_are(netdiff: Netdiff, data: Path, name: str) -> None:
    Path("data/ntp", name).write_bytes((SAMPLE / "ntp/test.pcap").read_bytes()[:-1])
    for words in (["check", "data"], ["check", "data", "--each"], ["check", "data", "--json"]):
        assert netdiff(*words, "--rules", "udp").code in (0, 1)
    assert netdiff("encode", "data/ntp", "-o", "bits").code == 0
    assert netdiff("repair", "data", "-o", "mended").code == 0
    Path("data/ntp", name).write_bytes(struct.pack("<I", 0xA1B2C3D4))
    assert "is cut short in its file header" in netdiff("repair", "data", "-o", "more", "-q").sentence


def test_two_captures_that_repair_would_name_alike(netdiff: Netdiff, data: Path) -> None:
    shutil.copy("data/ntp/train.pcap", "data/ntp/train.cap")
    assert "would be written over another" in netdiff("repair", "data", "-o", "mended", "-q").sentence


# --- captures ---------------------------------------------------------------------------------------------------


def block(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)


PCAP = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0xFFFFFFFF, 1)
PCAPNG = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack("<HHI", 1, 0, 0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PCAP + struct.pack("<IIII", 1, 0, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(60), "claims 4294967295 captured bytes"),
        (PCAPNG + struct.pack("<II", 6, 0xFFFFFFFC) + bytes(60), "a block claims 4294967292 bytes"),
        (PCAPNG + block(6, struct.pack("<IIIII", 10**9, 0, 0, 8, 8) + bytes(8)), "an interface that is not described"),
        (PCAPNG + PCAPNG[28:] * (1 << 20), "describes more than 1048576 interfaces"),
    ],
)
def test_captures_that_claim_too_much(netdiff: Netdiff, content: bytes, reason: str) -> None:
    Path("x.pcap").write_bytes(content)
    assert reason in netdiff("check", "x.pcap", "-q").sentence
    assert reason in netdiff("encode", "x.pcap", "-o", "bits", "-q").sentence


def test_what_unpacks_to_more_than_it_may_is_refused(netdiff: Netdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.pcap.gz").write_bytes(gzip.compress(PCAP + bytes(1 << 20)))
    monkeypatch.setattr(pcapfile, "_MAX_UNPACKED_BYTES", 1 << 19)
    assert "unpacks to more than" in netdiff("check", "x.pcap.gz", "-q").sentence


def plant(kind: str, path: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    else:
        os.symlink({"loop": Path(path).name, "device": "/dev/zero"}[kind], path)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_what_is_no_file_is_not_read(netdiff: Netdiff, data: Path, model: Path, kind: str) -> None:
    for name in ("x.pcap", "x.npt", "x.toml", "x.csv"):
        plant(kind, name)
    for command in ("check", "encode", "repair"):
        more = [] if command == "check" else ["-o", "out"]
        assert "x.pcap" in netdiff(command, "x.pcap", *more, "-q").sentence
    assert "x.npt" in netdiff("encode", "x.npt", "-o", "out", "-q").sentence
    assert "x.toml" in netdiff(*RUN, "--config", "x.toml").sentence
    assert "x.csv" in netdiff(*RUN, "--labels", "x.csv").sentence
    plant(kind, "data/ntp/x.npt")
    if kind != "loop":
        assert netdiff("encode", "data", "-o", "bits", "-q").code == 0
    Path("model/weights/lengths.npy").unlink()
    plant(kind, "model/weights/lengths.npy")
    assert "lengths.npy is neither a file nor a folder" in netdiff("generate", "model", "-o", "out", "-q").sentence


def test_links_that_lead_in_circles(netdiff: Netdiff, data: Path) -> None:
    os.symlink("..", "data/ntp/up")
    assert netdiff("encode", "data", "-o", "bits", "-q").code == 0
    for i in range(9):
        os.mkdir(f"data/ntp/{i}")
        for j in range(9):
            os.symlink(f"../{j}", f"data/ntp/{i}/to{j}")
    assert "links lead to the folder" in netdiff("encode", "data", "-o", "more", "-q").sentence


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "toml",
    [
        "classes = " + "[" * 50_000 + "]" * 50_000,
        "x = " + "{a=" * 5000 + "1" + "}" * 5000,
        "[" + ".".join("a" * 2000) + "]",
        "seed = " + "9" * 5000,
        "seed = 0x" + "f" * 50_000,
        "encoder = '" + "a" * 200_000 + "'",
        'data = "' + "a/" * 5000 + '"',
        'data = "a\\u0000b"',
        'encoder = "\\u001b[31mred"',
        '"\\u001b[31mred" = 1',
        "[backend]\npositions = nan",
    ],
    ids=lambda toml: re.sub(r"[^ -~]", "", toml)[:12],
)
def test_configuration_bombs(netdiff: Netdiff, toml: str) -> None:
    Path("netdiff.toml").write_text(toml)
    answer = netdiff("run", "--max-packets", "4", "-o", "out", "--backend", "bernoulli", "-q")
    assert answer.code in (1, 2)
    assert len(answer.sentence) > 20
    shown = netdiff("config", "show")
    assert shown.code in (0, 2)
    assert "should not have happened" not in shown.err


def test_a_large_file_is_no_configuration(netdiff: Netdiff, data: Path) -> None:
    Path("netdiff.toml").write_text("seed = 0\n" + "\n" * (1 << 18))
    assert "a file of at most 256 KiB" in netdiff(*RUN).sentence
    Path("netdiff.toml").write_text("seed = 0\n" + "\n" * 1000)
    assert netdiff(*RUN).code == 0


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("flows=1000000000000", "flows are more than the memory of this machine can keep a list of"),
        ("flows=99999999999999999999", "flows is a number of 67 bits"),
        ("seed=99999999999999999999", "seed is a number of 67 bits"),
        ("backend.positions=1e30", "backend.positions is '1e30'; it must be a whole number"),
    ],
)
def test_absurd_settings(netdiff: Netdiff, data: Path, model: Path, setting: str, reason: str) -> None:
    assert reason in netdiff(*[w for w in RUN if w not in ("--flows", "1")], "--set", setting).sentence
    if "backend" not in setting:
        assert reason in netdiff("generate", model, "-o", "more", "--set", setting, "-q").sentence


@pytest.mark.parametrize(
    "option", ["steps", "lora_rank", "rows_per_step", "rows_per_batch", "sampling_steps", "threads"]
)
def test_absurd_settings_of_the_model(netdiff: Netdiff, data: Path, option: str) -> None:
    words = ["fit", data, "-o", "model2", "--backend", "stable-diffusion", "--set", f"backend.{option}=1000000000000"]
    assert f"'{option}' must be <= " in netdiff(*words, "-q").sentence


# --- model folders ----------------------------------------------------------------------------------------------


class Payload:
    """
    Leaves a file where it is unpickled.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("pwned", "w")


def change(file: str, **values: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        document = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps(document | values))

    return damage


def write(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda model: (model / file).write_bytes(content) and None


def array(name: str, value: Any) -> Callable[[Path], None]:
    return lambda model: np.save(model / "weights" / f"{name}.npy", value, allow_pickle=True)


def lying_header(model: Path) -> None:
    with (model / "weights/lengths.npy").open("wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": (1 << 40,)}
        np.lib.format.write_array_header_1_0(file, header)


DAMAGES = [
    change("model.json", classes=["ntp"]),
    change("model.json", classes={"ntp": "many"}),
    change("model.json", classes={"ntp": -1}),
    change("model.json", max_packets="4"),
    change("model.json", max_packets=0),
    change("model.json", backend="bernoulli"),
    change("model.json", backend={"name": "../../evil", "options": {}}),
    change("model.json", backend={"name": "os:system", "options": {}}),
    change("model.json", encoder={"name": "nprint", "options": {"layout": "paper"}}),
    change("model.json", layout={"name": "nprint-trace", "version": 1, "fields": [["ipv4.ver", 10**12]]}),
    change("model.json", layout={"name": "nprint-trace", "version": 1, "fields": [["ipv4.ver", float("inf")]]}),
    write("model.json", b"[" * 100_000),
    write("model.json", b"\xff\xfe"),
    write("model.json", pickle.dumps(Payload())),
    change("weights/model.json", labels=["ntp"]),
    change("weights/model.json", layout=[]),
    write("weights/model.json", b"[" * 100_000),
    array("lengths", np.array([Payload()])),
    array("lengths", np.array(["x"])),
    array("lengths", np.zeros((3, 3))),
    array("flows", np.array([0, 9**9, 2])),
    array("span", np.array([5, 1])),
    array("thresholds", np.zeros((2, 4, 7, 2), np.float32)),
    write("weights/lengths.npy", pickle.dumps(Payload())),
    write("weights/lengths.npy", b"PK\x05\x06" + bytes(18)),
    lying_header,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_model_folders_that_lie_are_refused(netdiff: Netdiff, model: Path, damage: Callable[[Path], None]) -> None:
    damage(model)
    netdiff("generate", model, "-o", "out", "--flows", "1", "-q").sentence  # noqa: B018
    assert sorted(os.listdir()) == ["model"]


def test_what_a_model_folder_brings_along_is_not_looked_at(netdiff: Netdiff, model: Path) -> None:
    for name in ("pytorch_lora_weights.bin", "diffusion_pytorch_model.pt", "weights.ckpt", "model.pkl"):
        Path("model/weights", name).write_bytes(pickle.dumps(Payload()))
    for name in ("model.py", "sitecustomize.py", "netdiffusion_nprint.py", "conftest.py"):
        Path("model/weights", name).write_text("open('pwned', 'w')")
        Path("model", name).write_text("open('pwned', 'w')")
    assert netdiff("generate", model, "-o", "out", "--flows", "1", "-q").code == 0
    assert sorted(os.listdir()) == ["model", "out"]


def test_classes_of_a_model_stay_in_the_output(netdiff: Netdiff, model: Path) -> None:
    names = {"ntp": "../../../x", "redis": "\x1b[31mred"}
    change("model.json", classes=dict.fromkeys(names.values(), 3))(model)
    change("weights/model.json", labels=list(names.values()))(model)
    assert netdiff("generate", model, "-o", "out", "--flows", "1", "-q").code == 0
    assert sorted(os.listdir("out")) == ["%1B[31mred", "%2E.%2F..%2F..%2Fx"]
    assert sorted(os.listdir()) == ["model", "out"]
    assert "knows no class" in netdiff("generate", model, "-o", "more", "--classes", "x", "-q").sentence


def test_encoded_folders_that_lie_are_refused(netdiff: Netdiff, data: Path) -> None:
    assert netdiff("encode", data, "-o", "bits", "-q").code == 0
    index = json.loads(Path("bits/encoded.json").read_text())
    for changed in ({"labels": [{}] * len(index["labels"])}, {"labels": "x"}, {"encoder": "nprint"}):
        Path("bits/encoded.json").write_text(json.dumps(index | changed))
        assert netdiff("decode", "bits", "-o", "out", "-q").sentence
    Path("bits/encoded.json").write_text(json.dumps(index))
    for content in (pickle.dumps(Payload()), b"PK\x05\x06" + bytes(18)):
        Path("bits/rows.npy").write_bytes(content)
        assert netdiff("decode", "bits", "-o", "out", "-q").sentence
    assert sorted(os.listdir()) == ["bits", "data"]


def test_a_consent_is_never_taken_from_a_model_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from netdiffusion_core import pipeline
    from netdiffusion_stable_diffusion.backend import StableDiffusion

    change("model.json", backend={"name": "stable-diffusion", "options": {"download": True, "steps": 3}})(model)
    given = []
    monkeypatch.setattr(StableDiffusion, "load", lambda folder, options: given.append(options))
    pipeline.load_model(model, Plugins.discover())
    pipeline.load_model(model, Plugins.discover(), {"download": True})
    assert [(o.download, o.steps) for o in given] == [(False, 3), (True, 3)]


# --- other users of the machine ---------------------------------------------------------------------------------


def test_unfinished_work_is_private(netdiff: Netdiff, data: Path) -> None:
    modes = set()

    class Spy:
        @hookimpl
        def netdiffusion_stage_started(self, folder: Path) -> None:
            modes.add(folder.stat().st_mode & 0o777)

    plugins = Plugins.discover()
    plugins.manager.register(Spy())
    assert netdiff(*RUN, plugins=plugins).code == 0
    assert modes == {0o700}


def test_what_somebody_else_put_in_the_way_is_left_alone(netdiff: Netdiff, data: Path) -> None:
    Path("precious").mkdir()
    Path("precious/file").write_text("mine")
    os.symlink("precious", ".out.partial")
    for more in ([], ["--resume"], ["--overwrite"]):
        assert "is not yours" in netdiff(*RUN, *more).sentence
    os.remove(".out.partial")
    os.symlink("precious/file", ".out.partial.lock")
    netdiff(*RUN)
    assert Path("precious/file").read_text() == "mine"


def test_an_unfinished_folder_of_another_user_is_not_taken_up(
    netdiff: Netdiff, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".out.partial").mkdir()
    Path(".out.partial/file").write_text("theirs")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for more in ([], ["--resume"], ["--overwrite"]):
        assert "is not yours" in netdiff(*RUN, *more).sentence
    assert Path(".out.partial/file").read_text() == "theirs"


# --- the code ---------------------------------------------------------------------------------------------------

FORBIDDEN = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle",
    "cPickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "system",
)


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, Any], int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            arguments = {
                k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in node.keywords if k.arg
            }
            yield ast.unparse(node.func), arguments, node.lineno


@pytest.mark.parametrize("folder", ["netdiffusion_core", "plugins"])
def test_nothing_shipped_unpickles_or_executes_data(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        if "tests" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, arguments, line in calls(tree):
            where = f"{path.relative_to(ROOT)} line {line}: {name}"
            assert name not in FORBIDDEN, where
            assert not name.startswith("os.system"), where
            assert name not in ("torch.load", "yaml.load") or arguments.get("weights_only") is True, where
            assert name not in ("np.load", "numpy.load") or arguments.get("allow_pickle") is False, where
            assert arguments.get("shell", False) is False, where
            assert arguments.get("trust_remote_code", False) is False, where
            assert arguments.get("allow_pickle", False) is False, where
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names} | {
            n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module
        }
        assert not imported & set(FORBIDDEN), path


def test_a_capture_is_never_written_through_a_link(tmp_path: Path) -> None:
    from netdiffusion_core.capture import read_capture, write_capture

    victim = tmp_path / "victim"
    victim.write_text("mine")
    os.symlink(victim, tmp_path / f".x.pcap.{os.getpid()}.tmp")
    with pytest.raises(Exception, match="File exists"):
        write_capture(tmp_path / "x.pcap", read_capture(SAMPLE / "ntp/test.pcap"))
    assert victim.read_text() == "mine"


def test_labels_that_make_long_folders_are_refused() -> None:
    with pytest.raises(DataError, match="cannot name a folder"):
        dataset.check_label("?" * 99, "x")
