"""
What a user may point at, and what is said when it cannot be used.
"""

from __future__ import annotations

import csv
import gzip
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from netdiffusion_core import columns, dataset
from netdiffusion_core.capture import assemble, pcapfile, read_capture
from netdiffusion_core.dataset import ClassSummary, check_label, load, summary
from netdiffusion_core.errors import DataError
from netdiffusion_core.model import Traffic

DATA = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[2] / "shared")) / "data"
SAMPLE = Path(dataset.__file__).parent / "samples/lab"


def capture(*ports: int, protocol: int = 17) -> bytes:
    """
    A pcap of raw IP: from each port of 10.0.0.1 a packet to port 53 of 10.0.0.2, and one back.
    """
    records = []
    for i, port in enumerate(ports):
        for ends, (source, destination) in (((1, 2), (port, 53)), ((2, 1), (53, port))):
            addresses = b"".join(bytes([10, 0, 0, e]) for e in ends)
            packet = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, protocol, 0) + addresses
            records.append(packet + struct.pack("!HHHH", source, destination, 8, 0))
            records[-1] = struct.pack("<IIII", 1_700_000_000 + i, 0, 28, 28) + records[-1]
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101) + b"".join(records)


ARP_ONLY = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + struct.pack("<IIII12xH", 1, 0, 14, 14, 0x0608)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """
    Write files below a folder named ``mine`` and return it.
    """

    def write(files: dict[str, bytes]) -> Path:
        for name, content in files.items():
            path = tmp_path / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "mine"

    return write


def rows(traffic: Traffic) -> list[tuple[str, str, int]]:
    flows = traffic.flows
    return list(zip(flows.labels.tolist(), flows.splits.tolist(), flows.initiator_ports.tolist(), strict=True))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a/1.pcap": [1, 2], "b/x/y/2.pcap": [3]}, [("a", "", 1), ("a", "", 2), ("b", "", 3)]),
        ({"a/train.pcap": [1, 2], "a/test.pcap": [3]}, [("a", "test", 3), ("a", "train", 1), ("a", "train", 2)]),
        ({"a/train/1.pcap": [1], "a/test/1.pcap": [3]}, [("a", "test", 3), ("a", "train", 1)]),
        ({"Train/a/1.pcap": [1], "Test/a/1.pcap": [3]}, [("a", "test", 3), ("a", "train", 1)]),
        ({"train/1.pcap": [1], "test/1.pcap": [3]}, [("mine", "test", 3), ("mine", "train", 1)]),
        ({"1.pcap": [1], "2.cap": [1]}, [("mine", "", 1), ("mine", "", 1)]),
        ({"a/train/1.pcap": [1], "captures/1.pcap": [5]}, [("a", "train", 1)]),
        ({"a/1.pcap": [1], ".git/2.pcap": [2], "a/._1.pcap": [3]}, [("a", "", 1)]),
        ({"a/no-suffix": [1]}, [("a", "", 1)]),
    ],
)
def test_folders_name_classes_and_splits(
    tree, files: dict[str, list[int]], expected: list[tuple[str, str, int]]
) -> None:
    data = tree({name: capture(*ports) for name, ports in files.items()} | {"README.md": b"#", "a/b.csv": b"a,b"})
    traffic = load(data)
    assert sorted(rows(traffic)) == sorted(expected)
    assert set(traffic.flows.sources.tolist()) <= set(files)
    assert (traffic.flow_of >= 0).all()


def test_what_lies_outside_of_the_splits_is_named(tree, caplog: pytest.LogCaptureFixture) -> None:
    load(tree({"a/train/1.pcap": capture(1), "captures/1.pcap": capture(1), "captures/2.pcap": b"damaged"}))
    assert "captures (2 files)" in caplog.text


def test_one_capture_is_one_class(tree) -> None:
    data = tree({"web site.pcap.gz": gzip.compress(capture(1, 2))})
    assert rows(load(data / "web site.pcap.gz")) == [("web site", "", 1), ("web site", "", 2)]


