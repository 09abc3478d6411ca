"""
Fixtures of the core's tests: a plugin of their own, and tiny labelled captures.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from netdiffusion_core.plugins import Plugins

TOY = Path(__file__).with_name("toy_plugin.py")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Hide the developer's settings and working folder.
    """
    for name in list(os.environ):
        if name.startswith("NETDIFFUSION_") and not name.startswith("NETDIFFUSION_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def toy_file() -> Path:
    return TOY


@pytest.fixture(scope="session")
def toy() -> Plugins:
    """
    The toy plugin and nothing else.
    """
    return Plugins.discover({"NETDIFFUSION_PLUGINS": ""}, files=[TOY])


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., Path]:
    """
    Write LABEL/*.pcap, one UDP flow a file, and return the folder: ``make_data({"a": 5, "b": 4})``.
    """

    def make(flows: Mapping[str, int], name: str = "data", packets: int = 4) -> Path:
        for c, (label, count) in enumerate(flows.items()):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.pcap").write_bytes(udp_capture(ttl=40 + 60 * c + i, port=2000 + i, packets=packets))
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def install() -> Callable[..., Path]:
    """
    ``install(folder, sources, *requirements)`` builds wheels of these sources, installs the requirements from nothing
    but these wheels into a new environment, and returns that environment. What is not ours comes from the environment
    of this test, so that nothing is downloaded; pip resolves every dependency all the same.
    """

    def run(folder: Path, sources: Sequence[Path], *requirements: str) -> Path:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        wheels = folder / "wheels"
        built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, *sources]
        subprocess.run(built, check=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        others = folder / "others"
        others.mkdir()
        for path in (Path(p) for p in sys.path if p.endswith("site-packages")):
            for entry in path.iterdir():
                ours = entry.name.lower().lstrip("_").startswith(("netdiffusion", "editable"))
                if not ours and not (others / entry.name).is_symlink():
                    (others / entry.name).symlink_to(entry)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
        (site / "others.pth").write_text(str(others))
        python = folder / "venv" / "bin" / "python"
        only = ["--no-index", "--find-links", wheels]
        subprocess.run([*pip, "--python", python, "install", *only, *requirements], check=True)
        return folder / "venv"

    return run


def udp_capture(ttl: int, port: int, packets: int) -> bytes:
    """
    A little-endian microsecond pcap of raw IP packets, each sent from 10.0.0.1:port to 10.0.0.2:53.
    """
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, ttl, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
    packet = ip + struct.pack("!HHHH", port, 53, 8, 0)
    records = [struct.pack("<IIII", 1_700_000_000 + i, 0, 28, 28) + packet for i in range(packets)]
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101) + b"".join(records)
