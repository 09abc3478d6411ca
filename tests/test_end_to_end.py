"""
The main job on the bundled sample with all first-party plugins, as a user runs it; little training, few flows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import netdiffusion_core

OURS = {"frame", "eth", "ethertype", "ip", "ipv6", "tcp", "udp", "icmp", "icmpv6", "data", "_ws.malformed"}
SAMPLE = Path(netdiffusion_core.__file__).parent / "samples" / "lab"


def netdiff(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "netdiffusion_core", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """
    Two runs of the same seed, ``one`` and ``two``, on a TCP, a UDP and an ICMP class.
    """
    folder = tmp_path_factory.mktemp("runs")
    for name, extra in (("one", ()), ("two", ("--compare", "", "--evaluators", "compliance"))):
        done = netdiff(
            "run", str(SAMPLE), "--classes", "redis,dns,ping", "--encoder", "nprint", "--rules", "tcp,udp,icmp",
            "--flows", "4", "--max-packets", "32", "--output", name, "--seed", "5",
            "--set", "backend.steps=2", "--set", "backend.rows_per_step=128", "--set", "backend.sampling_steps=4",
            *extra, cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def pcaps(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.pcap"))}


def test_same_seed_gives_the_same_bytes(runs):
    """
    All pcaps of two runs are byte-identical.
    """
    one, two = (pcaps(runs / name / "synthetic") for name in ("one", "two"))
    assert len(one) == 12
    assert one == two


def test_tshark_accepts_every_packet(runs):
    """
    No malformed packet and no bad checksum, all validated. Payload is zeros, which is no valid message of most
    applications: their dissectors are not asked.
    """
    if not shutil.which("tshark"):
        pytest.skip("tshark is not installed (tools/debian.sh tshark)")
    checks = [o for p in ("ip", "tcp", "udp") for o in ("-o", f"{p}.check_checksum:TRUE")]
    bad = "_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0"
    listed = subprocess.run(["tshark", "-G", "protocols"], capture_output=True, text=True, check=True).stdout
    others = sorted({line.split("\t")[2] for line in listed.splitlines()} - OURS)
    ours = [word for name in others for word in ("--disable-protocol", name)]
    for path in (runs / "one" / "synthetic").rglob("*.pcap"):
        done = subprocess.run(
            ["tshark", "-r", path, *ours, *checks, "-Y", bad], capture_output=True, text=True, check=True
        )
        assert done.stdout == "", path


def test_report_names_ours_the_floor_and_the_baselines(runs):
    """
    report.json compares the backend with both baselines, and the model folder is there to generate more from.
    """
    report = json.loads((runs / "one" / "report.json").read_text())
    assert {"stable-diffusion", "bernoulli", "bootstrap"} <= set(json.dumps(report).split('"'))
    assert (runs / "one" / "report.html").stat().st_size > 50_000
    assert (runs / "one" / "model" / "weights" / "pytorch_lora_weights.safetensors").is_file()


def test_generate_makes_more_from_the_model(runs):
    """
    The model of a run makes flows of one class later on, and `check` finds nothing wrong with them.
    """
    done = netdiff("generate", "one/model", "-o", "more", "--classes", "dns", "--flows", "3", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert len(pcaps(runs / "more")) == 3
    assert netdiff("check", "more", "--rules", "tcp,udp,icmp", cwd=runs).returncode == 0


def test_plugins_come_from_six_distributions(runs):
    """
    Encoders, backends, rules, evaluators and executors are all there, from at least six distributions.
    """
    listed = json.loads(netdiff("plugins", "list", "--json", cwd=runs).stdout)["components"]
    assert {c["kind"] for c in listed} == {"encoder", "backend", "rules", "evaluator", "executor"}
    assert len({c["distribution"] for c in listed}) >= 6


PICKY = """
from netdiffusion_core import hookimpl
from netdiffusion_core.interfaces import RuleSet
from netdiffusion_core.model import Rule
from netdiffusion_core.specs import RuleSetSpec

class Picky(RuleSet):
    def check(self, traffic):
        yield from Rule("picky.all", "", "error", "nothing is good enough", "this test").broken(traffic, [0])

@hookimpl
def netdiffusion_register_rules():
    return [RuleSetSpec(name="picky", target=f"{__name__}:Picky", summary="")]
"""


def test_check_asks_a_rule_set_of_somebody_else_only_by_name(tmp_path):
    """
    Without --rules the Internet protocols are checked; what else is installed may be about other captures.
    """
    (tmp_path / "picky.py").write_text(PICKY)
    words = ("check", str(SAMPLE / "dns" / "test.pcap"), "--plugin", "picky.py", "--json")
    done = netdiff(*words, cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["violations"]) == (0, []), done.stderr
    assert {"ipv4", "ipv6", "interpacket", "tcp", "udp", "icmp", "icmpv6"} == set(json.loads(done.stdout)["rules"])
    assert "picky.all" in netdiff(*words, "--rules", "picky", cwd=tmp_path).stdout


def test_nprint_text_and_images_go_out_and_come_in(tmp_path):
    """
    One capture makes one file, a folder one file a flow, and both are DATA again.
    """
    capture = str(SAMPLE / "dns" / "train.pcap")
    wanted = ("--format", "nprint", "--nprint-args", "-4 -6 -t -u -i -A")
    assert netdiff("encode", capture, "-o", "dns.npt", *wanted, cwd=tmp_path).returncode == 0
    assert (tmp_path / "dns.npt").read_text().startswith("src_ip,tv_sec,tv_usec,ipv4_ver_0,")
    assert netdiff("encode", str(SAMPLE), "-o", "png", "--classes", "dns,ntp", "--format", "png", cwd=tmp_path).stderr
    assert len(list((tmp_path / "png" / "dns").glob("*.png"))) == 70
    assert not (tmp_path / "png" / "ssh").exists()
    for data, classes in (("dns.npt", 1), ("png", 2)):
        done = netdiff("encode", data, "-o", f"{data}.bits", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        index = json.loads((tmp_path / f"{data}.bits" / "encoded.json").read_text())
        assert len(set(index["labels"])) == classes

    for words, code, sentence in (
        (("encode", capture, "-o", "x", "--format", "nprin"), 2, "Did you mean 'nprint'?"),
        (("encode", str(SAMPLE), "-o", "x.npt", "--format", "nprint"), 2, "is a folder"),
        (("encode", capture, "-o", "dns.npt", *wanted), 2, "exists already"),
        (("encode", "dns.npt", "-o", "dns.npt", *wanted, "--overwrite"), 2, "is what is read"),
        (("encode", capture, "-o", "x.npt", "--format", "nprint", "--nprint-args", "-4 -z"), 2, "-z"),
        (("encode", "missing.pcap", "-o", "x.npt", "--format", "nprint"), 1, "there is no file missing.pcap"),
    ):
        done = netdiff(*words, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert sentence in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dns.npt", "dns.npt.bits", "png", "png.bits"]
