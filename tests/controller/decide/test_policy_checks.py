from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from holdfast_common.errors import UsageError
from holdfast_controller.decide.coverage import select
from holdfast_controller.decide.policy import LevelRule, Policy
from holdfast_controller.decide.policy_checks import (
    Finding,
    Oddity,
    RunLengths,
    check_due,
    duration_text,
    findings,
    refused,
)
from holdfast_controller.decide.selection import SelectableVm
from support.policies import policy
from support.vm_facts import VM, disk_of

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
VMS = [
    SelectableVm(vcenter_name="vc1", vm=replace(VM, name=name)) for name in ("db1", "web1", "web2")
]
ALL = ("*",)
HOUR = 3600.0


def found(made: Policy, lengths: dict[int, RunLengths] | None = None) -> list[Finding]:
    return findings(made, select(made, VMS), VMS, lengths or {}, now=NOW)


def took(shortest: float, longest: float) -> RunLengths:
    return RunLengths(shortest_seconds=shortest, longest_seconds=longest)


def test_a_policy_that_fits_has_nothing_odd() -> None:
    night = policy(vms=("web*", "db1"), exclude=("web2",), window="mon-sun 22:00-06:00")
    assert found(night, {0: took(HOUR, 8 * HOUR)}) == []


def test_selectors_that_name_no_vm_are_odd_in_both_lists() -> None:
    odd = found(policy(vms=("web*", "mail"), exclude=("old*",)))
    assert [(each.oddity, each.field, each.facts["selector"]) for each in odd] == [
        (Oddity.UNMATCHED, "vms", "mail"),
        (Oddity.UNMATCHED, "exclude", "old*"),
    ]


def test_a_policy_that_excludes_all_that_it_selects_is_odd() -> None:
    (odd,) = found(policy(vms=("web*",), exclude=("web?",)))
    assert (odd.oddity, odd.field, odd.facts) == (Oddity.UNMATCHED, "exclude", {"vms": 2})


def test_a_window_shorter_than_any_backup_of_a_vm_was_is_odd_with_the_figures() -> None:
    made = policy(vms=ALL, window="mon-sun 22:00-23:00")
    lengths = {0: took(HOUR + 1, 9 * HOUR), 1: took(3 * HOUR, 3 * HOUR), 2: took(60, 90)}
    (odd,) = found(made, lengths)
    assert (odd.oddity, odd.field) == (Oddity.SHORT_WINDOW, "window")
    assert odd.facts == {
        "longest_opening": "60 min",
        "vm": "web1",
        "shortest_backup": "3.0 h",
        "vms_like_it": 2,
    }


def test_a_window_that_only_some_backups_did_not_fit_into_is_told() -> None:
    made = policy(vms=ALL, window="mon-sun 22:00-23:00")
    (odd,) = found(made, {1: took(60, 5 * HOUR)})
    assert (odd.oddity, odd.facts["vm"], odd.facts["longest_backup"]) == (None, "web1", "5.0 h")
    assert "longest_backup=5.0 h" in odd.text()


def test_the_longest_opening_of_a_week_counts_and_vms_that_are_not_selected_do_not() -> None:
    weekend = "mon-fri 22:00-23:00; sat 22:00-06:00"
    assert found(policy(vms=ALL, window=weekend), {0: took(7 * HOUR, 8 * HOUR)}) == []
    assert found(policy(vms=("web*",), window="mon-sun 22:00-23:00"), {0: took(9e9, 9e9)}) == []
    assert found(policy(vms=ALL), {0: took(9e9, 9e9)}) == []


def test_a_window_that_is_closed_whenever_the_policy_is_due_is_told() -> None:
    (odd,) = found(policy(vms=ALL, start="0 12 * * *", window="mon-sun 22:00-06:00"))
    assert odd.oddity is None
    assert "closed whenever" in odd.text()


def test_a_change_is_refused_for_what_it_brings_in_unless_that_is_allowed() -> None:
    before = found(policy(vms=("mail", "*")))
    after = found(policy(vms=("mail", "mall", "*"), priority=1))
    (new,) = refused(after, before, ())
    assert new.facts["selector"] == "mall"
    assert len(refused(after, [], ())) == 2
    assert refused(after, [], (Oddity.UNMATCHED,)) == []
    assert len(refused(after, [], (Oddity.SHORT_WINDOW,))) == 2


def test_what_is_only_told_is_never_refused() -> None:
    assert (
        refused(found(policy(vms=ALL, start="0 12 * * *", window="mon 22:00-23:00")), [], ()) == []
    )


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (lambda: policy(start="0 0 31 4,6 *"), "start"),
        (lambda: policy(level=LevelRule(full="0 0 30 2 *")), "level.full"),
        (lambda: policy(level=LevelRule(differential="0 0 30 2 *")), "level.differential"),
    ],
)
def test_a_calendar_that_never_comes_due_is_refused_by_its_field(
    made: Callable[[], Policy], field: str
) -> None:
    with pytest.raises(UsageError) as never:
        check_due(made(), NOW)
    assert never.value.facts["field"] == field


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (720, "12 min"), (95400, "26.5 h"), (276480, "3.2 d")]
)
def test_durations_are_told_in_units_of_their_size(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_choice_of_disks_that_names_none_or_leaves_none_is_odd() -> None:
    disks = (disk_of(2000, "Hard disk 1"), disk_of(2001, "Hard disk 2"))
    vms = [
        SelectableVm(vcenter_name="vc1", vm=replace(VM, name="db1", disks=disks)),
        SelectableVm(vcenter_name="vc1", vm=replace(VM, name="web1", disks=disks[:1])),
    ]

    def odd(**choice: object) -> list[tuple[str, object]]:
        made = replace(policy(vms=ALL), **choice)  # type: ignore[arg-type]  # fields of a policy
        return [
            (each.field, each.facts.get("selector") or each.facts.get("vm"))
            for each in findings(made, select(made, vms), vms, {}, now=NOW)
            if each.oddity is Oddity.UNMATCHED
        ]

    assert odd(exclude_disks=("disk:2001",)) == []
    assert odd(exclude_disks=("disk:2009",)) == [("exclude_disks", "disk:2009")]
    assert odd(exclude_disks=("disk:Hard disk 1",)) == [("exclude_disks", "web1")]
    assert odd(disks=("disk:2001",)) == [("disks", "web1")]
