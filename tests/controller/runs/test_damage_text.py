"""What of a check's findings is told in words: some, the right number of the others, and where they all are."""

from __future__ import annotations

from holdfast_common.extents import Extent
from holdfast_common.identity import JobId
from holdfast_common.job_result import DamageFound, JobResult, Outcome
from holdfast_controller.runs.damage_text import told_damages

JOB = JobId("J1")


def told(*damages: DamageFound, objects: int = 0, losses: int = 0) -> JobResult:
    result = JobResult(
        outcome=Outcome.FAILED, damages=damages, objects_left_out=objects, losses_left_out=losses
    )
    return told_damages(result, JOB)


def disk(point: str, ranges: int, *, left_out: int = 0) -> DamageFound:
    return DamageFound(
        object_name=f"points/{point}",
        problem="ranges of a disk are lost",
        point_id=point,
        device_key=2000,
        lost=tuple(Extent(offset=n << 20, length=1 << 16) for n in range(ranges)),
        ranges_left_out=left_out,
        bytes_left_out=left_out << 16,
    )


def pack(number: int) -> DamageFound:
    return DamageFound(object_name=f"packs/{number}", problem="torn")


def test_a_few_ranges_are_told_all() -> None:
    (text,) = (warned.message for warned in told(disk("p", 5)).warnings)
    assert text.count("offset") == 5
    assert "more" not in text


def test_of_many_ranges_the_rest_is_counted_with_its_bytes_and_where_it_is() -> None:
    (text,) = (warned.message for warned in told(disk("p", 12, left_out=4)).warnings)
    assert text.count("offset") == 5
    assert "and 11 more (704.0 KiB together): see `holdfast job damages J1`" in text


def test_of_many_findings_points_are_told_too_and_the_rest_is_counted() -> None:
    damages = [pack(n) for n in range(150)] + [disk(f"p{n}", 1) for n in range(130)]
    result = told(*damages)
    texts = [warned.message for warned in result.warnings]
    assert len(texts) == 202
    assert texts[100].startswith(
        "and 50 more damaged objects; the full list: `holdfast job damages"
    )
    assert "--json" in texts[100]
    assert texts[201].startswith("and 30 more disks or blobs of points; the full list")
    assert result.error is not None
    assert "280 findings, 130 points" in result.error.message
    assert "holdfast job damages J1" in result.error.advice


def test_what_not_even_the_list_holds_is_said() -> None:
    result = told(*(pack(n) for n in range(120)), disk("p", 1), objects=30, losses=9)
    texts = [warned.message for warned in result.warnings]
    assert (
        "and 50 more damaged objects; `holdfast job damages J1` lists all but 30 of them" in texts
    )
    assert "and 9 more disks or blobs of points" in texts[-1]
    assert result.error is not None
    assert "160 findings, at least 1 points" in result.error.message


def test_nothing_found_is_nothing_told() -> None:
    result = JobResult(outcome=Outcome.DONE)
    assert told_damages(result, JOB) == result
