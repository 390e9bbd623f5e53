"""Rows and facts as the messages that operators see."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_common.wire import job_pb2, operator_pb2
from holdfast_common.wire_codec.results import disk_result_to_message
from holdfast_controller.decide.tag_knowledge import TagSource
from holdfast_controller.facts import DiskFacts, SnapshotNode
from holdfast_controller.ledger import LedgerEntry
from holdfast_controller.runs.debts import debt_text
from holdfast_controller.runs.requests import Started
from holdfast_controller.runs.world import World
from holdfast_controller.store.agents import AgentRow
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.damages import DamageTotals
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobEventRow, JobRow
from holdfast_controller.store.prunes import PruneRow
from holdfast_controller.store.vcenters import VcenterRow


def job_message(job: JobRow) -> operator_pb2.Job:
    """One job."""
    message = operator_pb2.Job(
        job_id=job.job_id,
        run_id=job.run_id,
        kind=job.kind,
        vm=job.subject,
        state=job.state,
        level_asked=job.level_asked,
        level=job.level,
        level_reason=job.level_reason,
        transport=job.transport,
        agent_id=job.agent_id,
        point_id=job.point_id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        attempt=job.attempt,
        warnings=len(job.warnings),
        done_bytes=job.done_bytes,
        total_bytes=job.total_bytes,
    )
    if job.error is not None:
        message.error_code = job.error.code
        message.error = job.error.text()
        message.advice = job.error.advice
        message.exit_status = job.error.exit_status
    return message


def started_message(world: World, started: Started) -> operator_pb2.RunStarted:
    """A run that has begun, or would."""
    return operator_pb2.RunStarted(
        run_id=started.run_id or "",
        jobs=[job_message(world.jobs.job(job_id)) for job_id in started.job_ids],
        plan=started.plan,
    )


def job_detail_message(
    job: JobRow,
    events: Sequence[JobEventRow],
    *,
    prune: PruneRow | None,
    damages: DamageTotals | None,
) -> operator_pb2.JobDetail:
    """One job with its steps; ``prune``: its round, when it is one that began."""
    return operator_pb2.JobDetail(
        change=None if prune is None else _round_message(prune),
        damages=None if damages is None else damage_summary_message(damages),
        job=job_message(job),
        events=[event_message(event) for event in events],
        disks=[disk_result_to_message(disk) for disk in job.disks],
        warnings=[
            job_pb2.Warning(code=warned.code, message=warned.message) for warned in job.warnings
        ],
    )


def damage_summary_message(totals: DamageTotals) -> operator_pb2.DamageSummary:
    """What a check found, in numbers."""
    return operator_pb2.DamageSummary(
        objects=totals.objects,
        points=totals.points,
        ranges=totals.ranges,
        lost_bytes=totals.lost_bytes,
        objects_left_out=totals.objects_left_out,
        losses_left_out=totals.losses_left_out,
        ranges_left_out=totals.ranges_left_out,
        bytes_left_out=totals.bytes_left_out,
    )


def _round_message(prune: PruneRow) -> operator_pb2.RepositoryChange:
    return operator_pb2.RepositoryChange(
        plan=prune.plan,
        done=bool(prune.ended_at) and not prune.problem and not prune.dry_run,
        counts=prune.counts,
        names=prune.names,
    )


def event_message(event: JobEventRow) -> operator_pb2.JobEvent:
    """One step."""
    return operator_pb2.JobEvent(at=event.at, event=event.event, detail=event.detail)


def point_message(point: PointRow, *, held: bool, doubt: str) -> operator_pb2.Point:
    """One restore point, from its catalogue record."""
    record = point.decoded()
    return operator_pb2.Point(
        point_id=point.point_id,
        lineage_id=point.lineage_id,
        vm=point.vm_name,
        instance_uuid=point.instance_uuid,
        vcenter_id=point.vcenter_id,
        created_at=point.created_at,
        level=record.level,
        level_asked=record.level_asked,
        level_reason=record.level_reason,
        consistency=record.consistency_reached,
        capacity_bytes=sum(disk.capacity_bytes for disk in record.disks),
        read_bytes=sum(disk.read_bytes for disk in record.disks),
        changed_bytes=sum(disk.changed_bytes for disk in record.disks),
        stored_bytes=sum(disk.stored_bytes for disk in record.disks),
        transport=record.transport,
        held=held,
        doubt=doubt,
    )


def vm_message(known: KnownVm) -> operator_pb2.Vm:
    """One VM of the inventory."""
    vm = known.vm
    return operator_pb2.Vm(
        vcenter=known.vcenter_name,
        name=vm.name,
        instance_uuid=vm.instance_uuid,
        bios_uuid=vm.bios_uuid,
        moref=vm.moref,
        power_state=vm.power_state,
        folder=vm.place,
        host=vm.host_name,
        datastores=vm.datastore_names,
        disks=[disk_message(disk) for disk in vm.disks],
        change_tracking=vm.change_tracking_enabled,
        tools=vm.tools_running,
        snapshots=_count(vm.snapshots),
        template=vm.template,
        hardware_version=f"vmx-{vm.hardware_version:02}",
        tags=[tag.text for tag in known.tags or ()],
        tags_known=known.tags is not None,
    )


def disk_message(disk: DiskFacts) -> operator_pb2.Disk:
    """One disk of the inventory."""
    return operator_pb2.Disk(
        device_key=disk.device_key,
        label=disk.label,
        backing_uuid=disk.backing_uuid,
        capacity_bytes=disk.capacity_bytes,
        file=disk.tip.name if disk.tip else "",
        mode=disk.mode,
        adapter=f"{disk.adapter} {disk.bus_number}:{disk.unit_number}",
        unprotected_reason=disk.unprotected_reason,
    )


def agent_message(agent: AgentRow, *, connected: bool) -> operator_pb2.Agent:
    """One agent."""
    state = "revoked" if agent.revoked_at else "connected" if connected else "away"
    return operator_pb2.Agent(
        agent_id=agent.agent_id,
        role=agent.role,
        host_name=agent.host_name,
        state=state,
        last_seen_at=agent.last_seen_at,
        certificate_ends_at=agent.certificate_ends_at,
        transports=agent.capabilities.transports,
        datastores=agent.capabilities.datastores,
        repositories=agent.capabilities.repositories,
        restore_folders=agent.capabilities.restore_folders,
        repair_folders=agent.capabilities.repair_folders,
        version=agent.capabilities.version,
    )


def vcenter_message(
    row: VcenterRow, *, vms: int, refreshed_at: str, tags: TagSource | None
) -> operator_pb2.Vcenter:
    """One vCenter. ``tags`` None: nothing is known of them."""
    return operator_pb2.Vcenter(
        name=row.name,
        vcenter_id=row.vcenter_id,
        url=f"https://{row.host}:{row.port}",
        user=row.user_name,
        kind="vcenter" if row.is_vcenter else "host",
        version=f"{row.product} {row.version}".strip(),
        certificate_sha256=row.certificate_sha256,
        refreshed_at=refreshed_at,
        vms=vms,
        problem=row.last_error,
        tags_read_at=tags.taken_at if tags else "",
        tags_problem=tags.problem if tags else "",
    )


def debt_message(entry: LedgerEntry, *, vcenter: str) -> operator_pb2.Debt:
    """Something of ours that could not be given back yet."""
    return operator_pb2.Debt(
        entry_id=entry.entry_id,
        kind=entry.kind,
        target=debt_text(entry),
        since=entry.created_at,
        last_error=entry.last_error,
        vcenter=vcenter,
    )


def _count(nodes: Sequence[SnapshotNode]) -> int:
    return len(nodes)
