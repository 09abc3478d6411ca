"""
nPrint's text, read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.errors import DataError
from netdiffusion_core.model import MISSING, Encoded, Traffic, concatenate

from .decoder import decode
from .layout import PAPER

Array = NDArray[Any]

log = logging.getLogger("netdiffusion")

_ADDRESSES = [f"ipv{v}_{side}_{bit}" for v, n in ((4, 32), (6, 128)) for side in ("src", "dst") for bit in range(n)]
_WANTED = [*PAPER.columns, *_ADDRESSES]
_IP = slice(PAPER.span("ipv4").start, PAPER.span("ipv6").stop)
_EXCLUSIVE = (("ipv4_ver_0", "ipv6_ver_0"), ("tcp_sprt_0", "udp_sport_0", "icmp_type_0"))
_TIMES = ("tv_sec", "tv_usec", "rts")
_BLOCK_BYTES = 1 << 23
_MAX_LINE_BYTES = 1 << 23
_NUMBER_BYTES = 20


def read_text(path: Path) -> Traffic:
    """
    Read packets from nPrint's text; columns are found by their names, so that any of nPrint's options will do. Times
    are those of tv_sec and tv_usec, or of rts from 1970 on; without them the packets come a millisecond apart.

    With address columns the packets get their addresses and the core assembles flows; without (NetDiffusion's files)
    the file is one flow with drawn addresses. Payload is not read: packets are cut behind their headers.

    Raises DataError when the first line has no column of an IP header, when a line has another number of fields, and
    when no bit is ever absent.
    """
    with path.open("rb") as file:
        names = file.readline(_MAX_LINE_BYTES).decode(errors="replace").strip().split(",")
        if not set(PAPER.columns[_IP]) & set(names):
            raise DataError(
                f"{path} is not nPrint's text with IP headers: its first line names no column such as ipv4_ver_0; "
                "write it with nPrint's options -4 and -6"
            )
        has_addresses = bool(set(_ADDRESSES) & set(names))
        bits, has_absent, packets = np.empty((0, len(_WANTED)), np.int8), False, 0
        elapsed_us = 0.0 if "rts" in names else -1000.0
        lead, parts = bits, [_packets(bits, has_addresses)]
        for cells, numbers in _blocks(path, file, names):
            bits = np.full((len(cells), len(_WANTED)), MISSING, np.int8)
            for here, there in _runs(names):
                bits[:, here] = cells[:, there]
                has_absent = has_absent or bool((cells[:, there] == MISSING).any())
            if "tv_sec" in names:
                times_us = numbers[:, 0] * 1_000_000 + numbers[:, 1]
            else:
                times_us = elapsed_us + np.cumsum(numbers[:, 2])
                elapsed_us = times_us[-1]
            if not (np.abs(times_us) < 2**53).all():
                raise DataError(f"{path}: a time lies more than 285 years from 1970")
            packets += len(bits)
            is_packet = has_ip_header(bits)
            # the file's first packet tells which side the others are on
            part = _packets(np.concatenate([lead, bits[is_packet]]), has_addresses)
            part = part.select_packets(slice(len(lead), None))
            parts.append(attrs.evolve(part, timestamps=times_us[is_packet].astype(np.int64) * 1000))
            lead = lead if len(lead) else bits[is_packet][:1]
    if packets and not has_absent and any(len({*group} & {*names}) > 1 for group in _EXCLUSIVE):
        raise DataError(
            f"{path} has no absent bit, though no packet has all these headers: its fill value is 0 or 1, which cannot "
            "be told from a bit; write it with nPrint's option -F -1"
        )
    traffic = concatenate(parts)
    warn_of_rows_left_out(path, packets - len(traffic), packets)
    flows = np.arange(0 if has_addresses else 1)
    return attrs.evolve(traffic, flow_of=np.full(len(traffic), len(flows) - 1), flows=parts[-1].flows.select(flows))


def one_flow(rows: NDArray[np.int8]) -> Traffic:
    """
    Return rows of the bits of `layout.PAPER` as packets of one flow with drawn addresses, a millisecond apart.
    """
    encoded = Encoded(
        rows=rows,
        starts=np.array([0, len(rows)]),
        labels=np.array([""]),
        start_times=np.zeros(1, np.int64),
        layout=PAPER,
    )
    return decode(encoded, np.random.default_rng(0), ethernet=False, payload="none")


def has_ip_header(rows: NDArray[np.int8]) -> NDArray[np.bool_]:
    """
    Tell for each row whether a bit of an IP header is present: bool[packets].
    """
    return np.asarray((rows[:, _IP] != MISSING).any(1))


def warn_of_rows_left_out(path: Path, left_out: int, rows: int) -> None:
    """
    Log a warning of rows without an IP header, which are no packets.
    """
    if left_out:
        log.warning("%s: %d of %d rows have no IP header and are left out", path, left_out, rows)


def _packets(bits: NDArray[np.int8], has_addresses: bool) -> Traffic:
    """
    Return rows of the columns `_WANTED` as one flow, with the addresses that the rows tell.
    """
    traffic = one_flow(bits[:, : PAPER.width])
    if not has_addresses:
        return traffic
    octets = np.packbits(bits[:, PAPER.width :] == 1, axis=1)
    data = traffic.data.copy()
    is4 = traffic.data[traffic.starts] >> 4 == 4
    for i, at, first, last in ((np.flatnonzero(is4), 12, 0, 8), (np.flatnonzero(~is4), 8, 8, 40)):
        data[traffic.starts[i, None] + at + np.arange(last - first)] = octets[i, first:last]
    return attrs.evolve(traffic, data=data, from_initiator=np.zeros(len(traffic), bool))


def _runs(names: list[str]) -> list[tuple[slice, slice]]:
    """
    Return which columns of `_WANTED` are which of a file, as few slices as possible.
    """
    column = {name: k for k, name in enumerate(names)}
    pairs = np.array([(k, column[name]) for k, name in enumerate(_WANTED) if name in column])
    cuts = np.flatnonzero((np.diff(pairs, axis=0) != 1).any(1)) + 1
    runs = np.split(pairs, cuts)
    return [(slice(run[0, 0], run[-1, 0] + 1), slice(run[0, 1], run[-1, 1] + 1)) for run in runs]


def _blocks(path: Path, file: BinaryIO, names: list[str]) -> Iterator[tuple[NDArray[np.int8], NDArray[np.float64]]]:
    """
    Yield some whole lines at a time: ``(cells, numbers)``, int8[lines, fields], -1 for what is neither 0 nor 1, and
    float64[lines, 3], the columns `_TIMES`, 0 where there is no such column (rts: 1000).
    """
    rest, line = b"", 2
    while True:
        block = file.read(_BLOCK_BYTES)
        whole, _, rest = (rest + block).rpartition(b"\n") if block else (rest, b"", b"")
        if len(rest) > _MAX_LINE_BYTES:
            raise DataError(f"{path}: line {line} has more than {_MAX_LINE_BYTES} bytes; that is not nPrint's text")
        lines = whole.replace(b"\r", b"").strip(b"\n")
        if lines:
            text = np.frombuffer(b"\n\n" + lines + b"\n", np.uint8)
            is_end = (text == ord(",")) | (text == ord("\n"))
            ends = np.flatnonzero(is_end)[1:]  # ends[0] is where the first field begins
            _check(path, line, np.diff(np.flatnonzero(text.take(ends) == ord("\n"))), names)
            bit = text - np.uint8(ord("0"))
            # one character between two ends; what is no bit becomes 255, which is -1
            bit[1:-1] |= (is_end[:-2] & (bit[1:-1] < 2)).view(np.uint8) - np.uint8(1)
            cells = bit.take(ends[1:] - 1).view(np.int8).reshape(-1, len(names))
            line += len(cells)
            yield cells, _numbers(path, text, ends, names)
        if not block:
            return


def _check(path: Path, line: int, fields: Array, names: list[str]) -> None:
    """
    Raise DataError for lines, the first of them at `line`, that have more or fewer fields than there are names.
    """
    if (wrong := fields != len(names)).any():
        i = int(wrong.argmax())
        raise DataError(
            f"{path}: line {line + i} has {fields[i]} fields, the first line has {len(names)}; write the text again "
            "(with -A where it has rts, which nPrint leaves out when it is -1)"
        )


def _numbers(path: Path, text: Array, ends: Array, names: list[str]) -> NDArray[np.float64]:
    """
    Read the columns `_TIMES`: float64[lines, 3], exact below 2 ** 53. Field k is ``text[ends[k] + 1:ends[k + 1]]``.
    """
    lines = len(ends) // len(names)
    numbers = np.zeros((lines, len(_TIMES)))
    numbers[:, _TIMES.index("rts")] = 1000
    for k, name in enumerate(_TIMES):
        if name in names:
            field = np.arange(lines) * len(names) + names.index(name)
            at = ends[field, None] + 1 + np.arange(_NUMBER_BYTES)
            digits = np.where(at < ends[field + 1, None], text.take(at, mode="clip"), np.uint8(0))
            try:
                numbers[:, k] = digits.view(f"S{_NUMBER_BYTES}").ravel().astype(np.float64)
            except ValueError as error:
                raise DataError(f"{path}: {name} is not a number somewhere ({error})") from error
    return numbers