def test_a_linked_class_folder_is_followed_and_a_loop_is_not(tree) -> None:
    data = tree({"a/1.pcap": capture(1)})
    (data / "b").symlink_to(data / "a", target_is_directory=True)
    (data / "a" / "loop").symlink_to(data, target_is_directory=True)
    assert {r[0] for r in rows(load(data))} == {"a", "b"}


def test_captures_beside_class_folders_are_a_mistake(tree) -> None:
    with pytest.raises(DataError, match=r"captures \(2\.pcap\) beside class folders"):
        load(tree({"a/1.pcap": capture(1), "2.pcap": capture(1)}))


@pytest.mark.parametrize(
    "content",
    [
        "file,label,split\na/1.pcap,web,train\n2.pcap,dns,test\n",
        "Label;Path;split\r\nweb;./a/1.pcap;TRAIN\r\n\r\ndns;b/2.pcap;test\r\n",
    ],
)
def test_labels_by_file(tree, caplog: pytest.LogCaptureFixture, content: str) -> None:
    data = tree({"a/1.pcap": capture(1), "b/2.pcap": capture(2), "b/3.pcap": b"not read", "l.csv": content.encode()})
    assert sorted(rows(load(data, labels=data / "l.csv"))) == [("dns", "test", 2), ("web", "train", 1)]
    assert "left out 1 capture that" in caplog.text
    assert rows(load(data, labels=data / "l.csv", classes=["dns"])) == [("dns", "test", 2)]


@pytest.mark.parametrize(
    "content",
    [
        "src,sport,dst,dport,protocol,label\n10.0.0.1,1,10.0.0.2,53,udp,web\n10.0.0.2,53,10.0.0.1,2,17,dns\n",
        "\ufeffSource IP,Source Port,Destination IP,Destination Port,Proto,Class,other\n"
        "10.0.0.2,53,10.0.0.1,1,UDP,web,\n10.0.0.1,2,10.0.0.2,53,udp,dns,\n10.0.0.1,2,10.0.0.2,53,udp,dns,\n",
    ],
)
def test_labels_by_flow_in_either_direction(tree, caplog: pytest.LogCaptureFixture, content: str) -> None:
    data = tree({"x/1.pcap": capture(3, 1, 2), "l.csv": content.encode()})
    assert rows(load(data, labels=data / "l.csv")) == [("web", "", 1), ("dns", "", 2)]
    assert "left out 1 of 3 flows that" in caplog.text
    assert rows(load(data / "x/1.pcap", labels=data / "l.csv", classes=["dns"])) == [("dns", "", 2)]


def test_flows_with_two_labels_are_left_out(tree, caplog: pytest.LogCaptureFixture) -> None:
    head, row = "src,sport,dst,dport,protocol,label\n", "10.0.0.1,{},10.0.0.2,53,udp,{}\n"
    table = head + row.format(1, "a") + row.format(1, "b") + row.format(2, "a")
    data = tree({"1.pcap": capture(1, 2), "l.csv": table.encode()})
    assert rows(load(data, labels=data / "l.csv")) == [("a", "", 2)]
    assert "left out 1 flow with rows of different labels" in caplog.text


