"""
Discovery and the registry, with real distributions on sys.path.
"""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netdiffusion_core import hookimpl
from netdiffusion_core.errors import ConfigError, PluginError, UnknownComponentError
from netdiffusion_core.plugins import Plugins
from netdiffusion_core.specs import EncoderSpec, RuleSetSpec

Install = Callable[..., None]

GOOD = """
    from netdiffusion_core import hookimpl
    from netdiffusion_core.specs import EncoderSpec

    @hookimpl
    def netdiffusion_register_encoders():
        return [EncoderSpec(name="{name}", target="nowhere:Nothing", summary="a test")]
"""
BROKEN = {
    "import error": (
        "import netdiffusion_core_of_another_world",
        "No module named 'netdiffusion_core_of_another_world'; install it with what it depends on: "
        "pip install dist-bad",
    ),
    "exit at import": ("raise SystemExit(5)", "SystemExit"),
    "misspelt hook": (GOOD.replace("_encoders", "_enkoders"), "Did you mean 'netdiffusion_register_encoders'?"),
    "no hookimpl": (GOOD.replace("@hookimpl", ""), "mark its functions with @netdiffusion_core.hookimpl"),
    "newer argument": (GOOD.replace("encoders()", "encoders(registry)"), "needs a newer netdiffusion-core"),
    "other api": (GOOD.replace('summary="a test"', 'summary="", api=99'), "plugin API 99"),
    "wrong kind": (GOOD.replace("register_encoders", "register_rules"), "no RuleSetSpec"),
    "a generator": (GOOD.replace("return [", "yield ["), "return a list of EncoderSpec"),
    "a word for a tuple": (
        """
        from netdiffusion_core.specs import RuleSetSpec
        RuleSetSpec(name="bad", target="nowhere:Nothing", summary="", requires="tcp")
        """,
        "write a tuple: ('tcp',)",
    ),
    "bad name": (GOOD.replace('"{name}"', '"Big Name"'), "write it like 'nprint'"),
    "a hook that raises": (GOOD.replace("return [", "1 / 0; ["), "ZeroDivisionError"),
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """
    ``install("dist", code, entry="name")`` puts a distribution with one entry point on sys.path.
    """
    monkeypatch.syspath_prepend(tmp_path / "site")
    serial = itertools.count()

    def add(distribution: str, code: str, entry: str = "good", version: str = "1.2") -> None:
        module = f"toy_dist_{tmp_path.name.replace('-', '_')}_{next(serial)}"
        site = tmp_path / "site"
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[netdiffusion]\n{entry} = {module}\n")
        (site / f"{module}.py").write_text(textwrap.dedent(code).replace("{name}", entry))

    return add


def discover(*names: str, **environ: str) -> Plugins:
    return Plugins.discover({"NETDIFFUSION_PLUGINS": ",".join(names), **environ})


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_listed_with_its_reason_and_harms_nobody(install: Install, fault: str) -> None:
    code, reason = BROKEN[fault]
    install("dist-bad", code, entry="bad")
    install("dist-good", GOOD)
    plugins = discover("good", "bad")
    assert plugins.names("encoder") == ("good",)
    (broken,) = plugins.broken
    assert str(broken.origin) == "dist-bad 1.2"
    assert reason in broken.reason
    assert "\n" not in broken.reason
    with pytest.raises(PluginError, match=r"dist-bad 1\.2 is broken: "):
        discover("good", "bad", NETDIFFUSION_STRICT="1")


def test_an_entry_point_that_names_no_module_of_the_plugin_says_so(install: Install, tmp_path: Path) -> None:
    install("dist-bad", GOOD, entry="bad")
    (names,) = tmp_path.glob("site/*/entry_points.txt")
    names.write_text("[netdiffusion]\nbad = toy_dist_that_is_misspelt.plugin\n")
    (broken,) = discover("bad").broken
    assert "toy_dist_that_is_misspelt'; the entry point names it: correct pyproject.toml" in broken.reason


def test_a_misspelt_module_of_a_package_that_is_there_is_nothing_to_install(install: Install) -> None:
    install("dist-bad", "import netdiffusion_core.spec", entry="bad")
    (broken,) = discover("bad").broken
    assert broken.reason == "ModuleNotFoundError: No module named 'netdiffusion_core.spec'"


def test_whose_code_failed_is_told_with_the_line(install: Install) -> None:
    crashing = """
        from netdiffusion_core import hookimpl
        from netdiffusion_core.specs import EncoderSpec

        @hookimpl
        def netdiffusion_register_encoders():
            return [EncoderSpec(name="bad", target=f"{__name__}:crash", summary="a test")]

        def crash():
            return [].index(1)
    """
    install("dist-bad", crashing, entry="bad")
    plugins = discover("bad")
    with pytest.raises(ValueError, match="is not in list") as caught:
        sys.modules[plugins.find("encoder", "bad").target.partition(":")[0]].crash()
    assert re.fullmatch(r"dist-bad 1\.2 \(line 10 of toy_dist_\w+\.py\)", plugins.culprit(caught.value))
    with pytest.raises(IndexError) as caught:
        [][0]
    assert plugins.culprit(caught.value) == ""


def test_a_plugin_that_is_switched_off_is_not_even_imported(install: Install) -> None:
    install("dist-good", GOOD)
    install("dist-off", "import sys; sys.toy_was_imported = True", entry="off")
    assert discover("good").names("encoder") == ("good",)
    both = discover("good", "off", NETDIFFUSION_DISABLE_PLUGINS="off")
    assert both.names("encoder") == ("good",)
    assert discover("").offers == ()
    assert not hasattr(sys, "toy_was_imported")


def test_an_allow_list_that_names_nobody_says_so() -> None:
    (broken,) = discover("nprnt").broken
    assert broken.origin.entry_point == "nprnt"
    assert "no installed distribution" in broken.reason


def test_two_offers_of_one_name_are_an_error_that_names_both_distributions(install: Install) -> None:
    install("dist-one", GOOD)
    install("dist-two", GOOD)
    install("dist-other", GOOD, entry="other")
    plugins = discover("good", "other")
    with pytest.raises(PluginError, match=r"dist-one 1\.2.*dist-two 1\.2"):
        plugins.find("encoder", "good")
    assert plugins.find("encoder", "other")
    (sentence,) = plugins.duplicates
    assert sentence.startswith("Encoder 'good' is offered more than once: by dist-one 1.2 (entry point 'good')")


def test_an_origin_says_where_the_plugin_lies(install: Install, tmp_path: Path, toy_file: Path) -> None:
    install("dist-good", GOOD)
    origin = discover("good").origin("encoder", "good")
    assert (origin.entry_point, origin.distribution, origin.version) == ("good", "dist-good", "1.2")
    assert Path(origin.file).parent == tmp_path / "site"
    of_file = Plugins.discover({"NETDIFFUSION_PLUGINS": ""}, files=[toy_file]).origin("encoder", "toy")
    assert (of_file.entry_point, of_file.version, of_file.file) == ("toy_plugin", "", str(toy_file))


def test_an_unknown_name_gets_a_suggestion_the_list_and_what_to_install(toy: Plugins) -> None:
    with pytest.raises(
        UnknownComponentError, match=r"'toy-modl'\. Did you mean 'toy-model'\? Available: toy-baseline, "
    ):
        toy.find("backend", "toy-modl")
    with pytest.raises(UnknownComponentError, match=r"pip install netdiffusion-nprint \(in a clone: make dev\)"):
        toy.find("encoder", "nprint")


def test_a_component_of_a_broken_distribution_reports_its_cause(install: Install) -> None:
    install("netdiffusion-nprint", "import no_such_thing", entry="good")
    with pytest.raises(PluginError, match=r"netdiffusion-nprint 1\.2, which is broken: .*no_such_thing"):
        discover("good").find("encoder", "nprint")


def test_a_target_is_imported_when_it_is_chosen_and_its_faults_are_named(install: Install, toy: Plugins) -> None:
    install("dist-good", GOOD)
    with pytest.raises(
        PluginError, match=r"'good' \(dist-good 1\.2\) cannot be imported from nowhere:Nothing: .*nowhere"
    ):
        discover("good").create("encoder", "good")
    assert toy.create("backend", "toy-model", {"steps": 5}).options.steps == 5
    with pytest.raises(
        ConfigError, match=r"backend has no option 'stps'\. Did you mean 'steps'\? .*spread, steps, mood"
    ):
        toy.create("backend", "toy-model", {"stps": 5})


def test_objects_can_be_registered_but_a_class_is_the_classic_slip() -> None:
    assert Plugins.of(rules({"a": ()})).names("rules") == ("a",)
    with pytest.raises(TypeError, match="Rules is a class; register an instance of it"):
        Plugins.of(type(rules({})))


def rules(requirements: dict[str, tuple[str, ...]]) -> Any:
    class Rules:
        @hookimpl
        def netdiffusion_register_rules(self) -> list[RuleSetSpec]:
            return [RuleSetSpec(name=n, target="a:B", summary="", requires=r) for n, r in requirements.items()]

    return Rules()


def test_rules_come_with_what_they_require_in_an_order_that_ignores_the_command_line() -> None:
    plugins = Plugins.of(rules({"tcp": ("ipv4", "inter"), "udp": ("ipv4",), "inter": ("ipv4",), "ipv4": ()}))
    answers = {plugins.resolve_rules(names) for names in itertools.permutations(["udp", "tcp"])}
    assert answers == {(("ipv4", "inter", "udp", "tcp"), ("ipv4", "inter"))}
    assert plugins.resolve_rules(["ipv4", "ipv4"]) == (("ipv4",), ())
    assert plugins.resolve_rules([]) == ((), ())


def test_rules_that_cannot_be_resolved_name_both_sides() -> None:
    circle = Plugins.of(rules({"a": ("b",), "b": ("a",)}))
    with pytest.raises(PluginError, match=r"a -> b -> a|b -> a -> b"):
        circle.resolve_rules(["a"])
    with pytest.raises(PluginError, match=r"'a'.* requires the rule set 'missing', which no plugin offers"):
        Plugins.of(rules({"a": ("missing",)})).resolve_rules(["a"])


def test_rules_that_contradict_each_other_are_both_named() -> None:
    class Plugin:
        @hookimpl
        def netdiffusion_register_rules(self):
            return [
                RuleSetSpec(name="loose", target="a:B", summary="", conflicts=("strict",)),
                RuleSetSpec(name="strict", target="a:B", summary=""),
                RuleSetSpec(name="more", target="a:B", summary="", requires=("strict",)),
            ]

    plugins = Plugins.of(Plugin())
    assert plugins.resolve_rules(["loose"]) == (("loose",), ())
    with pytest.raises(ConfigError, match="'loose' and 'strict' contradict each other"):
        plugins.resolve_rules(["more", "loose"])


def test_an_observer_that_fails_is_a_warning_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Observer:
        def __init__(self, fails: bool) -> None:
            self.fails, self.seen = fails, []

        @hookimpl
        def netdiffusion_stage_started(self, stage: str) -> None:
            self.seen.append(stage)
            assert not self.fails, "the disk of metrics is full"

    observers = [Observer(True), Observer(False), Observer(True)]
    Plugins.of(*observers).notify("netdiffusion_stage_started", stage="fit", folder=Path())
    assert [o.seen for o in observers] == [["fit"]] * 3
    assert len(caplog.records) == 2
    assert "the disk of metrics is full" in caplog.text


def test_a_plugin_file_must_work(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"nothing\.py cannot be used: there is no such file"):
        Plugins.discover({"NETDIFFUSION_PLUGINS": ""}, files=[tmp_path / "nothing.py"])
    (tmp_path / "bad.py").write_text("x = ")
    with pytest.raises(PluginError, match=r"bad\.py cannot be used: .*SyntaxError"):
        Plugins.discover({"NETDIFFUSION_PLUGINS": ""}, files=[tmp_path / "bad.py"])


def test_a_spec_is_checked_when_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"EncoderSpec\.target is 'my_module'; write it like"):
        EncoderSpec(name="x", target="my_module", summary="")
