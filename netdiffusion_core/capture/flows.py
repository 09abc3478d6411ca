"""
Put packets into bidirectional flows: by conversation (VLAN, addresses, protocol, ports), each conversation cut into
flows at a new TCP connection or after a silence.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ..model import ICMP, ICMPV6, TCP, UDP, FlowTable, Traffic
from .dissect import Dissection, dissect, uint

Array = NDArray[Any]

_NS = 1_000_000_000
_WITH_PORTS = (TCP, UDP, 33, 132, 136)  # DCCP, SCTP, UDP-Lite
_ECHO = {ICMP: (8, 0), ICMPV6: (128, 129)}  # request, reply: RFC 792, RFC 4443 section 4
_SYN, _SYN_ACK = 0x02, 0x12


def assemble(
    traffic: Traffic,
    *,
    label: Array | str = "",
    split: Array | str = "",
    source: Array | str = "",
    capture_of: Array | None = None,
    udp_timeout_s: float = 120,
    icmp_timeout_s: float = 60,
) -> Traffic:
    """
    Fill the flow table; packets, their order and their bytes stay as they are.

    A conversation is all packets of one capture with the same VLAN, protocol and pair of endpoints, in either
    direction; an ICMP echo's identifier stands for its ports, and the later fragments of a datagram go with its first.
    A new flow begins at a TCP SYN that is no repetition of the flow's own, and in any other protocol after a silence
    of `udp_timeout_s` (ICMP: `icmp_timeout_s`) seconds. Packets without IP, and fragments whose first is missing, keep
    ``flow_of`` -1. Flows are ordered by capture and by the time of their first packets.

    Several captures joined into one traffic are assembled at once: `capture_of`, int[packets], says which capture
    each packet is from, and `label`, `split` and `source` may then be str[captures].
    """
    n = len(traffic)
    capture = np.zeros(n, np.int64) if capture_of is None else np.asarray(capture_of, np.int64)
    headers = dissect(traffic)
    ports = _ports(traffic, headers)
    addresses = _addresses(traffic, headers)
    kinds = headers.ip_versions << 8 | np.maximum(headers.protocols, 0) | ports[:, 2] << 16
    scope = (capture << 13) + headers.vlans + 1
    keys, swapped = conversation_keys(scope, kinds, addresses, ports[:, :2])
    first = _first_fragments(headers, scope, addresses)
    chosen = np.flatnonzero(first >= 0)
    keys, swapped = keys[first[chosen]], swapped[first[chosen]]

    # In time order within each conversation.
    conversation = group_ids(keys)
    times = traffic.timestamps[chosen]
    order = np.lexsort((times, conversation))
    chosen, swapped, conversation, times = chosen[order], swapped[order], conversation[order], times[order]
    protocol = headers.protocols[chosen]
    starts = np.diff(conversation, prepend=-1) != 0
    timeout_ns = np.where(np.isin(protocol, (ICMP, ICMPV6)), icmp_timeout_s, udp_timeout_s) * _NS
    starts |= (protocol != TCP) & (np.diff(times, prepend=times[:1]) > timeout_ns)
    flags, sequence, acknowledged = _tcp_fields(traffic, headers, chosen)
    starts |= _begins_connection(flags, sequence, acknowledged, conversation, swapped)

    # Number the flows by their first packets: those lie at `starts`.
    begin = np.flatnonzero(starts)
    rank = np.empty(len(begin), np.int64)
    rank[np.lexsort((chosen[begin], times[begin], capture[chosen[begin]]))] = np.arange(len(begin))
    flow = rank[np.cumsum(starts) - 1]
    by_rank = np.argsort(rank)
    lead = chosen[begin][by_rank]  # the first packet of each flow
    initiator_swapped = swapped[begin][by_rank]
    for sets, initiates in ((_SYN_ACK, ~swapped), (_SYN, swapped)):  # the SYN has the last word
        i = np.flatnonzero(flags & _SYN_ACK == sets)[::-1]
        initiator_swapped[flow[i]] = initiates[i]

    flow_of = np.full(n, -1, np.int32)
    flow_of[chosen] = flow
    from_initiator = np.zeros(n, bool)
    from_initiator[chosen] = swapped == initiator_swapped[flow]
    led = from_initiator[lead]
    lead_addresses, lead_ports = addresses[lead], ports[first[lead]]
    echo = np.isin(headers.protocols[lead], (ICMP, ICMPV6))

    def per_flow(text: Array | str) -> Array:
        return np.full(len(lead), text) if isinstance(text, str) else text[capture[lead]]

    return attrs.evolve(
        traffic,
        flow_of=flow_of,
        from_initiator=from_initiator,
        flows=FlowTable(
            labels=per_flow(label),
            splits=per_flow(split),
            sources=per_flow(source),
            ip_versions=headers.ip_versions[lead],
            protocols=headers.protocols[lead],
            initiator_addresses=np.where(led[:, None], lead_addresses[:, 0], lead_addresses[:, 1]),
            responder_addresses=np.where(led[:, None], lead_addresses[:, 1], lead_addresses[:, 0]),
            initiator_ports=np.where(led, lead_ports[:, 0], lead_ports[:, 1]),
            responder_ports=np.where(echo, 0, np.where(led, lead_ports[:, 1], lead_ports[:, 0])),
        ),
    )


def conversation_keys(scope: Array, kinds: Array, addresses: Array, ports: Array) -> tuple[Array, Array]:
    """
    Return ``(keys, swapped)``: uint64[n, 6], equal for both directions of a conversation, and bool[n], whether the
    destination is the lower endpoint and so stands first in the key.

    scope, kinds  int64[n]           equal for all packets that may share a conversation
    addresses     uint8[n, 2, 16]    source, destination
    ports         int64[n, 2]        source, destination
    """
    words = np.ascontiguousarray(addresses).view(">u8").reshape(len(scope), 2, 2).astype(np.uint64)
    (s0, s1), (d0, d1) = words[:, 0].T, words[:, 1].T
    s2, d2 = ports.T
    swapped = (d0 < s0) | (d0 == s0) & ((d1 < s1) | (d1 == s1) & (d2 < s2))
    low, high = words[:, 0], words[:, 1]
    keys = np.empty((len(scope), 6), np.uint64)
    keys[:, 0] = scope
    keys[:, 1] = kinds << 32 | np.where(swapped, d2 << 16 | s2, s2 << 16 | d2)
    keys[:, 2:4] = np.where(swapped[:, None], high, low)
    keys[:, 4:6] = np.where(swapped[:, None], low, high)
    return keys, swapped


def group_ids(keys: Array) -> NDArray[np.int64]:
    """
    Number equal rows of uint64[n, k] alike: int64[n]. Rows are compared by a hash, and by value should two collide.
    """
    mixed = np.zeros(len(keys), np.uint64)
    for column in keys.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    _, first, ids = np.unique(mixed, return_index=True, return_inverse=True)
    if (keys[first[ids]] != keys).any():
        _, ids = np.unique(keys, axis=0, return_inverse=True)
    return ids.reshape(-1)


def _addresses(traffic: Traffic, headers: Dissection) -> Array:
    """
    Return uint8[packets, 2, 16]: source and destination, IPv4 in the first four bytes, zero for no IP.
    """
    addresses = np.zeros((len(traffic), 2, 16), np.uint8)
    for version, at, size in ((4, 12, 4), (6, 8, 16)):
        i = np.flatnonzero(headers.ip_versions == version)
        where = headers.ip_offsets[i, None, None] + at + np.arange(2)[:, None] * size + np.arange(size)
        addresses[i, :, :size] = traffic.data[where]
    return addresses


def _ports(traffic: Traffic, headers: Dissection) -> Array:
    """
    Return int64[packets, 3]: source and destination port (an echo: twice the identifier), and 1 for an echo. A header
    that was captured in part still tells its ports.
    """
    ports = np.zeros((len(traffic), 3), np.int64)
    at = headers.ip_offsets + headers.ip_header_lengths
    room = np.where(headers.fragment_offsets == 0, traffic.offsets[1:] - at, 0)
    i = np.flatnonzero(np.isin(headers.protocols, _WITH_PORTS) & (room >= 4))
    ports[i, 0] = uint(traffic.data, at[i], 2)
    ports[i, 1] = uint(traffic.data, at[i] + 2, 2)
    for protocol, version in ((ICMP, 4), (ICMPV6, 6)):
        i = np.flatnonzero((headers.protocols == protocol) & (headers.ip_versions == version) & (room >= 6))
        i = i[np.isin(traffic.data[at[i]], _ECHO[protocol])]
        ports[i, :2] = uint(traffic.data, at[i] + 4, 2)[:, None]
        ports[i, 2] = 1
    return ports


def _first_fragments(headers: Dissection, scope: Array, addresses: Array) -> Array:
    """
    Return int64[packets]: the packet that holds the ports. Each IP packet is its own; a later fragment's is the first
    fragment of its datagram (RFC 791: same addresses, protocol and identification), the last one seen before it, else
    the next; -1 where there is none.
    """
    first = np.where(headers.ip_versions > 0, np.arange(len(scope)), -1)
    i = np.flatnonzero(headers.fragments)
    words = np.ascontiguousarray(addresses[i]).view(np.uint64).reshape(len(i), 4)
    identity = headers.protocols[i] << 32 | headers.fragment_ids[i]
    ids = group_ids(np.column_stack([words, scope[i].astype(np.uint64), identity.astype(np.uint64)]))
    order = np.argsort(ids, kind="stable")
    i, ids = i[order], ids[order]
    heads = np.flatnonzero(headers.fragment_offsets[i] == 0)
    for nearest in (np.searchsorted(heads, np.arange(len(i))), np.searchsorted(heads, np.arange(len(i)), "right") - 1):
        head = np.append(heads, -1)[nearest]
        found = (head >= 0) & (ids[head] == ids)
        first[i[found]] = i[head[found]]
    lost = np.flatnonzero(headers.fragment_offsets[i] > 0)
    lost = i[lost[first[i[lost]] == i[lost]]]
    first[lost] = -1
    return first


def _tcp_fields(traffic: Traffic, headers: Dissection, packets: Array) -> tuple[Array, Array, Array]:
    """
    Return flags, sequence and acknowledgement numbers of these packets: int64[packets], 0 where there is no TCP.
    """
    at = headers.ip_offsets[packets] + headers.ip_header_lengths[packets]
    whole = (headers.protocols[packets] == TCP) & (headers.fragment_offsets[packets] == 0)
    i = np.flatnonzero(whole & (traffic.offsets[packets + 1] - at >= 14))
    flags, sequence, acknowledged = np.zeros((3, len(packets)), np.int64)
    flags[i] = traffic.data[at[i] + 13]
    sequence[i] = uint(traffic.data, at[i] + 4, 4)
    acknowledged[i] = uint(traffic.data, at[i] + 8, 4)
    return flags, sequence, acknowledged


def _begins_connection(
    flags: Array, sequence: Array, acknowledged: Array, conversation: Array, swapped: Array
) -> Array:
    """
    Return bool[packets]: a SYN that opens a connection. Not so one that repeats the SYN before it, that the packet
    before it already acknowledges (the capture exchanged the two), or that answers a SYN of the other side
    (simultaneous open, RFC 9293 section 3.5).
    """
    begins = np.zeros(len(flags), bool)
    i = np.flatnonzero(flags & _SYN_ACK == _SYN)
    begins[i] = True
    same = (np.diff(conversation[i]) == 0) & (np.diff(sequence[i]) == 0) & (np.diff(swapped[i].view(np.int8)) == 0)
    begins[i[1:][same]] = False
    i = i[i > 0]
    before = i - 1
    crossed = (conversation[before] == conversation[i]) & (swapped[before] != swapped[i])
    answered = (flags[before] & _SYN_ACK == _SYN_ACK) & (acknowledged[before] == (sequence[i] + 1) % (1 << 32))
    begins[i[crossed & (answered | (flags[before] & _SYN_ACK == _SYN))]] = False
    return begins
