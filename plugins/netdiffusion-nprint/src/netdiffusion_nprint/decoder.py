"""
Bits to packets, all packets at once: find out which headers a row holds, lay the packets out one behind the other, and
put each header to its place.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import attrs
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import uint
from netdiffusion_core.model import (
    ICMP,
    ICMPV6,
    LINK_ETHERNET,
    LINK_RAW,
    MISSING,
    TCP,
    UDP,
    Encoded,
    FlowTable,
    Traffic,
)

from .layout import COLUMN, TRACE_COLUMN, chunks

Array = NDArray[Any]

_PAPER_IAT_US = 1000  # the paper's layout has no time: its packets come a millisecond apart
_FRAGMENT, _AUTHENTICATION, _NO_NEXT_HEADER, _DESTINATION_OPTIONS = 44, 51, 59, 60
_EXTENSIONS = (0, 43, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS, 135)
_ECHO_TYPES = (0, 8, 128, 129)
DEFAULT_NETS = ("10.0.0.0/8,fd00::/8", "198.18.0.0/15,2001:db8::/32")  # the latter: RFC 2544, RFC 3849
_HEADERS = ("ipv4", "ipv6", "tcp", "udp", "icmp")
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint8)  # bits set in a byte


@attrs.frozen(kw_only=True, eq=False)
class _Rows:
    """
    Rows of bits as bytes, only those that are packets.

    flow              int64[packets]
    octets            uint8[packets, columns / 8]  missing bits are 0
    is4               bool[packets]                IPv4, else IPv6
    announced         int64[packets]               ipv4.proto or ipv6.nh
    protocols         int64[packets]               TCP, UDP, ICMP, ICMPV6, or -1 without a transport header
    ip_option_words   int64[packets]               whole 32-bit words of IPv4 options that are present
    tcp_option_words  int64[packets]
    """

    flow: Array
    octets: Array
    is4: Array
    announced: Array
    protocols: Array
    ip_option_words: Array
    tcp_option_words: Array

    def word(self, field: str) -> NDArray[np.int64]:
        """
        Return the 16 bits that begin with this field: int64[packets].
        """
        return uint(self.octets.ravel(), np.arange(len(self.flow)) * self.octets.shape[1] + COLUMN[field], 2)

    def transport(self) -> NDArray[np.uint8]:
        """
        Return the first eight bytes of the transport header: uint8[packets, 8], zeros where there is none.
        """
        head = np.zeros((len(self.flow), 8), np.uint8)
        for name, numbers in (("tcp", (TCP,)), ("udp", (UDP,)), ("icmp", (ICMP, ICMPV6))):
            i = np.flatnonzero(np.isin(self.protocols, numbers))
            head[i] = self.octets[i, COLUMN[name] : COLUMN[name] + 8]
        return head


def decode(
    encoded: Encoded,
    rng: np.random.Generator,
    *,
    ethernet: bool,
    payload: str,
    nets: tuple[str, str] = DEFAULT_NETS,
) -> Traffic:
    """
    See `encoder.NprintEncoder.decode`, which is this with the encoder's options.
    """
    rows = _parse(encoded)
    flow, is4, protocols, n = rows.flow, rows.is4, rows.protocols, len(rows.flow)
    first = np.searchsorted(flow, flow)  # the first packet of each packet's flow
    head = rows.transport()

    direction, iat_us, padding, extension_words = _trace(encoded, rows, head, first)
    ip_lengths = np.where(is4, 20 + 4 * rows.ip_option_words, 40 + 8 * extension_words)
    transport_lengths = np.where(protocols == TCP, 20 + 4 * rows.tcp_option_words, np.where(protocols < 0, 0, 8))
    told = np.minimum(np.where(is4, rows.word("ipv4.tl"), rows.word("ipv6.len") + 40), 65_535)
    link_length = 14 if ethernet else 0
    header_ends = link_length + ip_lengths + transport_lengths
    wire_lengths = np.maximum(header_ends, link_length + told + padding)
    # Payload must never be read as a header: a packet that announces more of a header than its row holds is cut there.
    is_cut = (protocols == TCP) & (rows.octets[:, COLUMN["tcp.doff"]] >> 4 > transport_lengths // 4)
    is_later_fragment = is4 & (rows.word("ipv4.rbit") & 0x1FFF > 0)
    is_cut |= (protocols < 0) & np.isin(rows.announced, (TCP, UDP, ICMP, ICMPV6)) & ~is_later_fragment
    is_cut |= ~is4 & np.isin(rows.announced, _EXTENSIONS) & (extension_words == 0)
    captured = np.where(is_cut | (payload == "none"), header_ends, wire_lengths)
    ends = np.cumsum(captured)
    total = int(ends[-1]) if n else 0

    hosts = _draw_hosts(len(encoded), nets, rng)
    if payload == "random":
        data = rng.integers(0, 256, total, np.uint8)
        put_bytes(data, ends - padding, np.broadcast_to(np.uint8(0), (n, 127)), np.where(is_cut, 0, padding))
    else:
        data = np.zeros(total, np.uint8)

    sender, receiver = direction, 1 - direction
    at = ends - captured
    if ethernet:
        ethertype = np.where(is4[:, None], (0x08, 0x00), (0x86, 0xDD)).astype(np.uint8)
        put_bytes(data, at, np.hstack([hosts.mac[flow, receiver], hosts.mac[flow, sender], ethertype]))
        at = at + link_length
    i = np.flatnonzero(is4)
    octets = rows.octets[i, COLUMN["ipv4"] :]
    addresses = [hosts.ipv4[flow[i], sender[i]], hosts.ipv4[flow[i], receiver[i]]]
    put_bytes(data, at[i], np.hstack([octets[:, :12], *addresses, octets[:, 12:52]]), ip_lengths[i])
    i = np.flatnonzero(~is4)
    octets = rows.octets[i, COLUMN["ipv6"] :]
    addresses = [hosts.ipv6[flow[i], sender[i]], hosts.ipv6[flow[i], receiver[i]]]
    put_bytes(data, at[i], np.hstack([octets[:, :8], *addresses]))
    i = np.flatnonzero(extension_words)
    next_header = np.where(protocols[i] < 0, _NO_NEXT_HEADER, protocols[i])
    extensions = _extensions(rows.announced[i], next_header, extension_words[i])
    put_bytes(data, at[i] + 40, extensions, 8 * extension_words[i])
    at = at + ip_lengths
    i = np.flatnonzero(protocols == TCP)
    put_bytes(data, at[i], rows.octets[i, COLUMN["tcp"] : COLUMN["tcp"] + 60], transport_lengths[i])
    i = np.flatnonzero((protocols >= 0) & (protocols != TCP))
    put_bytes(data, at[i], head[i])

    elapsed_us = np.cumsum(iat_us)
    elapsed_us -= elapsed_us[first]
    start = encoded.start_times[flow]
    return Traffic(
        data=data,
        starts=ends - captured,
        captured_lengths=captured,
        timestamps=start + 1000 * np.minimum(elapsed_us, (np.iinfo(np.int64).max - start) // 1000),
        wire_lengths=wire_lengths,
        link_types=np.full(n, LINK_ETHERNET if ethernet else LINK_RAW),
        flow_of=flow,
        from_initiator=direction == 0,
        flows=_flow_table(encoded, rows, head, direction, hosts),
    )


def _parse(encoded: Encoded) -> _Rows:
    """
    Read from the presence of bits which headers each row holds; leave out what follows a flow's first row without IP.
    """
    n = len(encoded.rows)
    octets = np.empty((n, encoded.layout.width // 8), np.uint8)
    present = np.empty((n, len(_HEADERS)), np.int64)  # bits of each header
    words = np.empty((n, 2), np.int64)
    for part in chunks(n):
        rows = encoded.rows[part]
        octets[part] = np.packbits(rows == 1, axis=1)
        mask = np.packbits(rows != MISSING, axis=1)[:, :TRACE_COLUMN]
        present[part] = np.add.reduceat(_ONES[mask], [COLUMN[name] for name in _HEADERS], axis=1, dtype=np.int64)
        is_whole = np.ascontiguousarray(mask > 0).view(np.uint32) == 0x01010101  # 32-bit words of the packet
        for k, name in enumerate(("ipv4.opt", "tcp.opt")):
            options = is_whole[:, COLUMN[name] // 4 :][:, :10]
            words[part, k] = np.logical_and.accumulate(options, axis=1).sum(1)

    flow = encoded.flow_of
    ended = np.cumsum(present[:, :2].max(1, initial=0) == 0)
    before = np.concatenate([[0], ended])[encoded.starts[:-1]]
    packets = np.flatnonzero(ended == before[flow])
    octets, present, words = octets[packets], present[packets], words[packets]
    is4 = present[:, 0] >= present[:, 1]
    transport = present[:, 2:]
    protocols = np.array([TCP, UDP, ICMP])[transport.argmax(1)]
    protocols[~is4 & (protocols == ICMP)] = ICMPV6
    protocols[~transport.any(1)] = -1
    return _Rows(
        flow=flow[packets],
        octets=octets,
        is4=is4,
        announced=np.where(is4, octets[:, COLUMN["ipv4.proto"]], octets[:, COLUMN["ipv6.nh"]]).astype(np.int64),
        protocols=protocols,
        ip_option_words=words[:, 0],
        tcp_option_words=words[:, 1],
    )


def _trace(encoded: Encoded, rows: _Rows, head: Array, first: Array) -> tuple[Array, Array, Array, Array]:
    """
    Return ``(direction, iat_us, padding, extension_words)``, each int64[packets]. Extension headers exist where ipv6.nh
    names one, and then some precede a transport header whatever the bits say. In the paper's layout a packet with the
    ports of the flow's first packet (ICMP: with its type) has its direction.
    """
    extended = ~rows.is4 & np.isin(rows.announced, _EXTENSIONS)
    least_words = (extended & (rows.protocols >= 0)).astype(np.int64)
    if not encoded.layout.has("trace"):
        key = np.where(np.isin(rows.protocols, (TCP, UDP))[:, None], head[:, :4], head[:, :1])
        zero = np.zeros(len(key), np.int64)
        return (key != key[first]).any(1).astype(np.int64), zero + _PAPER_IAT_US, zero, least_words
    trace = np.ascontiguousarray(rows.octets[:, TRACE_COLUMN:]).view(">u8").ravel().astype(np.uint64)
    fields = (trace >> 63, trace >> 15 & (2**48 - 1), trace >> 8 & 127, np.where(extended, trace & 255, 0))
    direction, iat_us, padding, extension_words = (f.astype(np.int64) for f in fields)
    return direction, iat_us, padding, np.maximum(extension_words, least_words)


def _extensions(kind: Array, next_header: Array, words: Array) -> NDArray[np.uint8]:
    """
    Build one extension header for each packet that says nothing, of 8 * words bytes: options that are only PadN
    (RFC 8200 section 4.2). A fragment header (the whole datagram as its one fragment) has eight bytes, so destination
    options follow it where there must be more.

    Returns uint8[packets, 8 * max(words)].
    """
    n, units = len(kind), words.max(initial=1)
    extensions = np.tile(np.array([1, 6, 0, 0, 0, 0, 0, 0], np.uint8), (n, units, 1))
    i = np.arange(n)
    is_fragment = kind == _FRAGMENT
    options = np.where(is_fragment, np.minimum(1, words - 1), 0)  # the unit in which the options begin
    length = np.where(kind == _AUTHENTICATION, 2 * words - 2, words - options - 1)  # RFC 4302 section 2.2
    extensions[i, options] = 0
    extensions[i, options, :4] = np.stack([next_header, length & 255, np.ones_like(i), np.full_like(i, 4)], axis=1)
    i = i[is_fragment]
    extensions[i, 0] = 0
    extensions[i, 0, 0] = np.where(words[i] > 1, _DESTINATION_OPTIONS, next_header[i])
    return extensions.reshape(n, 8 * units)


def put_bytes(data: Array, at: Array, octets: Array, lengths: Array | None = None) -> None:
    """
    Write ``octets[i, :lengths[i]]`` to ``data[at[i]:]``, all packets of one length at once.
    """
    if lengths is None:
        lengths = np.full(len(at), octets.shape[1])
    for size in (np.flatnonzero(np.bincount(lengths)[1:]) + 1).tolist():
        i = np.flatnonzero(lengths == size)
        sliding_window_view(data, size, writeable=True)[at[i]] = octets[i, :size]


@attrs.frozen(kw_only=True, eq=False)
class _Hosts:
    """
    Initiator (index 0) and responder (index 1) of each flow: uint8[flows, 2, bytes].
    """

    ipv4: Array
    ipv6: Array
    mac: Array


def networks(name: str, text: str) -> dict[int, ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """
    Read ``10.0.0.0/8,fd00::/8`` into networks by IP version; the defaults fill in for a version that is not there.
    Raises ValueError, one sentence.
    """
    default = DEFAULT_NETS[name.startswith("server")]
    found: dict[int, ipaddress.IPv4Network | ipaddress.IPv6Network] = {}
    for word in text.split(","):
        try:
            net = ipaddress.ip_network(word.strip())
        except ValueError as error:
            raise ValueError(f"{name} {text!r}: {error}; write it like {default}") from None
        if net.version in found:
            raise ValueError(f"{name} {text!r} names two networks of IPv{net.version}; give one")
        if net.num_addresses < 4:
            raise ValueError(f"{name} {text!r}: {net} has no room for hosts; give a larger one")
        found[net.version] = net
    return {net.version: net for net in map(ipaddress.ip_network, default.split(","))} | found


def _draw_hosts(flows: int, nets: tuple[str, str], rng: np.random.Generator) -> _Hosts:
    """
    Draw addresses that belong to nobody: no two flows have the same initiator, as long as its network has room.
    """
    client, server = networks("client_net", nets[0]), networks("server_net", nets[1])
    ipv4 = np.stack([_draw(client[4], flows, rng), _draw(server[4], flows, rng)], axis=1)[..., 12:]
    ipv6 = np.stack([_draw(client[6], flows, rng), _draw(server[6], flows, rng)], axis=1)
    mac = np.concatenate([np.broadcast_to(np.array([2, 0], np.uint8), (flows, 2, 2)), ipv4], axis=2)
    return _Hosts(ipv4=ipv4, ipv6=ipv6, mac=mac)


def _draw(net: ipaddress.IPv4Network | ipaddress.IPv6Network, flows: int, rng: np.random.Generator) -> Array:
    """
    Draw hosts of a network, all different as long as there are enough: uint8[flows, 16], IPv4 in the last four bytes.
    """
    bits = net.max_prefixlen - net.prefixlen
    if bits <= 24:  # without the first and the last address, which are not hosts' (RFC 1122 section 3.2.1.3)
        room = 2**bits - 2
        host = 1 + np.resize(rng.choice(room, min(flows, room), replace=False), flows).astype(np.uint64)
    else:
        host = rng.integers(1, 2 ** min(bits, 63) - 1, flows, np.uint64)
    octets = np.zeros((flows, 16), np.uint8)
    octets[:, 8:] = host.astype(">u8")[:, None].view(np.uint8)
    return octets | np.frombuffer(int(net.network_address).to_bytes(16), np.uint8)


def _flow_table(encoded: Encoded, rows: _Rows, head: Array, direction: Array, hosts: _Hosts) -> FlowTable:
    """
    Describe each flow by what most of its packets say.
    """
    n, flow, is4 = len(encoded), rows.flow, rows.is4
    version_4 = _majority(n, flow, is4.astype(np.int64), default=1) == 1
    protocols = _majority(n, flow, np.where(rows.protocols < 0, rows.announced, rows.protocols))
    addresses = np.zeros((n, 2, 16), np.uint8)
    addresses[:, :, :4] = hosts.ipv4
    addresses[~version_4] = hosts.ipv6[~version_4]

    ports = head.view(">u2").astype(np.int64)
    is_icmp = np.isin(rows.protocols, (ICMP, ICMPV6))
    identifier = np.where(np.isin(head[:, 0], _ECHO_TYPES), ports[:, 2], 0)
    i = np.flatnonzero(rows.protocols == protocols[flow])
    packets = np.arange(len(flow))
    initiator_ports = np.where(is_icmp, identifier, ports[packets, direction])
    responder_ports = np.where(is_icmp, 0, ports[packets, 1 - direction])
    return FlowTable(
        labels=encoded.labels,
        splits=np.full(n, ""),
        ip_versions=np.where(version_4, 4, 6),
        protocols=protocols,
        initiator_addresses=addresses[:, 0],
        responder_addresses=addresses[:, 1],
        initiator_ports=_majority(n, flow[i], initiator_ports[i]),
        responder_ports=_majority(n, flow[i], responder_ports[i]),
        sources=np.full(n, ""),
    )


def _majority(flows: int, flow: Array, values: Array, default: int = 0) -> Array:
    """
    Return the most frequent value (below 2 ** 16) of each flow's packets, the default for a flow without packets.
    """
    pairs, counts = np.unique(flow.astype(np.int64) << 16 | values, return_counts=True)
    order = np.lexsort((counts, pairs >> 16))
    winners = np.full(flows, default, np.int64)
    winners[pairs[order] >> 16] = pairs[order] & 0xFFFF  # the last of a flow stands: its most frequent
    return winners
