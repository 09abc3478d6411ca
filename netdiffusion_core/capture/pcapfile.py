"""
Read pcap and pcapng files (gzip of either too), write pcap.

Where a record begins is known only when the one before has been read, so one short loop runs over the records and
notes positions; all fields of all records are then taken at once with NumPy.

Sources: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import errno
import gzip
import logging
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np
from numpy.typing import NDArray

from ..columns import Spool, pieces
from ..errors import DataError, RunError
from ..model import LINK_ETHERNET, FlowTable, Traffic

Array = NDArray[Any]

log = logging.getLogger("netdiffusion")

MAX_CAPTURED_BYTES = 1 << 18
"""More than that in one packet is taken for a damaged file (libpcap's MAXIMUM_SNAPLEN)."""

_MAX_BLOCK_BYTES = 1 << 24
_MAX_INTERFACES = 1 << 20
_MAX_UNPACKED_BYTES = 1 << 31
_WINDOW_BYTES = 1 << 24
_MAX_WIRE_BYTES = (1 << 31) - 1

MAPPED_BYTES = 1 << 28
"""A larger file is mapped and not read into memory."""

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
    links = sorted({link for rows in pieces(len(part)) for link in np.unique(part.link_types[rows]).tolist()})
    if len(links) > 1:
        raise DataError(
            f"{path} would mix the link types {', '.join(map(str, links))}, and a pcap file holds one; "
            "write one file a link type"
        )
    if len(part) and not (part.timestamps.min() >= 0 and part.timestamps.max() < _NS << 32):
        raise DataError(f"{path}: pcap holds times from 1970 to 2106, and a packet lies outside")
    link = links[0] if links else LINK_ETHERNET
    with _whole_or_not(path) as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, MAX_CAPTURED_BYTES, link))
        for chunk in part.chunks():
            file.write(_records(part.select_packets(chunk).packed()).data)


def _records(traffic: Traffic) -> Array:
    """
    Return packed packets with the record header before each: uint8[bytes].
    """
    headers = np.empty(len(traffic), _RECORD)
    columns = (*np.divmod(traffic.timestamps, _NS), traffic.captured_lengths, traffic.wire_lengths)
    for name, values in zip(_RECORD.names or (), columns, strict=True):
        headers[name] = values
    records = np.empty(headers.nbytes + len(traffic.data), np.uint8)
    is_data = np.ones(len(records), bool)
    at = traffic.starts + np.arange(len(traffic)) * _RECORD.itemsize
    at = (at[:, None] + np.arange(_RECORD.itemsize)).ravel()
    is_data[at] = False
    records[at] = headers.view(np.uint8)
    records[is_data] = traffic.data
    return records


@contextmanager
def _whole_or_not(path: Path) -> Iterator[BinaryIO]:
    """
    Open a file for writing that appears under its name only when it is whole. Raises RunError when the disk does not
    take it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("xb") as file:  # never through a link that somebody put there
                yield file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def _content(path: Path) -> bytes | mmap.mmap:
    """
    Return the content of a file, unpacked: in memory, or mapped where it is large. A pipe or device is no capture file.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            return _unpack(path) if packed else _whole(file)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}; fetch or compress it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _whole(file: BinaryIO) -> bytes | mmap.mmap:
    size = file.seek(0, os.SEEK_END)
    if size > MAPPED_BYTES:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.seek(0)
    return file.read()


def _unpack(path: Path) -> bytes | mmap.mmap:
    """
    Unpack a gzip file into a nameless one. Raises RunError when there is no space for it.
    """
    with tempfile.TemporaryFile() as file:
        try:
            with gzip.open(path) as packed:
                while piece := packed.read1(1 << 20):
                    if file.tell() + len(piece) > _MAX_UNPACKED_BYTES:
                        raise DataError(f"{path} unpacks to more than {_MAX_UNPACKED_BYTES >> 30} GiB; gunzip it first")
                    file.write(piece)
        except EOFError:
            log.warning("%s: the gzip data is cut short; the packets before the cut are kept", path)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            place = tempfile.gettempdir()
            raise RunError(f"{path} cannot be unpacked: {place} is full; free some space, or set TMPDIR") from error
        file.flush()
        return _whole(file)


def _let_go(content: bytes | mmap.mmap) -> None:
    """
    Let go of the pages of a mapped file that were read: they would count as memory in use.
    """
    if isinstance(content, mmap.mmap):
        content.madvise(mmap.MADV_DONTNEED)


def _byte_order(content: bytes | mmap.mmap) -> str:
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