TUPLE = "src,sport,dst,dport,protocol,label\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "lacks"),
        ("a,b\n1,2\n", "lacks src, sport"),
        ("file,label\n", "no rows"),
        ("file,label\nx.pcap\n", "line 2"),
        ("file,label\nx.pcap,a\n", r"names a capture: a row is 'x.pcap,a' \(line 2\).*'1.pcap'"),
        ("file,label\n1.pcap,a\n1.pcap,b\n", "line 3"),
        ("file,label\n1.pcap,../up\n", "line 2.*cannot name a folder"),
        ("file,label,split\n1.pcap,a,validation\n", "neither train nor test"),
        (TUPLE + "10.0.0.9,1,10.0.0.2,53,udp,a\n", r"matches a flow.*'10.0.0.1,7,10.0.0.2,53,17'"),
        (TUPLE + "10.0.0.1,7,10.0.0.2,53,udp,a\n10.0.0.1,7,10.0.0.2,53,udp,b\n", "rows of different labels"),
        (TUPLE + "nowhere,1,10.0.0.2,53,udp,a\n", "line 2.*nowhere"),
        (TUPLE + "10.0.0.1,70000,10.0.0.2,53,udp,a\n", "line 2.*65535"),
        (TUPLE + "10.0.0.1,x,10.0.0.2,53,udp,a\n", "line 2.*'x'"),
        (TUPLE + "::1,1,10.0.0.2,53,udp,a\n", "line 2.*both"),
    ],
)
def test_an_unusable_label_file_says_where(tree, content: str, says: str) -> None:
    data = tree({"1.pcap": capture(7), "l.csv": content.encode()})
    with pytest.raises(DataError, match=says):
        load(data, labels=data / "l.csv")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"README.md": b"#"}, "holds no capture"),
        ({"a/1.pcap": b"text", "b/1.pcap": capture(1)}, "a/1.pcap is not a capture"),
        ({"a/1.pcap": b"", "b/1.pcap": capture(1)}, "a/1.pcap is empty"),
        ({"a/1.pcap": capture(), "b/1.pcap": capture(1)}, "class 'a' has no IP flows"),
        ({"a/1.pcap": ARP_ONLY}, "class 'a' has no IP flows"),
        ({"a" * 101 + "/1.pcap": capture(1)}, "cannot name a folder"),
    ],
)
def test_unusable_data_says_why(tree, files: dict[str, bytes], says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(tree(files))


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_one_empty_capture_among_others_is_a_warning(tree, caplog: pytest.LogCaptureFixture) -> None:
    data = tree({"a/1.pcap": capture(1), "a/2.pcap": ARP_ONLY, "a/3.pcap": capture()})
    assert rows(load(data)) == [("a", "", 1)]
    assert "left out 2 captures without IP flows: a/2.pcap, a/3.pcap" in caplog.text


def test_classes_are_filtered_before_they_are_read(tree) -> None:
    data = tree({"dns/1.pcap": capture(1), "web/1.pcap": b"damaged"})
    assert rows(load(data, classes=["dns"])) == [("dns", "", 1)]
    with pytest.raises(DataError, match=r"no class 'dsn'\. Did you mean 'dns'\? There are: dns, web"):
        load(data, classes=["dsn"])


@pytest.mark.parametrize("label", ["", "..", ".a", "a/b", "a\\b", "a\0", "a\n", "x" * 101, "train", "TEST"])
def test_labels_that_cannot_name_a_class(label: str) -> None:
    with pytest.raises(DataError, match=r"labels\.csv line 2"):
        check_label(label, "labels.csv line 2")
    assert check_label("Web, TLS 1.3 (é)", "") == "Web, TLS 1.3 (é)"


def test_a_plugin_opens_what_is_no_pcap(tree) -> None:
    data = tree({"a/1.odd": b"ODD1", "a/2.pcap": capture(2), "b/1.pcap": b"ODD3", "a/notes.txt": b"", "odd": b"ODD4"})
    asked = []

    def open_capture(path: Path) -> Traffic | None:
        asked.append(path.name)
        content = path.read_bytes()
        if not content.startswith(b"ODD"):
            return None
        pcap = path.with_name(".as-pcap")
        pcap.write_bytes(capture(int(content[3:])))
        traffic = read_capture(pcap)
        return assemble(traffic, label="its own") if content == b"ODD3" else traffic  # with or without flows

    (data / "odd").unlink()
    traffic = load(data, open_capture=open_capture)
    assert sorted(rows(traffic)) == [("a", "", 1), ("a", "", 2), ("b", "", 3)]
    assert sorted(traffic.flows.sources.tolist()) == ["a/1.odd", "a/2.pcap", "b/1.pcap"]
    assert sorted(asked) == ["1.odd", "1.pcap", "notes.txt"]


def test_progress_and_summary(tree) -> None:
    from contextlib import contextmanager

    seen = []

    @contextmanager
    def progress(title: str, total: int):
        seen.append((title, total))
        yield lambda steps=1, note="": seen.append((steps, note))

    data = tree({"a/train.pcap": capture(1, 2), "a/test.pcap": capture(3, protocol=6), "b/train.pcap": capture(4)})
    traffic = load(data, progress=progress)
    assert seen == [("read", 3), (1, "a/test.pcap"), (1, "a/train.pcap"), (1, "b/train.pcap")]
    assert summary(traffic)[0] == ClassSummary(
        label="a",
        flows_train=2,
        flows_test=1,
        flows_unsplit=0,
        packets=6,
        captured_bytes=6 * 28,
        wire_bytes=6 * 28,
        transports={"udp": 2, "tcp": 1},
        median_packets=2.0,
    )
    assert [row.label for row in summary(traffic)] == ["a", "b"]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no labelled captures in {DATA}; set NETDIFFUSION_TEST_DATA")
def test_real_flows_are_what_an_independent_tool_found() -> None:
    classes = ["alexa-http", "modbus", "realtime-media", "ssh", "web-tls"]
    traffic = load(DATA, classes=classes)
    flows = traffic.flows
    packets = np.bincount(traffic.flow_of, minlength=len(flows)).tolist()
    sent = np.bincount(traffic.flow_of, traffic.from_initiator, len(flows)).astype(int).tolist()
    clients = [
        f"{'.'.join(map(str, a[:4]))}:{p}"
        for a, p in zip(flows.initiator_addresses, flows.initiator_ports, strict=True)
    ]
    columns = (flows.sources.tolist(), flows.labels.tolist(), flows.splits.tolist(), packets, sent, clients)
    with (DATA / "flows.csv").open(newline="") as file:
        known = [r for r in csv.DictReader(file) if r["label"] in classes]
    expected = [
        (r["file"], r["label"], r["split"], int(r["packets"]), int(r["packets_client"]), r["client"]) for r in known
    ]
    assert sorted(zip(*columns, strict=True)) == sorted(expected)


@pytest.mark.parametrize(("in_memory", "rows"), [(1, 7), (500, 100), (20_000, 1000)])
def test_what_does_not_fit_into_memory_lies_on_disk_and_is_the_same(
    monkeypatch: pytest.MonkeyPatch, in_memory: int, rows: int
) -> None:
    def worked_on() -> list[Any]:
        traffic = dataset.load(SAMPLE, classes=["dns", "ping", "https-page"])
        backwards = attrs.evolve(traffic, timestamps=traffic.timestamps[::-1])
        some = backwards.select_flows(np.arange(len(traffic.flows))[::-3])
        order, starts = backwards.by_flow()
        return [traffic.packed(), some.packed(), summary(traffic), order.tolist(), starts.tolist()]

    whole = worked_on()
    monkeypatch.setattr(columns, "SPOOLED_BYTES", in_memory)
    monkeypatch.setattr(columns, "PIECE_ROWS", rows)
    assert worked_on() == whole
    assert len(whole[0]) > 2000


def test_memory_does_not_grow_with_the_packets(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (columns, "SPOOLED_BYTES", 10_000), (columns, "PIECE_ROWS", 10_000),
        (pcapfile, "MAPPED_BYTES", 1000), (pcapfile, "_WINDOW_BYTES", 100_000),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    some = capture(*range(1000, 1500))
    data = tree({"few/1.pcap": some + 99 * some[24:], "many/1.pcap": some + 299 * some[24:]})
    peaks = []
    for name, packets in (("few", 100_000), ("many", 300_000)):
        tracemalloc.start()
        traffic = load(data / name)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (len(traffic), len(traffic.flows)) == (packets, 500)
    assert peaks[1] < 1.1 * peaks[0]
