"""What the controller puts into a point for its own later use: configuration, snapshot tree, host build."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from holdfast_common.errors import FormatError
from holdfast_common.identity import LineageId
from holdfast_common.point_record import PointRecord
from holdfast_controller.decide.disk_choice import LeftOutDisk
from holdfast_controller.decide.level import (
    COMPARE,
    DIFFERENTIAL,
    FULL,
    PreviousDisk,
    PreviousPoint,
    nothing_below,
)
from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import LEFT_VERSION, EntryKind
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFacts:
    """``configuration``: the VM's, as `vsphere.configuration` writes it (JSON). ``left_out``: disks that the point lacks."""

    configuration: str
    snapshot_tree: str
    host_build: str
    left_out: tuple[LeftOutDisk, ...] = ()

    def encode(self) -> str:
        """One JSON text, kept in the point as it is."""
        return json.dumps(
            {
                "configuration": json.loads(self.configuration),
                "snapshot_tree": self.snapshot_tree,
                "host_build": self.host_build,
                "left_out": [asdict(disk) for disk in self.left_out],
            },
            sort_keys=True,
        )

    @classmethod
    def decode(cls, text: str) -> PointFacts:
        """The inverse. Raises: FormatError."""
        try:
            found = json.loads(text)
            return cls(
                configuration=json.dumps(found["configuration"], sort_keys=True),
                snapshot_tree=str(found["snapshot_tree"]),
                host_build=str(found["host_build"]),
                left_out=tuple(LeftOutDisk(**each) for each in found.get("left_out", ())),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError("a point's facts of its VM cannot be read") from error


def left_out_of(point: PointRow) -> list[str]:
    """For people: the disks that a point lacks; none where its record does not tell."""
    try:
        facts = PointFacts.decode(point.decoded().configuration)
    except FormatError:
        return []
    return [disk.text() for disk in facts.left_out]


def doubt_of_history(world: World, previous: PointRow | None, vm: VmFacts) -> str:
    """Why a VM may have been reverted since the previous point although its snapshots stand as then.

    ``vm`` as it is before our snapshot. A revert to the snapshot on which it stands leaves the same
    tree, and after a second one the same file names; only the configuration's version differs.
    Empty: it was not reverted.
    """
    if previous is None or not vm.snapshots:
        return ""
    left = [
        entry.fact(LEFT_VERSION)
        for entry in world.ledger.of_job(previous.job_id)
        if entry.kind is EntryKind.SNAPSHOT
    ]
    if left and left[-1] and left[-1] == vm.configuration_version:
        return ""
    return (
        "the VM stands on its users' snapshots and was changed since the previous point:"
        " it may have been reverted"
    )


def point_below(world: World, lineage_id: LineageId, level: str) -> PointRow | None:
    """The point that one of that level stands on; None: there is none."""
    if level == DIFFERENTIAL:
        return world.catalogue.latest_full(lineage_id)
    return world.catalogue.latest(lineage_id)


def expected_level(world: World, lineage_id: LineageId, level: str) -> str:
    """Of which level a point will probably be when that one is asked for, and why, for people."""
    if level == FULL:
        return "full, as asked"
    if point_below(world, lineage_id, level) is None:
        return f"full, because {nothing_below(level)}"
    if reason := world.catalogue.full_needed(lineage_id):
        return f"full, because {reason}"
    doubt = world.catalogue.tracking_doubt(lineage_id)
    if doubt:
        return f"{level} that reads everything, because {doubt}"
    return "full, compared with the previous point" if level == COMPARE else level


def previous_point(record: PointRecord) -> PreviousPoint:
    """A point as `decide.level` compares with it. Raises: FormatError."""
    facts = PointFacts.decode(record.configuration)
    return PreviousPoint(
        disks=tuple(
            PreviousDisk(
                device_key=disk.device_key,
                backing_uuid=disk.uuid,
                capacity_bytes=disk.capacity_bytes,
                chain=disk.chain,
                change_id=disk.change_id,
            )
            for disk in record.disks
        ),
        snapshot_tree=facts.snapshot_tree,
        host_build=facts.host_build,
    )
