"""
What the checks of all five kinds share.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest

from ..errors import ConfigError, NetDiffusionError
from ..model import Encoded, FlowTable, Traffic
from ..options import Text, build, describe
from ..plugins import Offer, Plugins
from ..specs import KINDS

HEAVY = (
    "PIL", "cv2", "diffusers", "jax", "jinja2", "matplotlib", "numpy", "pandas", "scapy", "scipy", "sklearn",
    "tensorflow", "torch", "transformers",
)  # fmt: skip
"""What no module with hooks may import: `netdiff --help` would wait for it."""


class Conformance:
    """
    The checks that all kinds share. Subclass one of the five classes made of it, and set

    spec     the spec that your plugin offers
    options  option values as netdiff.toml has them, where the defaults are too slow for a test; required ones
    random   False where nothing is drawn, so that another seed need not make a difference
    """

    spec: ClassVar[Any]
    options: ClassVar[Mapping[str, Any]] = {}
    random: ClassVar[bool] = True
    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__name__.startswith("Test") and not isinstance(getattr(cls, "spec", None), KINDS[cls.kind]):
            raise TypeError(
                f"{cls.__name__} needs a line `spec = ...` with the {KINDS[cls.kind].__name__} to be tested"
            )

    @classmethod
    def plugins(cls) -> Plugins:
        """
        Return the plugins among which the spec is found: the installed ones. Override it for a plugin in one file:
        ``Plugins.discover(files=[Path("mine.py")])``.
        """
        return _installed()

    @classmethod
    def component(cls) -> Any:
        """
        Build the component with `options`.
        """
        return cls.plugins().create(cls.kind, cls.spec.name, cls.options)

    def test_the_plugin_offers_the_spec(self) -> None:
        """
        The spec is found by its name, is offered once, and its target is a class of the right kind.

        Mend: name the module with your hooks in pyproject.toml, ``[project.entry-points.netdiffusion]``, return the
        spec from ``netdiffusion_register_...``, write its target as ``"package.module:Class"``, and install again.
        """
        offered = self._offer()
        assert offered.spec == self.spec, f"{offered.origin} offers {offered.spec}, and the test has {self.spec}"
        try:
            self.plugins().load(self.kind, self.spec.name)
        except NetDiffusionError as error:
            raise AssertionError(str(error)) from None

    def test_the_plugin_imports_nothing_heavy(self) -> None:
        """
        The module with the hooks is imported whenever `netdiff` starts, so it imports none of `HEAVY`.

        Mend: keep classes in a module of their own, which the spec's target names; in hooks that need more, import
        inside the function.
        """
        origin = self._offer().origin
        if not origin.version:
            pytest.skip("a plugin in one file is imported only where --plugin names it")
        code = (
            "import sys; from netdiffusion_core.plugins import Plugins; before = set(sys.modules); "
            f"Plugins.discover({{'NETDIFFUSION_PLUGINS': {origin.entry_point!r}, 'NETDIFFUSION_STRICT': '1'}}); "
            f"print(*(set(sys.modules) - before) & set({HEAVY!r}))"
        )
        paths = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        assert done.returncode == 0, f"{origin.file} cannot be imported:\n{done.stderr}"
        heavy = sorted(done.stdout.split())
        assert not heavy, (
            f"{origin.file} imports {', '.join(heavy)}, for which every netdiff command would wait: "
            f"move what needs it into the module that the spec's target names"
        )

    def test_options_are_described_and_can_be_typed(self) -> None:
        """
        Each option has a help text for `netdiff plugins show`, and its default can be written behind ``--set``.

        Mend: ``attrs.field(default=..., metadata={"help": "..."})``; use the types that `options.convert` knows: bool,
        int, float, str, Path, Literal, tuples of these, and ``| None``.
        """
        options = self.plugins().load(self.kind, self.spec.name).Options
        defaults = build(options, self.options, "options")
        fields = {field.alias: field for field in attrs.fields(options)}
        for row in describe(options):
            assert row.help, f'the option {row.name} has no help text: give its field metadata={{"help": "..."}}'
            if row.name not in self.options and row.default != "required":
                try:
                    typed = build(options, {**self.options, row.name: Text(row.default)}, "options")
                except ConfigError as error:
                    raise AssertionError(f"the default of {row.name} cannot be typed: {error}") from None
                name = fields[row.name].name
                value, default = getattr(typed, name), getattr(defaults, name)
                assert value == default, f"the option {row.name}={row.default} is read as {value!r}, not {default!r}"

    def _offer(self) -> Offer:
        try:
            return self.plugins().offer(self.kind, self.spec.name)
        except NetDiffusionError as error:
            raise AssertionError(str(error)) from None


@contextmanager
def unchanged(what: str, *inputs: Traffic | Encoded) -> Iterator[None]:
    """
    Assert that what happens inside leaves every array as it was.

    what  whose doing it is, for the message: ``repair``
    """
    before = [_contents(each) for each in inputs]
    advice = "copy an array before you write into it, and return a new object: attrs.evolve(traffic, data=data)"
    try:
        yield
    except ValueError as error:
        if "read-only" in str(error):
            raise AssertionError(f"{what} writes into its input: {advice}") from error
        raise
    for each, old in zip(inputs, before, strict=True):
        for name, content in _contents(each).items():
            assert content == old[name], f"{what} changed {type(each).__name__}.{name} of its input: {advice}"


def returned(value: Any, kind: type[Any], what: str) -> Any:
    """
    Return what a component returned; assert that it is of this kind.

    what  whose doing it is: ``repair``
    """
    assert isinstance(value, kind), f"{what} returned {type(value).__name__}; it must return {kind.__name__}"
    return value


@contextmanager
def must_raise(error: type[Exception], what: str, naming: str = "") -> Iterator[None]:
    """
    Assert that what happens inside raises this error and no other, and that its sentence has the word `naming`.
    """
    try:
        yield
    except error as raised:
        missing = naming not in str(raised)
    except Exception as other:
        raise AssertionError(f"{what} raises {type(other).__name__}, not {error.__name__}: {other}") from other
    else:
        raise AssertionError(f"{what} raises nothing: it must raise {error.__name__}")
    assert not missing, f"the {error.__name__} for {what} does not name {naming!r}"


def difference(one: Traffic | Encoded, other: Traffic | Encoded) -> str:
    """
    Say in which arrays two objects differ; empty where they are equal.
    """
    theirs = _contents(other)
    return ", ".join(name for name, content in _contents(one).items() if content != theirs[name])


def _contents(data: Traffic | Encoded | FlowTable) -> dict[str, Any]:
    """
    Return every array's dtype, shape and bytes by name, those of the flow table as ``flows.labels``.
    """
    contents: dict[str, Any] = {}
    for field in attrs.fields(type(data)):
        value = getattr(data, field.name)
        if isinstance(value, FlowTable):
            contents |= {f"flows.{name}": content for name, content in _contents(value).items()}
        elif isinstance(value, np.ndarray):
            contents[field.name] = value.dtype.str, value.shape, value.tobytes()
        else:
            contents[field.name] = value
    return contents


@cache
def _installed() -> Plugins:
    return Plugins.discover()
