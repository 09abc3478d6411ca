"""
nPrint's command line, as far as it says what the text looks like, and the columns that follow from it.
"""

from __future__ import annotations

import getopt
import re
import shlex
from functools import cache, cached_property

import attrs

from .layout import HEADERS

_OPTIONS = {
    "r": "radiotap", "w": "wlan", "e": "eth", "4": "ipv4", "6": "ipv6", "t": "tcp", "u": "udp", "i": "icmp",
}  # fmt: skip
_ELSEWHERE = {
    "P": "the captures are DATA on our own command line",
    "C": "packets are read from captures",
    "N": "give nPrint's text as DATA instead",
    "W": "the output is -o",
    "S": "there are no statistics",
    "V": "there is no description of packets",
    "f": "filter the capture before, with tcpdump or Wireshark",
    "d": "nothing is captured live",
    "h": "nPrint's options are in the encoder's README",
}
_INDEXES = ("src_ip", "dst_ip", "src_prt", "dst_prt", "flow", "tx_mac")
_MAX_PAYLOAD_BYTES = 65_535  # no IP packet has more


@attrs.frozen(kw_only=True)
class Arguments:
    """
    What nPrint's options ask for.

    headers        names of `layout.HEADERS`, in its order
    payload_bytes  bytes of payload behind the headers
    fill           what an absent bit is written as
    packets        look only at the first so many packets, 0: at all
    index          the first column: src_ip, dst_ip, src_prt, dst_prt, flow or tx_mac
    relative_time  whether there is a column rts
    absolute_time  whether there are columns tv_sec and tv_usec
    excluded       bit columns whose whole name this matches are left out; None: none
    """

    headers: tuple[str, ...]
    payload_bytes: int
    fill: int
    packets: int
    index: str
    relative_time: bool
    absolute_time: bool
    excluded: re.Pattern[str] | None

    @property
    def prefix(self) -> tuple[str, ...]:
        """
        The names of the columns before the bits.
        """
        times = (("rts",) if self.relative_time else ()) + (("tv_sec", "tv_usec") if self.absolute_time else ())
        return (self.index, *times)

    @cached_property
    def bits(self) -> tuple[str, ...]:
        """
        The names of all bit columns, those that are excluded too.
        """
        fields = [(f"{header}_{name}", bits) for header in self.headers for name, bits in HEADERS[header]]
        return tuple(
            f"{name}_{i}" for name, bits in [*fields, ("payload_bit", 8 * self.payload_bytes)] for i in range(bits)
        )

    @cached_property
    def kept(self) -> tuple[bool, ...]:
        """
        Whether each column of `bits` is written.
        """
        return tuple(not (self.excluded and self.excluded.fullmatch(name)) for name in self.bits)


@cache
def parse(text: str) -> Arguments:
    """
    Read options as nPrint does (glibc's argp): bundled (``-4t``), values attached or not, the last of two counts.

    Raises ValueError, one sentence that names the word at fault.
    """
    try:
        options, rest = getopt.gnu_getopt(shlex.split(text), "46eituwrRAp:F:c:O:x:P:C:N:W:SVf:d:h")
    except (getopt.GetoptError, ValueError) as error:
        raise ValueError(f"nprint_args {text!r}: {error}") from None
    given = {option[1]: value for option, value in options}
    if rest:
        raise ValueError(f"nprint_args {text!r}: {rest[0]!r} is no option of nPrint")
    for option, why in _ELSEWHERE.items():
        if option in given:
            raise ValueError(f"nprint_args {text!r}: -{option} has no place here: {why}")
    index = _whole(text, given, "O", 0, len(_INDEXES) - 1)
    try:
        excluded = re.compile(given["x"]) if "x" in given else None
    except re.error as error:
        raise ValueError(f"nprint_args {text!r}: -x {given['x']!r} is no regular expression: {error}") from None
    # nPrint reads the fill value with atoi into eight bits: -F 200 is -56, -F abc is 0
    number = re.match(r"\s*([+-]?\d+)", given.get("F", "-1"), re.ASCII)
    return Arguments(
        headers=tuple(header for option, header in _OPTIONS.items() if option in given),
        payload_bytes=_whole(text, given, "p", 0, _MAX_PAYLOAD_BYTES),
        fill=(int(number[1]) + 128) % 256 - 128 if number else 0,
        packets=max(_whole(text, given, "c", -(2**31), 2**31 - 1), 0),
        index=_INDEXES[index],
        relative_time="R" in given,
        absolute_time="A" in given,
        excluded=excluded,
    )


def _whole(text: str, given: dict[str, str], option: str, least: int, most: int) -> int:
    """
    Return the number of an option, 0 where it is not given.
    """
    word = given.get(option, "0")
    try:
        number = int(word)
    except ValueError:
        raise ValueError(f"nprint_args {text!r}: -{option} {word!r} is no whole number") from None
    if not least <= number <= most:
        raise ValueError(f"nprint_args {text!r}: -{option} {number} is not from {least} to {most}")
    return number
