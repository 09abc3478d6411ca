"""
Put packets into bidirectional flows: by conversation (VLAN, addresses, protocol, ports), each conversation cut into
flows at a new TCP connection or after a silence.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .. import columns
from ..columns import cut, filled, grouped, pieces
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
    capture = np.broadcast_to(np.int64(0), n) if capture_of is None else np.asarray(capture_of)
    told = _tell(traffic, capture)
    order, ends = grouped(told.conversation, told.conversations, traffic.timestamps)
    flow_of, from_initiator = filled(n, -1, np.int32), filled(n, False, np.bool_)
    leads, flows = [np.zeros(0, np.int64)], 0  # the first packet of each flow
    for first, last in cut(ends, columns.PIECE_ROWS):
        chosen = order[ends[first] : ends[last]]
        conversation, swapped, protocol = told.conversation[chosen], told.swapped[chosen], told.protocol[chosen]
        times, flags = traffic.timestamps[chosen], told.flags[chosen]
        starts = np.diff(conversation, prepend=-1) != 0
        is_icmp = (protocol == ICMP) | (protocol == ICMPV6)
        silence_ns = np.diff(times, prepend=times[:1])
        for has_timeout, timeout_s in ((is_icmp, icmp_timeout_s), (~is_icmp & (protocol != TCP), udp_timeout_s)):
            starts |= has_timeout & (silence_ns > timeout_s * _NS)
        starts |= _begins_connection(flags, told.sequence[chosen], told.acknowledged[chosen], conversation, swapped)

        flow = np.cumsum(starts) - 1
        initiator_swapped = swapped[starts]
        for sets, initiates in ((_SYN_ACK, ~swapped), (_SYN, swapped)):  # the SYN has the last word
            i = np.flatnonzero(flags & _SYN_ACK == sets)[::-1]
            initiator_swapped[flow[i]] = initiates[i]
        flow_of[chosen] = flow + flows
        from_initiator[chosen] = swapped == initiator_swapped[flow]
        leads.append(chosen[starts])
        flows += len(leads[-1])

    # Number the flows by their first packets.
    lead = np.concatenate(leads)
    by_rank = np.lexsort((lead, traffic.timestamps[lead], capture[lead]))
    lead, rank = lead[by_rank], np.full(flows + 1, -1, np.int32)  # the last entry serves flow_of == -1
    rank[by_rank] = np.arange(flows)
    for piece in pieces(n):
        flow_of[piece] = rank[flow_of[piece]]
    led = from_initiator[lead]
    lead_traffic = traffic.select_packets(lead)
    headers = dissect(lead_traffic)
    addresses = _addresses(lead_traffic, headers)
    _, in_lead, in_later = np.intersect1d(lead, told.later, return_indices=True)
    lead[in_lead] = told.head[in_later]  # a flow may begin with a later fragment, and the first has the ports
    lead_traffic = traffic.select_packets(lead)
    ports = _ports(lead_traffic, dissect(lead_traffic))
    echo = (headers.protocols == ICMP) | (headers.protocols == ICMPV6)

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
            ip_versions=headers.ip_versions,
            protocols=headers.protocols,
            initiator_addresses=np.where(led[:, None], addresses[:, 0], addresses[:, 1]),
            responder_addresses=np.where(led[:, None], addresses[:, 1], addresses[:, 0]),
            initiator_ports=np.where(led, ports[:, 0], ports[:, 1]),
            responder_ports=np.where(echo, 0, np.where(led, ports[:, 1], ports[:, 0])),
        ),
    )


@attrs.frozen(kw_only=True, eq=False)
class _Told:
    """
    What each packet tells about its flow, in as few bytes as a large capture asks for.

    conversation            int32[packets]   the number of its conversation, -1 for a packet of none
    conversations           int              how many there are
    swapped                 bool[packets]    whether the destination is the lower endpoint, see `conversation_keys`
    protocol                uint8[packets]
    flags                   uint8[packets]   of TCP; 0 where there is none
    sequence, acknowledged  uint32[packets]
    later, head             int64[k]         see `_first_fragments`
    """

    conversation: Array
    conversations: int
    swapped: Array
    protocol: Array
    flags: Array
    sequence: Array
    acknowledged: Array
    later: Array
    head: Array


def _tell(traffic: Traffic, capture: Array) -> _Told:
    n = len(traffic)
    conversation, swapped = filled(n, -1, np.int32), filled(n, False, np.bool_)
    protocol, flags = (filled(n, 0, np.uint8) for _ in range(2))
    sequence, acknowledged = (filled(n, 0, np.uint32) for _ in range(2))
    known, n_known = [np.zeros((0, 6), np.uint64)], 0  # the keys of each chunk's conversations
    fragments = [np.zeros((2, 0), np.int64)]  # packet, fragment offset
    datagrams = [np.zeros((0, 6), np.uint64)]  # and the keys of their datagrams
    for part in traffic.chunks():
        piece = traffic.select_packets(part)
        headers = dissect(piece)
        ports, addresses = _ports(piece, headers), _addresses(piece, headers)
        scope = (capture[part].astype(np.int64) << 13) + headers.vlans + 1
        kinds = headers.ip_versions << 8 | np.maximum(headers.protocols, 0) | ports[:, 2] << 16
        keys, swapped[part] = conversation_keys(scope, kinds, addresses, ports[:, :2])
        i = np.flatnonzero(headers.ip_versions)
        ids, one_each = group_ids(keys[i])
        conversation[part.start + i] = ids + n_known
        known.append(keys[i[one_each]])
        n_known += len(one_each)
        protocol[part] = np.maximum(headers.protocols, 0)
        flags[part], sequence[part], acknowledged[part] = _tcp_fields(piece, headers)

        i = np.flatnonzero(headers.fragments)
        words = np.ascontiguousarray(addresses[i]).view(np.uint64).reshape(len(i), 4)
        identity = headers.protocols[i] << 32 | headers.fragment_ids[i]
        datagrams.append(np.column_stack([words, scope[i].astype(np.uint64), identity.astype(np.uint64)]))
        fragments.append(np.stack([part.start + i, headers.fragment_offsets[i]]))
    ids, one_each = group_ids(np.concatenate(known))
    ids = np.append(ids, -1)  # for those of none
    for rows in pieces(n):
        conversation[rows] = ids[conversation[rows]]

    packets, offsets = np.concatenate(fragments, axis=1)
    later, head = _first_fragments(packets, offsets, np.concatenate(datagrams))
    conversation[later] = np.where(head < 0, -1, conversation[head])
    swapped[later] = swapped[head]
    return _Told(
        conversation=conversation,
        conversations=len(one_each),
        swapped=swapped,
        protocol=protocol,
        flags=flags,
        sequence=sequence,
        acknowledged=acknowledged,
        later=later,
        head=head,
    )


def conversation_keys(scope: Array, kinds: Array, addresses: Array, ports: Array) -> tuple[Array, Array]:
    """
    Return ``(keys, swapped)``: uint64[n, 6], equal for both directions of a conversation, and bool[n], whether the
    destination is the lower endpoint and so stands first in the key.

    scope, kinds  int64[n]           equal for all packets that may share a conversation
    addresses     uint8[n, 2, 16]    source, destination
    ports         int64[n, 2]        source, destination
    """
    words = np.ascontiguousarray(addresses).view(np.uint64).reshape(len(scope), 2, 2)  # any order will do
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


def group_ids(keys: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Return ``(ids, firsts)``: int64[n], equal for equal rows of uint64[n, k], and the first row of each id. Rows are
    compared by a hash, and by value should two collide.
    """
    mixed = np.zeros(len(keys), np.uint64)
    for column in keys.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    _, firsts, ids = np.unique(mixed, return_index=True, return_inverse=True)
    if (keys[firsts[ids]] != keys).any():
        _, firsts, ids = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return ids.reshape(-1), firsts


