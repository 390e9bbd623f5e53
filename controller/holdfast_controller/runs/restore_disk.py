"""One disk of a point to a VMDK file on a proxy; no vSphere is asked. Written, then read back by a fresh open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from holdfast_common.errors import NotFound, Refused, UsageError
from holdfast_common.identity import AgentId
from holdfast_common.job_result import DiskResult, JobResult
from holdfast_common.job_spec import (
    CheckNewFile,
    DiskToRestore,
    FileTicket,
    RestoreDisks,
    VerifyDisks,
)
from holdfast_common.point_record import DiskRecord
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.agent_link import ConnectedAgent
from holdfast_controller.runs.agent_work import ask_agent, raise_unless_done, read_with_agent
from holdfast_controller.runs.requests import RestoreDiskRequest
from holdfast_controller.runs.tracking_audits import doubts_of
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob


class RestoreDisk:
    """The work of one such job. Raises from the constructor what makes it impossible."""

    def __init__(self, world: World, request: RestoreDiskRequest) -> None:
        self._world = world
        self._point = world.catalogue.point(request.point_id)
        self._record = self._point.decoded()
        self._request = request
        self._disk = _wanted_disk(self._record.disks, request.disk_number)
        self._agent = _agent_for(world, request)

    def plan(self) -> list[str]:
        """For people. Raises: Refused and its kin, when the agent could not make the file."""
        ask_agent(
            self._world,
            agent_id=AgentId(self._agent.agent_id),
            work=CheckNewFile(ticket=self._ticket()),
        )
        return [
            *doubts_of(self._world, self._point),
            f"write disk {self._disk.device_key} ({self._disk.label}) of {self._record.vm_name},"
            f" {self._point.created_at}, to {self._request.path} on {self._agent.host_name},"
            f" {self._request.format}; read it back and compare",
        ]

    def _ticket(self) -> FileTicket:
        return FileTicket(path=self._request.path, format=self._request.format)

    def new_job(self) -> NewJob:
        """The job's row."""
        return NewJob(
            kind="restore",
            subject=self._record.vm_name,
            lineage_id=self._point.lineage_id,
            transport="file",
        )

    def __call__(self, job: JobRow) -> JobResult:
        """Write, read back, compare. Raises: IntegrityError, TargetFailed, Refused, and their kin."""
        world = self._world
        agent_id = AgentId(self._agent.agent_id)
        world.jobs.set_plan(
            job.job_id,
            level="",
            level_reason="",
            transport="file",
            agent_id=agent_id,
        )
        disk = DiskToRestore(
            device_key=self._disk.device_key,
            backing_uuid=self._disk.uuid,
            adapter_type="lsilogic",
            ticket=self._ticket(),
        )
        keys = world.keeper.reader_keys(self._point.lineage_id)
        with world.lifecycle.cleaning(job.job_id):
            world.jobs.advance(job.job_id, JobEvent.TRANSFER, f"to {self._request.path}")
            written = raise_unless_done(
                read_with_agent(
                    world,
                    job,
                    agent_id=agent_id,
                    work=RestoreDisks(
                        point_id=self._point.point_id,
                        lineage_id=self._point.lineage_id,
                        disks=(disk,),
                        keys=keys,
                    ),
                )
            )
            world.jobs.advance(job.job_id, JobEvent.VERIFY, "reading it back")
            compared = read_with_agent(
                world,
                job,
                agent_id=agent_id,
                work=VerifyDisks(
                    point_id=self._point.point_id,
                    lineage_id=self._point.lineage_id,
                    disks=(disk,),
                    keys=keys,
                ),
            )
        return joined(written, compared)


def joined(written: JobResult, compared: JobResult) -> JobResult:
    """One result of a restore and its read-back: the read-back's verdict, both counts."""
    by_key = {disk.device_key: disk for disk in compared.disks}
    disks = []
    for disk in written.disks:
        back = by_key.get(disk.device_key, DiskResult(device_key=disk.device_key, transport=""))
        disks.append(
            replace(
                disk,
                compared_bytes=back.compared_bytes,
                differing=back.differing,
                duration_seconds=disk.duration_seconds + back.duration_seconds,
            )
        )
    return replace(compared, disks=tuple(disks), warnings=(*written.warnings, *compared.warnings))


def _wanted_disk(disks: Sequence[DiskRecord], number: int) -> DiskRecord:
    """A disk by its device key, or counted from 0 in the order of the keys. Raises: NotFound."""
    in_order = sorted(disks, key=lambda disk: disk.device_key)
    for disk in in_order:
        if disk.device_key == number:
            return disk
    if 0 <= number < len(in_order):
        return in_order[number]
    known = [f"{n} or {d.device_key} ({d.label})" for n, d in enumerate(in_order)]
    raise NotFound("the point has no such disk", disk=number, known=", ".join(known))


def _agent_for(world: World, request: RestoreDiskRequest) -> ConnectedAgent:
    path = PurePosixPath(request.path)
    if not path.is_absolute() or ".." in path.parts or path.suffix != ".vmdk":
        raise UsageError(
            "not a path to restore to", path=request.path, advice="write /folder/name.vmdk"
        )
    repository_id = world.keeper.repository_id
    refusals = []
    for agent in world.link.connected():
        if agent.role != "proxy" or request.agent not in ("", agent.agent_id, agent.host_name):
            continue
        if repository_id not in agent.repositories:
            refusals.append(f"{agent.host_name} does not reach the repository")
        elif not any(path.is_relative_to(folder) for folder in agent.restore_folders):
            folders = ", ".join(agent.restore_folders) or "none"
            refusals.append(f"{agent.host_name} may write to: {folders}")
        else:
            return agent
    raise Refused(
        "no connected proxy may restore there" + "".join(f"; {text}" for text in refusals),
        path=request.path,
        advice="choose one of these folders, or allow another: holdfast-agent configure --restore-folder FOLDER",
    )
