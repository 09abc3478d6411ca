"""
What this distribution offers. Imported whenever `netdiff` starts: keep NumPy and the like out of here.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import EncoderSpec

NEWPLUGIN = EncoderSpec(
    name="newplugin",
    target="netdiffusion_newplugin.encoder:NewpluginEncoder",
    summary="121 bits an IPv4 packet: length, TTL, ports, flags, window, direction and time",
)


@hookimpl
def netdiffusion_register_encoders() -> Sequence[EncoderSpec]:
    """
    Offer the encoder ``newplugin``.
    """
    return [NEWPLUGIN]
