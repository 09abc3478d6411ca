"""
What evaluators see: artefacts out, everything else in.
"""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdiffusion_core.model import Encoded, Layout
from netdiffusion_evaluators import features
from netdiffusion_evaluators.features import ARTEFACT_FIELDS, bit_features, flow_statistics, header_bits, per_flow

OPTIONS = Layout(name="toy", version=1, fields=(("tcp.seq", 32), ("tcp.opt", 320)))


def options_row(options: bytes) -> Encoded:
    """
    One packet with these TCP options and sequence number 0.
    """
    bits = np.full(352, -1, np.int8)
    bits[:32] = 0
    bits[32 : 32 + 8 * len(options)] = np.unpackbits(np.frombuffer(options, np.uint8))
    return Encoded(rows=bits[None], starts=[0, 1], labels=["x"], start_times=[0], layout=OPTIONS)


def without_values(options: bytes) -> bytes:
    """
    RFC 9293 section 3.1, one octet after the other: zero the values of SACK (5) and Timestamps (8).
    """
    result, at = bytearray(options), 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > 40:
            break
        if options[at] in (5, 8):
            for i in range(at + 2, min(at + length, len(options))):
                result[i] = 0
        at += length
    return bytes(result)


def test_every_artefact_field_is_one_of_the_encoders(context):
    assert set(ARTEFACT_FIELDS) <= {name for name, _ in context.encoder.layout.fields}


option = st.one_of(
    st.just(b"\x01"),
    st.just(b"\x00"),
    st.builds(lambda kind, value: bytes([kind, len(value) + 2]) + value, st.integers(2, 30), st.binary(max_size=12)),
    st.binary(min_size=1, max_size=4),
)


@given(st.lists(option, max_size=8).map(lambda parts: b"".join(parts)[:40]))
def test_only_values_of_artefact_options_are_blanked(options):
    options = options[: len(options) // 4 * 4]
    (bits,) = header_bits(options_row(options))
    assert np.packbits(bits[: 8 * len(options)] == 1).tobytes() == without_values(options)
    assert (bits[8 * len(options) :] == -1).all()


def test_timestamps_do_not_show_but_their_presence_does():
    def with_timestamps(value: bytes) -> np.ndarray:
        return header_bits(
            options_row(bytes.fromhex("0204 05b4 0402 080a") + value + bytes.fromhex("0000 0000 0103 0307"))
        )

    assert np.array_equal(with_timestamps(b"\x12\x34\x56\x78"), with_timestamps(b"\xff\x00\xff\x00"))
    assert not np.array_equal(with_timestamps(bytes(4)), header_bits(options_row(bytes(20))))


def test_ports_and_numbers_of_the_connection_do_not_show(context, make_traffic):
    traffic = make_traffic(0, 1, ("web",))
    data = traffic.data.copy()
    for at in (4, 5, 10, 11, 24, 25, 26, 27, 36, 37):  # ipv4.id, ipv4.cksum, tcp.seq, tcp.cksum
        data[traffic.starts + at] ^= 0xA5
    initiator = np.flatnonzero(traffic.from_initiator)
    data[traffic.starts[initiator] + 20] ^= 1  # the ephemeral port
    data[np.delete(traffic.starts, initiator) + 22] ^= 1
    changed = attrs.evolve(traffic, data=data)
    same, other = bit_features(traffic, context.encoder), bit_features(changed, context.encoder)
    assert np.array_equal(same.values, other.values)

    data[traffic.starts + 34] ^= 0x80  # tcp.wsize is no artefact
    seen = bit_features(attrs.evolve(traffic, data=data), context.encoder)
    differing = [same.names[i] for i in np.flatnonzero(same.values[0] != seen.values[0])]
    assert differing
    assert all("tcp_wsize_0" in name for name in differing)


def test_statistics_of_a_flow_that_one_can_count(make_traffic):
    traffic = make_traffic(3, 1, ("web",), least=6, most=6)
    s = dict(zip(*(lambda f: (f.names, f.values[0]))(flow_statistics(traffic)), strict=True))
    sizes, gaps = traffic.wire_lengths, np.diff(traffic.timestamps) / 1e9
    assert (s["packets from both"], s["packets from initiator"], s["packets from responder"]) == (6, 2, 4)
    assert s["bytes from initiator"] == sizes[0] + sizes[4]
    assert s["direction changes"] == 3  # > < < < > <
    assert s["duration (s)"] == pytest.approx(gaps.sum())
    assert s["mean inter-arrival time (s)"] == pytest.approx(gaps.mean())
    assert s["standard deviation of size from responder (bytes)"] == pytest.approx(sizes[[1, 2, 3, 5]].std())
    assert s["least size from both (bytes)"] == sizes.min()
    assert (s["PSH flags"], s["ACK flags"], s["SYN flags"]) == (6, 6, 0)
    assert s["signed size of packet 1 (bytes)"] == sizes[0]
    assert s["signed size of packet 2 (bytes)"] == -sizes[1]
    assert s["signed size of packet 7 (bytes)"] == 0
    assert s["inter-arrival time of packet 5 (s)"] == pytest.approx(gaps[3])
    assert (s["responder port"], s["IP protocol"]) == (443, 6)


def test_flows_without_packets_do_not_shift_their_neighbours():
    starts = np.array([0, 0, 2, 2, 3, 3])
    assert per_flow(np.add, np.array([1, 2, 4]), starts).tolist() == [0, 3, 0, 4, 0]
    assert per_flow(np.maximum, np.array([1.0, 2, 4]), starts, empty=-1).tolist() == [-1, 2, -1, 4, -1]


def test_chunks_do_not_show(context, make_traffic, monkeypatch):
    traffic = make_traffic(4, 5)
    whole = bit_features(traffic, context.encoder)
    monkeypatch.setattr(features, "_CHUNK_PACKETS", 20)
    assert len(list(features.in_chunks(traffic, context.encoder))) > 3
    pieces = bit_features(attrs.evolve(traffic), context.encoder)  # another object: nothing is remembered of it
    assert whole.names == pieces.names
    assert np.array_equal(whole.values, pieces.values)
    assert len(whole.names) == whole.values.shape[1]
