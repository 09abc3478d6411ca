"""
Captures in and out: pcap and pcapng files, header positions, flow assembly.
"""

from .dissect import Dissection, dissect
from .flows import assemble
from .pcapfile import is_capture, read_capture, write_capture

__all__ = ["Dissection", "assemble", "dissect", "is_capture", "read_capture", "write_capture"]
