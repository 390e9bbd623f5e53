"""``controller.toml``: where the controller listens, and a few limits. Unknown keys are refused."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from holdfast_common.errors import ConfigurationError
from holdfast_common.units import GIB, KIB, MIB

PORT_MAX: Final = 65535
_ADDRESSES: Final = (
    "session_address",
    "enrolment_address",
    "operator_address",
    "advertised_address",
    "metrics_address",
)
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")

Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class DatastoreFloor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[datastores]``: what must be free before a snapshot; the larger one counts. Half of it must stay free under it.

    A delta may grow as large as its disk, and a datastore that is full stops every VM on it.
    """

    free_share_min: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.10
    free_bytes_min: Annotated[int, msgspec.Meta(ge=0)] = 0

    def before_snapshot_bytes(self, capacity_bytes: int) -> int:
        """What must be free of a datastore of this size before a snapshot of ours is made on it."""
        return max(int(self.free_share_min * capacity_bytes), self.free_bytes_min)

    def under_snapshot_bytes(self, capacity_bytes: int) -> int:
        """Below this a copy is cut off, so that the snapshot goes before the datastore is full."""
        return self.before_snapshot_bytes(capacity_bytes) // 2


Limit = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=60_000)]
Rate = Annotated[int, msgspec.Meta(ge=64 * KIB, le=1 << 40)]
Limits = dict[str, Annotated[int, msgspec.Meta(ge=1, le=100_000)]]


class StreamLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[limits]``: streams at once; 0: no limit but the others. Backups in all are ``jobs_at_once_max``.

    ``each_…``: of everything of a kind; ``datastores``, ``hosts``, ``clusters``, ``proxies``: of one by its name, instead.
    A host has buffers for some 50 NFC connections, and other programs use them too.
    ``latency_…``: of reads from a datastore, as its hosts measure it; 0: it brakes nothing. Past ``start`` no backup's
    stream begins there, past ``slow`` those at work are slowed, to a rate between both ``slowed_…``.
    """

    restores: Count = 4
    checks: Count = 2
    each_datastore: Limit = 4
    each_host: Limit = 4
    each_cluster: Limit = 0
    each_proxy: Limit = 4
    nfc_each_host: Annotated[int, msgspec.Meta(ge=1, le=52)] = 26
    latency_start_milliseconds: Milliseconds = 0
    latency_slow_milliseconds: Milliseconds = 0
    latency_look_seconds: Seconds = 20.0
    slowed_bytes_per_second_max: Rate = 64 * MIB
    slowed_bytes_per_second_min: Rate = 4 * MIB
    datastores: Limits = {}
    hosts: Limits = {}
    clusters: Limits = {}
    proxies: Limits = {}

    def __post_init__(self) -> None:
        if self.slowed_bytes_per_second_min > self.slowed_bytes_per_second_max:
            raise ValueError("slowed_bytes_per_second_min is above slowed_bytes_per_second_max")
        if 0 < self.latency_slow_milliseconds < self.latency_start_milliseconds:
            raise ValueError("latency_slow_milliseconds is below latency_start_milliseconds")


EventName = Literal[
    "failure", "missing_success", "debt", "suspect", "repository_full", "keeping", "digest"
]  # as `decide.notices` names them


class NotificationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[notifications]``: who is told (addresses as apprise reads them, one a line), what, and how often."""

    urls_file: str = ""
    urls_command: tuple[str, ...] = ()  # a program and its arguments; no shell
    urls_credential: str = ""  # the name of a systemd credential
    events: tuple[EventName, ...] = (
        "failure",
        "missing_success",
        "debt",
        "suspect",
        "repository_full",
        "keeping",
        "digest",
    )
    repeat_hours: Annotated[int, msgspec.Meta(ge=1, le=720)] = 24  # while it lasts
    missing_after_hours: Annotated[int, msgspec.Meta(ge=0, le=8760)] = 26  # 0: never
    # the repository counts as full below the larger of these
    repository_free_share_min: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05
    repository_free_bytes_min: Annotated[int, msgspec.Meta(ge=0)] = 10 * GIB


class KeepingTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When one of the tasks begins and may work. ``start``: a calendar, "": never. ``window`` "": always."""

    start: str = "0 8 * * *"
    window: str = "mon-sun 08:00-20:00"


class PruneKeeping(KeepingTimes, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[keeping.prune]``: 0: no limit but the window's end; what is left waits for the next."""

    start: str = "30 8 * * *"
    seconds_max: Annotated[int, msgspec.Meta(ge=0, le=7 * 86400)] = 0
    moved_bytes_max: Annotated[int, msgspec.Meta(ge=0)] = (
        0  # copied out of packs that are half dead
    )
    grace_hours: Annotated[float, msgspec.Meta(ge=0, le=720)] = 24.0  # from found dead to deleted


