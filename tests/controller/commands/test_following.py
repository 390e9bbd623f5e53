"""Following a run: what is told when the one who follows goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
import pytest

from holdfast_common.wire import job_pb2, operator_pb2, operator_pb2_grpc
from holdfast_controller.commands.damages import show_damages
from holdfast_controller.commands.following import follow
from holdfast_controller.commands.operator_client import OperatorClient
from holdfast_controller.commands.output import Output

Reply = TypeVar("Reply")


class InterruptedClient(OperatorClient):
    """The user presses Ctrl-C after the first event."""

    def stream(self, method: Callable[..., Iterator[Reply]], request: object) -> Iterator[Reply]:
        del method, request
        yield operator_pb2.RunEvent(
            log=operator_pb2.JobEvent(at="2026-11-22T13:00:00", event="queued")
        )  # type: ignore[misc]  # the reply of this method
        raise KeyboardInterrupt


def found(number: int, ranges: int) -> job_pb2.DamageFound:
    return job_pb2.DamageFound(
        object_name=f"points/{number}",
        problem="ranges of a disk are lost",
        point_id=f"P{number}",
        device_key=2000,
        lost=[job_pb2.ExtentMessage(offset=n << 20, length=512) for n in range(ranges)],
    )


SUMMARY = operator_pb2.DamageSummary(
    objects=0, points=2, ranges=9, lost_bytes=9 * 512, ranges_left_out=4, bytes_left_out=2048
)


class DamagedClient(OperatorClient):
    """A check that found something, in two pages."""

    def stream(self, method: Callable[..., Iterator[Reply]], request: object) -> Iterator[Reply]:
        del method, request
        job = operator_pb2.Job(job_id="J1", kind="check", state="failed", exit_status=13)
        yield operator_pb2.RunEvent(finished=operator_pb2.JobDetail(job=job, damages=SUMMARY))  # type: ignore[misc]  # the reply of this method
        yield operator_pb2.RunEvent(
            run=operator_pb2.RunFinished(run_id="R1", state="failed", exit_status=13)
        )  # type: ignore[misc]  # the reply of this method

    def call(
        self,
        method: Callable[..., Reply],
        request: object,
        *,
        timeout_seconds: float = 1.0,
    ) -> Reply:
        del method, timeout_seconds
        assert isinstance(request, operator_pb2.DamageQuery)
        assert request.job_id == "J1"
        if not request.start:
            return operator_pb2.DamagePage(summary=SUMMARY, damages=[found(1, 3)], next=1)  # type: ignore[return-value]  # the reply of this method
        last = found(2, 2)
        last.ranges_left_out, last.bytes_left_out = 4, 2048
        return operator_pb2.DamagePage(summary=SUMMARY, damages=[last])  # type: ignore[return-value]  # the reply of this method


def test_with_json_who_follows_a_check_gets_every_point_disk_and_range(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with grpc.insecure_channel("unix:/nowhere") as channel:
        client = DamagedClient(operator_pb2_grpc.OperatorsStub(channel))
        assert follow(client, "R1", Output(as_json=True)) == 13
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["type"] for each in documents] == ["result", "damage", "damage", "damages", "run"]
    assert documents[0]["damages"]["ranges"] == 9
    first, second, totals = documents[1:4]
    assert (first["point_id"], first["device_key"]) == ("P1", 2000)
    assert first["lost"] == [{"offset": n << 20, "length": 512} for n in range(3)]
    assert (second["ranges_left_out"], second["bytes_left_out"]) == (4, 2048)
    assert (totals["points"], totals["ranges"], totals["ranges_left_out"]) == (2, 9, 4)


def test_people_get_a_line_a_range_and_what_the_list_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with grpc.insecure_channel("unix:/nowhere") as channel:
        client = DamagedClient(operator_pb2_grpc.OperatorsStub(channel))
        show_damages(client, "J1", Output(as_json=False))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "point P1 disk 2000 offset 1048576 length 512"
    assert lines[5] == "point P2 disk 2000 and 4 more ranges, together 2048 bytes"
    assert "2 points have lost something: 9 ranges of disks, 4608 bytes" in lines[6]
    assert "too much for this list" in lines[7]
    assert "4 ranges" in lines[7]


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupting_the_following_tells_that_the_run_goes_on(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    with grpc.insecure_channel("unix:/nowhere") as channel:
        client = InterruptedClient(operator_pb2_grpc.OperatorsStub(channel))
        assert follow(client, "R1", Output(as_json=as_json)) == 130
    told = capsys.readouterr().err
    assert "the run goes on; follow it with: holdfast job follow R1" in told
