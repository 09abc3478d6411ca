"""
Read pcap and pcapng files (gzip of either too), write pcap.

Where a record begins is known only when the one before has been read, so one short loop runs over the records and
notes positions; all fields of all records are then taken at once with NumPy.

Sources: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import gzip
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, RunError
from ..model import LINK_ETHERNET, FlowTable, Traffic

Array = NDArray[Any]

log = logging.getLogger("netdiffusion")

MAX_CAPTURED_BYTES = 1 << 18
"""More than that in one packet is taken for a damaged file (libpcap's MAXIMUM_SNAPLEN)."""

_MAX_BLOCK_BYTES = 1 << 24
_MAX_UNPACKED_BYTES = 1 << 31
_NS = 1_000_000_000

_GZIP = b"\x1f\x8b"
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_PCAP = {  # magic in the file's byte order: nanoseconds a tick, bytes of a record header
    0xA1B2C3D4: (1000, 16),
    0xA1B23C4D: (1, 16),
    0xA1B2CD34: (1000, 24),  # Kuznetzov's "modified" pcap
}
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
_PACKETS = (_ENHANCED_PACKET, _OLD_PACKET, _SIMPLE_PACKET)
_RECORD = np.dtype([("seconds", "<u4"), ("nanoseconds", "<u4"), ("captured", "<u4"), ("wire", "<u4")])


def is_capture(path: Path) -> bool:
    """
    Tell by its first bytes whether a file is pcap or pcapng, gzipped or not; False for one that cannot be read.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return False
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, 4)
        except zlib.error:
            return False
    return head[:4] == _PCAPNG or _byte_order(head) != ""


def read_capture(path: Path) -> Traffic:
    """
    Read all packets of a capture file; flows are not assembled (``flow_of`` is -1, the flow table is empty).

    The packets before the cut of a truncated file are kept, and a warning is logged. Raises DataError for a file that
    is no capture or is damaged.
    """
    content = _content(path)
    if content[:4] == _PCAPNG:
        return _read_pcapng(path, content)
    if not content:
        raise DataError(f"{path} is empty (0 bytes); capture it again")
    if not _byte_order(content):
        raise DataError(
            f"{path} is not a capture: it begins with {content[:8]!r}, which is neither pcap nor pcapng; "
            "if it is another capture format, convert it with Wireshark's editcap"
        )
    return _read_pcap(path, content)


def write_capture(path: Path, traffic: Traffic, order: Array | None = None) -> None:
    """
    Write packets (all, or those at the indices `order`, in that order) as a little-endian nanosecond pcap file.

    Original lengths are kept. The file appears under its name only when it is whole. Raises DataError for packets of
    several link types or of a time that pcap cannot hold, RunError when the disk does not take it.
    """
    part = traffic if order is None else traffic.select_packets(np.asarray(order, np.int64))
    links = np.unique(part.link_types)
    if len(links) > 1:
        raise DataError(
            f"{path} would mix the link types {', '.join(map(str, links))}, and a pcap file holds one; "
            "write one file a link type"
        )
    seconds, nanoseconds = np.divmod(part.timestamps, _NS)
    if len(part) and not (seconds.min() >= 0 and seconds.max() < 1 << 32):
        raise DataError(f"{path}: pcap holds times from 1970 to 2106, and a packet lies outside")
    lengths = part.captured_lengths
    records = np.empty(len(part), _RECORD)
    for name, values in zip(_RECORD.names or (), (seconds, nanoseconds, lengths, part.wire_lengths), strict=True):
        records[name] = values

    link = int(links[0]) if len(links) else LINK_ETHERNET
    header = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, MAX_CAPTURED_BYTES, link)
    content = np.empty(len(records) * _RECORD.itemsize + len(part.data), np.uint8)
    is_data = np.ones(len(content), bool)
    at = part.offsets[:-1] + np.arange(len(part)) * _RECORD.itemsize
    at = (at[:, None] + np.arange(_RECORD.itemsize)).ravel()
    is_data[at] = False
    content[at] = records.view(np.uint8)
    content[is_data] = part.data
    _write_whole(path, header, content)


def _write_whole(path: Path, *pieces: Any) -> None:
    """
    Write a file under a temporary name beside it, then give it its own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def _content(path: Path) -> bytes:
    """
    Return the content of a file, unpacked, without filling the memory. A pipe or device is no capture file.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
        return _unpack(path) if packed else path.read_bytes()
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}; fetch or compress it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _unpack(path: Path) -> bytes:
    pieces, room = [], _MAX_UNPACKED_BYTES
    try:
        with gzip.open(path) as file:
            while piece := file.read1(1 << 20):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise DataError(f"{path} unpacks to more than {_MAX_UNPACKED_BYTES >> 30} GiB; gunzip it first")
    except EOFError:
        log.warning("%s: the gzip data is cut short; the packets before the cut are kept", path)
    return b"".join(pieces)


def _byte_order(content: bytes) -> str:
    """
    Return ``<`` or ``>`` for a pcap file, an empty string for anything else.
    """
    return next((o for o in "<>" if len(content) >= 4 and struct.unpack_from(f"{o}I", content)[0] in _PCAP), "")


def _damaged(path: Path, at: int, what: str) -> DataError:
    return DataError(f"{path} is damaged at byte {at}: {what}; Wireshark's editcap may save the packets before")


def _warn_cut(path: Path, at: int, packets: int) -> None:
    log.warning("%s is cut short at byte %d; the %d whole packets before are kept", path, at, packets)


_NO_ADDRESSES = np.zeros((0, 16), np.uint8)
_COLUMNS: dict[str, Any] = {f.name: _NO_ADDRESSES if "addresses" in f.name else [] for f in attrs.fields(FlowTable)}
NO_FLOWS = FlowTable(**_COLUMNS)


def _traffic(content: bytes, starts: Array, lengths: Array, times: Array, wire: Array, links: Array) -> Traffic:
    pieces = [content[start:end] for start, end in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]
    return Traffic(
        data=np.frombuffer(b"".join(pieces), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        timestamps=times,
        wire_lengths=np.maximum(wire, lengths),
        link_types=links,
        flow_of=np.full(len(starts), -1),
        from_initiator=np.zeros(len(starts), bool),
        flows=NO_FLOWS,
    )


def _read_pcap(path: Path, content: bytes) -> Traffic:
    order = _byte_order(content)
    if len(content) < 24:
        raise DataError(f"{path} is cut short in its file header ({len(content)} of 24 bytes); capture it again")
    magic, link = struct.unpack_from(f"{order}I16xI", content)
    tick, header = _PCAP[magic]
    captured_length = struct.Struct(f"{order}I").unpack_from
    size, at, positions = len(content), 24, []
    while at + header <= size:
        (captured,) = captured_length(content, at + 8)
        if captured > MAX_CAPTURED_BYTES:
            raise _damaged(path, at, f"a packet claims {captured} captured bytes")
        end = at + header + captured
        if end > size:
            break
        positions.append(at)
        at = end
    if at < size:
        _warn_cut(path, at, len(positions))

    starts = np.array(positions, np.int64)
    fields = _fields(content, starts, 4, order)
    seconds, fraction, captured, wire = fields.T
    links = np.full(len(starts), link & 0xFFFF)
    return _traffic(content, starts + header, captured, seconds * _NS + fraction * tick, wire, links)


def _fields(content: bytes, at: Array, count: int, order: str) -> NDArray[np.int64]:
    """
    Read `count` unsigned 32-bit fields at each position: int64[positions, count]. What lies behind the end of the
    file (a short last block) is arbitrary.
    """
    raw = np.frombuffer(content, np.uint8).take(at[:, None] + np.arange(4 * count), mode="clip")
    return raw.view(f"{order}u4").reshape(len(at), count).astype(np.int64)


def _read_pcapng(path: Path, content: bytes) -> Traffic:
    if len(content) < 28:
        raise DataError(f"{path} is cut short in its section header ({len(content)} of 28 bytes); capture it again")
    size, at, unpack = len(content), 0, struct.Struct("<II").unpack_from
    positions: list[int] = []
    sections: list[tuple[int, int, bool]] = []  # packets before it, interfaces before it, big-endian
    interfaces: list[tuple[int, int, int, int]] = []  # link type, snap length, time resolution, time offset in seconds
    while at + 12 <= size:
        kind, length = unpack(content, at)
        if kind == _SECTION:
            order = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}.get(content[at + 8 : at + 12], "")
            if not order:
                raise _damaged(path, at, "the section header has no byte-order mark")
            unpack = struct.Struct(f"{order}II").unpack_from
            length = unpack(content, at)[1]
            sections.append((len(positions), len(interfaces), order == ">"))
        if length < 12 or length % 4 or length > _MAX_BLOCK_BYTES:
            raise _damaged(path, at, f"a block claims {length} bytes")
        if at + length > size:
            break
        if kind in _PACKETS:
            positions.append(at)
        elif kind == _INTERFACE:
            if length < 20:
                raise _damaged(path, at, f"an interface description has {length} bytes")
            interfaces.append(_interface(content[at + 8 : at + length - 4], order))
        at += length
    if at < size:
        _warn_cut(path, at, len(positions))
    if not positions:
        return _traffic(content, *[np.zeros(0, np.int64)] * 5)
    return _packet_blocks(path, content, np.array(positions, np.int64), np.array(sections), np.array(interfaces))


def _interface(body: bytes, order: str) -> tuple[int, int, int, int]:
    """
    Read link type, snap length, time resolution (if_tsresol, 6: microseconds) and time offset of an interface.
    """
    link, snap = struct.unpack_from(f"{order}HxxI", body)
    resolution, offset, at = 6, 0, 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(f"{order}HH", body, at)
        value = body[at + 4 : at + 4 + length]
        if code == 9 and len(value) == 1:
            resolution = value[0]
        elif code == 14 and len(value) == 8:
            (offset,) = struct.unpack(f"{order}q", value)
        elif code == 0:
            break
        at += 4 + (length + 3) // 4 * 4
    return link, snap, resolution, offset


def _packet_blocks(path: Path, content: bytes, at: Array, sections: Array, interfaces: Array) -> Traffic:
    """
    Read all packet blocks: enhanced, simple, and the obsolete one.
    """
    section = np.searchsorted(sections[:, 0], np.arange(len(at)), side="right") - 1
    big = sections[section, 2] > 0
    fields = _fields(content, at, 7, "<")
    fields[big] = _fields(content, at[big], 7, ">")
    kind, length, first, high, low, captured, wire = fields.T
    simple, old = kind == _SIMPLE_PACKET, kind == _OLD_PACKET
    head = np.where(simple, 12, 28)
    if (short := length < head + 4).any():
        raise _damaged(path, int(at[short.argmax()]), "a packet block is too short for its fields")
    trailer = _fields(content, at + length - 4, 1, "<")
    trailer[big] = _fields(content, (at + length - 4)[big], 1, ">")
    if (unlike := trailer[:, 0] != length).any():
        raise _damaged(path, int(at[unlike.argmax()]), "the two lengths of a block differ")

    interface = np.where(simple, 0, np.where(old, np.where(big, first >> 16, first & 0xFFFF), first))
    last = np.append(sections[1:, 1], len(interfaces))[section]
    interface += sections[section, 1]
    if (unknown := interface >= last).any():
        raise _damaged(path, int(at[unknown.argmax()]), "a packet names an interface that is not described")
    link, snap, resolution, offset = interfaces[interface].T

    cut = np.minimum(np.minimum(first, np.where(snap > 0, snap, first)), length - 16)
    captured = np.where(simple, cut, captured)
    if (wrong := (captured > MAX_CAPTURED_BYTES) | (captured > length - head - 4)).any():
        i = int(wrong.argmax())
        raise _damaged(path, int(at[i]), f"a packet claims {captured[i]} captured bytes")
    ticks = np.where(simple, 0, high << 32 | low)
    if simple.any():
        log.warning("%s: %d packets have no time stamp (simple packet blocks); theirs is 0", path, simple.sum())
    seconds, nanoseconds = _clock(ticks, resolution)
    seconds = np.where(simple, 0, seconds + offset)
    if (wrong := (ticks < 0) | (seconds < 0) | (seconds >= 1 << 33)).any():
        raise _damaged(path, int(at[wrong.argmax()]), "a time stamp lies outside the years 1970 to 2242")
    return _traffic(content, at + head, captured, seconds * _NS + nanoseconds, np.where(simple, first, wire), link)


def _clock(ticks: Array, resolution: Array) -> tuple[Array, Array]:
    """
    Turn ticks into seconds and nanoseconds. `resolution` is if_tsresol: a negative power of ten, of two with bit 7 set.
    """
    seconds, nanoseconds = np.zeros_like(ticks), np.zeros_like(ticks)
    for code in np.unique(resolution).tolist():
        i = resolution == code
        power = code & 0x7F
        if code & 0x80:
            fine = max(power - 30, 0)  # beyond 2**-30 s a tick is below the nanosecond
            scale = 1 << (power - fine)
            reduced = ticks[i] >> min(fine, 63)
        else:
            fine = max(power - 9, 0)
            scale = 10 ** (power - fine)
            reduced = ticks[i] // 10**fine if fine < 19 else 0 * ticks[i]
        seconds[i], rest = np.divmod(reduced, scale)
        nanoseconds[i] = rest * _NS // scale
    return seconds, nanoseconds
