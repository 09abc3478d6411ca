"""
Options of components: an attrs class on one side, a table of netdiff.toml or `--set` strings on the other.

Keys are strict, and nothing is converted silently: only text from the command line or the environment (`Text`) is read
as a number, a list or a switch; a value from a TOML file must have its type already.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union

import attrs

from .errors import ConfigError, PluginError, did_you_mean


class Text(str):
    """
    A value as somebody typed it into the command line or the environment.
    """


@attrs.frozen
class OptionRow:
    """
    One option, for `netdiff plugins show`.
    """

    name: str
    type: str
    default: str
    help: str


def build(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """
    Return ``cls(**values)``, each value converted to its field's type.

    where  how the user writes the table: ``backend`` makes messages name ``backend.steps``

    Raises ConfigError for an unknown key, a wrong type, a missing value, or what a validator objects to.
    """
    fields = _fields(cls)
    for key in values:
        if key not in fields:
            known = f"Its options: {', '.join(fields)}." if fields else "It has no options."
            raise ConfigError(f"{where} has no option {key!r}.{did_you_mean(key, list(fields))} {known}")
    for name, (field, _) in fields.items():
        if field.default is attrs.NOTHING and name not in values:
            raise ConfigError(f"{where}.{name} is missing; write --set {where}.{name}=...")
    converted = {key: convert(value, fields[key][1], f"{where}.{key}") for key, value in values.items()}
    for key, value in converted.items():
        if isinstance(value, int) and value.bit_length() > 63:
            raise ConfigError(f"{where}.{key} is a number of {value.bit_length()} bits; it must have at most 63.")
    try:
        return cls(**converted)
    except (ValueError, TypeError) as error:
        # attrs' validators put the field and the value behind the sentence
        raise ConfigError(f"{where}: {error.args[0] if error.args else error}") from error


def describe(cls: type[Any]) -> tuple[OptionRow, ...]:
    """
    Return one row an option, in the order of the class.
    """
    return tuple(
        OptionRow(name, type_name(hint), _default(field), field.metadata.get("help", ""))
        for name, (field, hint) in _fields(cls).items()
    )


def convert(value: Any, hint: Any, where: str) -> Any:
    """
    Return the value as the type `hint`: bool, int, float, str, Path, a Literal, an Optional, a tuple or a Mapping.

    Raises ConfigError naming `where` and what was expected.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        for choice in arguments:
            if value == choice or (isinstance(value, Text) and value == str(choice)):
                return choice
        names = [str(a) for a in arguments]
        raise ConfigError(f"{where} is {value!r}.{did_you_mean(str(value), names)} It must be {_either(names)}.")
    if origin is tuple or hint is tuple:
        return _convert_tuple(value, arguments or (str, ...), where)
    if hint is Any or (origin in (dict, Mapping) and isinstance(value, Mapping)):
        return value
    if isinstance(value, Text):
        return _parse(value, hint, where)
    if hint is Path and isinstance(value, str | Path) and "\0" not in str(value):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be {type_name(hint)}.")


def type_name(hint: Any) -> str:
    """
    Say a type in a user's words: ``a whole number``.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _either([type_name(a) for a in arguments])
    if origin is Literal:
        return _either([str(a) for a in arguments])
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list ({type_name(arguments[0])} each)"
        return f"a list of {len(arguments)}"
    words: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
        type(None): "none",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _convert_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    candidates = [a for a in arguments if a is not type(None)]
    lists = any(tuple in (a, typing.get_origin(a)) for a in candidates)
    nothing = ("none",) if lists else ("none", "")  # the empty text is an empty list, where a list is possible
    if type(None) in arguments and (value is None or (isinstance(value, Text) and value.lower() in nothing)):
        return None
    for candidate in candidates:
        try:
            return convert(value, candidate, where)
        except ConfigError:
            if len(candidates) == 1:
                raise
    raise ConfigError(f"{where} is {value!r}; it must be {_either([type_name(a) for a in arguments])}.")


def _convert_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, Text):
        value = [Text(part.strip()) for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} is {value!r}; it must be a list.")
    hints = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
    if len(hints) != len(value):
        raise ConfigError(f"{where} has {len(value)} values; it must have {len(hints)}.")
    return tuple(convert(item, hint, where) for item, hint in zip(value, hints, strict=True))


def _parse(text: Text, hint: Any, where: str) -> Any:
    switches = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    try:
        if hint is bool:
            return switches[text.lower()]
        if hint is str:
            return str(text)
        if hint in (int, float, Path):
            return hint(str(text))
    except (KeyError, ValueError):
        pass
    raise ConfigError(f"{where} is {str(text)!r}; it must be {type_name(hint)}.")


def _fields(cls: type[Any]) -> dict[str, tuple[Any, Any]]:
    """
    Return the fields that a user may set, by name, each with its type.
    """
    if not attrs.has(cls):
        raise PluginError(f"{cls.__module__}.{cls.__qualname__} is no attrs class; decorate Options with @attrs.frozen")
    hints = typing.get_type_hints(cls)
    return {f.alias: (f, hints.get(f.name, Any)) for f in attrs.fields(cls) if f.init}


def _default(field: Any) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    value = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
