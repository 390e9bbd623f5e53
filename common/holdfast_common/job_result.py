"""What an agent answers: the result of one attempt, as frozen values. A warning is counted, never hidden."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from holdfast_common.errors import Fact, HoldfastError, error_classes
from holdfast_common.extents import Extent
from holdfast_common.identity import JobId, LineageId, PointId
from holdfast_common.job_spec import Blob


class Outcome(StrEnum):
    """How an attempt ended. Partial is never success."""

    DONE = "done"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """An error as it crosses the wire and stands in the job table."""

    code: str
    message: str
    advice: str = ""
    exit_status: int = 1
    retryable: bool = False
    facts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, error: HoldfastError) -> ErrorReport:
        """The report of an error of ours."""
        return cls(
            code=error.code,
            message=error.message,
            advice=error.advice,
            exit_status=error.exit_status,
            retryable=error.retryable,
            facts=tuple((name, str(value)) for name, value in error.facts.items()),
        )

    def to_error(self) -> HoldfastError:
        """The same error as an exception; an unknown code becomes the base class."""
        facts: dict[str, Fact] = {
            name: value for name, value in self.facts if name not in {"message", "advice"}
        }
        error_class = error_classes().get(self.code, HoldfastError)
        return error_class(self.message, advice=self.advice, **facts)

    def document(self) -> dict[str, object]:
        """What programs print for it with ``--json``."""
        return {
            "type": "error",
            "schema": 1,
            "code": self.code,
            "message": self.message,
            "facts": dict(self.facts),
            "advice": self.advice,
            "exit_status": self.exit_status,
        }

    def text(self) -> str:
        """``message (facts)``, as people read it."""
        return str(self.to_error())


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something that changes what was saved, or that an operator should know."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskResult:
    """What happened to one disk; sizes in bytes.

    ``compared_bytes``, ``differing`` (at most 100): of a read-back, or of a backup's audit of change
    tracking: what it called unchanged and was not. ``seen_bytes``: of the disk's content what a backup learned from
    the disk itself, and not from change tracking; told in its point's record only.
    """

    device_key: int
    transport: str
    read_bytes: int = 0
    changed_bytes: int = 0
    stored_bytes: int = 0
    zero_bytes: int = 0
    written_bytes: int = 0
    compared_bytes: int = 0
    differing: tuple[Extent, ...] = ()
    duration_seconds: float = 0.0
    level_reason: str = ""
    seen_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFound:
    """One committed point in the repository; ``record`` is an encoded `point_record.PointRecord`."""

    point_id: PointId
    job_id: JobId
    lineage_id: LineageId
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageFound:
    """A damaged object, and what of which point is lost by it (point_id "" and key 0: nothing named).

    ``ranges_left_out``, ``bytes_left_out``: what more of that disk is lost than ``lost`` names.
    """

    object_name: str
    problem: str
    point_id: str = ""
    device_key: int = 0
    lost: tuple[Extent, ...] = ()
    ranges_left_out: int = 0
    bytes_left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The end of one attempt. ``error`` is None only when it is done.

    ``record``: the committed point's encoded `point_record.PointRecord`. ``blobs``: what `RestoreDisks` asked for.
    ``objects_left_out``, ``losses_left_out``: damages that were too many for ``damages``, of objects and of points.
    """

    outcome: Outcome
    error: ErrorReport | None = None
    warnings: tuple[Warned, ...] = ()
    disks: tuple[DiskResult, ...] = ()
    point_id: PointId | None = None
    record: bytes = b""
    blobs: tuple[Blob, ...] = ()
    points: tuple[PointFound, ...] = ()
    damages: tuple[DamageFound, ...] = ()
    objects_left_out: int = 0
    losses_left_out: int = 0
    objects_checked: int = 0
    started_at: str = ""
    finished_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressReport:
    """How far an attempt is; the latest wins, any may be lost."""

    sequence: int
    done_bytes: int
    total_bytes: int
    device_key: int = 0
    phase: str = field(default="transfer")
