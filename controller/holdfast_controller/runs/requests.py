"""What operators ask for, as values; the engine plans and carries them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast_common.identity import JobId, PointId, RunId
from holdfast_common.job_spec import FileFormat
from holdfast_common.logs import Secret
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_controller.decide.disk_choice import ALL_DISKS, WantedDisks
from holdfast_controller.decide.load_limits import LoadKey, LoadKind
from holdfast_controller.decide.policy import WhenNotReached
from holdfast_controller.decide.retries import RetryKind


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest:
    """Back up the VMs that the selectors name, but for those that ``excludes`` name.

    Empty ``transport`` and ``agent``: the best that can. ``policy``: whose run it is, by name; empty: an operator's.
    ``gates``: what must be open for its jobs to begin. ``attempts_max``, ``resume_seconds`` 0: as the controller is
    configured; the latter is how long a snapshot waits for an agent that lost its connection.
    ``lanes``: how many streams a VM may have at once, if its disks are on as many storages of their own.
    ``by_hand``: a policy's run that an operator began; ``window_of``: the policy whose window it stops with; "": none.
    ``audit_share``: of what change tracking calls unchanged; None: as the controller is configured.
    """

    selectors: tuple[str, ...]
    excludes: tuple[str, ...] = ()
    vcenter: str = ""
    level: str = "incremental"
    consistency: str = "crash"
    transport: str = ""
    agent: str = ""
    policy: str = ""
    when_not_reached: WhenNotReached = WhenNotReached.LOWER
    priority: int = 50
    attempts_max: int = 0
    gates: tuple[LoadKey, ...] = ()
    resume_seconds: float = 0.0
    lanes: int = 1
    disks: WantedDisks = ALL_DISKS
    audit_share: float | None = None
    by_hand: bool = False
    window_of: str = ""

    def saved(self) -> dict[str, object]:
        """What of it a run remembers."""
        return {
            "vms": list(self.selectors),
            "excludes": list(self.excludes),
            "level": self.level,
            "consistency": self.consistency,
            "transport": self.transport,
            "agent": self.agent,
            "policy": self.policy,
            "when_not_reached": str(self.when_not_reached),
            "lanes": self.lanes,
            "resume_seconds": self.resume_seconds,
            "disks": list(self.disks.selectors),
            "exclude_disks": list(self.disks.excludes),
            "by_hand": self.by_hand,
            "window_of": self.window_of,
        }

    @classmethod
    def again(cls, saved: Mapping[str, object]) -> BackupRequest:
        """How a run was asked for, without its VMs; older runs remember less."""
        asked = cls(selectors=())
        window_of = str(saved.get("window_of") or "")
        gate = LoadKey(LoadKind.WINDOW, window_of, str(saved.get("policy", "")))
        return cls(
            selectors=(),
            level=str(saved.get("level", asked.level)),
            consistency=str(saved.get("consistency", asked.consistency)),
            transport=str(saved.get("transport", asked.transport)),
            agent=str(saved.get("agent", asked.agent)),
            when_not_reached=WhenNotReached(
                str(saved.get("when_not_reached", asked.when_not_reached))
            ),
            lanes=int(str(saved.get("lanes", asked.lanes))),
            resume_seconds=float(str(saved.get("resume_seconds", asked.resume_seconds))),
            disks=WantedDisks(
                selectors=_texts(saved.get("disks")), excludes=_texts(saved.get("exclude_disks"))
            ),
            gates=(gate,) if window_of else (),
            window_of=window_of,
        )


def _texts(saved: object) -> tuple[str, ...]:
    return tuple(str(each) for each in saved) if isinstance(saved, list) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequest:
    """Try jobs of a backup's run again that ended as one of ``kinds``; with one of these errors, when any is named."""

    run_id: RunId
    kinds: frozenset[RetryKind]
    codes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreVmRequest:
    """Restore a point as a new VM, or in place. Empty places: where it came from.

    ``replaced_files``: in place, disks that are in no restore point and may be deleted all the same. ``keep`` False:
    the new VM is read back, and then destroyed: a trial.
    """

    point_id: PointId
    name: str = ""
    vcenter: str = ""
    host: str = ""
    folder: str = ""
    datastore: str = ""
    disk_datastores: tuple[tuple[int, str], ...] = ()
    in_place: bool = False
    replaced_files: tuple[str, ...] = ()
    power_on: bool = False
    transport: str = ""
    agent: str = ""
    keep: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreDiskRequest:
    """Restore one disk to a file on a proxy. ``disk_number``: 0, 1, 2 in order, or a device key."""

    point_id: PointId
    disk_number: int
    path: str
    format: FileFormat
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """Check the repository, or some points of it. ``agent`` empty: proxies take turns."""

    read_data: bool
    point_ids: tuple[PointId, ...] = ()
    subset: str = ""  # of the data: "3/30", "5%"; empty: all
    agent: str = ""
    gates: tuple[LoadKey, ...] = ()  # what must be open for it to begin


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRequest:
    """Mend the repository. ``source_folder``: a copy of it, as the proxy sees it; empty: none.

    ``other_key``: what opens another repository, a key file's content or a recovery sheet's; that one is at
    ``source_folder`` then, for this controller and for the proxy. ``agent`` empty: a proxy that lists
    ``source_folder`` as one that it may read.
    """

    source_folder: str = ""
    dry_run: bool = False
    other_key: Secret | None = None
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest:
    """Prune the repository, one round; ``actor``: who asked, for the audit trail. ``gates``: as above."""

    limits: PruneLimits
    actor: str
    gates: tuple[LoadKey, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRequest:
    """Forget what policies keep no longer. ``actor``, ``gates``: as above."""

    actor: str
    gates: tuple[LoadKey, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubRequest:
    """Compare packs with their digests: one of ``parts`` equal parts, from where the last one ended. ``gates``: as above."""

    parts: int = 1
    gates: tuple[LoadKey, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A run that has begun; a dry run has no id and no jobs. ``plan``: for people."""

    run_id: RunId | None
    job_ids: tuple[JobId, ...]
    plan: tuple[str, ...]
