"""The list of what a check found or a repair left: page by page, so that it may be long."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast_common.wire import job_pb2, operator_pb2
from holdfast_controller.commands.operator_client import OperatorClient
from holdfast_controller.commands.output import Output


def show_damages(client: OperatorClient, job_id: str, output: Output) -> None:
    """All of it: JSON lines of type ``damage`` and one of type ``damages``, the totals; or a line a range.

    Raises: NotFound.
    """
    summary = operator_pb2.DamageSummary()
    for page in _pages(client, job_id):
        summary = page.summary
        for damage in page.damages:
            if output.as_json:
                output.document("damage", damage)
            else:
                _show(damage, output)
    if output.as_json:
        output.document("damages", summary)
        return
    output.line(
        f"{summary.objects} damaged objects; {summary.points} points have lost something:"
        f" {summary.ranges} ranges of disks, {summary.lost_bytes} bytes"
    )
    if summary.objects_left_out or summary.losses_left_out or summary.ranges_left_out:
        output.line(
            f"too much for this list: {summary.objects_left_out} damaged objects,"
            f" {summary.losses_left_out} disks or blobs of points, {summary.ranges_left_out} ranges of"
            f" disks that it names ({summary.bytes_left_out} bytes)"
        )


def _pages(client: OperatorClient, job_id: str) -> Iterator[operator_pb2.DamagePage]:
    start = 0
    while True:
        query = operator_pb2.DamageQuery(job_id=job_id, start=start)
        page = client.call(client.stub.ListDamages, query)
        yield page
        start = page.next
        if not start:
            return


def _show(damage: job_pb2.DamageFound, output: Output) -> None:
    if not damage.point_id:
        output.line(f"{damage.object_name}: {damage.problem}")
        return
    if not damage.lost and not damage.ranges_left_out:
        output.line(f"point {damage.point_id}: {damage.object_name}: {damage.problem}")
    for extent in damage.lost:
        output.line(
            f"point {damage.point_id} disk {damage.device_key}"
            f" offset {extent.offset} length {extent.length}"
        )
    if damage.ranges_left_out:
        output.line(
            f"point {damage.point_id} disk {damage.device_key} and {damage.ranges_left_out} more ranges,"
            f" together {damage.bytes_left_out} bytes"
        )
