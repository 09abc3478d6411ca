"""
Write messages of given lengths: a question that fits into its query and into all its answers, and records that fill
them up to the last octet.

Names lie below ``test``, ``example``, ``invalid`` and ``example.com``, ``.net``, ``.org`` (RFC 2606), addresses in the
documentation networks (RFC 5737, RFC 3849): nothing here is anybody's.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from .messages import AAAA, ANY, CNAME, HEADER, HTTPS, MX, NS, OPCODE, OPT, QR, RA, RD, SOA, SRV, TXT, A

Array = NDArray[Any]

_ROOT, _FIXED = 1, HEADER + 4  # octets of the root's name; of header, type and class of a question
_NAME_SIZES = np.array([_ROOT, 6, *range(8, 65)])  # root, "test", and what lies below the domains
_OPT_SIZE, _OPTION_SIZE = 11, 4  # an OPT record without options, an option without data (RFC 6891 section 6.1.2)
_SHORTEST_RECORD = 16  # an A record; also a CNAME record with a label of one letter before a pointer
_UNEXTENDED = 512  # octets of a message without EDNS: RFC 1035 section 4.2.1
_PADDING = 12  # RFC 7830
_AD, _NXDOMAIN, _INTERNET = 0x20, 3, 1
_FEW_OCTETS = 300  # of records: what is larger is text
_DEEPEST_NAME = 200  # octets of a name that a label of 28 more can stand before: 255 are the most
_TTL_S = np.array([30, 60, 300, 900, 3600, 86400])
_UDP_SIZES = (1232, 4096)  # what hosts say they can receive
_SUFFIXES = tuple(b"".join(bytes([len(label)]) + label for label in name.split(b".")) for name in
                  (b"test.", b"example.", b"invalid.", b"example.com.", b"example.net.", b"example.org."))  # fmt: skip
_CONSONANTS, _VOWELS = (np.frombuffer(letters, np.uint8) for letters in (b"bcdfghklmnprstvz", b"aeiou"))


@attrs.frozen(kw_only=True, eq=False)
class Questions:
    """
    One question each.

    octets  uint8[n, longest]  name, type and class
    sizes   int64[n]           octets of it
    edns    bool[n]            the query has an OPT record, so its answers must have one (RFC 6891 section 6.1.1)
    flags   int64[n]           of the query
    ids     int64[n]
    """

    octets: Array
    sizes: Array
    edns: Array
    flags: Array
    ids: Array


def choose(
    group: Array, lengths: Array, asks: Array, given: Array, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """
    Choose a question for each group of a query and its answers, so that most of them can have the lengths that they
    have: ``(name octets, edns)``, int64[count] and bool[count].

    group    int64[n]      0 … count - 1
    lengths  int64[n]
    asks     bool[n]       the query of its group, else an answer
    given    bool[count]   the question is there already: what is returned for it means nothing
    """
    room = lengths[:, None] - _FIXED - _NAME_SIZES
    edns = np.zeros((len(given), len(_NAME_SIZES)), bool)
    edns[group[asks]] = room[asks] > 0
    fits = (room == _fill(room, edns[group], asks[:, None])) & ((lengths[:, None] <= _UNEXTENDED) | edns[group])
    score = np.zeros(edns.shape)
    np.add.at(score, group, np.where(fits, 0.0, -10.0))
    padded = np.zeros(edns.shape, bool)
    padded[group[asks]] = room[asks] > _OPT_SIZE
    score += rng.random(score.shape) - padded - 2 * (_NAME_SIZES < 8)
    best = score.argmax(1)
    return _NAME_SIZES[best], edns[np.arange(len(given)), best]


def _fill(room: Array, edns: Array, asks: Array) -> NDArray[np.int64]:
    """
    Return the least number of octets, not below `room`, that records can fill behind the question: in a query with EDNS
    an OPT record with or without padding, in an answer one record, more or none, and an OPT record if the query has
    one.
    """
    opt = np.where(edns, _OPT_SIZE, 0)
    rest = room - opt
    least = np.where(asks, _OPTION_SIZE, _SHORTEST_RECORD)
    return opt + np.where(rest <= 0, 0, np.maximum(rest, least))


def fitting(lengths: Array, names: Array, edns: Array, asks: Array) -> NDArray[np.int64]:
    """
    Return the least lengths of messages with questions of these names, not below those given.
    """
    return _FIXED + names + _fill(lengths - _FIXED - names, edns, asks)


def ask(names: Array, edns: Array, largest: Array, ids: Array, rng: np.random.Generator) -> Questions:
    """
    Make up questions.

    names    int64[n]  octets of each name: one of those that `choose` chooses
    edns     bool[n]
    largest  int64[n]  octets of the largest answer, 0 for none
    ids      int64[n]
    """
    n = len(names)
    records = largest - _FIXED - names - np.where(edns, _OPT_SIZE, 0)
    octets = np.zeros((n, names.max(initial=0) + 4), np.uint8)
    sizes = np.array([len(suffix) for suffix in _SUFFIXES])
    room = names[:, None] - sizes
    possible = (room == 0) | (room >= 2)
    which = np.where(possible, rng.random(possible.shape), -1).argmax(1)
    before = np.where(names == _ROOT, 0, names - sizes[which])
    _put(octets, np.zeros(n, np.int64), _labels(before, rng), before)
    for k, suffix in enumerate(_SUFFIXES):
        i = np.flatnonzero((which == k) & (names > _ROOT))
        octets[i[:, None], before[i, None] + np.arange(len(suffix))] = np.frombuffer(suffix, np.uint8)
    common = rng.choice([A, AAAA, TXT], n, p=[0.6, 0.3, 0.1])
    rare = rng.choice([A, AAAA, HTTPS, MX, NS, SOA, SRV], n, p=[0.4, 0.25, 0.15, 0.05, 0.05, 0.05, 0.05])
    kind = np.select([records <= 0, (records > _FEW_OCTETS) | (names == _ROOT)], [rare, TXT], common)
    rows = np.arange(n)
    octets[rows, names], octets[rows, names + 1] = kind >> 8, kind & 255
    octets[rows, names + 3] = _INTERNET
    return Questions(
        octets=octets, sizes=names + 4, edns=edns, flags=np.where(edns, RD | _AD, RD).astype(np.int64), ids=ids
    )


def write(
    questions: Questions, of: Array, lengths: Array, asks: Array, largest: Array, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """
    Write queries and answers: uint8[n, longest].

    of       int64[n]  the question of each message
    lengths  int64[n]  as `fitting` returns them
    asks     bool[n]   a query, else an answer
    largest  int64[n]  octets of the largest answer to the same question
    """
    n, sizes, edns = len(of), questions.sizes[of], questions.edns[of]
    out = np.zeros((n, lengths.max(initial=HEADER)), np.uint8)
    counts = np.zeros((n, 4), np.int64)
    counts[:, 0] = 1
    _put(out, np.full(n, HEADER), questions.octets[of], sizes)
    at = HEADER + sizes
    rest = lengths - at - np.where(edns, _OPT_SIZE, 0)
    kind = _word(questions.octets, questions.sizes - 4)[of]
    addresses = np.isin(kind, (A, AAAA)) & (sizes <= _DEEPEST_NAME)
    ttl = rng.choice(_TTL_S, len(questions.sizes))[of]

    i = np.flatnonzero(~asks & (rest > 0) & addresses)
    counts[i, 1] = _write_addresses(out, i, at[i], rest[i], kind[i], ttl[i], rng)
    i = np.flatnonzero(~asks & (rest > 0) & ~addresses)
    _write_record(out, i, at[i], np.full(len(i), 0xC000 | HEADER), np.full(len(i), TXT), ttl[i], rest[i] - 12)
    text = _letters((len(i), max(rest[i].max(initial=0) - 12, 0)), rng)
    column = np.arange(text.shape[1])
    left = rest[i, None] - 12 - column
    text = np.where(column % 256 == 0, np.minimum(left - 1, 255), text)  # each string has at most 255 octets
    _put(out, at[i] + 12, text, rest[i] - 12, i)
    counts[i, np.where(np.isin(kind[i], (TXT, ANY)), 1, 3)] = 1

    i = np.flatnonzero(edns)
    padding = np.where(asks, rest, 0)[i]
    opt = lengths[i] - padding - _OPT_SIZE
    out[i, opt + 2] = OPT
    _put_word(out, i, opt + 3, np.where(largest[i] > _UDP_SIZES[0], _UDP_SIZES[1], _UDP_SIZES[0]))
    _put_word(out, i, opt + 9, padding)
    counts[i, 3] += 1
    i, padding, opt = i[padding > 0], padding[padding > 0], opt[padding > 0]
    _put_word(out, i, opt + _OPT_SIZE, np.full(len(i), _PADDING))
    _put_word(out, i, opt + _OPT_SIZE + 2, padding - _OPTION_SIZE)

    empty = np.where((rest <= 0) & (rng.random(n) < 0.5), _NXDOMAIN, 0)
    answer = questions.flags[of] & (OPCODE | RD) | QR | RA | empty
    for word, values in enumerate((questions.ids[of], np.where(asks, questions.flags[of], answer), *counts.T)):
        _put_word(out, np.arange(n), np.full(n, 2 * word), values)
    return out


def _write_addresses(
    out: Array, i: Array, at: Array, size: Array, kind: Array, ttl: Array, rng: np.random.Generator
) -> NDArray[np.int64]:
    """
    Fill `size` octets from `at` on, in rows `i`, with addresses of the name asked for; where they do not fill them
    exactly, with an alias (CNAME) whose label is as long as it takes, and its addresses. Return the number of records.
    """
    data = np.where(kind == A, 4, 16)
    record = 12 + data
    alias = np.where(size % record == 0, 0, _SHORTEST_RECORD + (size - _SHORTEST_RECORD) % record)
    j = np.flatnonzero(alias)
    owner = np.full(len(i), 0xC000 | HEADER)
    _write_record(out, i[j], at[j], owner[j], np.full(len(j), CNAME), ttl[j], alias[j] - 12)
    _put(out, at[j] + 12, _labels(alias[j] - 14, rng), alias[j] - 14, i[j])
    _put_word(out, i[j], at[j] + alias[j] - 2, owner[j])
    owner[j] = 0xC000 | at[j] + 12
    known = np.zeros((len(i), 16), np.uint8)
    nets = np.array([[192, 0, 2], [198, 51, 100], [203, 0, 113]])
    known[:, :3] = np.where((kind == A)[:, None], nets[rng.integers(0, 3, len(i))], (0x20, 0x01, 0x0D))
    known[kind == AAAA, 3] = 0xB8
    for k in range(int(((size - alias) // record).max(initial=0))):
        j = np.flatnonzero(alias + (k + 1) * record <= size)
        here = at[j] + alias[j] + k * record[j]
        _write_record(out, i[j], here, owner[j], kind[j], ttl[j], data[j])
        address = known[j].copy()
        address[np.arange(len(j)), data[j] - 1] = rng.integers(1, 255, len(j))
        _put(out, here + 12, address, data[j], i[j])
    return (size - alias) // record + (alias > 0)


def _write_record(out: Array, i: Array, at: Array, owner: Array, kind: Array, ttl: Array, size: Array) -> None:
    """
    Write what precedes the data of a record (RFC 1035 section 4.1.3), its owner as a pointer.
    """
    for before, values in zip(
        range(0, 12, 2), (owner, kind, 0 * i + _INTERNET, ttl >> 16, ttl & 0xFFFF, size), strict=True
    ):
        _put_word(out, i, at + before, values)


def _labels(sizes: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """
    Make up labels, lengths included, that fill so many octets (0, or at least 2) exactly: uint8[n, longest].
    """
    octets = _letters((len(sizes), sizes.max(initial=0)), rng)
    labels = 1 + sizes // 16
    for k in range(labels.max(initial=0)):
        i = np.flatnonzero((k < labels) & (sizes > 0))
        start, end = k * sizes[i] // labels[i], (k + 1) * sizes[i] // labels[i]
        octets[i, start] = end - start - 1
    return octets


def _letters(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """
    Make up syllables.
    """
    return np.where(np.arange(shape[1]) % 2 > 0, rng.choice(_CONSONANTS, shape), rng.choice(_VOWELS, shape))


def _put(out: Array, at: Array, octets: Array, sizes: Array, rows: Array | None = None) -> None:
    """
    Write ``octets[k, :sizes[k]]`` into row ``rows[k]`` (k itself) from column ``at[k]`` on.
    """
    k, column = np.nonzero(np.arange(octets.shape[1]) < sizes[:, None])
    out[k if rows is None else rows[k], at[k] + column] = octets[k, column]


def _put_word(out: Array, rows: Array, at: Array, values: Array) -> None:
    out[rows, at], out[rows, at + 1] = values >> 8, values & 255


def _word(octets: Array, at: Array) -> NDArray[np.int64]:
    rows = np.arange(len(at))
    return octets[rows, at].astype(np.int64) << 8 | octets[rows, at + 1]
