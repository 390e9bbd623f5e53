"""Our agent as users run it: an installed proxy of its own process, with a session, for one repository.

The controller's end of the session is in this process: it hands out jobs, changed areas and commit grants.
Seconds are from the moment a job is handed to the agent until its result is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from holdfast_agent.configuration import HotAddConfiguration, RestoreConfiguration
from holdfast_agent.enrolment import Enrolment, enrol
from holdfast_agent.transports import direct_datastore
from holdfast_common.blocks.sink import NewDisk
from holdfast_common.clock import SystemClock
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, RunId, new_ulid
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import Attempt, CheckRepository, Work
from holdfast_common.places import find_places
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.key_sets import SegmentKeyRequest
from holdfast_common.trust.join_token import parse_join_token
from holdfast_controller.runs.agent_link import SignedGrant
from holdfast_controller.service.session_timing import SessionTiming
from support.backup_jobs import (
    DATASTORE,
    LINEAGE,
    Site,
    direct_ticket,
    disk_uuid,
    goes_on,
    make_site,
)
from support.local_job_context import CONTROLLER_EPOCH, LocalRepository
from support.session_rig import (
    ControllerRig,
    RecordingHandler,
    controller_rig,
    new_attempt,
    patience,
)

BIN = Path(sys.executable).parent
JOB_SECONDS = 1800.0


@dataclass(kw_only=True)
class GrantingHandler(RecordingHandler):
    """Grants every commit, opens segment keys; ``changed`` is what change tracking says."""

    repository: LocalRepository
    attempt: Attempt
    changed: Sequence[Extent] = ()

    def extents(self, device_key: int) -> Iterator[Extent]:
        del device_key
        return iter(self.changed)

    def segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        requests = [SegmentKeyRequest.from_bytes(header) for header in headers]
        return self.repository.keys.open_segment_keys(requests)

    def grant_commit(self, manifest_digest: bytes) -> SignedGrant:
        grant = self.repository.keys.commit_grant(
            job_id=self.attempt.job_id,
            attempt=self.attempt.number,
            manifest_digest=manifest_digest,
            controller_epoch=CONTROLLER_EPOCH,
        )
        return SignedGrant(controller_epoch=CONTROLLER_EPOCH, signature=grant[8:])


@dataclass(frozen=True, slots=True)
class Timed:
    """A job that ended as done."""

    seconds: float
    result: JobResult


@dataclass
class OurProxy:
    """One agent and its repository. `start` and `stop` its process as often as wanted."""

    site: Site
    controller: ControllerRig
    home: Path
    agent_id: AgentId
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Returns when it is connected."""
        with (self.home / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(BIN / "holdfast-agent"), "run"],
                env={**os.environ, "HOLDFAST_HOME": str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        patience(self._is_connected)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None
            patience(lambda: not self._is_connected())

    def work(self, work: Work, changed: Sequence[Extent] = ()) -> Timed:
        """One job, begun and ended."""
        attempt = new_attempt()
        handler = GrantingHandler(repository=self.site.repository, attempt=attempt, changed=changed)
        spec = replace(self.site.spec(work), run_id=RunId(new_ulid()))
        began = time.perf_counter()
        self.controller.sessions.start(self.agent_id, attempt, spec, handler)
        if not handler.has_finished.wait(JOB_SECONDS):
            raise TimeoutError(f"{type(work).__name__} did not end")
        seconds = time.perf_counter() - began
        result = handler.results[0]
        if result.outcome is not Outcome.DONE:
            raise RuntimeError(f"{type(work).__name__} failed: {result.error}")
        return Timed(seconds, result)

    def check_all(self) -> Timed:
        """Everything in the repository decoded and hashed."""
        keys = (self.site.repository.reader_keys(LINEAGE),)
        return self.work(CheckRepository(read_data=True, point_ids=(), keys=keys))

    def forget_peak(self) -> int:
        """From here on `peak_bytes` counts anew; what is resident now."""
        assert self.process is not None
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def peak_bytes(self) -> int:
        """The most that was resident since `forget_peak`."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no {name} in its status")

    def _is_connected(self) -> bool:
        connected = [agent.agent_id for agent in self.controller.sessions.connected()]
        return self.agent_id in connected


@contextmanager
def our_proxy(folder: Path) -> Iterator[OurProxy]:
    """A new repository with an enrolled agent that may write to it; not started yet."""
    site = make_site(folder / "site")
    with controller_rig(folder / "controller", timing=SessionTiming()) as controller:
        home = folder / "agent"
        home.mkdir()
        configuration = enrol(
            find_places({"HOLDFAST_HOME": str(home)}),
            Enrolment(
                token=parse_join_token(controller.token()),
                controller=f"127.0.0.1:{controller.bound.session}",
                role="proxy",
                host_name="proxy-one",
                repositories={site.repository.repository_id: str(site.repository.folder)},
                datastores={DATASTORE: str(site.root / "nfs")},
                hot_add=HotAddConfiguration(),
                restore=RestoreConfiguration(folders=(str(site.root / "restores"),)),
            ),
        )
        agent_id = AgentId(configuration.agent_id)
        with DirectoryStore.open(site.repository.folder) as store:
            site.repository.keys.authorise_writer(
                store,
                controller.agents.get(agent_id).signing_public_key,
                agent_id=agent_id,
                clock=SystemClock(),
            )
        proxy = OurProxy(site=site, controller=controller, home=home, agent_id=agent_id)
        try:
            yield proxy
        finally:
            proxy.stop()


def make_empty_disk(site: Site, device_key: int, capacity_bytes: int) -> None:
    """A disk of the VM on the datastore, all zero."""
    disk = NewDisk(capacity_bytes=capacity_bytes, disk_uuid=disk_uuid(device_key))
    ticket = direct_ticket(f"web/disk-{device_key}.vmdk")
    sink = direct_datastore.open_sink(ticket, site.configuration, disk=disk, check=goes_on)
    with closing(sink):
        sink.finish()
    site.disks[device_key] = capacity_bytes
