"""
From what a user points at to labelled traffic: class folders, captures with a label file, or one bare capture.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import attrs
import numpy as np
from numpy.typing import NDArray

from .capture.flows import assemble, conversation_keys, group_ids
from .capture.pcapfile import is_capture, read_capture
from .capture.pile import Pile
from .columns import pieces
from .context import Advance, silent
from .errors import DataError, did_you_mean
from .model import ICMP, ICMPV6, TCP, UDP, FlowTable, Traffic, concatenate

Array = NDArray[Any]

log = logging.getLogger("netdiffusion")

OpenCapture = Callable[[Path], Traffic | None]

SPLITS = ("train", "test")
_MAX_VISITS = 100

_CAPTURE_NAME = re.compile(r"\.(pcap|pcapng|cap)(\.gz)?$", re.IGNORECASE)
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file's name on Windows
_PROTOCOLS = {"icmp": ICMP, "tcp": TCP, "udp": UDP, "icmpv6": ICMPV6, "ipv6-icmp": ICMPV6, "sctp": 132}
_SYNONYMS = {  # of the columns of a label file, compared without case and punctuation
    "file": "file filename path capture pcap",
    "src": "src srcip source sourceip srcaddr sourceaddress ipsrc saddr idorigh",
    "sport": "sport srcport sourceport portsrc idorigp",
    "dst": "dst dstip destination destinationip dstaddr destinationaddress ipdst daddr idresph",
    "dport": "dport dstport destinationport portdst idrespp",
    "protocol": "protocol proto ipproto transport",
    "label": "label class application app",
    "split": "split",
}
_TUPLE = ("src", "sport", "dst", "dport", "protocol")


@attrs.frozen(kw_only=True)
class ClassSummary:
    """
    One class of a data set.

    flows_train, flows_test, flows_unsplit  flows by split
    packets, captured_bytes, wire_bytes     totals
    transports                              flows by transport, such as ``{"tcp": 60}``
    median_packets                          packets of the median flow
    """

    label: str
    flows_train: int
    flows_test: int
    flows_unsplit: int
    packets: int
    captured_bytes: int
    wire_bytes: int
    transports: Mapping[str, int]
    median_packets: float


@attrs.frozen(kw_only=True)
class _Capture:
    """
    A file to read, its name relative to the data folder, what folders or labels say of it, and its traffic where a
    plugin opened it.
    """

    path: Path
    name: str
    label: str = ""
    split: str = ""
    opened: Traffic | None = None


@attrs.frozen(kw_only=True)
class _Rows:
    """
    A label file, its columns by our names.

    lines   line number of each row
    values  one mapping a row
    """

    path: Path
    lines: list[int]
    values: list[dict[str, str]]

    @property
    def by_file(self) -> bool:
        return "file" in self.values[0]

    def __iter__(self) -> Iterator[tuple[str, dict[str, str]]]:
        """
        Yield ``("labels.csv line 2", values)``.
        """
        return ((f"{self.path} line {line}", values) for line, values in zip(self.lines, self.values, strict=True))

    @property
    def example(self) -> str:
        return f"{','.join(filter(None, self.values[0].values()))!r} (line {self.lines[0]})"


def load(
    path: Path,
    *,
    labels: Path | None = None,
    classes: Sequence[str] = (),
    open_capture: OpenCapture | None = None,
    progress: Callable[[str, int], AbstractContextManager[Advance]] = silent,
) -> Traffic:
    """
    Read labelled flows.

    path          ``DATA/LABEL/*.pcap`` at any depth, one capture, or a folder of captures (one class, named after it).
                  A folder or file named ``train`` or ``test`` sets the split of its flows; where there are any, files
                  outside of them are left out.
    labels        a CSV file with the columns ``file,label`` or ``src,sport,dst,dport,protocol,label`` (either
                  direction), and ``split`` if there is one; what it does not name is left out
    classes       keep these only; empty for all
    open_capture  reads a file that is neither pcap nor pcapng, or returns None

    What is left out is counted in logged warnings. Raises DataError for data that cannot be used.
    """
    rows = _read_rows(labels) if labels else None
    captures = _find(path, labels, open_capture)
    if rows and not rows.by_file:
        captures = [attrs.evolve(c, label="") for c in captures]
        traffic = _label_flows(_read(captures, progress), rows)
        return traffic.select_flows(_wanted(traffic.flows.labels, classes))
    captures = _label_files(captures, rows) if rows else _label_by_folder(path, captures)
    wanted = _wanted(np.array([c.label for c in captures]), classes)
    return _read([c for c, keep in zip(captures, wanted, strict=True) if keep], progress)


def summary(traffic: Traffic) -> list[ClassSummary]:
    """
    Return one row a class, sorted by name.
    """
    flows = traffic.flows
    packets, captured, wire = np.zeros((3, len(flows)), np.int64)
    for piece in pieces(len(traffic)):
        member = traffic.flow_of[piece] >= 0
        flow_of = traffic.flow_of[piece][member]
        packets += np.bincount(flow_of, minlength=len(flows))
        for total, lengths in ((captured, traffic.captured_lengths), (wire, traffic.wire_lengths)):
            total += np.bincount(flow_of, lengths[piece][member], len(flows)).astype(np.int64)
    names = {number: name for name, number in reversed(_PROTOCOLS.items())}
    rows = []
    for label in np.unique(flows.labels):
        mine = flows.labels == label
        splits = Counter(flows.splits[mine].tolist())
        transports = Counter(names.get(p, f"ip-{p}") for p in flows.protocols[mine].tolist())
        rows.append(
            ClassSummary(
                label=str(label),
                flows_train=splits["train"],
                flows_test=splits["test"],
                flows_unsplit=splits[""],
                packets=int(packets[mine].sum()),
                captured_bytes=int(captured[mine].sum()),
                wire_bytes=int(wire[mine].sum()),
                transports=dict(transports.most_common()),
                median_packets=float(np.median(packets[mine])),
            )
        )
    return rows


def folder_name(label: str) -> str:
    """
    Return a label as the name of a folder: what some file system does not take is written as ``%2F``.
    """
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]$', lambda m: f"%{ord(m[0]):02X}", label)
    if _DEVICE.fullmatch(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    return name or "%"


def label_of(folder: str) -> str:
    """
    Undo `folder_name`.
    """
    return unquote(folder, errors="surrogateescape")


def check_label(label: str, where: str) -> str:
    """
    Return a class name that can name a folder. Raises DataError for any other.
    """
    long = len(label) > 100 or len(folder_name(label).encode(errors="replace")) > 240
    if not label or long or label.startswith(".") or not label.isprintable() or set(label) & set("/\\"):
        raise DataError(
            f"{where}: the class name {label[:120]!r} cannot name a folder; use 1 to 100 printable characters "
            "without '/' or '\\', the first not a dot"
        )
    if label.lower() in SPLITS:
        raise DataError(f"{where}: a class cannot be called {label!r}, which names a split; rename it")
    return label


# --- finding ----------------------------------------------------------------------------------------------------


def _find(path: Path, labels: Path | None, open_capture: OpenCapture | None) -> list[_Capture]:
    """
    List the capture files, sorted by name, with their splits. What is no capture by its first bytes, its name or a
    plugin is passed over.
    """
    if not path.exists():
        raise DataError(f"there is no file or folder {path}; give a capture, or a folder with one folder a class")
    if not path.is_dir():
        opened = open_capture(path) if open_capture and not is_capture(path) else None
        return [_Capture(path=path, name=path.name, opened=opened)]
    found = []
    label_file = labels and os.path.realpath(labels)
    for file in sorted(_walk(path)):
        opened = None
        if os.path.realpath(file) == label_file:
            continue
        if not is_capture(file):
            opened = open_capture(file) if open_capture else None
            if opened is None and not _CAPTURE_NAME.search(file.name):
                continue
        name = file.relative_to(path)
        # the innermost of the file's stem and its folders that names a split
        split = next((p.lower() for p in (_stem(file), *reversed(name.parts[:-1])) if p.lower() in SPLITS), "")
        found.append(_Capture(path=file, name=name.as_posix(), split=split, opened=opened))
    if not found:
        raise DataError(f"{path} holds no capture (*.pcap, *.pcapng, also with .gz); put them into {path / 'CLASS'}")
    return found


def _walk(folder: Path, above: frozenset[str] = frozenset(), visits: Counter[str] | None = None) -> Iterator[Path]:
    """
    Yield all files below a folder but hidden ones; links are followed, but not back to a folder above. Raises DataError
    for links so many that the ways through them would never end.
    """
    real, visits = os.path.realpath(folder), Counter() if visits is None else visits
    if real in above:
        return
    visits[real] += 1
    if visits[real] > _MAX_VISITS:
        raise DataError(f"more than {_MAX_VISITS} links lead to the folder {real}; remove those that lead in circles")
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir():
            yield from _walk(folder / entry.name, above | {real}, visits)
        else:
            yield folder / entry.name


def _stem(name: Path) -> str:
    return _CAPTURE_NAME.sub("", name.name) if _CAPTURE_NAME.search(name.name) else name.stem


def _label_by_folder(path: Path, captures: list[_Capture]) -> list[_Capture]:
    """
    Name classes after the outermost folder that is no split, or after DATA itself.
    """
    place = path.resolve()
    own = place.name if path.is_dir() else _stem(path)
    if own.lower() in SPLITS:
        own = place.parent.name
    named = [
        attrs.evolve(c, label=label_of(next((p for p in Path(c.name).parts[:-1] if p.lower() not in SPLITS), "")))
        for c in captures
    ]
    inside = [c for c in named if c.split]
    if inside and len(inside) < len(named):
        outside = Counter(c.label or c.name for c in named if not c.split)
        names = _some(f"{name} ({_many(count, 'file')})" for name, count in outside.items())
        log.warning("%s has captures in train or test; left out, being in neither: %s", path, names)
        named = inside
    direct = [c.name for c in named if not c.label]
    if direct and len(direct) < len(named):
        raise DataError(f"{path} holds captures ({_some(direct)}) beside class folders; move them into class folders")
    return [attrs.evolve(c, label=check_label(c.label or own, str(path))) for c in named]


def _wanted(labels: Array, classes: Sequence[str]) -> NDArray[np.bool_]:
    """
    Return which of the labels are among the classes asked for. Raises DataError for a class that is not there.
    """
    known = sorted(set(labels.tolist()))
    for name in classes:
        if name not in known:
            raise DataError(f"there is no class {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}")
    return np.isin(labels, list(classes)) if classes else np.ones(len(labels), bool)


# --- reading ----------------------------------------------------------------------------------------------------


def _read(captures: list[_Capture], progress: Callable[[str, int], AbstractContextManager[Advance]]) -> Traffic:
    """
    Read all captures and assemble their flows at once; packets of no flow are dropped.
    """
    bare, pile = [], Pile()  # captures without flows, and their packets
    parts = []  # traffic with flows
    with progress("read", len(captures)) as advance:
        for capture in captures:
            traffic = read_capture(capture.path) if capture.opened is None else capture.opened
            if len(traffic.flows):
                parts.append(_name_flows(traffic, capture))
            else:
                bare.append(attrs.evolve(capture, opened=None))
                pile.add(traffic)
            advance(note=capture.name)
    if bare:
        joined, capture_of = pile.traffic()
        label, split, source = (np.array([getattr(c, a) for c in bare]) for a in ("label", "split", "name"))
        parts.insert(0, assemble(joined, label=label, split=split, source=source, capture_of=capture_of))
    traffic = concatenate(parts) if len(parts) > 1 else parts[0]
    _check_flows(captures, set(traffic.flows.sources.tolist()), set(traffic.flows.labels.tolist()))
    return traffic.select_flows(np.arange(len(traffic.flows))) if (traffic.flow_of < 0).any() else traffic


def _name_flows(traffic: Traffic, capture: _Capture) -> Traffic:
    names = (("labels", capture.label), ("splits", capture.split), ("sources", capture.name))
    columns = {column: np.full(len(traffic.flows), name) for column, name in names}
    return attrs.evolve(traffic, flows=attrs.evolve(traffic.flows, **columns))


def _check_flows(captures: list[_Capture], sources: set[str], labels: set[str]) -> None:
    without = [c for c in captures if c.name not in sources]
    for capture in without:
        if capture.label not in labels:
            what = f"class {capture.label!r}" if capture.label else "the data"
            raise DataError(
                f"{what} has no IP flows: {capture.path} holds none, nor does any other of its captures; "
                "give it a capture with IPv4 or IPv6 packets"
            )
    if without:
        names = _some(c.name for c in without)
        log.warning("left out %s without IP flows: %s", _many(len(without), "capture"), names)


def _many(count: int, noun: str) -> str:
    """
    Write ``1 file`` or ``2 files``.
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _some(names: Iterable[str]) -> str:
    """
    Join the first three names.
    """
    listed = list(names)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")


# --- label files ------------------------------------------------------------------------------------------------


def _read_rows(path: Path) -> _Rows:
    """
    Read a label file. Its columns may go by usual synonyms; others are ignored.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"the labels {path} are no file; give a CSV file")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the labels {path}: {getattr(error, 'strerror', None) or error}") from error
    head = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    lines, values = [], []
    try:
        plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in next(reader, [])]
        columns = {
            ours: next((plain.index(s) for s in theirs.split() if s in plain), -1) for ours, theirs in _SYNONYMS.items()
        }
        by_flow = columns["file"] < 0 or all(columns[name] >= 0 for name in _TUPLE)
        needed = (*(_TUPLE if by_flow else ("file",)), "label")
        missing = [name for name in needed if columns[name] < 0]
        if missing:
            raise DataError(
                f"{path} has the columns {head.strip()!r} and lacks {', '.join(missing)}; "
                "its first line must name file,label or src,sport,dst,dport,protocol,label"
            )
        used = {name: columns[name] for name in (*needed, "split") if columns[name] >= 0}
        for row in reader:
            if row:
                lines.append(reader.line_num)
                values.append({name: row[i].strip() for name, i in used.items()})
    except (csv.Error, IndexError) as error:
        raise DataError(f"{path} line {reader.line_num} has fewer columns than the first line, or is no CSV") from error
    if not values:
        raise DataError(f"{path} has no rows below its first line; add one for each file or flow")
    rows = _Rows(path=path, lines=lines, values=values)
    for where, row_values in rows:
        check_label(row_values["label"], where)
        if (split := row_values.setdefault("split", "").lower()) not in ("", *SPLITS):
            raise DataError(f"{where}: the split {split!r} is neither train nor test")
    return rows


def _label_files(captures: list[_Capture], rows: _Rows) -> list[_Capture]:
    """
    Give captures the label of the row that names them: by relative name, else by a file name that is unique.
    """
    by_name = {c.name: i for i, c in enumerate(captures)}
    base_names = Counter(Path(name).name for name in by_name)
    by_name |= {
        Path(n).name: i for n, i in by_name.items() if base_names[Path(n).name] == 1 and Path(n).name not in by_name
    }
    labelled: dict[int, _Capture] = {}
    for where, values in rows:
        i = by_name.get(str(PurePosixPath(values["file"].replace("\\", "/"))))
        if i is None:
            continue
        capture = attrs.evolve(captures[i], label=values["label"], split=values["split"].lower() or captures[i].split)
        if labelled.setdefault(i, capture) != capture:
            raise DataError(f"{where}: {capture.name} has another label in a line before; keep one")
    if not labelled:
        raise DataError(
            f"no row of {rows.path} names a capture: a row is {rows.example}, a capture is "
            f"{captures[0].name!r}; write names relative to the data folder"
        )
    if len(labelled) < len(captures):
        others = (c.name for i, c in enumerate(captures) if i not in labelled)
        count = _many(len(captures) - len(labelled), "capture")
        log.warning("left out %s that %s does not name: %s", count, rows.path, _some(others))
    return [labelled[i] for i in sorted(labelled)]


def _label_flows(traffic: Traffic, rows: _Rows) -> Traffic:
    """
    Keep the flows whose 5-tuple, in either direction, is in the label file, and give them their labels.
    """
    parsed = [_endpoints(where, values) for where, values in rows]
    columns = zip(*parsed, strict=True)
    kinds, addresses, ports = (np.array(c, t) for c, t in zip(columns, (np.int64, np.uint8, np.int64), strict=True))
    flows = traffic.flows
    flow_ports = np.column_stack([flows.initiator_ports, flows.responder_ports]).astype(np.int64)
    flow_ports[np.isin(flows.protocols, (ICMP, ICMPV6))] = 0
    flow_keys, _ = conversation_keys(
        np.zeros(len(flows), np.int64),
        flows.ip_versions.astype(np.int64) << 8 | flows.protocols,
        np.stack([flows.initiator_addresses, flows.responder_addresses], axis=1),
        flow_ports,
    )
    row_keys, _ = conversation_keys(np.zeros(len(kinds), np.int64), kinds, addresses, ports)
    ids, _ = group_ids(np.concatenate([flow_keys, row_keys]))
    flow_ids, row_ids = ids[: len(flows)], ids[len(flows) :]

    outcomes, codes = np.unique([f"{v['label']}/{v['split'].lower()}" for _, v in rows], return_inverse=True)
    code_of = np.full(ids.max() + 1, -1)
    code_of[row_ids] = codes
    unsure = np.zeros(len(code_of), bool)
    unsure[row_ids[code_of[row_ids] != codes]] = True
    named, ambiguous = code_of[flow_ids] >= 0, unsure[flow_ids]
    if not named.any():
        raise DataError(
            f"no row of {rows.path} matches a flow: a row is {rows.example}, a flow is {_describe(flows, 0)!r}"
        )
    keep = named & ~ambiguous
    if not keep.any():
        raise DataError(f"{rows.path} has rows of different labels for every flow that it names; keep one row a flow")
    if ambiguous.any():
        count = _many(int(ambiguous.sum()), "flow")
        log.warning("left out %s with rows of different labels in %s", count, rows.path)
    if not named.all():
        log.warning("left out %d of %s that %s does not name", (~named).sum(), _many(len(flows), "flow"), rows.path)
    kept = traffic.select_flows(keep)
    label, split = np.array([o.split("/") for o in outcomes])[code_of[flow_ids[keep]]].reshape(-1, 2).T
    split = np.where(split == "", kept.flows.splits, split)
    return attrs.evolve(kept, flows=attrs.evolve(kept.flows, labels=label, splits=split))


def _endpoints(where: str, values: Mapping[str, str]) -> tuple[int, list[list[int]], list[int]]:
    """
    Return version and protocol, addresses, ports of a row, as `conversation_keys` wants them.
    """
    name = values["protocol"].lower()
    try:
        source, destination = _address(values["src"]), _address(values["dst"])
        protocol = _PROTOCOLS.get(name) or int(name)
        has_ports = protocol not in (ICMP, ICMPV6)
        ports = [int(values[p] or 0) for p in ("sport", "dport")] if has_ports else [0, 0]
    except ValueError as error:
        raise DataError(f"{where}: {error}; a row holds two addresses, two ports, a protocol and a label") from error
    if not 0 <= protocol < 256 or not all(0 <= p < 1 << 16 for p in ports) or source[0] != destination[0]:
        raise DataError(f"{where}: ports are 0 to 65535, protocols 0 to 255, both addresses IPv4 or both IPv6")
    return source[0] << 8 | protocol, [source[1], destination[1]], ports


@lru_cache(maxsize=1 << 16)
def _address(text: str) -> tuple[int, list[int]]:
    address = ipaddress.ip_address(text)
    return address.version, list(address.packed.ljust(16, b"\0"))


def _describe(flows: FlowTable, i: int) -> str:
    """
    Write a flow as a row of a label file.
    """
    size = 4 if flows.ip_versions[i] == 4 else 16
    ends = (
        (flows.initiator_addresses[i], flows.initiator_ports[i]),
        (flows.responder_addresses[i], flows.responder_ports[i]),
    )
    return ",".join(f"{ipaddress.ip_address(a[:size].tobytes())},{p}" for a, p in ends) + f",{flows.protocols[i]}"
