"""
nPrint's text against nPrint 1.2.1: its own output for 66 captures and nine sets of options, byte for byte.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from netdiffusion_core.capture import read_capture
from netdiffusion_core.model import Traffic
from netdiffusion_nprint import text
from netdiffusion_nprint.arguments import parse

DATA = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[4] / "shared"))
GOLDEN = DATA / "nprint-golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"nPrint's outputs are not in {GOLDEN} (NETDIFFUSION_TEST_DATA)"
)


def runs() -> dict[str, list[dict[str, str]]]:
    """
    nPrint's runs that gave text, by capture: it crashed in six (rc -11), and rev sets are text turned into captures.
    """
    found: dict[str, list[dict[str, str]]] = {}
    if GOLDEN.is_dir():
        with (GOLDEN / "manifest.csv").open() as file:
            for run in csv.DictReader(file):
                if run["split"] == "public" and run["rc"] == "0" and run["output"].endswith(".npt.gz"):
                    found.setdefault(run["capture"], []).append(run)
    return found


RUNS = runs()

# libpcap stops at the description of a second interface of another link type. No packet of that interface follows,
# so a traffic does not show it, and we read on.
STOPPED_BY_AN_INTERFACE = ("syn_ng_latelt.pcapng", "syn_ng_mixedlt.pcapng")

# What nPrint misses or misreads, and we read unless encoder.compat is nprint.
OVERLOOKED = {
    "android.pcap": "ICMPv6",
    "bot.pcap": "VLAN",
    "dlt_ppp.pcap": "PPP",
    "dns_fragmented.pcap": "IPv6 fragment headers; later fragments, which it takes for UDP headers",
    "doq.pcapng": "ICMPv6",
    "fuzz-2006-06-26-2594.pcap": "later fragments",
    "http_ipv6.pcap": "the payload of TCP over IPv6, which it takes from the wrong place",
    "nats.pcap": "BSD loopback",
    "rdp2.pcap": "VLAN",
    "stun.pcap": "VLAN",
    "syn_cut.pcap": "IPv6 extension headers, IP in IP, ICMPv6, later fragments",
    "syn_dot11.pcap": "802.11 data",
    "syn_frag.pcap": "later fragments",
    "syn_fuzz_eth.pcap": "ICMPv6, later fragments, frames of other protocols, rows from what is left in memory",
    "syn_fuzz_raw.pcap": "ICMPv6, later fragments, rows from what is left in memory",
    "syn_fuzz_sll.pcap": "ICMPv6, later fragments, packets of other protocols",
    "syn_mix.pcap": "IPv6 extension headers, IP in IP, ICMPv6, later fragments",
    "syn_ng.pcapng": "ICMPv6",
    "syn_ng_latelt.pcapng": "what comes behind an interface of another link type",
    "syn_ng_mixedlt.pcapng": "what comes behind an interface of another link type",
    "syn_null.pcap": "BSD loopback",
    "syn_phantom.pcap": "frames of other protocols, which it takes for IP",
    "syn_radiotap.pcap": "the length of a radiotap header, so where the transmitter's address is",
    "syn_rawsrc.pcap": "raw IP packets from 8.0.x.x, which it takes for Ethernet",
    "syn_rts.pcap": "an elapsed time of -1 microseconds, which it leaves out",
    "syn_rts0.pcap": "elapsed times in the first second of 1970",
    "syn_short.pcap": "rows from what is left in memory",
    "syn_sll.pcap": "VLAN behind a Linux cooked header, packets from 8.0.x.x",
    "syn_sll2.pcap": "Linux cooked 2",
    "syn_v6tcp.pcap": "the payload of TCP over IPv6, which it takes from the wrong place",
    "syn_vlan.pcap": "VLAN",
    "zoom.pcap": "PPPoE",
}


def text_of(traffic: Traffic, options: str, compat: str) -> list[bytes]:
    file = io.BytesIO()
    text.write_text(file, traffic, parse(options.replace("-S", "")), compat)  # -S: statistics on stderr
    return file.getvalue().splitlines()


def nprints(run: dict[str, str]) -> list[bytes]:
    return gzip.decompress((GOLDEN / run["output"]).read_bytes()).splitlines()


def differing(run: dict[str, str], got: list[bytes], expected: list[bytes]) -> set[int]:
    """
    The rows that differ, less those that nPrint made of memory that is not the packet's: row_flags.json lists them.
    """
    flags = json.loads((GOLDEN / "row_flags.json").read_text()).get(run["output"], {"stale": [], "unwritten": []})
    if run["capture"].endswith("syn_radiotap.pcap"):  # its payload columns are never written (README there)
        payload = parse(run["options"].replace("-S", "")).payload_bytes * 8
        got, expected = (
            [b",".join(line.split(b",")[: len(line.split(b",")) - payload]) for line in lines]
            for lines in (got, expected)
        )
    unlike = {i - 1 for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b}
    return unlike - set(flags["stale"]) - set(flags["unwritten"])


@pytest.mark.parametrize("capture", RUNS)
def test_text_is_nprints(capture: str) -> None:
    traffic = read_capture(GOLDEN / capture)
    for run in RUNS[capture]:
        got, expected = text_of(traffic, run["options"], "nprint"), nprints(run)
        if capture.endswith(STOPPED_BY_AN_INTERFACE):
            got = got[: len(expected)]
        assert len(got) == len(expected), run["set"]
        assert not differing(run, got, expected), run["set"]


@pytest.mark.parametrize("capture", RUNS)
def test_text_is_nprints_on_ordinary_captures_without_its_errors(capture: str) -> None:
    traffic = read_capture(GOLDEN / capture)
    differs = False
    for run in RUNS[capture]:
        got, expected = text_of(traffic, run["options"], "none"), nprints(run)
        differs |= len(got) != len(expected) or bool(differing(run, got, expected))
    assert differs == (capture.removeprefix("public/") in OVERLOOKED)


@pytest.mark.parametrize("compat", ["none", "nprint"])
@pytest.mark.parametrize("name", ["syn_fuzz_eth.pcap", "syn_short.pcap", "syn_rts.pcap"])
def test_text_does_not_depend_on_where_chunks_end(name: str, compat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Times, -c, and what nPrint finds in memory carry over from one chunk to the next.
    """
    traffic = read_capture(GOLDEN / "public" / name)
    for options in ("-e -4 -i -6 -t -u -R -O 4", "-6 -t -p 30 -c 50"):
        whole = text_of(traffic, options, compat)
        for size in (1, 20_000):
            with monkeypatch.context() as patch:
                patch.setattr(text, "_CHUNK_BYTES", size)
                assert text_of(traffic, options, compat) == whole


class Hash:
    """
    A file that only remembers its SHA-256.
    """

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.write = self.digest.update


def test_text_of_a_large_capture_is_nprints() -> None:
    """
    200,000 packets, 770 MB of text. Seven packets of four zero bytes are rows to nPrint, made of the packets before
    them.
    """
    with (GOLDEN / "manifest.csv").open() as file:
        (run,) = (r for r in csv.DictReader(file) if r["capture"] == "large.pcap")
    traffic, written = read_capture(GOLDEN / "large.pcap"), Hash()
    assert np.count_nonzero(traffic.captured_lengths == 4) == 7
    text.write_text(written, traffic, parse(run["options"]), "nprint")
    assert written.digest.hexdigest() == run["sha256"]
