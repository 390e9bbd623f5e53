"""The operators' service: every method hands its request to an action on an executor thread.

The actions are plain functions; here is only the event loop's edge and the translation of errors.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import TypeVar

from holdfast_common.errors import HoldfastError
from holdfast_common.retry import retried
from holdfast_common.wire import operator_pb2, operator_pb2_grpc
from holdfast_controller.service.call_errors import Context, abort_with
from holdfast_controller.service.operator_actions import OperatorActions

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Reply = TypeVar("Reply")

FOLLOW_SECONDS = 0.3  # how often a followed run is looked at
FOLLOW_TRIES = 8  # some forty seconds of pauses


class OperatorService(operator_pb2_grpc.OperatorsServicer):
    """Runs on the event loop; who may call is decided before, by the access rules."""

    def __init__(self, actions: OperatorActions, executor: Executor) -> None:
        self._actions = actions
        self._executor = executor

    async def FollowRun(
        self, request: operator_pb2.RunName, context: Context
    ) -> AsyncIterator[operator_pb2.RunEvent]:
        """Events of a run until it has ended."""
        follower = await self._call(self._actions.follower, request, context)

        def patient(_: operator_pb2.RunName) -> list[operator_pb2.RunEvent]:
            # the run goes on although the database fails for a moment, and so does its follower
            return retried(follower.next_events, stop=self._actions.stopping, attempts=FOLLOW_TRIES)

        while True:
            events = await self._call(patient, request, context)
            for event in events:
                yield event
            if follower.ended:
                return
            await asyncio.sleep(FOLLOW_SECONDS)

    async def PlanDays(
        self, request: operator_pb2.PlanRequest, context: Context
    ) -> AsyncIterator[operator_pb2.PlanPage]:
        """See `PlanPages`: a page at a time, so that the longest plan is no long message."""
        pages = await self._call(self._actions.plan_pages, request, context)
        while (page := await self._call(pages.next_page, request, context)) is not None:
            yield page

    async def Qualify(
        self, request: operator_pb2.QualifyRequest, context: Context
    ) -> AsyncIterator[operator_pb2.QualifyPage]:
        """See `QualifyPages`; what was begun is given back also when nobody waits for it any more."""
        pages = await self._call(self._actions.qualify_pages, request, context)
        try:
            while (page := await self._call(pages.next_page, request, context)) is not None:
                yield page
        finally:
            self._executor.submit(pages.close)

    async def GetStatus(self, request: operator_pb2.Empty, context: Context) -> operator_pb2.Status:
        """See `OperatorActions.status`."""
        return await self._call(self._actions.status, request, context)

    async def ShowVcenterCertificate(
        self, request: operator_pb2.VcenterAddress, context: Context
    ) -> operator_pb2.VcenterCertificate:
        """See `OperatorActions.show_vcenter_certificate`."""
        return await self._call(self._actions.show_vcenter_certificate, request, context)

    async def AddVcenter(
        self, request: operator_pb2.AddVcenterRequest, context: Context
    ) -> operator_pb2.Vcenter:
        """See `OperatorActions.add_vcenter`."""
        return await self._call(self._actions.add_vcenter, request, context)

    async def ListVcenters(
        self, request: operator_pb2.Empty, context: Context
    ) -> operator_pb2.VcenterList:
        """See `OperatorActions.list_vcenters`."""
        return await self._call(self._actions.list_vcenters, request, context)

    async def TestVcenter(
        self, request: operator_pb2.VcenterName, context: Context
    ) -> operator_pb2.VcenterTest:
        """See `OperatorActions.test_vcenter`."""
        return await self._call(self._actions.test_vcenter, request, context)

    async def RefreshVcenter(
        self, request: operator_pb2.VcenterName, context: Context
    ) -> operator_pb2.InventorySummary:
        """See `OperatorActions.refresh_vcenter`."""
        return await self._call(self._actions.refresh_vcenter, request, context)

    async def ListInventory(
        self, request: operator_pb2.InventoryQuery, context: Context
    ) -> operator_pb2.VmList:
        """See `OperatorActions.list_inventory`."""
        return await self._call(self._actions.list_inventory, request, context)

    async def ShowVm(self, request: operator_pb2.VmQuery, context: Context) -> operator_pb2.Vm:
        """See `OperatorActions.show_vm`."""
        return await self._call(self._actions.show_vm, request, context)

    async def CreateToken(
        self, request: operator_pb2.CreateTokenRequest, context: Context
    ) -> operator_pb2.Token:
        """See `OperatorActions.create_token`."""
        return await self._call(self._actions.create_token, request, context)

    async def ListAgents(
        self, request: operator_pb2.Empty, context: Context
    ) -> operator_pb2.AgentList:
        """See `OperatorActions.list_agents`."""
        return await self._call(self._actions.list_agents, request, context)

    async def RevokeAgent(
        self, request: operator_pb2.AgentRevocation, context: Context
    ) -> operator_pb2.Agent:
        """See `OperatorActions.revoke_agent`."""
        return await self._call(self._actions.revoke_agent, request, context)

    async def StartBackup(
        self, request: operator_pb2.StartBackupRequest, context: Context
    ) -> operator_pb2.RunStarted:
        """See `BackupActions.start_backup`."""
        return await self._call(self._actions.backups.start_backup, request, context)

    async def StartRestore(
        self, request: operator_pb2.StartRestoreRequest, context: Context
    ) -> operator_pb2.RunStarted:
        """See `OperatorActions.start_restore`."""
        return await self._call(self._actions.start_restore, request, context)

    async def StartCheck(
        self, request: operator_pb2.StartCheckRequest, context: Context
    ) -> operator_pb2.RunStarted:
        """See `CheckActions.start_check`."""
        return await self._call(self._actions.checks.start_check, request, context)

    async def StartRepair(
        self, request: operator_pb2.StartRepairRequest, context: Context
    ) -> operator_pb2.RunStarted:
        """See `CheckActions.start_repair`."""
        return await self._call(self._actions.checks.start_repair, request, context)

    async def ListDamages(
        self, request: operator_pb2.DamageQuery, context: Context
    ) -> operator_pb2.DamagePage:
        """See `CheckActions.list_damages`."""
        return await self._call(self._actions.checks.list_damages, request, context)

    async def ListJobs(
        self, request: operator_pb2.JobQuery, context: Context
    ) -> operator_pb2.JobList:
        """See `OperatorActions.list_jobs`."""
        return await self._call(self._actions.list_jobs, request, context)

    async def ShowJob(
        self, request: operator_pb2.JobName, context: Context
    ) -> operator_pb2.JobDetail:
        """See `OperatorActions.show_job`."""
        return await self._call(self._actions.show_job, request, context)

    async def RetryRun(
        self, request: operator_pb2.RetryRequest, context: Context
    ) -> operator_pb2.RunStarted:
        """See `BackupActions.retry_run`."""
        return await self._call(self._actions.backups.retry_run, request, context)

    async def Pause(
        self, request: operator_pb2.PauseRequest, context: Context
    ) -> operator_pb2.PauseState:
        """See `BackupActions.pause`."""
        return await self._call(self._actions.backups.pause, request, context)

    async def Resume(
        self, request: operator_pb2.Empty, context: Context
    ) -> operator_pb2.PauseState:
        """See `BackupActions.resume`."""
        return await self._call(self._actions.backups.resume, request, context)

    async def Explain(
        self, request: operator_pb2.ExplainRequest, context: Context
    ) -> operator_pb2.Explanation:
        """See `BackupActions.explain`."""
        return await self._call(self._actions.backups.explain, request, context)

    async def CancelJob(
        self, request: operator_pb2.JobName, context: Context
    ) -> operator_pb2.JobDetail:
        """See `OperatorActions.cancel_job`."""
        return await self._call(self._actions.cancel_job, request, context)

    async def ListPoints(
        self, request: operator_pb2.PointQuery, context: Context
    ) -> operator_pb2.PointList:
        """See `PointActions.list_points`."""
        return await self._call(self._actions.points.list_points, request, context)

    async def ShowPoint(
        self, request: operator_pb2.PointName, context: Context
    ) -> operator_pb2.PointDetail:
        """See `PointActions.show_point`."""
        return await self._call(self._actions.points.show_point, request, context)

    async def TestNotification(
        self, request: operator_pb2.Empty, context: Context
    ) -> operator_pb2.NotificationTest:
        """See `NotificationActions.test`."""
        return await self._call(self._actions.notifications.test, request, context)

    async def RunDoctor(
        self, request: operator_pb2.Empty, context: Context
    ) -> operator_pb2.DoctorReport:
        """See `OperatorActions.run_doctor`."""
        return await self._call(self._actions.run_doctor, request, context)

    async def ConfirmRecoverySheet(
        self, request: operator_pb2.RecoverySheetProof, context: Context
    ) -> operator_pb2.Empty:
        """See `OperatorActions.confirm_recovery_sheet`."""
        return await self._call(self._actions.confirm_recovery_sheet, request, context)

    async def ListKeys(self, request: operator_pb2.Empty, context: Context) -> operator_pb2.KeyList:
        """See `KeyActions.list_keys`."""
        return await self._call(self._actions.keys.list_keys, request, context)

    async def AddRecipient(
        self, request: operator_pb2.NewRecipient, context: Context
    ) -> operator_pb2.KeyChange:
        """See `KeyActions.add_recipient`."""
        return await self._call(self._actions.keys.add_recipient, request, context)

    async def RemoveRecipient(
        self, request: operator_pb2.RecipientRemoval, context: Context
    ) -> operator_pb2.KeyChange:
        """See `KeyActions.remove_recipient`."""
        return await self._call(self._actions.keys.remove_recipient, request, context)

    async def RotateKeys(
        self, request: operator_pb2.KeyRotation, context: Context
    ) -> operator_pb2.KeyChange:
        """See `KeyActions.rotate_keys`."""
        return await self._call(self._actions.keys.rotate_keys, request, context)

    async def StartPrune(
        self, request: operator_pb2.PruneRequest, context: Context
    ) -> operator_pb2.RunStarted:
        """See `RepositoryActions.start_prune`."""
        return await self._call(self._actions.repository.start_prune, request, context)

    async def ListRepositories(
        self, request: operator_pb2.Empty, context: Context
    ) -> operator_pb2.RepositoryList:
        """See `RepositoryListing.list_repositories`."""
        return await self._call(self._actions.repositories.list_repositories, request, context)

    async def ShowRepository(
        self, request: operator_pb2.RepositoryName, context: Context
    ) -> operator_pb2.RepositoryDetail:
        """See `RepositoryListing.show_repository`."""
        return await self._call(self._actions.repositories.show_repository, request, context)

    async def ForgetPoints(
        self, request: operator_pb2.ForgetRequest, context: Context
    ) -> operator_pb2.RepositoryChange:
        """See `RepositoryActions.forget`."""
        return await self._call(self._actions.repository.forget, request, context)

    async def HoldPoint(
        self, request: operator_pb2.HoldRequest, context: Context
    ) -> operator_pb2.RepositoryChange:
        """See `PointActions.hold`."""
        return await self._call(self._actions.points.hold, request, context)

    async def RebuildCatalogue(
        self, request: operator_pb2.RebuildRequest, context: Context
    ) -> operator_pb2.RepositoryChange:
        """See `RepositoryActions.rebuild`."""
        return await self._call(self._actions.repository.rebuild, request, context)

    async def ListPolicies(
        self, request: operator_pb2.Empty, context: Context
    ) -> operator_pb2.PolicyList:
        """See `PolicyActions.list_policies`."""
        return await self._call(self._actions.policies.list_policies, request, context)

    async def ShowPolicy(
        self, request: operator_pb2.PolicyName, context: Context
    ) -> operator_pb2.PolicyDetail:
        """See `PolicyActions.show_policy`."""
        return await self._call(self._actions.policies.show_policy, request, context)

    async def ApplyPolicies(
        self, request: operator_pb2.PolicyText, context: Context
    ) -> operator_pb2.PolicyChanges:
        """See `PolicyActions.apply`."""
        return await self._call(self._actions.policies.apply, request, context)

    async def DeletePolicy(
        self, request: operator_pb2.PolicyDeletion, context: Context
    ) -> operator_pb2.PolicyChanges:
        """See `PolicyActions.delete`."""
        return await self._call(self._actions.policies.delete, request, context)

    async def RunPolicy(
        self, request: operator_pb2.PolicyRun, context: Context
    ) -> operator_pb2.RunStarted:
        """See `PolicyActions.run`."""
        return await self._call(self._actions.policies.run, request, context)

    async def _call(
        self, action: Callable[[Request], Reply], request: Request, context: Context
    ) -> Reply:
        loop = asyncio.get_running_loop()
        try:
            call = contextvars.copy_context()  # the audit trail asks who calls
            return await loop.run_in_executor(self._executor, call.run, action, request)
        except HoldfastError as error:
            await abort_with(context, error)
        except Exception as error:
            log.exception("an operator's call failed by a bug")
            bug = HoldfastError(
                f"a bug in Holdfast: {type(error).__name__}: {error}",
                advice="see the controller's log, and report it",
            )
            await abort_with(context, bug)
