"""VMDK descriptors of the lab: what is written is read again, nonsense is refused."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from holdfast_lab.storage.descriptor import (
    CreateType,
    Descriptor,
    canonical_uuid,
    descriptor_uuid,
    from_text,
    load,
    new_cid,
    new_disk_uuid,
    save,
    to_text,
)
from holdfast_lab.storage.errors import DescriptorError

NAMES = st.text(st.characters(blacklist_characters='"/\\', min_codepoint=32), min_size=1).map(
    lambda text: text.strip() + ".vmdk"
)


@given(
    create_type=st.sampled_from(CreateType),
    sectors=st.integers(1, 2**40),
    extent_name=NAMES,
    cid=st.integers(0, 2**32 - 1),
    parent=st.none() | NAMES,
    track=st.none() | NAMES,
    uuid=st.none() | st.just("").map(lambda _: new_disk_uuid()),
    thin=st.booleans(),
)
def test_a_written_descriptor_is_read_again(
    create_type: CreateType,
    sectors: int,
    extent_name: str,
    cid: int,
    parent: str | None,
    track: str | None,
    uuid: str | None,
    thin: bool,
) -> None:
    descriptor = Descriptor(
        create_type=create_type,
        capacity_bytes=sectors * 512,
        extent_name=extent_name,
        cid=cid,
        parent_cid=7,
        parent_name=parent,
        change_track_name=track,
        uuid=uuid,
        thin=thin,
    )
    assert from_text(to_text(descriptor)) == descriptor


@given(text=st.text(max_size=300))
def test_nonsense_is_refused_with_a_clear_error(text: str) -> None:
    with pytest.raises(DescriptorError):
        from_text(text)


def test_uuids_have_two_spellings() -> None:
    uuid = new_disk_uuid()
    assert uuid.startswith("6000C29")
    assert len(uuid) == 36
    assert canonical_uuid(descriptor_uuid(uuid)) == uuid
    with pytest.raises(DescriptorError):
        canonical_uuid("6000C29")


@pytest.mark.parametrize("name", ["/etc/passwd", "../other-flat.vmdk", "", ".."])
def test_an_extent_outside_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(DescriptorError):
        Descriptor(create_type=CreateType.FLAT, capacity_bytes=512, extent_name=name, cid=1)


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "web.vmdk"
    path.write_bytes(b"#" * 100_000)
    with pytest.raises(DescriptorError, match="large"):
        load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DescriptorError, match="text"):
        load(path)


def test_several_extents_are_refused() -> None:
    text = to_text(
        Descriptor(create_type=CreateType.FLAT, capacity_bytes=512, extent_name="a", cid=new_cid())
    )
    with pytest.raises(DescriptorError, match="2 extents"):
        from_text(text + 'RW 1 VMFS "b"\n')


def test_saving_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "web.vmdk"
    for cid in (1, 2):
        save(
            path,
            Descriptor(create_type=CreateType.FLAT, capacity_bytes=512, extent_name="a", cid=cid),
        )
    assert load(path).cid == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a\u2028b.vmdk", "a\x85b.vmdk", "Büro 1.vmdk"])
def test_names_with_odd_letters_stay_whole(name: str) -> None:
    descriptor = Descriptor(
        create_type=CreateType.COWD, capacity_bytes=512, extent_name=name, cid=1
    )
    assert from_text(to_text(descriptor)) == descriptor
