"""
Find plugins, and look components up by kind and name.

There is no global manager: `Plugins` is a value that is handed to `pipeline.run`. A plugin that cannot be loaded is
kept with its reason and harms nobody else.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import pluggy

from . import hookspecs
from .errors import ConfigError, NetDiffusionError, PluginError, UnknownComponentError, did_you_mean
from .options import build
from .specs import API_VERSION, KINDS, RuleSetSpec, Spec

if TYPE_CHECKING:
    from .model import Traffic

GROUP = "netdiffusion"
"""The entry-point group, the pluggy project and, in capitals, the prefix of environment variables."""

RESERVED = ("NETDIFFUSION_PLUGINS", "NETDIFFUSION_DISABLE_PLUGINS", "NETDIFFUSION_STRICT")
"""Variables that steer discovery and are no settings of a run; so are those that begin with NETDIFFUSION_TEST_."""

HOOKS = {
    "encoder": "netdiffusion_register_encoders",
    "backend": "netdiffusion_register_backends",
    "rules": "netdiffusion_register_rules",
    "evaluator": "netdiffusion_register_evaluators",
    "executor": "netdiffusion_register_executors",
}
HOMES = {
    "nprint": "netdiffusion-nprint",
    "stable-diffusion": "netdiffusion-stable-diffusion",
    **dict.fromkeys(("bernoulli", "bootstrap"), "netdiffusion-baselines"),
    **dict.fromkeys(("ipv4", "ipv6", "tcp", "udp", "icmp", "icmpv6", "interpacket"), "netdiffusion-inet"),
    **dict.fromkeys(("fidelity", "timing", "utility", "detectability"), "netdiffusion-evaluators"),
    **dict.fromkeys(("compliance", "interop", "novelty"), "netdiffusion-evaluators"),
    "local": "netdiffusion-local",
}
"""Which distribution to install for a component of ours: for the hint of an error only."""
EXTRAS = ("dns", "rtp", "autoregressive", "ray")
"""Components of ours that are outside the default installation."""

_FILE = "netdiffusion_plugin_"
"""What the names of modules begin with that `--plugin` loads."""

logger = logging.getLogger("netdiffusion")


@attrs.frozen(kw_only=True)
class Origin:
    """
    Where a plugin comes from; `version` is empty for a file or an object.

    file  where its module lies; empty for an object, and for a plugin that could not be imported
    """

    entry_point: str
    distribution: str
    version: str = ""
    file: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


@attrs.frozen(kw_only=True)
class Offer:
    """
    One component that a plugin offers.
    """

    kind: str
    spec: Spec
    origin: Origin


@attrs.frozen(kw_only=True)
class Broken:
    """
    A plugin that cannot be used, and why.
    """

    origin: Origin
    reason: str


@attrs.frozen(kw_only=True, eq=False)
class Plugins:
    """
    The components that are there. Make one with `discover`, or with `of` in a test. In another process it is discovered
    anew, files included.
    """

    manager: pluggy.PluginManager
    offers: tuple[Offer, ...]
    broken: tuple[Broken, ...] = ()
    _found_by: tuple[Mapping[str, str], tuple[Path, ...]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._found_by is None:
            raise PluginError(
                "plugins that were given as objects cannot be used in other processes: "
                "install them, give them as files, or work in one process (--set executor.processes=1)"
            )
        return Plugins.discover, self._found_by

    @classmethod
    def discover(cls, environ: Mapping[str, str] = os.environ, files: Sequence[Path] = ()) -> Plugins:
        """
        Load the installed plugins, and plugin modules from files.

        NETDIFFUSION_PLUGINS          the only entry points to load, by comma ("" loads none)
        NETDIFFUSION_DISABLE_PLUGINS  entry points to leave out
        NETDIFFUSION_STRICT           "1": raise PluginError for a broken plugin, instead of listing it

        Raises PluginError for a file that is no working plugin: somebody asked for it by name.
        """
        allowed = _names(environ["NETDIFFUSION_PLUGINS"]) if "NETDIFFUSION_PLUGINS" in environ else None
        disabled = _names(environ.get("NETDIFFUSION_DISABLE_PLUGINS", ""))
        strict = environ.get("NETDIFFUSION_STRICT", "") not in ("", "0")
        installed = sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value))
        manager = _manager()
        offers: list[Offer] = []
        broken: list[Broken] = []
        # The filter comes before load(): a plugin that was switched off costs no import.
        for entry in installed:
            if entry.name in disabled or (allowed is not None and entry.name not in allowed):
                continue
            origin = _origin(entry)
            try:
                plugin = entry.load()
                origin = attrs.evolve(origin, file=str(getattr(sys.modules.get(entry.module), "__file__", "")))
                offers += _register(manager, plugin, origin)
            except (Exception, SystemExit) as error:
                reason = _reason(error)
                if isinstance(error, ModuleNotFoundError):
                    if f"{entry.module}.".startswith(f"{error.name}."):
                        reason += "; the entry point names it: correct pyproject.toml, and install again"
                    elif "." not in str(error.name):  # else the package is there, and has no such module
                        reason += f"; install it with what it depends on: pip install {origin.distribution}"
                if strict:
                    raise PluginError(f"{origin} is broken: {reason}") from error
                broken.append(Broken(origin=origin, reason=reason))
        for name in sorted((allowed or set()) - {e.name for e in installed}):
            reason = "NETDIFFUSION_PLUGINS names it, but no installed distribution has an entry point of this name"
            broken.append(Broken(origin=Origin(entry_point=name, distribution="not installed"), reason=reason))
        for file in files:
            try:
                origin = Origin(entry_point=file.stem, distribution=str(file), file=str(file.absolute()))
                offers += _register(manager, _import_file(file), origin)
            except (Exception, SystemExit) as error:
                raise PluginError(f"the plugin file {file} cannot be used: {_reason(error)}") from error
        found_by = {name: environ[name] for name in RESERVED if name in environ}, tuple(f.absolute() for f in files)
        return cls(manager=manager, offers=tuple(offers), broken=tuple(broken), found_by=found_by)

    @classmethod
    def of(cls, *plugins: Any) -> Plugins:
        """
        Make a registry of these modules or objects alone. Raises what they raise.
        """
        manager = _manager()
        offers: list[Offer] = []
        for plugin in plugins:
            name = getattr(plugin, "__name__", type(plugin).__name__)
            offers += _register(manager, plugin, Origin(entry_point=name, distribution=name))
        return cls(manager=manager, offers=tuple(offers))

    @property
    def hook(self) -> Any:
        """
        The hooks to call: ``plugins.hook.netdiffusion_open_capture(path=path)``.
        """
        return self.manager.hook

    def specs(self, kind: str) -> tuple[Spec, ...]:
        """
        Return the specs of one kind (``encoder``, ``backend``, ``rules``, ``evaluator``, ``executor``), by name.
        """
        return tuple(sorted((o.spec for o in self.offers if o.kind == kind), key=lambda s: s.name))

    def names(self, kind: str) -> tuple[str, ...]:
        """
        Return the names of one kind, sorted.
        """
        return tuple(dict.fromkeys(s.name for s in self.specs(kind)))

    @property
    def duplicates(self) -> tuple[str, ...]:
        """
        One sentence a name that several plugins offer: nobody can use it.
        """
        of_name: dict[tuple[str, str], list[Offer]] = {}
        for offer in self.offers:
            of_name.setdefault((offer.kind, offer.spec.name), []).append(offer)
        return tuple(_offered_twice(found) for _, found in sorted(of_name.items()) if len(found) > 1)

    def offer(self, kind: str, name: str) -> Offer:
        """
        Return the one offer of this kind and name.

        Raises UnknownComponentError when nobody makes it, PluginError when two do or when its plugin is broken.
        """
        found = [o for o in self.offers if o.kind == kind and o.spec.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise PluginError(_offered_twice(found))
        home = HOMES.get(name)
        for broken in self.broken:
            if broken.origin.distribution == home or broken.origin.entry_point == name:
                raise PluginError(f"{kind} {name!r} comes from {broken.origin}, which is broken: {broken.reason}")
        known = self.names(kind)
        message = f"no plugin offers the {kind} {name!r}.{did_you_mean(name, known)}"
        message += f" Available: {', '.join(known)}." if known else f" No {kind} plugin is installed."
        if home:
            message += f" Install it: pip install {home} (in a clone: make dev)."
        elif name in EXTRAS:
            extra = f"netdiffusion-{name}"
            message += f" Install it: pip install {extra} (in a clone: pip install ./plugins/extra/{extra})."
        if self.broken:
            message += (
                f" Broken plugins: {', '.join(b.origin.entry_point for b in self.broken)}; see: netdiff plugins list"
            )
        raise UnknownComponentError(message)

    def find(self, kind: str, name: str) -> Spec:
        """
        Return the spec of this kind and name; raises like `offer`.
        """
        return self.offer(kind, name).spec

    def origin(self, kind: str, name: str) -> Origin:
        """
        Return where the component of this kind and name comes from; raises like `offer`.
        """
        return self.offer(kind, name).origin

    def load(self, kind: str, name: str) -> type[Any]:
        """
        Import the class that implements a component. Raises PluginError when it is no such class.
        """
        from . import interfaces

        base = {
            "encoder": interfaces.Encoder,
            "backend": interfaces.Backend,
            "rules": interfaces.RuleSet,
            "evaluator": interfaces.Evaluator,
            "executor": interfaces.Executor,
        }[kind]
        offer = self.offer(kind, name)
        module, _, attribute = offer.spec.target.partition(":")
        try:
            target = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(
                f"{kind} {name!r} ({offer.origin}) cannot be imported from {offer.spec.target}: {_reason(error)}"
            ) from error
        if not (isinstance(target, type) and issubclass(target, base)):
            raise PluginError(f"{kind} {name!r} ({offer.origin}): {offer.spec.target} is no {base.__name__} class")
        return target

    def options(self, kind: str, name: str, values: Mapping[str, Any] | None = None) -> Any:
        """
        Build the options of a component from a table of raw values.

        Raises ConfigError that names the option as the user writes it, such as ``backend.steps``.
        """
        where = {"rules": f"rules.{name}", "evaluator": f"evaluators.{name}"}.get(kind, kind)
        return build(self.load(kind, name).Options, values or {}, where)

    def create(self, kind: str, name: str, values: Mapping[str, Any] | None = None) -> Any:
        """
        Import and build a component with these option values. Raises like `load` and `options`.
        """
        target = self.load(kind, name)
        try:
            return target(self.options(kind, name, values))
        except NetDiffusionError:
            raise
        except Exception as error:
            raise PluginError(
                f"{kind} {name!r} ({self.origin(kind, name)}) cannot be built: {_reason(error)}"
            ) from error

    def resolve_rules(self, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """
        Return ``(ordered, added)``: the rule sets with all they require, required ones first and by name otherwise, so
        that the order never depends on the command line; and those of them that were not asked for.

        Raises UnknownComponentError for a name that nobody offers, PluginError for a circle or a missing requirement,
        ConfigError for two that exclude each other.
        """
        wanted = dict.fromkeys(names)
        graph: dict[str, tuple[str, ...]] = {}
        queue = list(wanted)
        while queue:
            name = queue.pop()
            if name in graph:
                continue
            graph[name] = cast(RuleSetSpec, self.find("rules", name)).requires
            for required in graph[name]:
                if required not in self.names("rules"):
                    raise PluginError(
                        f"rule set {name!r} ({self.origin('rules', name)}) requires the rule set {required!r}, "
                        "which no plugin offers"
                    )
            queue += graph[name]
        for name in sorted(graph):
            for other in cast(RuleSetSpec, self.find("rules", name)).conflicts:
                if other in graph:
                    raise ConfigError(f"the rule sets {name!r} and {other!r} contradict each other: leave one out")
        sorter = TopologicalSorter(graph)
        try:
            sorter.prepare()
        except CycleError as error:
            circle = " -> ".join(error.args[1])
            raise PluginError(f"these rule sets require each other in a circle: {circle}") from error
        ordered: list[str] = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready())
            ordered += ready
            sorter.done(*ready)
        return tuple(ordered), tuple(n for n in ordered if n not in wanted)

    def culprit(self, error: BaseException) -> str:
        """
        Say which plugin's code raised an exception, and where; "" when it was none's.
        """
        homes = {o.spec.target.partition(":")[0].partition(".")[0]: str(o.origin) for o in self.offers}
        found = ""
        for frame, line in traceback.walk_tb(error.__traceback__):
            module, file = str(frame.f_globals.get("__name__")), frame.f_code.co_filename
            home = "the plugin file" if module.startswith(_FILE) else homes.get(module.partition(".")[0])
            if home:
                found = f"{home} (line {line} of {Path(file).name})"
        return found

    def notify(self, hook: str, **arguments: Any) -> None:
        """
        Call an observer or command hook of every plugin; an exception in one becomes a warning and stops nobody.
        """
        for implementation in getattr(self.hook, hook).get_hookimpls():
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:
                logger.warning("plugin %s failed in %s: %s", implementation.plugin_name, hook, _reason(error))

    def open_capture(self, path: Path) -> Traffic | None:
        """
        Ask the plugins to read a file that is neither pcap nor pcapng; None when it is nobody's, or no file but a pipe
        or device, which may never end.
        """
        if not path.is_file():
            return None
        try:
            return cast("Traffic | None", self.hook.netdiffusion_open_capture(path=path))
        except (NetDiffusionError, OSError):
            raise
        except Exception as error:
            raise PluginError(f"a plugin failed to read {path}: {_reason(error)}") from error


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _register(manager: pluggy.PluginManager, plugin: Any, origin: Origin) -> list[Offer]:
    """
    Register one plugin and return what it offers, all or nothing.
    """
    if isinstance(plugin, type):
        raise TypeError(f"{plugin.__name__} is a class; register an instance of it: write {plugin.__name__}()")
    name = f"{origin.entry_point} ({origin.distribution})"
    if manager.has_plugin(name):
        name += f" #{len(manager.get_plugins()) + 1}"
    try:
        manager.register(plugin, name=name)
        manager.check_pending()  # a misspelt hook, which pluggy would ignore
        callers = manager.get_hookcallers(plugin) or []
        if not callers:
            raise PluginError("it implements no hook; mark its functions with @netdiffusion_core.hookimpl")
        return [offer for kind in HOOKS for offer in _offers(manager, plugin, kind, origin)]
    except BaseException:
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        raise


def _offers(manager: pluggy.PluginManager, plugin: Any, kind: str, origin: Origin) -> list[Offer]:
    offers = []
    for implementation in getattr(manager.hook, HOOKS[kind]).get_hookimpls():
        if implementation.plugin is not plugin:
            continue
        specs = implementation.function()
        if not isinstance(specs, (list, tuple)):
            raise PluginError(f"{HOOKS[kind]} returned {type(specs).__name__}; return a list of {KINDS[kind].__name__}")
        for spec in specs:
            if not isinstance(spec, KINDS[kind]):
                raise PluginError(f"{HOOKS[kind]} offers {spec!r}, which is no {KINDS[kind].__name__}")
            if spec.api != API_VERSION:
                upgrade = "netdiffusion-core" if spec.api > API_VERSION else "the plugin"
                raise PluginError(
                    f"{kind} {spec.name!r} is written for plugin API {spec.api}, and this netdiffusion-core has "
                    f"{API_VERSION}: upgrade {upgrade}"
                )
            offers.append(Offer(kind=kind, spec=spec, origin=origin))
    return offers


def _origin(entry: EntryPoint) -> Origin:
    if entry.dist is None:
        return Origin(entry_point=entry.name, distribution=entry.module)
    return Origin(entry_point=entry.name, distribution=entry.dist.name, version=entry.dist.version)


def _offered_twice(found: Sequence[Offer]) -> str:
    kind, name = found[0].kind, found[0].spec.name
    entries = " and ".join(f"{o.origin} (entry point {o.origin.entry_point!r})" for o in found)
    return (
        f"{kind[0].upper() + kind[1:]} {name!r} is offered more than once: by {entries}. "
        "Uninstall one, or name its entry point in NETDIFFUSION_DISABLE_PLUGINS."
    )


def _import_file(file: Path) -> Any:
    if not file.is_file():
        raise ConfigError("there is no such file")
    spec = importlib.util.spec_from_file_location(_FILE + file.stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError("it is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # In sys.modules, so that a spec may name a class in this same file as its target: f"{__name__}:MyRules".

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _reason(error: BaseException) -> str:
    if isinstance(error, pluggy.PluginValidationError):
        if "Argument(s)" in str(error):
            return f"it needs a newer netdiffusion-core ({' '.join(str(error).split())})"
        name = re.findall(r"unknown hook '(\w+)'|$", str(error))[0]
        suggestion = did_you_mean(name, [hook for hook in vars(hookspecs) if hook.startswith(GROUP)])
        return f"unknown hook {name!r}, misspelt or of a newer netdiffusion-core.{suggestion}"
    if isinstance(error, NetDiffusionError):
        return str(error)
    return " ".join("".join(traceback.format_exception_only(error)).split())


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",") if name.strip()}
