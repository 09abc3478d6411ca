"""
What values a packet's fields take in each state of a class's chain, and how that settles the decoder's doubts.

The decoder tells each bit's probability as if bits were independent: where it doubts two bits of a size, it would make
sizes that no packet of the class ever had. By Bayes' rule the chance of a value is how often packets in this state have
it, times the decoder's probabilities of its bits: what the latents leave open is drawn from what the class does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from netdiffusion_core.model import Layout

from .autoencoder import NOISE_FIELDS, TIME, TIME_BITS, option_noise, with_unary_time

Array = NDArray[Any]

PORTS = ("tcp.sprt", "tcp.dprt", "udp.sport", "udp.dport")
"""Who has which port does not follow from the state: the initiator's is noise."""

MOST = 256
"""With more values than that in one state, the commonest stand for all."""

PACKETS_TOGETHER = 1024


@attrs.frozen(kw_only=True, eq=False)
class FieldValues:
    """
    The values of one field.

    bits   int8[values, columns]  each value once: -1, 0, 1; bits that are noise are 0
    state  int32[k]  this state, sorted
    value  int32[k]  has this value
    count  int32[k]  in so many packets
    """

    bits: NDArray[np.int8]
    state: NDArray[np.int32]
    value: NDArray[np.int32]
    count: NDArray[np.int32]


def columns(layout: Layout) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """
    Yield the fields that have values worth knowing, and their columns in rows as `with_unary_time` gives them.
    """
    for name, span in layout.spans().items():
        if name not in NOISE_FIELDS + PORTS and name in dict(layout.fields):
            own = np.arange(layout.width + TIME_BITS)[span]
            yield name, np.append(own, layout.width + np.arange(TIME_BITS)) if name == TIME else own


def learn_values(rows: NDArray[np.int8], state_of: NDArray[np.int64], layout: Layout) -> dict[str, FieldValues]:
    """
    Count the values of training packets, int8[packets, columns], in each state but 0.
    """
    seen = np.flatnonzero(state_of)
    learned = {}
    for name, own in columns(layout):
        bits = rows[seen][:, layout.spans()[name]]
        if name == TIME:
            bits = with_unary_time(torch.tensor(bits), {TIME: slice(0, bits.shape[1])}).numpy()
        bits = np.where((bits >= 0) & ~_noise(name, bits), bits, np.minimum(bits, 0))
        assert bits.shape[1] == len(own)
        packed = np.packbits(np.concatenate([bits >= 0, bits == 1], 1), axis=1)
        _, first, value = np.unique(packed.view(f"V{packed.shape[1]}"), return_index=True, return_inverse=True)
        pairs, count = np.unique(state_of[seen] * len(first) + value.reshape(-1), return_counts=True)
        state, value = np.divmod(pairs, len(first))
        order = np.lexsort((-count, state))
        state = state[order]
        few = np.arange(len(state)) - np.searchsorted(state, state) < MOST
        kept, value = np.unique(value[order][few], return_inverse=True)
        learned[name] = FieldValues(
            bits=bits[first[kept]],
            state=state[few].astype(np.int32),
            value=value.astype(np.int32),
            count=count[order][few].astype(np.int32),
        )
    return learned


def settle(
    learned: Mapping[str, FieldValues],
    layout: Layout,
    state: NDArray[np.int64],
    present: NDArray[np.float32],
    one: NDArray[np.float32],
    uniform: NDArray[np.float32],
    coded: NDArray[np.int8],
) -> NDArray[np.int8]:
    """
    Return packets with their values drawn anew from p(value | state) p(latents | value).

    state    int64[packets]             of the chain; packets in state 0, and in states without values, stay
    present  float32[packets, columns]  log-odds that a bit is present
    one      float32[packets, columns]  and that it is 1 if it is
    uniform  float32[packets, columns]  of those of a field's first column its value is drawn
    coded    int8[packets, columns]     as `with_unary_time` gives them
    """
    coded = coded.copy()
    for name, own in columns(layout):
        table = learned[name]
        there, is_one, told = table.bits >= 0, table.bits == 1, (table.bits >= 0) & ~_noise(name, table.bits)
        # log p(bits) sums log s(p) or log s(-p) = log s(p) - p, and likewise of v; what all values share is left out
        weights = np.concatenate([there, told, is_one & told], 1).astype(np.float32).T
        begin, end = np.searchsorted(table.state, [state, state + 1])
        for packets in np.array_split(np.arange(len(state)), -(-len(state) // PACKETS_TOGETHER)):
            packets = packets[end[packets] > begin[packets]]
            if not len(packets):
                continue
            p, v = present[packets][:, own], one[packets][:, own]
            likelihood = np.concatenate([p, -np.logaddexp(0, v), v], 1) @ weights
            number = end[packets] - begin[packets]
            last = np.cumsum(number)
            of = np.repeat(np.arange(len(packets)), number)
            choice = np.arange(last[-1]) + np.repeat(begin[packets] - last + number, number)
            score = likelihood[of, table.value[choice]] + np.log(table.count[choice])
            chance = np.exp(score - np.maximum.reduceat(score, last - number)[of], dtype=np.float64)
            ladder = np.cumsum(chance)
            below = ladder[last - number] - chance[last - number]
            target = below + uniform[packets, own[0]] * (ladder[last - 1] - below)
            drawn = np.clip(np.searchsorted(ladder, target, side="right"), last - number, last - 1)
            coded[np.ix_(packets, own)] = table.bits[table.value[choice[drawn]]]
    return coded


def _noise(name: str, bits: NDArray[np.int8]) -> NDArray[np.bool_]:
    if name != "tcp.opt":
        return np.zeros(bits.shape, bool)
    return option_noise(torch.tensor(bits)).numpy()


# --- in a model folder ------------------------------------------------------------------------------------------


def to_arrays(learned: Mapping[str, FieldValues]) -> dict[str, Array]:
    """
    Return what `from_arrays` reads.
    """
    return {
        f"values/{name}/{key}": each for name, table in learned.items() for key, each in attrs.asdict(table).items()
    }


def from_arrays(arrays: Mapping[str, Array], layout: Layout, states: int) -> dict[str, FieldValues]:
    """
    Undo `to_arrays`. Raises ValueError or KeyError for arrays that are not such values of so many states.
    """
    learned = {}
    for name, own in columns(layout):
        table = FieldValues(**{each.name: arrays[f"values/{name}/{each.name}"] for each in attrs.fields(FieldValues)})
        whole = (
            table.bits.dtype == np.int8
            and table.bits.shape[1:] == (len(own),)
            and np.isin(table.bits, (-1, 0, 1)).all()
            and table.state.shape == table.value.shape == table.count.shape
            and all(each.dtype == np.int32 for each in (table.state, table.value, table.count))
            and np.array_equal(table.state, np.sort(table.state))
            and ((table.state > 0) & (table.state < states)).all()
            and ((table.value >= 0) & (table.value < len(table.bits)) & (table.count > 0)).all()
        )
        if not whole:
            raise ValueError(f"control.safetensors is damaged: it does not hold the values of {name}")
        learned[name] = table
    return learned
