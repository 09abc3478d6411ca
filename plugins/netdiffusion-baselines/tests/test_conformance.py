"""
The conformance kit on both baselines.
"""

from __future__ import annotations

from netdiffusion_baselines.plugin import netdiffusion_register_backends
from netdiffusion_core.testing import BackendConformance

BERNOULLI, BOOTSTRAP = netdiffusion_register_backends()


class TestBernoulli(BackendConformance):
    spec = BERNOULLI


class TestBootstrap(BackendConformance):
    spec = BOOTSTRAP