class _Columns:
    """
    The columns of the packets read so far, window by window. A capture of a few gigabytes has tens of millions of
    packets, so they are kept small, and on disk where they are many.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts, self._times = Spool(np.int64), Spool(np.int64)
        self._captured, self._wire, self._links = Spool(np.int32), Spool(np.int32), Spool(np.uint16)

    def add(self, starts: Array, captured: Array, wire: Array, times: Array, links: Array) -> None:
        """
        Add packets: starts, captured and wire lengths in bytes, times in nanoseconds, link types; int64[packets] each.
        """
        if (too_long := wire > _MAX_WIRE_BYTES).any():
            log.warning("%s: %d packets claim more than 2 GiB on the wire; 2 GiB is taken", self._path, too_long.sum())
        self._starts.append(starts)
        self._captured.append(captured)
        self._wire.append(np.clip(wire, captured, _MAX_WIRE_BYTES))
        self._times.append(times)
        self._links.append(links)

    def traffic(self, content: bytes | mmap.mmap) -> Traffic:
        """
        Make a traffic of them, without flows.
        """
        times = self._times.array()
        return Traffic(
            data=np.frombuffer(content, np.uint8),
            starts=self._starts.array(),
            captured_lengths=self._captured.array(),
            wire_lengths=self._wire.array(),
            timestamps=times,
            link_types=self._links.array(),
            flow_of=np.broadcast_to(np.int32(-1), len(times)),
            from_initiator=np.broadcast_to(np.False_, len(times)),
            flows=NO_FLOWS,
        )


def _read_pcap(path: Path, content: bytes | mmap.mmap) -> Traffic:
    order = _byte_order(content)
    if len(content) < 24:
        raise DataError(f"{path} is cut short in its file header ({len(content)} of 24 bytes); capture it again")
    magic, link = struct.unpack_from(f"{order}I16xI", content)
    tick, header = _PCAP[magic]
    captured_length = struct.Struct(f"{order}I").unpack_from
    size, at, packets = len(content), 24, 0
    columns = _Columns(path)
    while at + header <= size:
        window_end = min(at + _WINDOW_BYTES, size - header + 1)
        positions = []
        while at < window_end:
            positions.append(at)
            at += header + captured_length(content, at + 8)[0]
        starts = np.array(positions, np.int64)
        seconds, fraction, captured, wire = _fields(content, starts, 4, order).T
        if (wrong := captured > MAX_CAPTURED_BYTES).any():
            i = int(wrong.argmax())
            raise _damaged(path, positions[i], f"a packet claims {captured[i]} captured bytes")
        whole = len(starts) - (at > size)
        times = seconds * _NS + fraction * tick
        found = (starts + header, captured, wire, times, np.full_like(wire, link & 0xFFFF))
        columns.add(*(column[:whole] for column in found))
        packets += whole
        _let_go(content)
    if at != size:
        _warn_cut(path, at if at < size else positions[-1], packets)
    return columns.traffic(content)


def _fields(content: bytes | mmap.mmap, at: Array, count: int, order: str) -> NDArray[np.int64]:
    """
    Read `count` unsigned 32-bit fields at each position: int64[positions, count]. What lies behind the end of the
    file (a short last block) is arbitrary.
    """
    raw = np.frombuffer(content, np.uint8).take(at[:, None] + np.arange(4 * count), mode="clip")
    return raw.view(f"{order}u4").reshape(len(at), count).astype(np.int64)


def _read_pcapng(path: Path, content: bytes | mmap.mmap) -> Traffic:
    if len(content) < 28:
        raise DataError(f"{path} is cut short in its section header ({len(content)} of 28 bytes); capture it again")
    size, at, packets, untimed, unpack = len(content), 0, 0, 0, struct.Struct("<II").unpack_from
    sections: list[tuple[int, int, bool]] = []  # position, interfaces before it, big-endian
    interfaces: list[tuple[int, int, int, int]] = []  # link type, snap length, time resolution, time offset in seconds
    columns = _Columns(path)
    while at + 12 <= size:
        positions: list[int] = []
        window_end = min(at + _WINDOW_BYTES, size - 11)
        while at < window_end:
            kind, length = unpack(content, at)
            if kind == _SECTION:
                order = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}.get(content[at + 8 : at + 12], "")
                if not order:
                    raise _damaged(path, at, "the section header has no byte-order mark")
                unpack = struct.Struct(f"{order}II").unpack_from
                length = unpack(content, at)[1]
                sections.append((at, len(interfaces), order == ">"))
            if length < 12 or length % 4 or length > _MAX_BLOCK_BYTES:
                raise _damaged(path, at, f"a block claims {length} bytes")
            if at + length > size:
                break
            if kind in _PACKETS:
                positions.append(at)
                untimed += kind == _SIMPLE_PACKET
            elif kind == _INTERFACE:
                if length < 20:
                    raise _damaged(path, at, f"an interface description has {length} bytes")
                if len(interfaces) == _MAX_INTERFACES:
                    raise _damaged(path, at, f"it describes more than {_MAX_INTERFACES} interfaces")
                interfaces.append(_interface(content[at + 8 : at + length - 4], order))
            at += length
        if positions:
            blocks = np.array(positions, np.int64)
            columns.add(*_packet_blocks(path, content, blocks, np.array(sections), np.array(interfaces)))
            packets += len(positions)
        _let_go(content)
        if at < window_end:
            break
    if at < size:
        _warn_cut(path, at, packets)
    if untimed:
        log.warning("%s: %d packets have no time stamp (simple packet blocks); theirs is 0", path, untimed)
    return columns.traffic(content)


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


def _packet_blocks(
    path: Path, content: bytes | mmap.mmap, at: Array, sections: Array, interfaces: Array
) -> tuple[Array, ...]:
    """
    Read packet blocks: enhanced, simple, and the obsolete one. Returns the arguments of `_Columns.add`.
    """
    section = np.searchsorted(sections[:, 0], at, side="right") - 1
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
    seconds, nanoseconds = _clock(ticks, resolution)
    seconds = np.where(simple, 0, seconds + offset)
    if (wrong := (ticks < 0) | (seconds < 0) | (seconds >= 1 << 33)).any():
        raise _damaged(path, int(at[wrong.argmax()]), "a time stamp lies outside the years 1970 to 2242")
    return at + head, captured, np.where(simple, first, wire), seconds * _NS + nanoseconds, link


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
