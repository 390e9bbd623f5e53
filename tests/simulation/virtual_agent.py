"""One agent and what it is at work on."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_common.identity import AgentId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import Attempt, JobSpec, TransportKind
from holdfast_controller.runs.agent_link import ConnectedAgent
from simulation.virtual_facts import DATASTORE
from simulation.virtual_repository import REPOSITORY
from simulation.virtual_time import Life
from simulation.virtual_vms import VirtualVm


@dataclass(eq=False)
class Work:
    """An attempt at an agent. ``lease_over``: the controller gave it up; no later sign of life renews its lease."""

    attempt: Attempt
    spec: JobSpec
    lease_seconds: float
    lease_over: bool = False
    cancelled: bool = False
    ended: bool = False
    result: JobResult | None = None
    granted: bytes = b""


@dataclass(eq=False)
class VirtualAgent:
    """One proxy's agent. ``away_until``: no message passes before it."""

    agent_id: AgentId
    host_name: str
    vm: VirtualVm
    life: Life
    transports: tuple[TransportKind, ...]
    away_until: float = -1.0
    last_answer: float = 0.0  # the controller's last sign of life
    works: dict[Attempt, Work] = field(default_factory=dict)
    lost_messages: int = 0
    repeated_messages: int = 0

    def seen(self) -> ConnectedAgent:
        """As the controller knows it."""
        return ConnectedAgent(
            agent_id=self.agent_id,
            role="proxy",
            host_name=self.host_name,
            version="1",
            transports=self.transports,
            datastores=(DATASTORE.datastore_id,) if self.vm.name == "proxy1" else (),
            writable_datastores=(),
            repositories=(REPOSITORY,),
            restore_folders=(),
            vm_bios_uuid=f"bios-{self.vm.moref}",
        )
