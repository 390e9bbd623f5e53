"""The operators' service: every method hands its request to an action on an executor thread.

The actions are plain functions; here is only the event loop's edge and the translation of errors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeVar

import grpc

from holdfast_common.errors import HoldfastError
from holdfast_common.job_result import ErrorReport
from holdfast_common.wire import operator_pb2, operator_pb2_grpc
from holdfast_common.wire_codec.values import ERROR_METADATA_KEY, error_to_message
from holdfast_controller.service.operator_actions import OperatorActions

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]

FOLLOW_SECONDS = 0.3  # how often a followed run is looked at

_STATUS = {
    2: grpc.StatusCode.INVALID_ARGUMENT,
    10: grpc.StatusCode.FAILED_PRECONDITION,
    15: grpc.StatusCode.FAILED_PRECONDITION,
}


class OperatorService(operator_pb2_grpc.OperatorsServicer):
    """Runs on the event loop; who may call is decided before, by the access rules."""

    def __init__(self, actions: OperatorActions, executor: Executor) -> None:
        self._actions = actions
        self._executor = executor

    async def FollowRun(  # type: ignore[override]  # the stub knows only the blocking form
        self, request: operator_pb2.RunName, context: Context
    ) -> AsyncIterator[operator_pb2.RunEvent]:
        """Events of a run until it has ended."""
        follower = await self._call(self._actions.follower, request, context)
        while True:
            events = await self._call(lambda _: follower.next_events(), request, context)
            for event in events:
                yield event
            if follower.ended:
                return
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _call(
        self, action: Callable[[Request], Reply], request: Request, context: Context
    ) -> Reply:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, action, request)
        except HoldfastError as error:
            await _abort(context, error)
        except Exception as error:
            log.exception("an operator's call failed by a bug")
            bug = HoldfastError(
                f"a bug in Holdfast: {type(error).__name__}: {error}",
                advice="see the controller's log, and report it",
            )
            await _abort(context, bug)


async def _abort(context: Context, error: HoldfastError) -> NoReturn:
    message = error_to_message(ErrorReport.of(error))
    context.set_trailing_metadata(((ERROR_METADATA_KEY, message.SerializeToString()),))
    code = _STATUS.get(error.exit_status, grpc.StatusCode.ABORTED)
    await context.abort(code, error.line()[:1000])
    raise AssertionError("abort does not return")


def _forward(name: str, action: Callable[[OperatorActions], Callable[[Any], Any]]) -> None:
    async def method(self: OperatorService, request: Any, context: Context) -> Any:  # noqa: ANN401 - one for all messages
        return await self._call(action(self._actions), request, context)

    method.__name__ = name
    method.__qualname__ = f"OperatorService.{name}"
    setattr(OperatorService, name, method)


_forward("GetStatus", lambda actions: actions.status)
_forward("ShowVcenterCertificate", lambda actions: actions.show_vcenter_certificate)
_forward("AddVcenter", lambda actions: actions.add_vcenter)
_forward("ListVcenters", lambda actions: actions.list_vcenters)
_forward("TestVcenter", lambda actions: actions.test_vcenter)
_forward("RefreshVcenter", lambda actions: actions.refresh_vcenter)
_forward("ListInventory", lambda actions: actions.list_inventory)
_forward("ShowVm", lambda actions: actions.show_vm)
_forward("CreateToken", lambda actions: actions.create_token)
_forward("ListAgents", lambda actions: actions.list_agents)
_forward("RevokeAgent", lambda actions: actions.revoke_agent)
_forward("StartBackup", lambda actions: actions.start_backup)
_forward("StartRestore", lambda actions: actions.start_restore)
_forward("StartCheck", lambda actions: actions.start_check)
_forward("ListJobs", lambda actions: actions.list_jobs)
_forward("ShowJob", lambda actions: actions.show_job)
_forward("CancelJob", lambda actions: actions.cancel_job)
_forward("ListPoints", lambda actions: actions.list_points)
_forward("ShowPoint", lambda actions: actions.show_point)
_forward("RunDoctor", lambda actions: actions.run_doctor)
_forward("ConfirmRecoverySheet", lambda actions: actions.confirm_recovery_sheet)
