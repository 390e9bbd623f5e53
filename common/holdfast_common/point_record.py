"""What the catalogue knows of a committed point: a summary of its manifest, as JSON, made by the agent.

It travels in `JobResult.record` and `PointFound.record`, lies in the controller's database, and can be
made again from the manifest at any time. Unknown fields are ignored, so fields can be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from holdfast_common.errors import FormatError

RECORD_BYTES_MAX = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRecord:
    """One disk of a point; sizes in bytes. ``change_id`` is the base of the next incremental.

    ``allocated_bytes``: what the disk holds at this point, whatever the level; None: an older record.
    ``audited_bytes``: of what change tracking called unchanged, read again; ``untold_bytes``: found changed.
    ``seen_bytes``: learned from the disk itself: with all of it the disk is proven, whatever tracking says;
    None: an older record.
    """

    device_key: int
    uuid: str
    label: str
    capacity_bytes: int
    sector_bytes: int = 512
    change_id: str = ""
    adapter: str = ""
    storage_policy: str = ""
    chain: tuple[str, ...] = ()
    read_bytes: int = 0
    changed_bytes: int = 0
    stored_bytes: int = 0
    zero_bytes: int = 0
    allocated_bytes: int | None = None
    level_reason: str = ""
    audited_bytes: int = 0
    untold_bytes: int = 0
    seen_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRecord:
    """One committed point. ``configuration`` is the VM's configuration, JSON of the controller's."""

    point_id: str
    job_id: str
    lineage_id: str
    agent_id: str
    run_id: str
    created_at: str
    snapshot_at: str
    vcenter_id: str
    instance_uuid: str
    bios_uuid: str
    vm_name: str
    moref: str
    method: str
    transport: str
    level_asked: str
    level: str
    level_reason: str
    consistency_asked: str
    consistency_reached: str
    evidence: str
    previous_point_id: str
    group_id: str
    configuration: str
    disks: tuple[DiskRecord, ...]
    blob_kinds: tuple[str, ...] = ()
    blob_notes: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes | str) -> PointRecord:
        """The inverse of `encode`. Raises: FormatError."""
        if len(data) > RECORD_BYTES_MAX:
            raise FormatError("a record of a restore point is too long", length=len(data))
        try:
            document = json.loads(data)
            disks = tuple(
                DiskRecord(**(_known(DiskRecord, disk) | {"chain": tuple(disk.get("chain", ()))}))
                for disk in document["disks"]
            )
            known = _known(cls, document)
            known |= {"disks": disks, "blob_kinds": tuple(document.get("blob_kinds", ()))}
            return cls(**known)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError("a record of a restore point cannot be read") from error

    def disk(self, device_key: int) -> DiskRecord | None:
        """The disk of that key; None: there is none."""
        return next((disk for disk in self.disks if disk.device_key == device_key), None)


def _known(of: type, document: dict[str, Any]) -> dict[str, Any]:  # JSON has no better type
    names = {item.name for item in fields(of)}
    return {name: value for name, value in document.items() if name in names}
