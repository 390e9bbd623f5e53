"""Every precondition and every right, broken alone in the lab: `doctor` names it, and only it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.clock import utc_text
from holdfast_common.identity import PointId
from holdfast_common.logs import Secret
from holdfast_controller.decide.privileges import NEEDED_RIGHTS
from holdfast_controller.runs.check_lines import Check, CheckLine
from holdfast_controller.runs.doctor import examine
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import running_lab
from support import figures_summary
from support.broken_preconditions import ACCOUNT, PASSWORD, breakages, give_rights
from support.one_process import OneProcess, one_process

MIB = 1 << 20
NOT_BROKEN_ALONE = {Check.OWN_VM}  # it is told of, and never wrong


@pytest.fixture
def holdfast(tmp_path: Path) -> Iterator[OneProcess]:
    """A controller with nothing to complain about, by an account that has just what it needs."""
    disk = DiskPlan(size_bytes=4 * MIB)
    plan = InventoryPlan(
        machines=(
            MachinePlan(name="web", datastore="nfs1", change_tracking=True, disks=(disk,)),
            MachinePlan(name="app", datastore="vmfs1", change_tracking=True, disks=(disk,)),
            MachinePlan(name="proxy", datastore="vmfs1"),
        )
    )
    with (
        running_lab(tmp_path / "lab", inventory=plan) as lab,
        one_process(tmp_path / "holdfast", lab) as ready,
    ):
        give_rights(ready)
        ready.world.vcenters.add(
            name="lab",
            url=lab.url,
            user=ACCOUNT,
            password=Secret(PASSWORD.encode()),
            certificate_sha256=lab.certificate.sha256,
        )
        now = utc_text(ready.world.clock.now())
        ready.world.settings.set(names.SHEET_CONFIRMED_AT, now)
        ready.world.settings.set(names.DATABASE_COPIED_AT, now)
        yield ready


def wrong(world: World) -> list[CheckLine]:
    return [line for line in examine(world) if line.state != "ok"]


def test_every_precondition_and_every_right_is_named_when_it_alone_is_broken(
    holdfast: OneProcess, record_property: figures_summary.RecordProperty
) -> None:
    assert wrong(holdfast.world) == []
    broken, named = 0, 0
    all_breakages = breakages()
    for each in all_breakages:
        with each.breaking(holdfast) as world:
            found = wrong(world)
        broken += bool(found)
        told = {line.check for line in found}
        assert told == {each.check}, f"{each.name}: {found}"
        for line in found:
            assert each.words in f"{line.name} {line.detail}" and line.advice, line
        named += 1  # what was not mended would be named with the next one
    assert wrong(holdfast.world) == []
    figures = f"doctor: checks {len(all_breakages)} broken {broken} named {named}"
    figures_summary.tell_line(record_property, figures)
    assert len(all_breakages) == broken == named > 55
    checks = {each.check for each in all_breakages}
    assert checks | NOT_BROKEN_ALONE >= set(Check), "a check that nothing breaks"
    assert {f"right {each.privilege}" for each in NEEDED_RIGHTS} <= checks


@pytest.mark.long
def test_an_account_with_just_these_rights_backs_up_and_restores(holdfast: OneProcess) -> None:
    for transport in ("direct", "hotadd", "nfc"):
        job = holdfast.back_up("web", transport=transport)
        asked = RestoreVmRequest(
            point_id=PointId(holdfast.record(job).point_id),
            name=f"restored {transport}",
            transport=transport,
            power_on=True,
        )
        restored = holdfast.ended(holdfast.engine.start_restore_vm(asked, dry_run=False))
        assert str(restored.state) == "done", restored.error
    give_rights(holdfast, but="VApp.Export")
    job = holdfast.back_up("web", transport="nfc")
    assert job.error is not None and "VApp.Export" in job.error.text()
