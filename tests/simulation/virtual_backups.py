"""What an agent does of a backup: it reads where the controller says, and publishes one point when it may."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import PreviousLost, SourceFailed
from holdfast_common.identity import PointId
from holdfast_common.job_result import DiskResult, JobResult, Outcome
from holdfast_common.job_spec import (
    AreaSource,
    BackUpDisks,
    DirectTicket,
    DiskToBackUp,
    HotAddTicket,
)
from holdfast_common.point_record import DiskRecord, PointRecord
from simulation.virtual_agent import VirtualAgent, Work
from simulation.virtual_disks import BLOCK_BYTES, EMPTY
from simulation.virtual_repository import Manifest, chunks_of
from simulation.virtual_writers import VirtualWriter

if TYPE_CHECKING:
    from simulation.virtual_agents import VirtualAgents

_ALL: Final = 1_000_000


class VirtualBackups:
    """The part of all agents that backs up."""

    def __init__(self, agents: VirtualAgents) -> None:
        self._agents = agents

    def back_up(self, agent: VirtualAgent, work: Work, asked: BackUpDisks) -> JobResult:
        """Raises: what the controller raises, Cancelled, LeaseExpired, SourceFailed, RepositoryFull, PreviousLost."""
        agents = self._agents
        writer = VirtualWriter(agents.repository, agent.life, work.attempt, asked.lineage_id)
        try:
            return self._written(agent, work, asked, writer)
        finally:
            writer.close()

    def _written(
        self, agent: VirtualAgent, work: Work, asked: BackUpDisks, writer: VirtualWriter
    ) -> JobResult:
        kernel = self._agents.kernel
        contents: dict[int, list[int]] = {}
        records = []
        for disk in asked.disks:
            content, of_disk = self._disk(agent, work, asked, disk)
            writer.store(disk.device_key, chunks_of([content]))
            contents[disk.device_key] = content
            records.append(of_disk)
        record = self._record(agent, work, asked, tuple(records))
        chunks = chunks_of(contents.values())
        map_name = writer.prepare(chunks)
        text = json.dumps([work.attempt.number, record.point_id, sorted(contents.items())])
        digest = hashlib.sha256(text.encode()).digest()
        self._agents.asked(agent, work, lambda handler: handler.grant_commit(digest))
        kernel.step("leave to publish was given")
        kernel.sleep(self._agents.random.uniform(0.01, 1.0))
        self._agents.check(agent, work)
        allocated = [each.device_key for each in asked.disks if each.areas is AreaSource.ALLOCATED]
        writer.publish(
            Manifest(
                record=record,
                disks=contents,
                allocated=frozenset(allocated),
                name=writer.manifest_name(),
                map_name=map_name,
                digest=digest,
                writer_epoch=writer.lease.writer_epoch,
                chunks=chunks,
            )
        )
        self._agents.count("a point was committed")
        kernel.trace.append(f"{kernel.now:.3f} committed {record.point_id}")
        kernel.step("a point was published")
        return JobResult(
            outcome=Outcome.DONE,
            point_id=PointId(record.point_id),
            record=record.encode(),
            disks=tuple(
                DiskResult(device_key=each.device_key, transport=str(asked.transport))
                for each in asked.disks
            ),
        )

    def _disk(
        self, agent: VirtualAgent, work: Work, asked: BackUpDisks, disk: DiskToBackUp
    ) -> tuple[list[int], DiskRecord]:
        """What is stored of a disk: read where the controller says, the rest as it was before."""
        count = disk.capacity_bytes // BLOCK_BYTES
        extents = self._agents.asked(
            agent, work, lambda handler: list(handler.extents(disk.device_key))
        )
        wanted = sorted({n for each in extents for n in _blocks(each)})
        before = [EMPTY] * count
        if disk.areas is AreaSource.CHANGED:
            before = self._before(asked, disk, count)
        content = list(before)
        half = len(wanted) // 2
        for part in (wanted[:half], wanted[half:]):
            self._agents.kernel.sleep(self._agents.random.uniform(0.05, 1.5) * self._agents.delays)
            self._agents.kernel.step("an agent reads")
            self._agents.check(agent, work)
            for number in part:
                content[number] = self._read(agent, disk, number)
        audited = untold = 0
        if disk.areas is AreaSource.CHANGED:
            sample = _sample(asked, disk, count, frozenset(wanted))
            audited = len(sample)
            if any(self._read(agent, disk, number) != before[number] for number in sample):
                content = [self._read(agent, disk, number) for number in range(count)]
                untold = 1
                self._agents.count("an audit found a lie")
        record = DiskRecord(
            device_key=disk.device_key,
            uuid=disk.backing_uuid,
            label=disk.label,
            capacity_bytes=disk.capacity_bytes,
            change_id=disk.change_id,
            adapter=disk.adapter,
            chain=disk.chain,
            read_bytes=len(wanted) * BLOCK_BYTES,
            level_reason=disk.areas_reason
            if not untold
            else "the disk was read whole and compared",
            audited_bytes=audited * BLOCK_BYTES,
            untold_bytes=untold * BLOCK_BYTES,
        )
        return content, record

    def _before(self, asked: BackUpDisks, disk: DiskToBackUp, count: int) -> list[int]:
        assert asked.previous_point_id is not None, "changes since nothing"
        if not self._agents.repository.is_visible(asked.previous_point_id):
            raise PreviousLost("the point that this one stands on is gone")
        previous = self._agents.repository.committed[asked.previous_point_id].disks[disk.device_key]
        return [*previous, *[EMPTY] * (count - len(previous))][:count]

    def _read(self, agent: VirtualAgent, disk: DiskToBackUp, number: int) -> int:
        """Raises: SourceFailed when the file is not there (any more)."""
        ticket = disk.ticket
        if isinstance(ticket, DirectTicket):
            path = ticket.chain[-1].path
        else:
            assert isinstance(ticket, HotAddTicket)
            path = self._attached(agent, ticket)
        file = self._agents.model.files.get(path)
        if file is None:
            raise SourceFailed("a disk cannot be opened", file=path)
        return file.block(number)

    def _attached(self, agent: VirtualAgent, ticket: HotAddTicket) -> str:
        for device in agent.vm.devices:
            if device.key >= 2000 and device.unitNumber == ticket.unit_number:
                return str(device.backing.fileName).partition("] ")[2]
        raise SourceFailed("no such disk is attached", unit=ticket.unit_number)

    def _record(
        self, agent: VirtualAgent, work: Work, asked: BackUpDisks, disks: tuple[DiskRecord, ...]
    ) -> PointRecord:
        return PointRecord(
            point_id=work.attempt.job_id,  # as the product has it
            job_id=work.attempt.job_id,
            lineage_id=asked.lineage_id,
            agent_id=agent.agent_id,
            run_id=work.spec.run_id,
            created_at=utc_text(self._agents.clock.now()),
            snapshot_at=asked.snapshot_time,
            vcenter_id=asked.vm.vcenter_id,
            instance_uuid=asked.vm.instance_uuid,
            bios_uuid=asked.vm.bios_uuid,
            vm_name=asked.vm.name,
            moref=asked.vm.moref,
            method="image",
            transport=str(asked.transport),
            level_asked=asked.level_asked,
            level=asked.level,
            level_reason=asked.level_reason,
            consistency_asked=asked.consistency.asked,
            consistency_reached=asked.consistency.reached,
            evidence=asked.consistency.evidence,
            previous_point_id=asked.previous_point_id or "",
            group_id=asked.group_id,
            configuration=asked.configuration,
            disks=disks,
        )


def _blocks(extent: Any) -> Iterable[int]:
    return range(extent.offset // BLOCK_BYTES, -(-extent.end // BLOCK_BYTES))


def _sample(
    asked: BackUpDisks, disk: DiskToBackUp, count: int, changed: frozenset[int]
) -> list[int]:
    """Blocks that are called unchanged and are read again: as many turns as shares read all of them."""
    share = asked.audit.share_millionths
    if not share:
        return []
    turns = -(-_ALL // min(share, _ALL))
    cycle, turn = divmod(asked.audit.turn, turns)

    def chosen(number: int) -> bool:
        digest = hashlib.sha256(f"{disk.backing_uuid} {cycle} {number}".encode()).digest()
        return digest[0] % turns == turn

    return [n for n in range(count) if n not in changed and chosen(n)]
