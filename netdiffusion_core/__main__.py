"""
``python -m netdiffusion_core`` is the command `netdiff`.
"""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
