from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast_common.errors import Refused
from holdfast_common.identity import DatastoreId
from holdfast_common.point_record import DiskRecord
from holdfast_common.units import GIB
from holdfast_controller.facts import DatastoreFacts
from holdfast_controller.runs.restore_target import FREE_BYTES_LEFT_MIN, check_room

STORE = DatastoreFacts(
    moref="datastore-1",
    datastore_id=DatastoreId("ds:///nfs1/"),
    name="nfs1",
    kind="NFS",
    capacity_bytes=100 * GIB,
    free_bytes=20 * GIB + FREE_BYTES_LEFT_MIN,
    accessible=True,
    datacenter_moref="datacenter-1",
)
# of an incremental, which read next to nothing
DISK = DiskRecord(
    device_key=2000,
    uuid="6000c29",
    label="Hard disk 1",
    capacity_bytes=50 * GIB,
    read_bytes=1 << 20,
    allocated_bytes=20 * GIB,
)


def test_room_is_needed_for_what_the_disks_hold_not_for_what_the_backup_read() -> None:
    check_room([DISK], {2000: STORE})
    for disk in (
        replace(DISK, allocated_bytes=20 * GIB + 1),
        replace(DISK, allocated_bytes=None),  # then its size
    ):
        with pytest.raises(Refused, match="too little room"):
            check_room([disk], {2000: STORE})
    check_room([replace(DISK, allocated_bytes=0)], {2000: replace(STORE, free_bytes=2 * GIB)})


def test_disks_on_one_datastore_need_room_together() -> None:
    second = replace(DISK, device_key=2001, allocated_bytes=1)
    with pytest.raises(Refused, match="too little room"):
        check_room([DISK, second], {2000: STORE, 2001: STORE})
    other = replace(STORE, moref="datastore-2")
    check_room([DISK, second], {2000: STORE, 2001: other})


def test_a_datastore_that_is_not_accessible_is_refused() -> None:
    with pytest.raises(Refused, match="not accessible"):
        check_room([DISK], {2000: replace(STORE, accessible=False)})