class CheckKeeping(KeepingTimes, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[keeping.check]``: so much a time that all data is read within these days."""

    start: str = "0 12 * * *"
    read_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 30


class ScrubKeeping(KeepingTimes, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[keeping.scrub]``: the same."""

    start: str = "0 10 * * sun"
    read_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 90


class KeepingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[keeping]``: what the controller does to its repository by itself, and when; see `decide.keeping`."""

    time_zone: str = "UTC"
    forget: KeepingTimes = KeepingTimes()
    prune: PruneKeeping = PruneKeeping()
    scrub: ScrubKeeping = ScrubKeeping()
    check: CheckKeeping = CheckKeeping()


class ControllerConfiguration(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """The whole file. ``advertised_address``: what agents are told to dial, when it differs."""

    session_address: str = "0.0.0.0:9440"
    enrolment_address: str = "0.0.0.0:9441"
    operator_address: str = ""  # mutual TLS for remote operators; empty: the Unix socket only
    advertised_address: str = ""
    metrics_address: str = ""  # GET /metrics for Prometheus, as 127.0.0.1:9442; empty: none
    jobs_at_once_max: Count = 4
    attempts_max: Count = 2
    reconcile_seconds: Seconds = 120.0
    inventory_seconds: Seconds = 300.0
    heartbeat_seconds: Seconds = 10.0
    job_lease_seconds: Seconds = 45.0
    # of what change tracking calls unchanged: read again and compared by every incremental
    audit_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01
    # the uuid of the VM that the controller runs in, where it cannot tell itself (in a container)
    own_vm_uuid: str = ""
    self_backup_seconds: Seconds = 3600.0  # between copies of this controller in the repository
    datastores: DatastoreFloor = DatastoreFloor()
    notifications: NotificationSettings = NotificationSettings()
    limits: StreamLimits = StreamLimits()
    keeping: KeepingSettings = KeepingSettings()


def read_configuration(path: Path) -> ControllerConfiguration:
    """Raises: ConfigurationError naming the file and the field."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigurationError(
            "Holdfast is not set up here", file=str(path), advice="run `holdfast init`"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the controller's configuration cannot be read: {error.strerror}", file=str(path)
        ) from error
    try:
        return decoded_configuration(content)
    except ConfigurationError as error:
        raise ConfigurationError(
            error.message, advice=error.advice, file=str(path), **error.facts
        ) from error


def decoded_configuration(content: bytes) -> ControllerConfiguration:
    """The file's content. Raises: ConfigurationError naming the field."""
    try:
        found = msgspec.toml.decode(content, type=ControllerConfiguration)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the controller's configuration is wrong: {error}") from error
    check_addresses(found)
    return found


def check_addresses(configuration: ControllerConfiguration) -> None:
    """Raises: ConfigurationError naming the field whose address nobody could listen at, or dial."""
    for name in _ADDRESSES:
        text = str(getattr(configuration, name))
        dialled = name == "advertised_address"
        optional = dialled or name in ("operator_address", "metrics_address")
        if text or not optional:
            _check_address(name, text, port_min=1 if dialled else 0)


def configuration_text(configuration: ControllerConfiguration) -> str:
    """The file's text, for `init`."""
    plain: Any = msgspec.to_builtins(configuration)
    return msgspec.toml.encode(plain).decode()


def _check_address(name: str, text: str, *, port_min: int) -> None:
    host, _, port = text.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() else -1
    if port_min <= number <= PORT_MAX and _is_host(host):
        return
    raise ConfigurationError(
        f"{name} is not an address",
        address=text[:100],
        advice=f"write HOST:PORT with a port of {port_min} to {PORT_MAX}, as 0.0.0.0:9440 or [::]:9440",
    )


def _is_host(text: str) -> bool:
    bracketed = text.startswith("[") and text.endswith("]")
    try:
        ipaddress.IPv6Address(text[1:-1]) if bracketed else ipaddress.IPv4Address(text)
    except ValueError:
        digits_only = not text.strip("0123456789.")
        return not bracketed and not digits_only and _HOST_NAME.fullmatch(text) is not None
    return True
