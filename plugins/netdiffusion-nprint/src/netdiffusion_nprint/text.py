"""
nPrint's text files: one line a packet, one column a bit (``1``, ``0``, or the fill value for an absent one).
"""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np

from netdiffusion_core.errors import DataError
from netdiffusion_core.model import MISSING, Encoded, Traffic

from .encoder import NprintEncoder, Options
from .layout import PAPER, chunks

_ADDRESSES = [f"ipv{v}_{side}_{bit}" for v, n in ((4, 32), (6, 128)) for side in ("src", "dst") for bit in range(n)]
_CELLS = np.array([list(b",-1"), list(b",0\0"), list(b",1\0")], np.uint8)  # of the values -1, 0, 1


def read_text(path: Path) -> Traffic:
    """
    Read packets from nPrint's text; columns are found by their names, so that any of nPrint's options will do. Times
    are not read: the packets come a millisecond apart.

    With address columns the packets get their addresses and the core assembles flows; without (NetDiffusion's files)
    the file is one flow with drawn addresses. Raises DataError when the first line has no column of nPrint or a line
    has another number of fields.
    """
    wanted = [*PAPER.columns, *_ADDRESSES]
    parts = [np.empty((0, len(wanted)), np.int8)]
    with path.open("rb") as file:
        names = file.readline().decode(errors="replace").strip().split(",")
        column = {name: k for k, name in enumerate(names)}
        known = [k for k, name in enumerate(wanted) if name in column]
        if not known:
            raise DataError(f"{path} is not nPrint's text: its first line names no column such as ipv4_ver_0")
        while lines := file.readlines(1 << 24):
            text = np.frombuffer(b"".join(lines).rstrip() + b"\n", np.uint8)
            text = text[text != ord("\r")]
            ends = np.flatnonzero((text == ord(",")) | (text == ord("\n")))
            line_ends = np.flatnonzero(text[ends] == ord("\n"))
            if (np.diff(line_ends, prepend=-1) != len(names)).any():
                raise DataError(f"{path}: a line has more or fewer fields than the first line ({len(names)})")
            starts = np.concatenate([[0], ends[:-1] + 1])
            starts, ends = (a.reshape(-1, len(names))[:, [column[wanted[k]] for k in known]] for a in (starts, ends))
            bit = text[starts] - np.uint8(ord("0"))
            part = np.full((len(ends), len(wanted)), MISSING, np.int8)
            part[:, known] = np.where((ends - starts == 1) & (bit < 2), bit.view(np.int8), MISSING)
            parts.append(part)
    rows = np.concatenate(parts)

    encoded = Encoded(
        rows=rows[:, : PAPER.width],
        starts=np.array([0, len(rows)]),
        labels=np.array([""]),
        start_times=np.zeros(1, np.int64),
        layout=PAPER,
    )
    traffic = NprintEncoder(Options(layout="paper", link="raw")).decode(encoded, np.random.default_rng(0))
    if not set(_ADDRESSES) & set(names):
        return traffic
    addresses = np.packbits(rows[:, PAPER.width :] == 1, axis=1)
    data = traffic.data.copy()
    is4 = traffic.data[traffic.offsets[:-1]] >> 4 == 4
    for packets, at, first, last in ((np.flatnonzero(is4), 12, 0, 8), (np.flatnonzero(~is4), 8, 8, 40)):
        data[traffic.offsets[packets, None] + at + np.arange(last - first)] = addresses[packets, first:last]
    nobody = np.full(len(traffic), -1)
    no_flows = traffic.flows.select(np.zeros(0, np.int64))
    return attrs.evolve(traffic, data=data, flow_of=nobody, from_initiator=nobody > 0, flows=no_flows)


def write_text(path: Path, encoded: Encoded) -> None:
    """
    Write all rows as NetDiffusion's own files hold them: a nameless column with the row's number, then the 1088 columns
    of `layout.PAPER`.
    """
    with path.open("wb") as file:
        file.write(f",{','.join(PAPER.columns)}\n".encode())
        for part in chunks(len(encoded.rows), 4096):
            numbers = np.arange(part.start, part.stop).astype("S")
            cells = _CELLS[encoded.rows[part, : PAPER.width] + 1].reshape(len(numbers), -1)
            line_end = np.full((len(numbers), 1), ord("\n"), np.uint8)
            text = np.hstack([numbers.view(np.uint8).reshape(len(numbers), -1), cells, line_end])
            file.write(text[text > 0].tobytes())
