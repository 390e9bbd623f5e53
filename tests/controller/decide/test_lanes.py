"""Lanes of a VM: disks that share storage never run side by side, the others as far as it is allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.identity import DatastoreId
from holdfast_controller.decide.lanes import LANES_MAX, lanes_of, storage_text
from holdfast_controller.facts import ChainLink, DiskFacts
from support.vm_facts import disk_of

GIB = 1 << 30


def on(*datastores: str, key: int = 2000, size: int = GIB, raw_mapping: str = "") -> DiskFacts:
    """A disk whose chain lies there."""
    chain = tuple(
        ChainLink(
            datastore_id=DatastoreId(f"ds:///{name}/"),
            datastore_moref=name,
            datastore_name=name,
            path=f"web/{key}-{number}.vmdk",
        )
        for number, name in enumerate(datastores)
    )
    disk = disk_of(key, f"Hard disk {key - 1999}")
    return replace(disk, chain=chain, capacity_bytes=size, raw_mapping=raw_mapping)


def keys(disks: list[DiskFacts], *, lanes_max: int = LANES_MAX) -> list[list[int]]:
    return [[disk.device_key for disk in lane] for lane in lanes_of(disks, lanes_max=lanes_max)]


@pytest.mark.parametrize(
    ("disks", "lanes"),
    [
        ([], []),
        ([on("a")], [[2000]]),
        ([on("a"), on("a", key=2001)], [[2000, 2001]]),
        ([on("a"), on("b", key=2001)], [[2000], [2001]]),
        ([on("a"), on("b", key=2001), on("a", key=2002)], [[2000, 2002], [2001]]),
        # a link of its chain on the other datastore binds them together
        ([on("a"), on("b", key=2001), on("a", "b", key=2002)], [[2000, 2001, 2002]]),
        # what a raw device in virtual mode holds is on no datastore
        (
            [on("a"), on("a", key=2001, raw_mapping="virtual"), on("a", key=2002)],
            [[2000, 2002], [2001]],
        ),
    ],
)
def test_disks_on_storage_of_their_own_form_lanes(
    disks: list[DiskFacts], lanes: list[list[int]]
) -> None:
    assert keys(disks) == lanes


def test_where_fewer_lanes_are_allowed_the_largest_storages_are_spread_first() -> None:
    disks = [
        on("a", size=3 * GIB),
        on("b", key=2001, size=5 * GIB),
        on("c", key=2002, size=2 * GIB),
    ]
    assert keys(disks, lanes_max=1) == [[2000, 2001, 2002]]
    assert keys(disks, lanes_max=2) == [[2000, 2002], [2001]]
    assert keys(disks, lanes_max=3) == [[2000], [2001], [2002]]


def test_a_lane_tells_its_disks_and_what_they_are_read_from() -> None:
    lanes = lanes_of(
        [on("a"), on("a", key=2001), on("b", key=2002, raw_mapping="virtual")], lanes_max=2
    )
    assert [storage_text(lane) for lane in lanes] == [
        "Hard disk 1, Hard disk 2 on a",
        "Hard disk 3 on a raw device",
    ]


@given(
    st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=3), max_size=10),
    st.integers(min_value=1, max_value=LANES_MAX),
)
def test_each_disk_is_in_one_lane_and_no_two_lanes_share_a_datastore(
    chains: list[list[str]], lanes_max: int
) -> None:
    disks = [on(*names, key=2000 + number) for number, names in enumerate(chains)]
    lanes = lanes_of(disks, lanes_max=lanes_max)
    found = [disk.device_key for lane in lanes for disk in lane]
    assert sorted(found) == [disk.device_key for disk in disks]
    assert len(lanes) <= lanes_max
    stores = [{link.datastore_id for disk in lane for link in disk.chain} for lane in lanes]
    for number, each in enumerate(stores):
        for other in stores[number + 1 :]:
            assert not each & other
