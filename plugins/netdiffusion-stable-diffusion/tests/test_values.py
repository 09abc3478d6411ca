"""
Values of fields in each state of a class's chain.
"""

from __future__ import annotations

import numpy as np
import pytest

from netdiffusion_core.model import Encoded, Layout
from netdiffusion_stable_diffusion.autoencoder import TIME_BITS
from netdiffusion_stable_diffusion.values import from_arrays, learn_values, settle, to_arrays

LAYOUT = Layout(name="tiny", version=1, fields=(("ipv4.ttl", 8), ("tcp.wsize", 16), ("tcp.seq", 32)))
DOUBT, SURE = 0.0, 20.0


def bits(number: int, width: int) -> list[int]:
    return [number >> i & 1 for i in reversed(range(width))]


def rows(*packets: tuple[int, int]) -> np.ndarray:
    """
    Return packets of these TTLs and windows, with random sequence numbers.
    """
    rng = np.random.default_rng(0)
    numbers = [[*bits(ttl, 8), *bits(window, 16), *rng.integers(0, 2, 32)] for ttl, window in packets]
    return np.array(numbers, np.int8)


def flows(packets: np.ndarray, length: int = 1) -> Encoded:
    """
    Return flows of so many of these packets.
    """
    count = len(packets) // length
    return Encoded(
        rows=packets,
        starts=length * np.arange(count + 1),
        labels=np.full(count, "a"),
        start_times=np.zeros(count, np.int64),
        layout=LAYOUT,
    )


SINGLE = flows(rows((64, 1000), (64, 1000), (64, 1000), (64, 500), (128, 7), (128, 65535)))


def settled(
    state: np.ndarray, told: np.ndarray, sure: float, data: Encoded = SINGLE, length: int = 1, seed: int = 0
) -> np.ndarray:
    """
    Return packets of flows of which the decoder is that sure, after the values of a training set have settled them.
    """
    begins = np.isin(np.arange(len(data.rows)), data.starts)
    learned = learn_values(data, np.array([1, 1, 1, 1, 2, 2]) if data is SINGLE else np.where(begins, 1, 2))
    coded = (
        np.pad(told, ((0, 0), (0, TIME_BITS)), constant_values=-1).astype(np.int8).reshape(-1, length, 56 + TIME_BITS)
    )
    state = state.reshape(-1, length)
    present = np.where(coded >= 0, SURE, -SURE).astype(np.float32)
    one = np.where(coded == 1, sure, -sure).astype(np.float32)
    uniform = np.random.default_rng(seed).random(coded.shape, np.float32)
    return settle(learned, LAYOUT, state, present, one, uniform, coded).reshape(len(told), -1)[:, : LAYOUT.width]


def number(packets: np.ndarray, field: str) -> np.ndarray:
    part = packets[:, LAYOUT.spans()[field]]
    return (part == 1) @ (1 << np.arange(part.shape[1])[::-1])


def test_in_doubt_a_value_is_drawn_as_often_as_its_state_has_it() -> None:
    made = settled(np.ones(4000, np.int64), rows(*[(77, 333)] * 4000), DOUBT)
    assert set(number(made, "ipv4.ttl")) == {64}
    windows, counts = np.unique(number(made, "tcp.wsize"), return_counts=True)
    assert windows.tolist() == [500, 1000]
    assert counts[1] / 4000 == pytest.approx(0.75, abs=0.03)


def test_the_latents_decide_where_they_are_sure() -> None:
    made = settled(np.array([1, 1, 2, 2]), rows((64, 500), (64, 1000), (128, 65535), (128, 7)), SURE)
    assert number(made, "tcp.wsize").tolist() == [500, 1000, 65535, 7]


def test_values_last_as_long_as_those_of_the_class() -> None:
    constant = [(64, window) for window in (1000, 500, 1000, 250) for _ in range(10)]
    state = np.tile([1] + [2] * 9, 100)
    made = settled(state, rows(*[(77, 333)] * 1000), DOUBT, flows(rows(*constant), 10), 10)
    windows = number(made, "tcp.wsize").reshape(100, 10)
    assert (windows == windows[:, :1]).all()
    assert set(windows[:, 0]) == {250, 500, 1000}

    changing = [(64, (1000, 500)[packet % 2]) for packet in range(40)]
    made = settled(state, rows(*[(77, 333)] * 1000), DOUBT, flows(rows(*changing), 10), 10)
    windows = number(made, "tcp.wsize").reshape(100, 10)
    assert 0.4 < (windows[:, 1:] == windows[:, :-1]).mean() < 0.6  # each drawn for itself


def test_the_latents_end_a_repetition_where_they_are_sure() -> None:
    often = flows(rows(*[(64, window) for window in (1000, 500) for _ in range(10)]), 20)
    told = rows(*[(64, 1000)] * 4, *[(64, 500)] * 4)
    assert (
        number(settled(np.array([1] + [2] * 7), told, SURE, often, 8), "tcp.wsize").tolist() == [1000] * 4 + [500] * 4
    )


def test_what_is_noise_or_of_no_state_stays() -> None:
    told = rows((77, 333), (77, 333))
    made = settled(np.array([0, 1]), told, DOUBT)
    np.testing.assert_array_equal(made[0], told[0])
    np.testing.assert_array_equal(number(made, "tcp.seq"), number(told, "tcp.seq"))


def test_a_packet_does_not_depend_on_those_beside_it() -> None:
    state, told = np.array([1, 2, 1]), rows((64, 0), (64, 0), (64, 0))
    alone = settled(state[:1], told[:1], DOUBT)
    np.testing.assert_array_equal(settled(state, told, DOUBT)[:1], alone)


def test_values_of_a_damaged_folder_are_refused() -> None:
    learned = learn_values(flows(rows((64, 1), (65, 2))), np.array([1, 2]))
    arrays = to_arrays(learned)
    assert from_arrays(arrays, LAYOUT, 3).keys() == learned.keys()
    with pytest.raises(ValueError, match="damaged"):
        from_arrays(arrays, LAYOUT, 2)  # a state that the chain does not have
    arrays["values/ipv4.ttl/value"] = arrays["values/ipv4.ttl/value"] + 9
    with pytest.raises(ValueError, match=r"ipv4\.ttl"):
        from_arrays(arrays, LAYOUT, 3)
