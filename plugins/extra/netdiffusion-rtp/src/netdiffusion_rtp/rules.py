"""
The rule set ``rtp``: media in UDP payload.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.payload import write_payloads
from netdiffusion_core.interfaces import Record, RuleSet, forget
from netdiffusion_core.model import Rule, Traffic, Violation

from .faults import find_faults
from .media import HEADER, Media, find
from .writing import Headers

Array = NDArray[Any]

log = logging.getLogger("netdiffusion")

RULES = (
    Rule("rtp.version", "rtp.version", "error", "a packet of media has version 2 and a whole header",
         "RFC 3550 sections 5.1, 6.4"),
    Rule("rtp.header", "rtp.cc", "error", "contributing sources and header extension are within the packet, and "
         "the payload type is none of 64 to 95", "RFC 3550 section 5.1, RFC 8285 section 4, RFC 5761 section 4"),
    Rule("rtp.source", "rtp.ssrc", "warning", "a source sends at least two packets, where there are others",
         "RFC 3550 appendix A.1"),
    Rule("rtp.sequence", "rtp.seq", "warning", "a sequence number is less than 3000 ahead of the one before of its "
         "source, and less than 100 behind it", "RFC 3550 appendix A.1"),
    Rule("rtp.timestamp", "rtp.timestamp", "warning", "where the payload type has a fixed clock, time stamps go on "
         "with the time of arrival, to two seconds", "RFC 3550 section 5.1, RFC 3551 section 6"),
    Rule("rtp.rtcp", "rtcp.length", "error", "an RTCP packet is as long as its reports are, and those of a compound "
         "fill the datagram", "RFC 3550 sections 6.1, 6.4"),
)  # fmt: skip


def _ports(instance: Any, attribute: Any, value: tuple[int, ...]) -> None:
    for port in value:
        if not 1 <= port <= 65_535:
            raise ValueError(f"{attribute.name}: {port} is no UDP port; it must be from 1 to 65535")


def _payload_type(instance: Any, attribute: Any, value: int | None) -> None:
    if value is not None and not (0 <= value < 64 or 96 <= value < 128):
        raise ValueError(
            f"payload_type {value} is none; it must be from 0 to 63 or from 96 to 127 (RFC 5761 section 4)"
        )


@attrs.frozen(kw_only=True)
class Options:
    """
    Options of `RtpRules`.
    """

    classes: tuple[str, ...] = attrs.field(
        default=(), converter=tuple, metadata={"help": "classes whose UDP flows are media"}
    )
    ports: tuple[int, ...] = attrs.field(
        default=(), converter=tuple, validator=_ports, metadata={"help": "UDP flows to or from these ports are media"}
    )
    payload_type: int | None = attrs.field(
        default=None,
        validator=_payload_type,
        metadata={"help": "of new headers; none: 0 (G.711), and 96 where packets are large as those of video"},
    )
    clock_hz: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.ge(1)),
        metadata={"help": "clock of new time stamps; none: 8000, and 90000 for video"},
    )
    rtcp_interval_s: float = attrs.field(
        default=0.0,
        validator=attrs.validators.ge(0),
        metadata={"help": "make one packet in so many seconds RTCP, multiplexed with new RTP (RFC 5761); 0: none"},
    )


class RtpRules(RuleSet):
    """
    Sources of media, and reports on them.
    """

    Options = Options
    rules: ClassVar[tuple[Rule, ...]] = RULES

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield a violation of each packet that breaks a rule which is not off.
        """
        media = self._find(traffic)
        faults = find_faults(media)
        for rule in RULES:
            if rule.id not in self.off:
                yield from rule.broken(traffic, media.packets[faults[rule.id]])

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        """
        Write headers: of packets that have none, or none of their source, as their neighbours of the same direction go
        on; of those behind a jump of sequence number or time stamp, as if there was none.
        """
        media = self._find(traffic)
        asked = media.ours & (media.lengths > 0)
        if asked.any() and not media.captured[asked].any():
            log.warning(
                "rtp: the payload of all %d packets of media was cut off, so none can be mended; generate with "
                "--payload zeros",
                asked.sum(),
            )
        faults = {rule: mask & media.whole & (rule not in self.off) for rule, mask in find_faults(media).items()}
        broken = np.full(len(media), "", "U32")
        for rule in reversed(RULES):
            broken[faults[rule.id]] = rule.id
        headers = Headers.of(media, faults, self.off, self.options, rng)
        rules = np.where(broken == "", headers.moved, broken)
        i = np.flatnonzero(headers.new | (headers.moved != ""))
        sizes = np.full(len(i), HEADER)
        traffic = write_payloads(traffic, media.packets[i], headers.octets()[i], sizes, rules[i], record)
        i = np.flatnonzero(headers.control)
        octets, sizes = headers.reports(i, rng)
        return write_payloads(traffic, media.packets[i], octets, sizes, rules[i], record)

    def _find(self, traffic: Traffic) -> Media:
        return find(traffic, self.options.classes, self.options.ports)
