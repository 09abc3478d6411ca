"""
What every rule set must do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from ..interfaces import Record, RuleSet
from ..model import MISSING, Encoded, Layout, Repair, Traffic, Violation
from ..repairs import compare_rows
from .component import Conformance, difference, returned, unchanged
from .examples import damaged, example_bits, example_traffic, no_flow, no_packets
from .headers import places, values

Change = tuple[str, str, NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.bool_]]
"""Rule, field, packets, values before and after: what `interfaces.Record` is told."""

_SEED = 1


class RuleSetConformance(Conformance):
    """
    The checks of a rule set. The rule sets that the spec requires are applied before it, as in a run.
    """

    kind: ClassVar[str] = "rules"

    def traffic(self) -> Traffic:
        """
        Return traffic that breaks none of the rules. Override it where the example traffic does, or has nothing that
        the rules look at.
        """
        return example_traffic()

    def broken(self) -> Traffic:
        """
        Return traffic that needs repair. Override it to aim at your rules; by default random bits are turned.
        """
        return damaged(self.traffic())

    def test_rules_are_declared(self) -> None:
        """
        `rules` tells ``netdiff rules list`` what must hold: an id ``<rule set>.<rule>``, a summary, and the source
        where that is written.
        """
        ids = [rule.id for rule in self.component().rules]
        assert ids, "the rule set declares no rule: rules = (Rule(id=..., ...),)"
        assert len(set(ids)) == len(ids), "two rules have one id"
        for rule in self.component().rules:
            assert rule.id.startswith(f"{self.spec.name}."), (
                f"the id of the rule {rule.id!r} must begin with {self.spec.name + '.'!r}"
            )
            assert rule.summary, f"the rule {rule.id} has no summary: what must hold?"
            assert rule.source, f"the rule {rule.id} has no source: where is it written?"
            assert rule.severity in ("error", "warning"), (
                f"{rule.id} has the severity {rule.severity!r}; it must be 'error' or 'warning'"
            )

    def test_valid_traffic_stays_as_it_is(self) -> None:
        """
        In valid traffic `check` finds nothing, and `repair` changes not one byte and records nothing.

        Mend: write only where a rule is broken. If the example traffic does break a rule of yours, override `traffic`.
        """
        rules, traffic = self.component(), self.traffic()
        found = self._check(rules, traffic)
        assert not found, f"check objects to valid traffic: {found[0].rule}: {found[0].message}"
        repaired, changes = self._repair(rules, traffic)
        assert repaired == traffic, f"repair changed valid traffic: {difference(repaired, traffic)}"
        assert not changes, f"repair recorded a change of valid traffic: {changes[0][0]}"

    def test_what_is_reported_is_declared(self) -> None:
        """
        Each violation names a rule of `rules` with its severity, a packet of the traffic (or None for a whole flow),
        and the flow of that packet.
        """
        broken = self._before()
        declared = {rule.id: rule for rule in self.component().rules}
        for violation in self._check(self.component(), broken):
            rule = declared.get(violation.rule)
            assert rule, f"check reports the rule {violation.rule!r}, which `rules` does not declare"
            for name in ("severity", "repairable"):
                told, known = getattr(violation, name), getattr(rule, name)
                assert told == known, f"a violation of {rule.id} has {name}={told!r}, and the rule has {known!r}"
            if violation.packet is not None:
                assert 0 <= violation.packet < len(broken), f"{rule.id} names the packet {violation.packet}, not there"
                flow = int(broken.flow_of[violation.packet])
                assert violation.flow == flow, (
                    f"{rule.id} says that packet {violation.packet} is of flow {violation.flow}; it is of {flow}"
                )
            else:
                assert 0 <= violation.flow < len(broken.flows), f"{rule.id} names the flow {violation.flow}, not there"

    def test_repair_leaves_nothing_to_repair(self) -> None:
        """
        After `repair`, `check` finds no violation that is repairable.

        Mend: let both ask one function where a rule is broken. Where `repair` cannot mend: ``repairable=False``.
        """
        repaired, _ = self._repair(self.component(), self._before())
        left = [v for v in self._check(self.component(), repaired) if v.repairable]
        assert not left, f"after repair {len(left)} violations are left: {left[0].rule} in packet {left[0].packet}"

    def test_repair_is_idempotent(self) -> None:
        """
        Repairing what was repaired changes nothing.

        Mend: decide from what stands in the packets, so that a second look finds it decided.
        """
        once, _ = self._repair(self.component(), self._before())
        twice, changes = self._repair(self.component(), once)
        assert twice == once, f"a second repair changes more: {difference(twice, once)}" + (
            f", first by {changes[0][0]} in {changes[0][1]}" if changes else ""
        )

    def test_repair_keeps_what_required_rule_sets_have_mended(self) -> None:
        """
        `repair` breaks no rule of the rule sets that the spec requires. They have run before, and mend nothing after
        it: a checksum that does not fit any more reaches the pcaps.

        Mend: write header fields with `netdiffusion_inet.headers.Draft`, and the checksums follow; write payload with
        `netdiffusion_core.capture.payload.write_payloads`.
        """
        before = self._before()
        repaired, _ = self._repair(self.component(), before)
        for name, rules in self._required():
            old = {(v.rule, v.flow, v.packet) for v in rules.check(before)}
            new = [v for v in rules.check(repaired) if (v.rule, v.flow, v.packet) not in old]
            assert not new, (
                f"repair breaks {len(new)} rules of {name}, which ran before: {new[0].rule} in packet {new[0].packet}, "
                f"{new[0].message}"
            )

    def test_the_seed_decides_what_is_drawn(self) -> None:
        """
        With the same generator `repair` gives the same packets, whether or not somebody records.

        Mend: draw from `rng` only, and from no set or hash whose order changes.
        """
        broken = self._before()
        one, again = (self._repair(self.component(), broken)[0] for _ in range(2))
        assert one == again, f"the same seed gave other packets: {difference(one, again)}"
        quiet = self.component().repair(broken, np.random.default_rng(_SEED))
        assert quiet == one, f"repair does something else where nobody records: {difference(quiet, one)}"

    def test_each_change_is_told_and_true(self) -> None:
        """
        `repair` tells `record` each packet that it changes, with the values of the field that were there before and are
        there after, under one of its rules, or one of another rule set where a checksum follows from the change.

        Mend: ``record("tcp.window", "tcp.wsize", packets, before, after)`` with the indices of the packets, before you
        write; name header fields as nPrint does (`netdiffusion_core.testing.headers`), to have their values checked.
        """
        broken = self._before()
        repaired, changes = self._repair(self.component(), broken)
        for rule, field, packets, before, after, differ in changes:
            assert self._is_declared(rule), f"a change is recorded of the rule {rule!r}, which no rule set declares"
            assert len(packets) == len(before) == len(after), f"{rule}: as many values as packets must be recorded"
            assert not len(packets) or 0 <= packets.min() <= packets.max() < len(broken), f"{rule}: no such packet"
            assert differ.all(), f"{rule} recorded a change of {field} that changes nothing"
        if len(repaired) == len(broken):
            told = np.concatenate([np.zeros(0, np.int64), *(change[2] for change in changes)])
            silent = np.setdiff1d(np.flatnonzero(_changed(broken, repaired)), told)
            assert not len(silent), (
                f"{len(silent)} packets were changed and record was not told: the first is {silent[0]}"
            )
        for field in {change[1] for change in changes} & places().keys():
            self._follow(field, changes, broken, repaired)

    def test_a_rule_that_is_off_is_silent(self) -> None:
        """
        A rule whose id is in `off` is neither reported nor repaired: the user has switched it off. Only where another
        rule has changed a packet may its checksums and lengths follow.
        """
        broken = self._before()
        for rule in self.component().rules:
            rules = self.component()
            rules.off = frozenset({rule.id})
            reported = {violation.rule for violation in self._check(rules, broken)}
            assert rule.id not in reported, f"{rule.id} is off, and check reports it: if rule.id not in self.off"
            _, changes = self._repair(rules, broken)
            mended, others = (
                np.concatenate([np.zeros(0, np.int64), *(c[2] for c in changes if (c[0] == rule.id) == mine)])
                for mine in (True, False)
            )
            assert np.isin(mended, others).all(), f"{rule.id} is off, and repair mends it"

    def test_constrain_keeps_what_is_valid(self) -> None:
        """
        `constrain` leaves rows of valid traffic as they are, leaves a layout alone that has none of its headers, and
        mends bits once and for all: the same shape, labels and starts, and nothing more the second time. All installed
        encoders are tried.
        """
        stranger = example_bits(self.traffic())
        layout = Layout(name="other", version=1, fields=(("other.bits", stranger.layout.width),))
        self._constrain_keeps(attrs.evolve(stranger, layout=layout), "rows of a layout that is not its own")
        for name in self.plugins().names("encoder"):
            encoded = self.plugins().create("encoder", name).encode(self.traffic())
            self._constrain_keeps(encoded, f"valid rows of the encoder {name}")
            rng = np.random.default_rng(5)
            wild = np.where(rng.random(encoded.rows.shape) < 0.05, rng.integers(MISSING, 2, encoded.rows.shape), 0)
            self._constrain_once(attrs.evolve(encoded, rows=np.where(wild, wild, encoded.rows)))

    def test_empty_and_odd_traffic(self) -> None:
        """
        No packets, packets without IP, packets that were cut within a header: no exception.
        """
        for traffic in (no_packets(), no_flow()):
            rules = self.component()
            self._check(rules, traffic)
            repaired, _ = self._repair(rules, traffic)
            assert len(repaired.flows) == len(traffic.flows), "a flow was lost or invented"

    def _is_declared(self, rule: str) -> bool:
        own = {each.id for each in self.component().rules}
        name = rule.split(".")[0]
        return rule in own or (
            name in self.plugins().names("rules")
            and rule in {each.id for each in self.plugins().load("rules", name).rules}
        )

    def _before(self) -> Traffic:
        """
        Return the broken traffic as the required rule sets leave it.
        """
        traffic = self.broken()
        for _, rules in self._required():
            traffic = rules.repair(traffic, np.random.default_rng(_SEED))
        return traffic

    def _required(self) -> list[tuple[str, RuleSet]]:
        ordered, _ = self.plugins().resolve_rules([self.spec.name])
        return [(name, self.plugins().create("rules", name)) for name in ordered if name != self.spec.name]

    def _check(self, rules: RuleSet, traffic: Traffic) -> list[Violation]:
        with unchanged("check", traffic):
            return list(returned(rules.check(traffic), Iterable, "check"))

    def _repair(self, rules: RuleSet, traffic: Traffic) -> tuple[Traffic, list[Change]]:
        """
        Repair, and return all that was recorded besides.
        """
        changes: list[Change] = []

        def record(
            rule: str,
            field: str,
            packets: NDArray[Any],
            before: NDArray[Any],
            after: NDArray[Any],
            bits: NDArray[Any] | None = None,
        ) -> None:
            packets, was, becomes = (np.array(each, np.int64).reshape(-1) for each in (packets, before, after))
            changes.append(
                (rule, field, packets, was, becomes, was != becomes if bits is None else np.asarray(bits) > 0)
            )

        note: Record = record
        with unchanged("repair", traffic):
            repaired = returned(rules.repair(traffic, np.random.default_rng(_SEED), note), Traffic, "repair")
        return repaired, [change for change in changes if len(change[2])]

    def _follow(self, field: str, changes: Iterable[Change], before: Traffic, after: Traffic) -> None:
        """
        Assert that what was recorded of a field leads from its value before to its value after.
        """
        turned = {int(p) for c in changes if c[1] == "trace.direction" for p in c[2]}  # ports change places there
        old, new = values(before, field), values(after, field)
        last: dict[int, int] = {}
        for rule, name, packets, was, becomes, _ in changes:
            if name == field:
                for packet, a, b in zip(packets.tolist(), was.tolist(), becomes.tolist(), strict=True):
                    expected = last.get(packet, int(old[packet]))
                    assert a == expected or expected < 0 or packet in turned, (
                        f"{rule} recorded that {field} of packet {packet} was {a}; it was {expected}"
                    )
                    last[packet] = b
        for packet, value in last.items():
            found = int(new[packet]) if len(after) == len(before) else value
            assert value == found or found < 0 or packet in turned, (
                f"it is recorded that {field} of packet {packet} became {value}; it is {found}"
            )

    def _constrain_keeps(self, encoded: Encoded, what: str) -> None:
        changes = compare_rows("constrain", encoded, self._constrain(encoded))
        assert not changes, f"constrain changes {what}: {_where(changes)}"

    def _constrain_once(self, encoded: Encoded) -> None:
        once = self._constrain(encoded)
        changes = compare_rows("constrain", once, self._constrain(once))
        assert not changes, f"a second constrain changes more: {_where(changes)}"

    def _constrain(self, encoded: Encoded) -> Encoded:
        with unchanged("constrain", encoded):
            constrained: Encoded = returned(self.component().constrain(encoded), Encoded, "constrain")
        for name in ("starts", "labels", "start_times"):
            assert np.array_equal(getattr(constrained, name), getattr(encoded, name)), f"constrain changed {name}"
        assert constrained.rows.shape == encoded.rows.shape, "constrain changed the number of rows or columns"
        assert constrained.layout == encoded.layout, "constrain changed the layout"
        return constrained


def _changed(before: Traffic, after: Traffic) -> NDArray[np.bool_]:
    """
    Return bool[packets]: whose bytes, time, length or direction differ.
    """
    differs = [before.packet(i) != after.packet(i) for i in range(len(before))]
    for name in ("timestamps", "wire_lengths", "from_initiator"):
        differs |= getattr(before, name) != getattr(after, name)
    return np.asarray(differs, bool)


def _where(changes: list[Repair]) -> str:
    first = changes[0]
    return (
        f"{first.field} of packet {first.packets[0]} in flow {first.flows[0]}, from {first.before[0]} to "
        f"{first.after[0]} (-1: absent)"
    )
