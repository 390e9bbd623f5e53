"""Nine ways in which change tracking is wrong: none makes a point that claims to be proven and is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_lab.storage import tracking
from support import figures_summary
from support.backup_jobs import make_site
from support.tracking_bugs import Bug, Tally, run_seed
from support.tracking_bugs_on_disks import BOUNDARY, run_disk_seed

FEW = range(24)
MODELLED = range(180)
ON_DISKS = range(20)


@pytest.mark.parametrize("bug", list(Bug))
def test_a_few_lies_of_each_kind_are_found_and_no_wrong_point_claims_to_be_proven(
    bug: Bug,
) -> None:
    check(bug, modelled(bug, FEW))


@pytest.mark.long
@pytest.mark.parametrize("bug", list(Bug))
def test_all_modelled_lies_are_found_and_samples_find_what_the_formula_says(
    bug: Bug, record_property: figures_summary.RecordProperty
) -> None:
    tally = modelled(bug, MODELLED)
    figures_summary.tell_line(record_property, tally.row(f"{bug} modelled"))
    check(bug, tally)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", list(Bug))
def test_the_agents_audit_finds_the_lies_about_disks_of_the_lab(
    bug: Bug,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: figures_summary.RecordProperty,
) -> None:
    monkeypatch.setattr(tracking, "EXTENSION_BUG_BYTES", BOUNDARY)
    tally = Tally()
    site = make_site(tmp_path)
    for seed in ON_DISKS:
        run_disk_seed(site, bug, seed, tally)
    figures_summary.tell_line(record_property, tally.row(f"{bug} on disks"))
    check(bug, tally)


def modelled(bug: Bug, seeds: range) -> Tally:
    tally = Tally()
    for seed in seeds:
        run_seed(bug, seed, tally)
    return tally


def check(bug: Bug, tally: Tally) -> None:
    told = tally.row(bug)
    assert tally.wrong_claims == 0, told
    assert tally.claims, told
    assert tally.honest_points, told
    assert tally.honest_claims >= 0.9 * tally.honest_points, told
    assert tally.signs_seen == tally.signs > 0, told
    assert tally.found_by_full == tally.under_reports > 0, told
    assert abs(tally.found_by_sample - tally.expected) <= 0.05 * tally.samples, told
