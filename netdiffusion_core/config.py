"""
What a run is asked to do, from netdiff.toml < environment < flags < `--set`, and where each value came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs

from . import gates
from .errors import ConfigError, did_you_mean
from .options import Text, build
from .plugins import RESERVED

FILE_NAME = "netdiff.toml"
_MAX_BYTES = 1 << 18
PREFIX = "NETDIFFUSION_"

ONE = ("encoder", "backend", "executor")
"""Tables that choose one component: ``[backend] name = "…"`` and its options."""
MANY = ("rules", "evaluators")
"""Tables that choose several: ``[rules] names = […]``, and a sub-table of options for each."""
PATHS = ("data", "output", "labels")


def _positive(instance: Any, attribute: Any, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{attribute.name} is {value}; it must be at least 1")


def _natural(instance: Any, attribute: Any, value: int) -> None:
    if value < 0:
        raise ValueError(f"{attribute.name} is {value}; it must not be negative")


def _strings(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"{value!r} is one string; write a tuple of names: {(*value.split(','),)}")
    return tuple(value)


def _optional_strings(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else _strings(value)


def _gates(instance: Any, attribute: Any, value: tuple[str, ...]) -> None:
    gates.parse(value)


def _path(value: Any) -> Path | None:
    return None if value is None else Path(value)


@attrs.frozen(kw_only=True)
class RunConfig:
    """
    All settings of a run. Component options are tables of raw values; `Plugins.create` checks them.

    data               a folder LABEL/*.pcap, a folder of captures, or one capture
    output             the run folder; it must not exist
    seed               same seed, same machine: byte-identical pcaps
    labels             a CSV that labels flows or files
    classes            use these classes only; all when empty
    flows              synthetic flows a class; None: as many as it has real training flows, at most 100
    max_packets        longer flows are cut to their first packets
    encoder, backend   the component's name
    executor           who does the work; the results do not depend on it
    rules              rule sets; what they require is added
    rules_off          ids of single rules that are neither checked nor repaired, ``rules.off``
    evaluators         None: all that are installed
    compare            backends for comparison rows of the report; None: all installed baselines; empty: none
    gate               what figures must reach, such as ``utility.macro_f1>=0.8``; the results do not depend on it
    """

    data: Path | None = attrs.field(default=None, converter=_path)
    output: Path = attrs.field(default=Path("netdiffusion-run"), converter=Path)
    seed: int = attrs.field(default=0, validator=_natural)
    labels: Path | None = attrs.field(default=None, converter=_path)
    classes: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    flows: int | None = attrs.field(default=None, validator=_positive)
    max_packets: int = attrs.field(default=1024, validator=_positive)
    encoder: str = "nprint"
    encoder_options: Mapping[str, Any] = attrs.field(factory=dict)
    backend: str = "stable-diffusion"
    backend_options: Mapping[str, Any] = attrs.field(factory=dict)
    executor: str = "local"
    executor_options: Mapping[str, Any] = attrs.field(factory=dict)
    rules: tuple[str, ...] = attrs.field(default=("tcp", "udp", "icmp", "icmpv6"), converter=_strings)
    rules_options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    rules_off: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    evaluators: tuple[str, ...] | None = attrs.field(default=None, converter=_optional_strings)
    evaluators_options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    compare: tuple[str, ...] | None = attrs.field(default=None, converter=_optional_strings)
    gate: tuple[str, ...] = attrs.field(default=(), converter=_strings, validator=_gates)

    def digest(self) -> str:
        """
        Return the SHA-256 of `decisive`.
        """
        return hashlib.sha256(to_toml(self.decisive).encode()).hexdigest()

    @property
    def decisive(self) -> RunConfig:
        """
        The settings that results depend on: all but the output's name, the gates, and who does the work.
        """
        return attrs.evolve(self, output=Path("-"), gate=(), executor="-", executor_options={})


@attrs.frozen(kw_only=True)
class Setting:
    """
    One value by its dotted key (``backend.steps``), and who set it.
    """

    key: str
    value: Any
    source: str


def load(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> tuple[RunConfig, dict[str, Setting]]:
    """
    Merge all sources into a RunConfig; also return each setting with its source, by key.

    file         a TOML file; None: netdiff.toml in the working folder, if there is one
    flags        values of flags by dotted key; None means that the flag was not given
    assignments  ``key=value`` of each `--set`

    Raises ConfigError that names the wrong key or value and where it stands.
    """
    layers = [_from_file(file), _from_environment(environ), _from_flags(flags or {}), _from_assignments(assignments)]
    merged: dict[str, Setting] = {}
    for layer in layers:
        for table in ONE:
            chosen = layer.get(f"{table}.name")
            before = merged.get(f"{table}.name")
            if chosen and before and chosen.value != before.value:
                # The options below belong to the component that was just replaced.
                merged = {k: v for k, v in merged.items() if not k.startswith(f"{table}.")}
        merged |= layer
    return _config(merged), merged


def to_toml(config: RunConfig) -> str:
    """
    Write a configuration as TOML that `load` reads back; what is None is left out.
    """
    tables: dict[str, Any] = {}
    for field in attrs.fields(RunConfig):
        value = getattr(config, field.name)
        if field.name in ONE:
            tables[field.name] = {"name": value, **getattr(config, f"{field.name}_options")}
        elif field.name in MANY:
            names = {} if value is None else {"names": value}
            off = {"off": config.rules_off} if field.name == "rules" and config.rules_off else {}
            tables[field.name] = {**names, **off, **getattr(config, f"{field.name}_options")}
        elif not field.name.endswith(("_options", "_off")):
            tables[field.name] = value
    return "\n".join(_toml_table("", tables)).lstrip("\n") + "\n"


def plain(value: Any) -> Any:
    """
    Turn an option's value into TOML's and JSON's own types: paths and anything unknown as text.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(v) for v in value]
    return value if isinstance(value, bool | int | float) else str(value)


def _toml_table(name: str, table: Mapping[str, Any]) -> Iterable[str]:
    """
    Yield the lines of one table: its values first, then its sub-tables.
    """
    table = plain(table)
    values = {k: v for k, v in table.items() if not isinstance(v, dict)}
    if name and (values or not table):
        yield from ("", f"[{name}]")
    yield from (f"{_toml_text(k)} = {_toml_value(v)}" for k, v in values.items())
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _toml_table(f"{name}.{_toml_text(key)}".lstrip("."), value)


def _toml_text(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    if isinstance(value, float):
        return repr(value)
    # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _from_file(file: Path | None) -> dict[str, Setting]:
    if file is None:
        file = Path(FILE_NAME)
        if not file.is_file():
            return {}
    if not file.exists():
        raise ConfigError(f"there is no configuration file {file}")
    if not file.is_file() or file.stat().st_size > _MAX_BYTES:
        raise ConfigError(f"{file} is no configuration: that is a file of at most {_MAX_BYTES >> 10} KiB")
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    settings = {key: Setting(key=key, value=value, source=str(file)) for key, value in _flatten(document).items()}
    for key in PATHS:  # as in pyproject.toml, a path begins at the folder of the file that names it
        if key in settings and isinstance(settings[key].value, str):
            settings[key] = attrs.evolve(settings[key], value=str(file.parent / settings[key].value))
    return settings


def _from_environment(environ: Mapping[str, str]) -> dict[str, Setting]:
    settings = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable in RESERVED or variable.startswith(f"{PREFIX}TEST_"):
            continue
        key = variable.removeprefix(PREFIX).lower().replace("__", ".")
        table, _, rest = key.partition(".")
        if table in MANY and "." in rest:  # component names have hyphens, and variables cannot
            component, _, option = rest.partition(".")
            key = f"{table}.{component.replace('_', '-')}.{option}"
        key = _full(key)
        known = [f"{PREFIX}{name.upper()}" for name in _known()]
        if table not in _known():
            raise ConfigError(f"the environment variable {variable} is no setting.{did_you_mean(variable, known)}")
        settings[key] = Setting(key=key, value=Text(text), source=variable)
    return settings


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Setting]:
    return {
        _full(key): Setting(key=_full(key), value=value, source=f"--{key.rpartition('.')[2].replace('_', '-')}")
        for key, value in flags.items()
        if value is not None
    }


def _from_assignments(assignments: Sequence[str]) -> dict[str, Setting]:
    settings = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {assignment} has no value; write it like --set backend.steps=300")
        key = _full(key.strip())
        settings[key] = Setting(key=key, value=Text(text.strip()), source="--set")
    return settings


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    Turn nested tables into dotted keys: three levels at most, so that an option may be a table itself.
    """
    flat: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        levels = 2 if name.split(".")[0] in MANY else 1
        if isinstance(value, Mapping) and name.count(".") < levels:
            flat |= _flatten(value, f"{name}.")
        else:
            flat[_full(name)] = value
    return flat


def _full(key: str) -> str:
    """
    Complete the short forms: ``encoder`` is ``encoder.name``, ``rules`` is ``rules.names``.
    """
    return f"{key}.name" if key in ONE else f"{key}.names" if key in MANY else key


def _known() -> list[str]:
    return [f.name for f in attrs.fields(RunConfig) if not f.name.endswith(("_options", "_off"))]


def _config(settings: Mapping[str, Setting]) -> RunConfig:
    values: dict[str, Any] = {}
    for setting in settings.values():
        table, _, option = setting.key.partition(".")
        if table not in _known() or (option and table not in (*ONE, *MANY)):
            raise ConfigError(
                f"{setting.source}: there is no setting {setting.key!r}.{did_you_mean(setting.key, _known())} "
                f"The settings: {', '.join(_known())}."
                + (" Options of components are written like backend.steps, rules.tcp.anomalies." if option else "")
            )
        if setting.key == "rules.off":
            values["rules_off"] = setting.value
        elif table in MANY and option != "names":
            component, _, name = option.partition(".")
            if not name:
                raise ConfigError(
                    f"{setting.source}: {setting.key} is no setting; write {table}.names for the list, "
                    f"or {table}.NAME.key for an option"
                )
            values.setdefault(f"{table}_options", {}).setdefault(component, {})[name] = setting.value
        elif table in ONE and option != "name":
            values.setdefault(f"{table}_options", {})[option] = setting.value
        else:
            values[table] = setting.value
    try:
        return cast(RunConfig, build(RunConfig, values, "the configuration"))
    except ConfigError:
        # Again one by one, so that the message can name the source.
        for setting in settings.values():
            table = "rules_off" if setting.key == "rules.off" else setting.key.partition(".")[0]
            if not setting.key.count(".") or setting.key in (f"{table}.name", f"{table}.names", "rules.off"):
                _check(table, setting)
        raise


def _check(table: str, setting: Setting) -> None:
    try:
        build(RunConfig, {table: setting.value}, "the configuration")
    except ConfigError as error:
        message = str(error).removeprefix("the configuration").lstrip(":. ")
        raise ConfigError(f"{setting.source}: {message}") from None