def _addresses(traffic: Traffic, headers: Dissection) -> Array:
    """
    Return uint8[packets, 2, 16]: source and destination, IPv4 in the first four bytes, zero for no IP.
    """
    addresses = np.zeros((len(traffic), 2, 16), np.uint8)
    for version, at, size in ((4, 12, 4), (6, 8, 16)):
        i = np.flatnonzero(headers.ip_versions == version)
        if len(i):
            both = sliding_window_view(traffic.data, 2 * size)[headers.ip_offsets[i] + at]
            addresses[i, :, :size] = both.reshape(len(i), 2, size)
    return addresses


def _ports(traffic: Traffic, headers: Dissection) -> Array:
    """
    Return int64[packets, 3]: source and destination port (an echo: twice the identifier), and 1 for an echo. A header
    that was captured in part still tells its ports.
    """
    ports = np.zeros((len(traffic), 3), np.int64)
    at = headers.ip_offsets + headers.ip_header_lengths
    room = np.where(headers.fragment_offsets == 0, traffic.ends - at, 0)
    i = np.flatnonzero(np.isin(headers.protocols, _WITH_PORTS) & (room >= 4))
    ports[i, 0] = uint(traffic.data, at[i], 2)
    ports[i, 1] = uint(traffic.data, at[i] + 2, 2)
    for protocol, version in ((ICMP, 4), (ICMPV6, 6)):
        i = np.flatnonzero((headers.protocols == protocol) & (headers.ip_versions == version) & (room >= 6))
        i = i[np.isin(traffic.data[at[i]], _ECHO[protocol])]
        ports[i, :2] = uint(traffic.data, at[i] + 4, 2)[:, None]
        ports[i, 2] = 1
    return ports


def _first_fragments(packets: Array, offsets: Array, datagrams: Array) -> tuple[Array, Array]:
    """
    Return ``(later, head)``: the fragments that are not the first of their datagram (RFC 791: same addresses, protocol
    and identification), and for each the first one, the last seen before it, else the next; -1 where there is none.

    packets, offsets  int64[n]      fragments, and where in the datagram they belong
    datagrams         uint64[n, k]  equal for fragments of one datagram
    """
    ids, _ = group_ids(datagrams)
    order = np.argsort(ids, kind="stable")
    packets, offsets, ids = packets[order], offsets[order], ids[order]
    heads = np.flatnonzero(offsets == 0)
    head_of = np.full(len(packets), -1, np.int64)
    for nearest in (
        np.searchsorted(heads, np.arange(len(ids))),
        np.searchsorted(heads, np.arange(len(ids)), "right") - 1,
    ):
        head = np.append(heads, -1)[nearest]
        found = (head >= 0) & (ids[head] == ids)
        head_of[found] = packets[head[found]]
    return packets[offsets > 0], head_of[offsets > 0]


def _tcp_fields(traffic: Traffic, headers: Dissection) -> tuple[Array, Array, Array]:
    """
    Return flags, sequence and acknowledgement numbers: int64[packets], 0 where there is no TCP.
    """
    at = headers.ip_offsets + headers.ip_header_lengths
    i = np.flatnonzero((headers.protocols == TCP) & (headers.fragment_offsets == 0) & (traffic.ends - at >= 14))
    flags, sequence, acknowledged = np.zeros((3, len(traffic)), np.int64)
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
    answered = (flags[before] & _SYN_ACK == _SYN_ACK) & (acknowledged[before] == sequence[i] + np.uint32(1))
    begins[i[crossed & (answered | (flags[before] & _SYN_ACK == _SYN))]] = False
    return begins
