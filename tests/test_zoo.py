"""
Odd, broken and hostile captures: a result or one clear sentence, never a traceback, a hang, or much memory.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netdiffusion_core.capture import assemble, read_capture
from netdiffusion_core.errors import DataError
from netdiffusion_nprint.encoder import NprintEncoder, Options

DATA = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[2] / "shared"))
SAMPLE = Path(__file__).parents[1] / "netdiffusion_core/samples/lab"
WALK = """
import contextlib, io, json, re, sys, time  # ru_maxrss would count the memory of the parent before exec
from pathlib import Path
from netdiffusion_core.cli import main

out = Path(sys.argv[2])
for path in sorted(Path(sys.argv[1]).iterdir()):
    for words in (["encode", path, "-o", out / "bits"], ["encode", path, "-o", out / "x.npt", "--format", "nprint"]):
        start, said = time.monotonic(), io.StringIO()
        with contextlib.redirect_stderr(said):
            code = main([str(w) for w in (*words, "--overwrite", "--quiet")])
        seconds = time.monotonic() - start
        peak_kib = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
        print(json.dumps([path.name, code, said.getvalue(), seconds, int(peak_kib) >> 10]))
"""


@pytest.mark.skipif(not (DATA / "zoo").is_dir(), reason=f"no zoo of odd captures in {DATA}; set NETDIFFUSION_TEST_DATA")
def test_every_odd_capture_gives_a_result_or_one_sentence(tmp_path: Path) -> None:
    walk = subprocess.run(
        [sys.executable, "-c", WALK, DATA / "zoo", tmp_path], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    rows = [json.loads(line) for line in walk.stdout.splitlines()]
    assert len(rows) == 2 * len(list((DATA / "zoo").iterdir()))
    for name, code, said, seconds, peak_mib in rows:
        assert code in (0, 1), (name, said)
        assert "should not have happened" not in said
        lines = said.splitlines()
        assert all(line.startswith("netdiff: ") and len(line) < 400 for line in lines), (name, said)
        assert code == 0 or sum("warning: " not in line for line in lines) == 1, (name, said)
        assert seconds < 5, name
        assert peak_mib < 500, name
    assert np.mean([code == 0 for _, code, *_ in rows]) > 0.7  # the others have no IP, or are no captures


def _seed() -> list[bytes]:
    """
    A few packets of every class of the bundled sample, as a pcap file, and one of pcapng with two interfaces.
    """
    files = sorted(SAMPLE.rglob("train.pcap"))
    pieces = [f.read_bytes()[:1500] for f in files]
    packet = pieces[0][40:140]
    padded = struct.pack("<IIIII", 1, 5, 0, len(packet), 100) + packet
    blocks = [
        (0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)),
        (1, struct.pack("<HHI", 1, 0, 0)),
        (1, struct.pack("<HHIHHB3x", 113, 0, 96, 9, 1, 9)),
        (6, padded),
        (3, struct.pack("<I", len(packet)) + packet),
    ]
    pcapng = b"".join(struct.pack("<II", k, len(b) + 12) + b + struct.pack("<I", len(b) + 12) for k, b in blocks)
    return [*pieces, pcapng]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(_seed()),
    st.lists(st.tuples(st.integers(0, 1500), st.binary(min_size=1, max_size=8)), max_size=8),
    st.sampled_from([None, 0, 1, 9, 12, 50, 101, 105, 113, 127, 192, 276]),
    st.sampled_from(["none", "nprint"]),
    st.sampled_from(["-4 -i -6 -t -u -p 0", "-e -4 -i -6 -t -u -p 30 -R -O 4", "-r -w -e -A -F 5 -x '.*_[1-9]'"]),
)
def test_mutated_captures(tmp_path: Path, content: bytes, changes, link: int | None, compat, nprint_args) -> None:
    damaged = bytearray(content)
    if link is not None and content[:4] != b"\x0a\x0d\x0d\x0a":
        damaged[20:22] = struct.pack("<H", link)
    for at, value in changes:
        at %= len(damaged)
        damaged[at : at + len(value)] = value
    path = tmp_path / "x.pcap"
    path.write_bytes(damaged)
    traffic, error = None, str(path)
    try:
        traffic = assemble(read_capture(path))
    except DataError as refused:
        error = str(refused)
    assert str(path) in error
    assert "\n" not in error
    if traffic is None:
        return
    encoder = NprintEncoder(Options(compat=compat, nprint_args=nprint_args))
    encoded = encoder.encode(traffic)
    assert set(np.unique(encoded.rows)) <= {-1, 0, 1}
    encoder.decode(encoded, np.random.default_rng(0))
    for form, suffix in encoder.formats.items():
        (tmp_path / f"x{suffix}").unlink(missing_ok=True)
        encoder.write(traffic, tmp_path / f"x{suffix}", form)
