"""
What values a packet's fields take in each state of a class's chain, and how that settles the decoder's doubts.

The decoder tells each bit's probability as if bits were independent: where it doubts two bits of a size, it would make
sizes that no packet of the class ever had. By Bayes' rule the chance of a value is how often packets in this state have
it, times the decoder's probabilities of its bits: what the latents leave open is drawn from what the class does.

Most values of a packet are those of its sender's last one (a window, a TTL). So each state also knows how often its
packets repeat a value, and what values those have that do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from netdiffusion_core.model import Encoded, Layout

from .autoencoder import NOISE_FIELDS, TIME, TIME_BITS, option_noise, with_unary_time
from .control import DIRECTION, senders_last

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
    fresh  int32[k]  of which so many do not repeat the value of their sender's last packet
    """

    bits: NDArray[np.int8]
    state: NDArray[np.int32]
    value: NDArray[np.int32]
    count: NDArray[np.int32]
    fresh: NDArray[np.int32]


def columns(layout: Layout) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """
    Yield the fields that have values worth knowing, and their columns in rows as `with_unary_time` gives them.
    """
    spans = layout.spans()
    names = [name for name, _ in layout.fields if name not in NOISE_FIELDS + PORTS]
    for name in sorted(names, key=lambda name: name != DIRECTION):  # first who speaks: the rest depends on it
        own = np.arange(layout.width + TIME_BITS)[spans[name]]
        yield name, np.append(own, layout.width + np.arange(TIME_BITS)) if name == TIME else own


