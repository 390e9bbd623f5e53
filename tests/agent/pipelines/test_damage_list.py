"""The list of what is lost, as a result brings it: whole where it can be, and counted right where it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast_agent.pipelines import damage_list as damage_list_module
from holdfast_agent.pipelines.damage_list import damage_list
from holdfast_agent.pipelines.repair_repository import LINES_MAX, tell_done
from holdfast_agent.running_attempt import ResultReady
from holdfast_agent.session_messages import posted_messages
from holdfast_common.extents import Extent
from holdfast_common.identity import JobId, PointId
from holdfast_common.job_result import DamageFound, JobResult, Outcome
from holdfast_common.job_spec import Attempt
from holdfast_common.repository.check import CheckReport
from holdfast_common.repository.loss import DamagedObject, LostBlob, LostRange, UnlistedLoss
from holdfast_common.repository.repair import RepairReport


def lost(point: str, device_key: int, offset: int) -> LostRange:
    return LostRange(
        point_id=PointId(point),
        point_name=f"points/t/{point}",
        device_key=device_key,
        extent=Extent(offset=offset, length=512),
    )


REPORT = CheckReport(
    points=2,
    packs=3,
    objects_checked=9,
    damaged=tuple(DamagedObject(name=f"packs/{n}", reason="torn") for n in range(5)),
    lost_ranges=(lost("p", 2000, 0), lost("p", 2000, 4096), lost("p", 2001, 0), lost("q", 2000, 0)),
    unlisted=(
        UnlistedLoss(
            point_id=PointId("q"), point_name="points/t/q", device_key=2000, ranges=7, length=3584
        ),
        UnlistedLoss(
            point_id=PointId("r"), point_name="points/t/r", device_key=2000, ranges=1, length=512
        ),
    ),
    lost_blobs=(LostBlob(point_id=PointId("q"), point_name="points/t/q", kind="vmx"),),
)
MISSING = [DamageFound(object_name="points/", problem="gone", point_id="z")]


def test_every_object_point_disk_and_range_is_listed() -> None:
    found = damage_list(REPORT, MISSING)
    assert (found.objects_left_out, found.losses_left_out, found.total) == (0, 0, 5 + 1 + 4 + 1)
    disks = {
        (each.point_id, each.device_key): (
            [extent.offset for extent in each.lost],
            each.ranges_left_out,
            each.bytes_left_out,
        )
        for each in found.damages
        if each.device_key
    }
    assert disks == {
        ("p", 2000): ([0, 4096], 0, 0),
        ("p", 2001): ([0], 0, 0),
        ("q", 2000): ([0], 7, 3584),
        ("r", 2000): ([], 1, 512),
    }
    assert [each.problem for each in found.damages if each.point_id == "q"][1] == "its vmx is lost"


def test_with_points_named_nothing_of_others_is_listed() -> None:
    found = damage_list(replace(REPORT, unlisted=()), points=[PointId("p")])
    assert {each.point_id for each in found.damages if each.point_id} == {"p"}


def test_what_is_too_much_is_counted_and_objects_take_no_room_from_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(damage_list_module, "OBJECTS_MAX", 2)
    monkeypatch.setattr(damage_list_module, "LOSSES_MAX", 4)
    found = damage_list(REPORT, MISSING)
    assert (found.objects_left_out, found.losses_left_out, found.total) == (3, 2, 11)
    assert [each.object_name for each in found.damages[:2]] == ["packs/0", "packs/1"]
    assert [each.point_id for each in found.damages[2:]] == ["z", "p", "p", "q"]


def test_long_texts_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage_list_module, "TEXT_BYTES_MAX", 2000)
    damaged = tuple(DamagedObject(name=f"packs/{n}", reason="x" * 5000) for n in range(9))
    found = damage_list(replace(REPORT, damaged=damaged))
    assert (len(found.damages), found.objects_left_out) == (3 + 5, 6)
    assert max(len(each.problem) for each in found.damages) == 500


def test_a_result_with_a_quarter_of_a_million_ranges_goes_in_messages_of_less_than_a_mebibyte() -> (
    None
):
    ranges = tuple(Extent(offset=n << 20, length=131072) for n in range(250_000))
    result = JobResult(
        outcome=Outcome.FAILED,
        damages=(
            DamageFound(object_name="a", problem="lost", point_id="p", device_key=1, lost=ranges),
        ),
    )
    posted = ResultReady(attempt=Attempt(job_id=JobId("J"), number=1), result=result)
    sizes = [message.ByteSize() for message in posted_messages(posted)]
    assert max(sizes) < 1 << 20
    assert sum(sizes) < 16 << 20  # a controller takes 64 MiB


def test_what_a_repair_did_is_told_up_to_a_bound_and_the_rest_counted() -> None:
    told: list[str] = []

    class Context:
        def warn(self, code: str, message: str) -> None:
            assert code == "repair"
            told.append(message)

    report = RepairReport(
        before=REPORT,
        after=REPORT,
        replaced=tuple(f"keys/{n}" for n in range(150)),
        set_aside=tuple(f"packs/{n}" for n in range(250)),
    )
    tell_done(report, Context())  # type: ignore[arg-type]  # it only warns
    assert len(told) == LINES_MAX + 1
    assert told[-1].startswith("and 200 more")
    assert "150 put back" in told[-1]
    assert "250 set aside" in told[-1]
    assert not any("lost" in line for line in told), "that is the list of damages"
