"""
Settings: who wins, what is refused, and that a configuration survives being written down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdiffusion_core.config import RunConfig, load, to_toml
from netdiffusion_core.errors import ConfigError, PluginError
from netdiffusion_core.options import Text, build, describe

pytestmark = pytest.mark.usefixtures("alone")


def test_toml_then_environment_then_flags_then_set() -> None:
    Path("netdiff.toml").write_text(
        'seed = 1\nflows = 1\nmax_packets = 1\nclasses = ["a", "b"]\n'
        '[backend]\nname = "one"\nsteps = 1\n[rules]\nnames = ["tcp"]\n[rules.tcp]\nstrict = true\n'
    )
    environ = {
        "NETDIFFUSION_FLOWS": "2",
        "NETDIFFUSION_MAX_PACKETS": "2",
        "NETDIFFUSION_BACKEND__STEPS": "2",
        "NETDIFFUSION_EVALUATORS__MY_EVALUATOR__TREES": "2",
        "NETDIFFUSION_PLUGINS": "x",
        "HOME": "/root",
    }
    config, given_ = load(environ=environ, flags={"max_packets": 3, "labels": None}, assignments=["backend.steps=4"])
    assert (config.seed, config.flows, config.max_packets) == (1, 2, 3)
    assert config.backend_options == {"steps": "4"}
    assert config.rules_options == {"tcp": {"strict": True}}
    assert config.evaluators_options == {"my-evaluator": {"trees": "2"}}
    assert {k: s.source for k, s in given_.items()} == {
        "seed": "netdiff.toml",
        "classes": "netdiff.toml",
        "flows": "NETDIFFUSION_FLOWS",
        "max_packets": "--max-packets",
        "backend.name": "netdiff.toml",
        "backend.steps": "--set",
        "rules.names": "netdiff.toml",
        "rules.tcp.strict": "netdiff.toml",
        "evaluators.my-evaluator.trees": "NETDIFFUSION_EVALUATORS__MY_EVALUATOR__TREES",
    }


def test_options_of_a_backend_that_was_replaced_do_not_reach_the_new_one() -> None:
    Path("netdiff.toml").write_text('[backend]\nname = "one"\nsteps = 1\n')
    config, _ = load(environ={}, flags={"backend": Text("two")}, assignments=["backend.size=3"])
    assert (config.backend, config.backend_options) == ("two", {"size": "3"})


def test_short_forms_and_lists() -> None:
    Path("netdiff.toml").write_text('encoder = "mine"\nrules = ["udp"]\n')
    config, _ = load(environ={"NETDIFFUSION_RULES": "tcp, udp"}, assignments=["compare=", "evaluators=a,b"])
    assert (config.encoder, config.rules, config.compare, config.evaluators) == ("mine", ("tcp", "udp"), (), ("a", "b"))


def test_paths_begin_at_the_file_that_names_them() -> None:
    Path("project").mkdir()
    Path("project/other.toml").write_text('data = "pcaps"\noutput = "/abs"\n')
    config, _ = load(Path("project/other.toml"), environ={})
    assert (config.data, config.output) == (Path("project/pcaps"), Path("/abs"))


@pytest.mark.parametrize(
    ("toml", "environ", "assignment", "message"),
    [
        ("sede = 1", {}, "", r"netdiff\.toml: there is no setting 'sede'\. Did you mean 'seed'\?"),
        ('seed = "1"', {}, "", r"netdiff\.toml: seed is '1'; it must be a whole number"),
        ("seed = true", {}, "", "seed is True; it must be a whole number"),
        ("seed = -1", {}, "", "seed is -1; it must not be negative"),
        ("flows = 0", {}, "", "flows is 0; it must be at least 1"),
        ("seed = ", {}, "", r"netdiff\.toml cannot be read: Invalid value"),
        ("[seed]\nx = 1", {}, "", "no setting 'seed.x'"),
        ('classes = "a"', {}, "", "classes is 'a'; it must be a list"),
        ("rules = [1]", {}, "", "it must be text"),
        ("[rules]\ntcp = 1", {}, "", "rules.tcp is no setting; write rules.names"),
        ("", {"NETDIFFUSION_SEDE": "1"}, "", "NETDIFFUSION_SEDE is no setting. Did you mean 'NETDIFFUSION_SEED'\\?"),
        ("", {"NETDIFFUSION_SEED": "x"}, "", "NETDIFFUSION_SEED: seed is 'x'; it must be a whole number"),
        ("", {}, "backend.steps", "--set backend.steps has no value; write it like"),
        ("", {}, "seed=1.5", "--set: seed is '1.5'; it must be a whole number"),
    ],
)
def test_mistakes_are_named_with_their_place(toml: str, environ: dict[str, str], assignment: str, message: str) -> None:
    Path("netdiff.toml").write_text(toml)
    with pytest.raises(ConfigError, match=message) as caught:
        load(environ=environ, assignments=[assignment] if assignment else [])
    assert caught.value.exit_code == 2


def test_a_configuration_file_that_is_named_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"no configuration file nowhere\.toml"):
        load(Path("nowhere.toml"), environ={})


def test_one_string_is_no_tuple_of_names() -> None:
    with pytest.raises(TypeError, match=r"write a tuple of names: \('tcp', 'udp'\)"):
        RunConfig(rules="tcp,udp")  # type: ignore[arg-type]


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats(), texts, st.lists(texts))
tables = st.dictionaries(
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda k: k not in ("name", "names")), values
)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**60),
    data=st.none() | texts.filter(bool),
    classes=st.lists(texts),
    rules=st.lists(names),
    evaluators=st.none() | st.lists(names),
    compare=st.none() | st.lists(names),
    backend_options=tables,
    rules_options=st.dictionaries(names.filter(lambda n: n not in ("name", "names", "off")), tables.filter(bool)),
    rules_off=st.lists(names),
)
def test_a_written_configuration_reads_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, **fields: Any) -> None:
    if fields["data"] is not None:
        fields["data"] = Path("/") / fields["data"].lstrip("/").replace("\0", "")
    config = RunConfig(output=Path("/out"), **fields)
    file = tmp_path_factory.getbasetemp() / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8", newline="")
    again, _ = load(file, environ={})
    assert repr(again) == repr(config)  # repr, because NaN equals nothing
    assert again.digest() == config.digest()


@attrs.frozen(kw_only=True)
class Options:
    path: Path = Path("x")
    rate: float = attrs.field(default=0.5, validator=attrs.validators.gt(0), metadata={"help": "step size"})
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] | None = None
    mode: Literal["fast", "slow", 3] = "fast"
    on: bool = False
    limit: int | None = 7


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("path", "a/b", Path("a/b")),
        ("rate", "1e-3", 0.001),
        ("sizes", "4, 5,6", (4, 5, 6)),
        ("sizes", "", ()),
        ("pair", "1,2.5", (1, 2.5)),
        ("pair", "none", None),
        ("mode", "slow", "slow"),
        ("mode", "3", 3),
        ("on", "yes", True),
        ("on", "0", False),
        ("limit", "none", None),
        ("limit", "-9", -9),
    ],
)
def test_text_of_the_command_line_becomes_the_type_of_the_option(key: str, text: str, value: Any) -> None:
    result = getattr(build(Options, {key: Text(text)}, "backend"), key)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rate", Text("quick"), r"backend\.rate is 'quick'; it must be a number"),
        ("rate", -1, r"backend: 'rate' must be > 0: -1"),
        ("sizes", [1, "2"], r"backend\.sizes is '2'; it must be a whole number"),
        ("sizes", 3, r"backend\.sizes is 3; it must be a list"),
        ("pair", [1], r"backend\.pair has 1 values; it must have 2"),
        ("mode", Text("fats"), r"backend\.mode is 'fats'\. Did you mean 'fast'\? It must be fast, slow or 3"),
        ("on", Text("maybe"), r"backend\.on is 'maybe'; it must be true or false"),
        ("on", 1, r"backend\.on is 1; it must be true or false"),
        ("limit", 2.5, r"backend\.limit is 2\.5; it must be a whole number"),
        ("lmit", 1, r"backend has no option 'lmit'\. Did you mean 'limit'\? Its options: path, rate"),
    ],
)
def test_an_option_that_does_not_fit_is_named_as_the_user_writes_it(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Options, {key: value}, "backend")


def test_options_can_be_required_and_described() -> None:
    @attrs.frozen
    class Required:
        base: str

    with pytest.raises(ConfigError, match=r"backend\.base is missing; write --set backend\.base="):
        build(Required, {}, "backend")
    rows = {row.name: row for row in describe(Options)}
    assert (rows["rate"].type, rows["rate"].default, rows["rate"].help) == ("a number", "0.5", "step size")
    assert rows["sizes"].default == "1,2"
    assert rows["limit"].type == "a whole number or none"
    with pytest.raises(PluginError, match="is no attrs class"):
        describe(int)
