"""Following a run: what is told when the one who follows goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
import pytest

from holdfast_common.wire import operator_pb2, operator_pb2_grpc
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


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupting_the_following_tells_that_the_run_goes_on(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    with grpc.insecure_channel("unix:/nowhere") as channel:
        client = InterruptedClient(operator_pb2_grpc.OperatorsStub(channel))
        assert follow(client, "R1", Output(as_json=as_json)) == 130
    told = capsys.readouterr().err
    assert "the run goes on; follow it with: holdfast job follow R1" in told
