"""Everything that carries runs out: made once by `controller run`, handed to every part of `runs`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from holdfast_common.clock import Clock
from holdfast_common.identity import LineageId
from holdfast_common.pulses import Pulses
from holdfast_controller.configuration import ControllerConfiguration
from holdfast_controller.decide.hot_add import ProxyVm
from holdfast_controller.decide.placement import AgentFacts
from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import JobLedger
from holdfast_controller.runs.agent_link import AgentLink
from holdfast_controller.runs.attended_jobs import AttendedJobs
from holdfast_controller.runs.key_keeper import KeyKeeper
from holdfast_controller.runs.lifecycle import Lifecycle
from holdfast_controller.runs.running_streams import RunningStreams
from holdfast_controller.runs.vcenters import Vcenters
from holdfast_controller.store import settings as names
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.damages import DamageTable
from holdfast_controller.store.job_figures import JobFigures
from holdfast_controller.store.jobs import JobRow, JobTable
from holdfast_controller.store.keeping import KeepingTable
from holdfast_controller.store.ledger import LedgerTable
from holdfast_controller.store.notices import NoticeTable
from holdfast_controller.store.point_use import PointUse
from holdfast_controller.store.policies import PolicyTable
from holdfast_controller.store.policy_slots import PolicySlotTable
from holdfast_controller.store.protection import Protection
from holdfast_controller.store.prunes import PruneTable
from holdfast_controller.store.runs import RunTable
from holdfast_controller.store.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The controller's parts. All of them are thread-safe."""

    configuration: ControllerConfiguration
    clock: Clock
    stopping: threading.Event
    settings: Settings
    jobs: JobTable
    job_figures: JobFigures
    protection: Protection
    notices: NoticeTable
    runs: RunTable
    catalogue: Catalogue
    ledger: LedgerTable
    agents: AgentTable
    audit: AuditTrail
    prunes: PruneTable
    damages: DamageTable
    point_use: PointUse
    policies: PolicyTable
    policy_slots: PolicySlotTable
    keeping: KeepingTable
    vcenters: Vcenters
    keeper: KeyKeeper
    link: AgentLink
    lifecycle: Lifecycle
    attended: AttendedJobs = field(default_factory=AttendedJobs)
    streams: RunningStreams = field(default_factory=RunningStreams)
    pulses: Pulses = field(default_factory=Pulses)  # what must go round for the controller to live

    @property
    def controller_epoch(self) -> int:
        """Raised when another controller takes over."""
        return int(self.settings.get(names.CONTROLLER_EPOCH) or 1)

    @property
    def controller_id(self) -> str:
        """What marks snapshots and the like as this controller's."""
        return self.settings.get(names.CONTROLLER_ID)

    def job_ledger(self, job: JobRow, vcenter_id: str = "") -> JobLedger:
        """The ledger as this job writes it."""
        return JobLedger(
            ledger=self.ledger,
            run_id=job.run_id,
            job_id=job.job_id,
            vcenter_id=vcenter_id or job.vcenter_id,
        )

    def proxies(self, vcenter_id: str = "") -> list[AgentFacts]:
        """Connected proxies, with their own VMs in that vCenter as they were seen last."""
        by_bios: dict[str, list[VmFacts]] = {}
        by_mac: dict[str, list[VmFacts]] = {}
        found = self.vcenters.inventory.vms(vcenter_id) if vcenter_id else []
        for known in found:
            by_bios.setdefault(known.vm.bios_uuid, []).append(known.vm)
            for address in known.vm.mac_addresses:
                by_mac.setdefault(address, []).append(known.vm)
        hosts = self.vcenters.inventory.surroundings(vcenter_id).hosts if found else ()
        agents = []
        for agent in self.link.connected():
            if agent.role != "proxy":
                continue
            named = by_bios.get(agent.vm_bios_uuid, []) if agent.vm_bios_uuid else []
            if len(named) != 1:  # a clone of a proxy has its uuid, but seldom its MAC address
                carded = [vm for address in agent.mac_addresses for vm in by_mac.get(address, [])]
                named = list({vm.moref: vm for vm in carded}.values())
            # which of several runs the agent cannot be told
            own = named[0] if len(named) == 1 else None
            agents.append(
                AgentFacts(
                    agent_id=agent.agent_id,
                    host_name=agent.host_name,
                    transports=agent.transports,
                    datastores=agent.datastores,
                    writable_datastores=agent.writable_datastores,
                    repositories=agent.repositories,
                    vm=ProxyVm.of(own, hosts) if own is not None else None,
                )
            )
        return agents


def lineage_of(*, vcenter_instance_uuid: str, vm_instance_uuid: str) -> LineageId:
    """One VM in one vCenter: both by identity, never by name."""
    return LineageId(f"{vcenter_instance_uuid}/{vm_instance_uuid}")
