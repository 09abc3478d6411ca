"""
What a class's chain knows of connections: segments that are sent again, and where services answer.
"""

from __future__ import annotations

import attrs
import numpy as np

from netdiffusion_core.model import Encoded, Layout, numbers
from netdiffusion_stable_diffusion.control import END, learn_structure, send_again, sent_again
from netdiffusion_stable_diffusion.diffusion import answered_at, services

FIELDS = (
    ("ipv4.hl", 4), ("ipv4.tl", 16), ("tcp.sprt", 16), ("tcp.dprt", 16), ("tcp.seq", 32), ("tcp.doff", 4),
    ("tcp.syn", 1), ("tcp.fin", 1), ("tcp.rst", 1), ("trace.direction", 1), ("trace.iat_us", 32),
)  # fmt: skip
LAYOUT = Layout(name="tiny", version=1, fields=FIELDS)


def segment(forth: bool, seq: int, payload: int = 0, syn: int = 0, fin: int = 0, gap_us: int = 5) -> list[int]:
    ports = (40000, 443) if forth else (443, 40000)
    values = (5, 40 + payload, *ports, seq, 5, syn, fin, 0, int(not forth), gap_us)
    return [number >> i & 1 for number, (_, bits) in zip(values, FIELDS, strict=True) for i in reversed(range(bits))]


def flow(*segments: list[int]) -> Encoded:
    return Encoded(
        rows=np.array(segments, np.int8),
        starts=np.array([0, len(segments)]),
        labels=np.array(["a"]),
        start_times=np.zeros(1, np.int64),
        layout=LAYOUT,
    )


RESENT = flow(
    segment(True, 7, syn=1),
    segment(True, 7, syn=1),  # again
    segment(False, 90, syn=1),
    segment(True, 8),
    segment(True, 8, 100),
    segment(True, 108),  # an acknowledgment takes no number, so it is none of those that can come again
    segment(True, 108),
    segment(True, 8, 100, gap_us=900),  # again
    segment(False, 91, 100),  # the other side's
    segment(False, 191, 100),  # the next
    segment(True, 108, fin=1),
    segment(True, 108, fin=1),  # again
)
AGAIN = [1, 7, 11]


def test_segments_with_the_number_and_length_of_their_senders_last_are_sent_again() -> None:
    assert np.flatnonzero(sent_again(RESENT)).tolist() == AGAIN


def test_what_is_sent_again_is_what_was_sent_but_for_the_time() -> None:
    drawn, rng = RESENT.rows.copy(), np.random.default_rng(0)
    drawn[:, LAYOUT.span("tcp.seq")] = rng.integers(0, 2, (len(drawn), 32))  # as a model draws it
    made = send_again(drawn[None], sent_again(RESENT)[None], LAYOUT)[0]
    assert np.flatnonzero(sent_again(attrs.evolve(RESENT, rows=made))).tolist() == AGAIN
    rest = np.setdiff1d(np.arange(len(drawn)), AGAIN)
    np.testing.assert_array_equal(made[rest], drawn[rest])
    gaps = numbers(made[:, LAYOUT.span("trace.iat_us")])
    np.testing.assert_array_equal(gaps, numbers(drawn[:, LAYOUT.span("trace.iat_us")]))


def test_a_chain_tells_what_is_sent_again_from_what_is_new() -> None:
    class Codec:
        shortest = 8

    edges = np.zeros((len(RESENT.rows), 3), np.uint8)
    structure, state_of = learn_structure(RESENT, edges, Codec(), 1024)  # type: ignore[arg-type]
    assert np.flatnonzero(structure.again[state_of]).tolist() == AGAIN
    assert not structure.again[END]


def test_the_responder_answers_where_its_service_is() -> None:
    rows = RESENT.rows.copy()
    for field in ("tcp.sprt", "tcp.dprt"):
        rows[:, LAYOUT.span(field)] = np.random.default_rng(0).integers(0, 2, (len(rows), 16))
    made = answered_at(rows, "tcp port 2222", LAYOUT)
    assert services(attrs.evolve(RESENT, rows=made)) == ["tcp port 2222"]
    forth = made[:, LAYOUT.span("trace.direction").start] == 0
    source, destination = (numbers(made[:, LAYOUT.span(field)]) for field in ("tcp.sprt", "tcp.dprt"))
    assert set(np.where(forth, destination, source)) == {2222}
    own = np.where(forth[:, None], made[:, LAYOUT.span("tcp.sprt")], made[:, LAYOUT.span("tcp.dprt")])
    before = np.where(forth[:, None], rows[:, LAYOUT.span("tcp.sprt")], rows[:, LAYOUT.span("tcp.dprt")])
    np.testing.assert_array_equal(own, before)
    for nameless in ("tcp", "", "icmp"):
        np.testing.assert_array_equal(answered_at(rows, nameless, LAYOUT), rows)
