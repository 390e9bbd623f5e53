"""The one error tree. Every error says what happened, to what, and what to do next.

``code`` is the same word in the job table, on the wire and on stderr; ``exit_status`` is the
program's exit code. Facts are keyword arguments and are shown after the message.
"""

from __future__ import annotations

from typing import ClassVar

Fact = str | int | float | bool | None


class HoldfastError(Exception):
    """Base of all errors of Holdfast.

    Args:
        message: what happened, to what; one sentence without a final stop.
        advice: what the reader should do next; the class's own advice when empty.
        facts: values that help: offsets and lengths in bytes, names, ids.
    """

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_advice: ClassVar[str] = ""

    def __init__(self, message: str, *, advice: str = "", **facts: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice or self.default_advice
        self.facts: dict[str, Fact] = dict(facts)

    def __str__(self) -> str:
        if not self.facts:
            return self.message
        shown = ", ".join(f"{name}={value}" for name, value in self.facts.items())
        return f"{self.message} ({shown})"

    def line(self) -> str:
        """The line for stderr: ``code: message (facts)``."""
        return f"{self.code}: {self}"


class UsageError(HoldfastError):
    """The command or the configuration is wrong; nothing was changed."""

    code = "usage"
    exit_status = 2


class NotFound(HoldfastError):
    """A thing that was named does not exist."""

    code = "not_found"


class ConfigurationError(UsageError):
    """A configuration file or option cannot be used."""

    code = "configuration"


class NoRepository(HoldfastError):
    """There is no repository where one was expected."""

    code = "no_repository"
    exit_status = 10
    default_advice = "check that the repository's file system is mounted; only `holdfast init` and `repo init` make one"


class Locked(HoldfastError):
    """Somebody else holds what is needed."""

    code = "locked"
    exit_status = 11
    retryable = True


class StoreFailed(HoldfastError):
    """The controller's own database could not be read or written; it may pass by itself."""

    code = "store_failed"
    retryable = True
    default_advice = "look for a full or failing disk under the controller's state folder"


class WrongKey(HoldfastError):
    """The key given does not open this repository or secret."""

    code = "wrong_key"
    exit_status = 12


class IntegrityError(HoldfastError):
    """Stored or restored data is not what was backed up."""

    code = "integrity"
    exit_status = 13


class ControllerUnreachable(HoldfastError):
    """The controller does not answer."""

    code = "controller_unreachable"
    exit_status = 14
    retryable = True
    default_advice = "start it with `holdfast controller run`"


class Refused(HoldfastError):
    """A rule or a permission forbids it; nothing was changed."""

    code = "refused"
    exit_status = 15


class NoProxy(Refused):
    """No proxy that is connected can do it; one may come back, or reach it again."""

    code = "no_proxy"
    retryable = True


class Immutable(HoldfastError):
    """The object may not be changed or deleted."""

    code = "immutable"
    exit_status = 16


class TimedOut(HoldfastError):
    """Something did not answer in time."""

    code = "timed_out"
    exit_status = 124
    retryable = True


class Interrupted(HoldfastError):
    """The work was stopped from outside before it was complete."""

    code = "interrupted"
    exit_status = 130
    retryable = True


class Cancelled(Interrupted):
    """The work was cancelled by an operator."""

    code = "cancelled"
    retryable = False


class WindowClosed(Interrupted):
    """The time in which a policy lets its backups work is over; everything was given back."""

    code = "window_closed"
    retryable = False
    default_advice = "give the policy a longer window, or fewer VMs; see `holdfast why`"


class Paused(Interrupted):
    """An operator stopped all backups; everything was given back."""

    code = "paused"
    retryable = False
    default_advice = "go on with `holdfast resume`"


class ObjectExists(Immutable):
    """An object of that name is already stored; objects are put once and never overwritten."""

    code = "object_exists"


class FormatError(HoldfastError):
    """Bytes do not follow their format; nothing of them was used."""

    code = "format"


class ShortRead(HoldfastError):
    """A source ended or answered before all bytes asked for were there."""

    code = "short_read"
    retryable = True


class SourceFailed(HoldfastError):
    """A disk could not be read."""

    code = "source_failed"
    retryable = True


class TargetFailed(HoldfastError):
    """A disk or file could not be written."""

    code = "target_failed"


class SourceGone(HoldfastError):
    """The VM or disk disappeared while it was worked on."""

    code = "source_gone"


class DatastoreFull(HoldfastError):
    """A datastore of the VM has too little room left for its snapshot to stay; it was given back."""

    code = "datastore_full"
    default_advice = (
        "make room on the datastore, or move VMs away from it, and run the backup again"
    )


class DiskMoved(HoldfastError):
    """A disk was moved to other storage while it was read; the attempt is void."""

    code = "disk_moved"
    retryable = True


class LeaseExpired(HoldfastError):
    """The right to go on (job, writer or transfer lease) ended."""

    code = "lease_expired"
    retryable = True


class RepositoryFull(HoldfastError):
    """The repository has no room left."""

    code = "repository_full"
    default_advice = "give the repository more room, or forget points (`holdfast repo forget`) and prune (`holdfast repo prune`)"


class RepositoryFailed(HoldfastError):
    """The repository's storage could not be read or written."""

    code = "repository_failed"
    retryable = True


class ObjectMissing(IntegrityError):
    """An object that a restore point needs is not in the repository."""

    code = "object_missing"


class RevokedWriter(IntegrityError):
    """An object is signed by a writer that was revoked, and was not accepted then: it does not count."""

    code = "revoked_writer"


class PreviousLost(ObjectMissing):
    """What a new point would build on is no longer whole; the next attempt builds on nothing."""

    code = "previous_lost"
    retryable = True
    default_advice = (
        "the next attempt reads the whole VM; `holdfast check` tells what earlier points lost"
    )


class PointsMissing(IntegrityError):
    """Restore points that are known are not in the repository, and nobody forgot them. ``names``: of their manifests."""

    code = "points_missing"
    default_advice = (
        "put them back (`holdfast repo repair --from COPY` takes them from a copy), or let them go with"
        " `holdfast repo forget POINT`; `holdfast check` tells what else is gone"
    )
    names: tuple[str, ...] = ()


class PointVoided(IntegrityError):
    """A restore point was published after its writer's epoch had been closed; it never counted."""

    code = "point_voided"


class AuthenticationFailed(HoldfastError):
    """A password, token or certificate was not accepted."""

    code = "authentication_failed"
    exit_status = 15


class CertificateMismatch(HoldfastError):
    """A server showed another certificate than the pinned one; nothing was sent to it."""

    code = "certificate_mismatch"
    exit_status = 15


class VsphereFailed(HoldfastError):
    """vSphere refused or failed a call."""

    code = "vsphere_failed"


class VsphereUnavailable(VsphereFailed):
    """vSphere does not answer; it may pass by itself."""

    code = "vsphere_unavailable"
    retryable = True


class VsphereBusy(VsphereFailed):
    """Another task holds the object; it may pass by itself."""

    code = "vsphere_busy"
    retryable = True


class ChangesUnknown(VsphereFailed):
    """vSphere cannot say what changed on a disk: it must be read whole, never taken as unchanged."""

    code = "changes_unknown"


class QuiesceFailed(VsphereFailed):
    """The guest could not be brought to the consistency that was asked for."""

    code = "quiesce_failed"
    default_advice = "see the guest's own logs, or allow a lower consistency"


class QuiesceFailedNow(QuiesceFailed):
    """The same, where another attempt is wanted."""

    retryable = True


class CapabilityAbsent(HoldfastError):
    """The other side lacks a capability or the account lacks a right."""

    code = "capability_absent"


class NothingProtected(HoldfastError):
    """A backup selected no VM or no disk: that is a failure, never a success."""

    code = "nothing_protected"


class InvalidTransition(HoldfastError):
    """A state machine was given an event that its state does not know: a bug."""

    code = "invalid_transition"


def error_classes() -> dict[str, type[HoldfastError]]:
    """All error classes by ``code``, for rebuilding an error that came over the wire."""
    found: dict[str, type[HoldfastError]] = {}
    pending: list[type[HoldfastError]] = [HoldfastError]
    while pending:
        current = pending.pop()
        if "code" in vars(
            current
        ):  # a class without a code of its own is its parent's to the outside
            found[current.code] = current
        pending.extend(current.__subclasses__())
    return found
