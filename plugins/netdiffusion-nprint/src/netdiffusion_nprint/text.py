"""
nPrint's text, written: one line a packet, one column a bit (``1``, ``0``, or the fill value for an absent one).

Eight columns of a header are one byte of the packet, and one byte is sixteen characters: a table look-up. Lines have
as many lengths as there are headers of different lengths, so each header is put into all lines of one length at once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import uint
from netdiffusion_core.model import TCP, UDP, Traffic

from .arguments import Arguments
from .decoder import put_bytes
from .layout import HEADERS, PAPER
from .rows import HEADER_BYTES, Compat, Rows, find_rows, last_to_reach, with_leftovers

Array = NDArray[Any]

_CHUNK_BYTES = 1 << 24
_BYTES = {header: sum(bits for _, bits in fields) // 8 for header, fields in HEADERS.items()}
_WITHOUT_TRANSMITTER = (0xC4, 0xD4, 0xE4)  # CTS, ACK, CF-End
_CELL = np.array([list(b"0,"), list(b"1,")], np.uint8)
_CELLS = _CELL[np.unpackbits(np.arange(256, dtype=np.uint8))].reshape(256, 16).view("V16").ravel()  # of each byte

_PAPER_CELLS = np.array([list(b",-1"), list(b",0\0"), list(b",1\0")], np.uint8)  # of -1, 0, 1


def write_text(file: BinaryIO, traffic: Traffic, arguments: Arguments, compat: Compat) -> None:
    """
    Write what nPrint prints with these arguments, a chunk of packets after the other.
    """
    if arguments.packets:
        traffic = traffic.select_packets(slice(arguments.packets))
    if compat == "nprint" and len(traffic):  # libpcap reads no further than to an interface of another link type
        other = np.flatnonzero(traffic.link_types != traffic.link_types[0])
        traffic = traffic.select_packets(slice(other[0] if len(other) else None))
    names = [name for name, keep in zip(arguments.bits, arguments.kept, strict=True) if keep]
    file.write(",".join([*arguments.prefix, *names]).encode() + b"\n")
    line_bytes = 64 + len(names) * (len(str(arguments.fill)) + 1)
    reach = HEADER_BYTES + arguments.payload_bytes
    previous_us, before = None, np.zeros(0, np.int64)
    for chunk in traffic.chunks(max(_CHUNK_BYTES // line_bytes, 1)):
        packets = np.append(before, np.arange(chunk.start, chunk.stop))
        part = traffic.select_packets(packets)
        if compat == "nprint":
            before = packets[last_to_reach(part.captured_lengths, reach)]
            part = with_leftovers(part, reach)
        rows = find_rows(part, compat, arguments.payload_bytes, skip=len(packets) - (chunk.stop - chunk.start))
        if not len(rows.packets):
            continue
        times_us = part.timestamps[rows.packets] // 1000
        before_us = np.append(times_us[0] if previous_us is None else previous_us, times_us[:-1])
        previous_us = times_us[-1]
        words = [*_index(part, rows, arguments.index), *_times(times_us, before_us, arguments, compat)]
        file.write(_lines(part.data, rows, words, arguments).data)


def _lines(data: Array, rows: Rows, words: list[tuple[Array, bytes]], arguments: Arguments) -> Array:
    """
    Return the lines of these rows, one behind the other: uint8[bytes].

    words  what stands before the bits: bytes[rows], and what separates them from the next; an empty one is left out
    """
    fill = f"{arguments.fill},".encode()
    has_bits = any(arguments.kept)
    if not has_bits:  # nPrint runs all values together then
        words = [(text, separator if separator == b"_" else b"") for text, separator in words]
    word_lengths = [np.char.str_len(text) for text, _ in words]
    blocks = _blocks(rows, arguments)
    widths = [n + np.where(n > 0, len(s), 0) for n, (_, s) in zip(word_lengths, words, strict=True)]
    widths += [2 * cells[n] + len(fill) * (cells[-1] - cells[n]) for _, n, _, cells in blocks]
    at = np.cumsum(sum(widths) + (0 if has_bits else 1))
    out = np.empty(at[-1], np.uint8)
    line_ends = at - 1
    at = np.append(0, at[:-1])
    for (text, separator), length, width in zip(words, word_lengths, widths, strict=False):
        put_bytes(out, at, text.view(np.uint8).reshape(len(text), -1), length)
        if separator:
            out[(at + length)[length > 0]] = ord(separator)
        at = at + width
    for (header_at, length, keep, cells), width in zip(blocks, widths[len(words) :], strict=True):
        for size in np.flatnonzero(np.bincount(length)).tolist():
            i = np.flatnonzero(length == size)
            here, present, absent = at[i], 2 * cells[size], cells[-1] - cells[size]
            if present:
                text = _CELLS.take(sliding_window_view(data, size)[header_at[i]]).view("V2")
                text = text if keep[: 8 * size].all() else text.compress(keep[: 8 * size], axis=1)
                sliding_window_view(out, present, writeable=True)[here] = text.view(np.uint8)
            if absent:
                tail = np.frombuffer(fill * absent, np.uint8)
                sliding_window_view(out, len(tail), writeable=True)[here + present] = tail
        at = at + width
    out[line_ends] = ord("\n")
    return out


def _blocks(rows: Rows, arguments: Arguments) -> list[tuple[Array, Array, Array, Array]]:
    """
    Return for each header that is asked for, and the payload: where it begins in each row's packet and how long it is
    there, int64[rows], which of its bits are written, bool[bits], and how many of those its first k bytes have,
    int64[bytes + 1].
    """
    kept = np.array(arguments.kept, bool)
    blocks, start = [], 0
    for name in (*arguments.headers, "payload"):
        # nPrint writes its radiotap header where wlan is named: everything behind is shifted to later names
        source = "radiotap" if name == "wlan" else name
        bits = 8 * _BYTES.get(source, arguments.payload_bytes)
        keep = np.zeros(bits, bool)
        named = kept[start : start + bits]
        keep[: len(named)] = named
        start += bits
        blocks.append((rows.at[source], rows.lengths[source], keep, np.append(0, np.cumsum(keep))[::8]))
    return blocks


def _index(traffic: Traffic, rows: Rows, name: str) -> list[tuple[Array, bytes]]:
    """
    Return the words of the first column; what was not captured is ``NULL``.
    """
    make: dict[str, Callable[[], Array]] = {
        "src_ip": lambda: _addresses(traffic, rows, 0),
        "dst_ip": lambda: _addresses(traffic, rows, 1),
        "src_prt": lambda: _ports(traffic, rows, 0),
        "dst_prt": lambda: _ports(traffic, rows, 1),
        "protocol": lambda: np.select([rows.protocols == TCP, rows.protocols == UDP], [b"TCP", b"UDP"], b"NULL"),
        "tx_mac": lambda: _transmitters(traffic, rows),
    }
    if name != "flow":
        return [(make[name](), b",")]
    parts = ("src_ip", "dst_ip", "src_prt", "dst_prt", "protocol")
    return [(make[part](), b"," if part == "protocol" else b"_") for part in parts]


def _times(
    times_us: Array, before_us: Array, arguments: Arguments, compat: Compat
) -> Iterator[tuple[NDArray[np.bytes_], bytes]]:
    """
    Yield the words of rts, tv_sec and tv_usec, where they are asked for.
    """
    if arguments.relative_time:
        elapsed_us = times_us - before_us
        if compat == "nprint":
            elapsed_us[before_us < 1_000_000] = 0  # it takes a second 0 for no packet yet
        words = elapsed_us.astype(np.bytes_)
        if compat == "nprint":
            words[elapsed_us == -1] = b""  # and a difference of -1 for none
        yield words, b","
    if arguments.absolute_time:
        seconds, microseconds = np.divmod(times_us, 1_000_000)
        yield seconds.astype(np.bytes_), b","
        yield microseconds.astype(np.bytes_), b","


def _addresses(traffic: Traffic, rows: Rows, side: int) -> NDArray[np.bytes_]:
    """
    Write source (side 0) or destination addresses as C's inet_ntop does.
    """
    words = np.full(len(rows.packets), b"NULL", "S45")
    for version, family, offset, size in ((4, socket.AF_INET, 12, 4), (6, socket.AF_INET6, 8, 16)):
        at = rows.at[f"ipv{version}"] + offset + side * size
        i = np.flatnonzero((rows.versions == version) & (at + size <= traffic.ends[rows.packets]))
        words[i] = _named(traffic.data, at[i], size, lambda octets: socket.inet_ntop(family, octets))  # noqa: B023
    return words


def _ports(traffic: Traffic, rows: Rows, side: int) -> NDArray[np.bytes_]:
    words = np.full(len(rows.packets), b"NULL", "S21")
    at = rows.at["tcp"] + 2 * side
    i = np.flatnonzero(np.isin(rows.protocols, (TCP, UDP)) & (at + 2 <= traffic.ends[rows.packets]))
    words[i] = uint(traffic.data, at[i], 2).astype(np.bytes_)
    return words


def _transmitters(traffic: Traffic, rows: Rows) -> NDArray[np.bytes_]:
    """
    Write the second address of 802.11 frames, None for the control frames that have none.
    """
    words = np.full(len(rows.packets), b"NULL", "S17")
    i = np.flatnonzero((rows.frames >= 0) & (rows.frames + 16 <= traffic.ends[rows.packets]))
    words[i] = _named(traffic.data, rows.frames[i] + 10, 6, lambda octets: octets.hex(":"))
    i = np.flatnonzero((rows.frames >= 0) & (rows.frames < traffic.ends[rows.packets]))
    words[i[np.isin(traffic.data[rows.frames[i]], _WITHOUT_TRANSMITTER)]] = b"None"
    return words


def _named(data: Array, at: Array, size: int, name: Callable[[bytes], str]) -> NDArray[np.bytes_]:
    """
    Name each of the byte strings of `size` bytes at these positions, equal ones once.
    """
    if not len(at):
        return np.empty(0, np.bytes_)
    octets = sliding_window_view(data, size)[at].view(f"S{size}").ravel()
    values, which = np.unique(octets, return_inverse=True)
    # NumPy strips trailing zeros
    return np.array([name(value.ljust(size, b"\0")) for value in values.tolist()], np.bytes_)[which]


def write_paper_text(file: BinaryIO, parts: Iterable[NDArray[np.int8]]) -> None:
    """
    Write rows of bits, int8[packets, 1088], as NetDiffusion's own files hold them: a nameless column with the row's
    number, then the columns of `layout.PAPER`.
    """
    file.write(f",{','.join(PAPER.columns)}\n".encode())
    first = 0
    for rows in parts:
        numbers = np.arange(first, first + len(rows)).astype("S")
        cells = _PAPER_CELLS[rows + 1].reshape(len(rows), 3 * PAPER.width)
        line_ends = np.full((len(rows), 1), ord("\n"), np.uint8)
        text = np.hstack([numbers.view(np.uint8).reshape(len(rows), numbers.itemsize), cells, line_ends])
        file.write(text[text > 0].tobytes())
        first += len(rows)