def learn_values(data: Encoded, state_of: NDArray[np.int64]) -> dict[str, FieldValues]:
    """
    Count the values of training packets in each state but 0.
    """
    rows, layout = data.rows, data.layout
    seen = np.flatnonzero(state_of)
    place = np.full(len(rows) + 1, -1)
    place[seen] = np.arange(len(seen))
    last = place[senders_last(rows, data.flow_of, layout)[seen]]
    learned = {}
    for name, own in columns(layout):
        bits = rows[seen][:, layout.spans()[name]]
        if name == TIME:
            bits = with_unary_time(torch.tensor(bits), {TIME: slice(0, bits.shape[1])}).numpy()
        bits = np.where((bits >= 0) & ~_noise(name, bits), bits, np.minimum(bits, 0))
        assert bits.shape[1] == len(own)
        packed = np.packbits(np.concatenate([bits >= 0, bits == 1], 1), axis=1)
        _, first, value = np.unique(packed.view(f"V{packed.shape[1]}"), return_index=True, return_inverse=True)
        value = value.reshape(-1)
        new = (last < 0) | (value != value[last])
        pairs, pair, count = np.unique(state_of[seen] * len(first) + value, return_inverse=True, return_counts=True)
        fresh = np.bincount(pair.reshape(-1), new, len(pairs)).astype(np.int64)
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
            fresh=fresh[order][few].astype(np.int32),
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
    Return packets with their values drawn anew from p(value | state, sender's last value) p(latents | value).

    state    int64[flows, packets]             of the chain; packets in state 0, and in states without values, stay
    present  float32[flows, packets, columns]  log-odds that a bit is present
    one      float32[flows, packets, columns]  and that it is 1 if it is
    uniform  float32[flows, packets, columns]  those of a field's first column decide
    coded    int8[flows, packets, columns]     as `with_unary_time` gives them
    """
    shape, width = state.shape, coded.shape[-1]
    state, coded = state.reshape(-1), coded.reshape(-1, width).copy()
    present, one, uniform = (each.reshape(-1, width) for each in (present, one, uniform))
    flow = np.repeat(np.arange(shape[0]), shape[1])
    last: NDArray[np.int64] | None = None
    for name, own in columns(layout):
        table = learned[name]
        there, is_one, told = table.bits >= 0, table.bits == 1, (table.bits >= 0) & ~_noise(name, table.bits)
        # log p(bits) sums log s(p) or log s(-p) = log s(p) - p, and likewise of v; what all values share is left out
        weights = np.concatenate([there, told, is_one & told], 1).astype(np.float32).T
        begin, end = np.searchsorted(table.state, [state, state + 1])
        value, evidence = np.full(len(state), -1), np.zeros(len(state))
        for packets in np.array_split(np.arange(len(state)), -(-len(state) // PACKETS_TOGETHER)):
            packets = packets[end[packets] > begin[packets]]
            if len(packets):
                likelihood = _log_odds(present[packets][:, own], one[packets][:, own]) @ weights
                choices = begin[packets], end[packets]
                value[packets], evidence[packets] = _draw(table, likelihood, *choices, uniform[packets, own[0]])
        if name != DIRECTION:
            if last is None:
                last = senders_last(coded, flow, layout).reshape(shape)
            value = _repeat(table, weights, state, last, value, evidence, (present, one, uniform), own)
        settled = np.flatnonzero(value >= 0)
        coded[np.ix_(settled, own)] = table.bits[value[settled]]
    return coded.reshape(*shape, width)


def _log_odds(present: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([present, -np.logaddexp(0, one), one], -1)


def _draw(
    table: FieldValues, likelihood: Array, begin: Array, end: Array, uniform: Array
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """
    Draw each packet a value among those that do not repeat, if its state has any, and return them with the logarithm of
    the sum of p(value | state, not repeated) p(latents | value), -inf where there are none.
    """
    number = end - begin
    stop = np.cumsum(number)
    of = np.repeat(np.arange(len(number)), number)
    choice = np.arange(stop[-1]) + np.repeat(begin - stop + number, number)
    fresh = table.fresh[choice]
    all_fresh = np.add.reduceat(fresh, stop - number)
    weight = np.where(all_fresh[of] > 0, fresh, table.count[choice])
    with np.errstate(divide="ignore"):
        score = likelihood[of, table.value[choice]] + np.log(weight)
    most = np.maximum.reduceat(score, stop - number)
    chance = np.exp(score - most[of], dtype=np.float64)
    ladder = np.cumsum(chance)
    below = ladder[stop - number] - chance[stop - number]
    target = below + uniform * (ladder[stop - 1] - below)
    drawn = np.clip(np.searchsorted(ladder, target, side="right"), stop - number, stop - 1)
    with np.errstate(divide="ignore"):
        evidence = most + np.log(ladder[stop - 1] - below) - np.log(np.maximum(all_fresh, 1))
    return table.value[choice[drawn]], np.where(all_fresh > 0, evidence, -np.inf)


def _repeat(
    table: FieldValues,
    weights: Array,
    state: Array,
    last: Array,
    value: Array,
    evidence: Array,
    chances: tuple[Array, Array, Array],
    own: Array,
) -> NDArray[np.int64]:
    """
    Return the values of packets, those of their sender's last packet where they repeat it: packet by packet, since each
    depends on the one before, and all flows together.
    """
    states = int(max(state.max(), table.state.max(initial=0))) + 1
    count, fresh = (np.bincount(table.state, each, states) for each in (table.count, table.fresh))
    with np.errstate(divide="ignore", invalid="ignore"):
        prior = (np.log(count - fresh) - np.log(fresh))[state]  # log odds of a repetition
    present, one, uniform = chances  # its high digits have drawn the value, its low ones draw whether it is repeated
    flows, height = last.shape
    at = np.arange(flows) * height
    value = value.copy()
    for packet in range(1, height):
        here, before = at + packet, last[:, packet]
        asked = np.flatnonzero((before >= 0) & (value[here] >= 0))
        asked = asked[value[before[asked]] >= 0]
        if not len(asked):
            continue
        i, repeated = here[asked], value[before[asked]]
        odds = _log_odds(present[i][:, own], one[i][:, own])
        likely = np.einsum("pc,cp->p", odds, weights[:, repeated])
        log_odds = prior[i] + likely - evidence[i]
        again = uniform[i, own[0]] * 4096 % 1 < 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))
        value[i[again]] = repeated[again]
    return value


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
            and table.state.shape == table.value.shape == table.count.shape == table.fresh.shape
            and all(each.dtype == np.int32 for each in (table.state, table.value, table.count, table.fresh))
            and np.array_equal(table.state, np.sort(table.state))
            and ((table.state > 0) & (table.state < states)).all()
            and ((table.value >= 0) & (table.value < len(table.bits)) & (table.count > 0)).all()
            and ((table.fresh >= 0) & (table.fresh <= table.count)).all()
        )
        if not whole:
            raise ValueError(f"control.safetensors is damaged: it does not hold the values of {name}")
        learned[name] = table
    return learned
