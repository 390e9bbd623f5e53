"""Nobody may believe that a tag was looked at where tags are not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from holdfast_common.errors import CapabilityAbsent
from holdfast_controller.decide.selection import SelectableVm
from holdfast_controller.decide.tag_knowledge import (
    TagSource,
    age_text,
    check_choosing,
    check_excluding,
    told,
)
from support.vm_facts import VM

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
READ = TagSource(
    vcenter_name="vc1", is_vcenter=True, taken_at="2026-01-02T11:53:00.000000Z", problem=""
)
NEVER = replace(READ, vcenter_name="vc2", taken_at="")
REFUSED = replace(NEVER, problem="the account may not read the tags of VMs")
OLD = replace(READ, taken_at="2026-01-01T09:00:00.000000Z", problem="vSphere does not answer")
HOST = TagSource(vcenter_name="esx1", is_vcenter=False, taken_at="", problem="")
WITHOUT = SelectableVm(vcenter_name="vc1", vm=VM, tags=())
UNKNOWN = SelectableVm(vcenter_name="vc1", vm=replace(VM, name="new"), tags=None)
ON_HOST = SelectableVm(vcenter_name="esx1", vm=replace(VM, name="alone"), tags=None)


def test_where_tags_were_read_they_choose_also_when_they_are_old() -> None:
    check_choosing("tag:gold", [READ])
    check_choosing("tag:gold", [OLD])
    check_choosing("tag:gold", [HOST, READ])


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ([NEVER], "never read"),
        ([REFUSED], "may not read"),
        ([READ, NEVER], "never read"),
        ([HOST], "single host"),
        ([HOST, REFUSED], "may not read"),
    ],
)
def test_where_tags_are_not_known_no_vm_is_chosen_by_them(
    sources: list[TagSource], reason: str
) -> None:
    with pytest.raises(CapabilityAbsent) as caught:
        check_choosing("tag:gold", sources)
    assert reason in str(caught.value)
    assert caught.value.facts["selector"] == "tag:gold"
    assert "--vcenter" in caught.value.advice


def test_without_any_vcenter_there_is_nothing_to_know() -> None:
    check_choosing("tag:gold", [])
    check_excluding("tag:none", [], [])


@pytest.mark.parametrize(
    ("vm", "reason"), [(UNKNOWN, "was not there"), (ON_HOST, "a single host has no tags")]
)
def test_a_chosen_vm_whose_tags_are_not_known_is_not_excluded_silently_nor_taken(
    vm: SelectableVm, reason: str
) -> None:
    check_excluding("tag:none", [WITHOUT], [READ, HOST])
    with pytest.raises(CapabilityAbsent) as caught:
        check_excluding("tag:none", [WITHOUT, vm], [READ, HOST])
    assert caught.value.facts["vms"] == vm.vm.name
    assert reason in str(caught.value.facts["reason"])


def test_many_vms_are_not_all_named() -> None:
    many = [replace(UNKNOWN, vm=replace(VM, name=f"vm{number}")) for number in range(8)]
    with pytest.raises(CapabilityAbsent, match=r"vm0, vm1, vm2, vm3, vm4 and 3 more"):
        check_excluding("tag:none", many, [READ])


def test_what_was_read_whole_needs_no_telling() -> None:
    assert told([READ], [WITHOUT], NOW) == []


def test_old_tags_are_told_with_their_age_and_why() -> None:
    (line,) = told([OLD], [WITHOUT], NOW)
    assert "27 hours old" in line
    assert "vSphere does not answer" in line
    (line,) = told([READ], [WITHOUT], NOW, silent=["vc1"])
    assert "7 minutes old: they could not be read again: it does not answer" in line


def test_vms_without_known_tags_and_hosts_without_any_are_told() -> None:
    host, unknown = told([HOST, READ], [WITHOUT, UNKNOWN, ON_HOST], NOW)
    assert host.startswith("esx1: a single host has no tags")
    assert "the tags of 1 VMs of vc1 are not known" in unknown
    assert unknown.endswith(": new")


@pytest.mark.parametrize(
    ("taken_at", "text"),
    [
        ("2026-01-02T12:00:05.000000Z", "0 minutes"),
        ("2026-01-02T10:01:00.000000Z", "119 minutes"),
        ("2026-01-02T10:00:00.000000Z", "2 hours"),
        ("2025-12-20T12:00:00.000000Z", "13 days"),
    ],
)
def test_an_age_is_told_in_a_fitting_unit(taken_at: str, text: str) -> None:
    assert age_text(taken_at, NOW) == text
