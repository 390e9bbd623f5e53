"""What `rescue.py` does with damage: it goes on, says which byte ranges are lost, and gives out no wrong byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from blake3 import blake3

from holdfast_common.repository import rescue
from support.golden_machines import NAME, steps
from support.golden_repository import GOLDEN
from support.memory_store import MemoryStore
from support.repositories import BLOCK, Repository, new_repository, patterned

MIB = 1 << 20
SHEET = str(GOLDEN / f"{NAME}.recovery")


@pytest.fixture
def machines(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / NAME, tmp_path / "repository")
    return tmp_path / "repository"


def run(folder: Path, *arguments: str, sheet: str = SHEET) -> int:
    return rescue.main([str(folder), *arguments, "--recovery-sheet-file", sheet])


def checked(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    capsys.readouterr()
    run(folder, "check", "--json", *more)
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def lost(document: dict[str, object]) -> dict[tuple[str, str], list[list[int]]]:
    """Byte ranges by point and disk."""
    rows = document["points"]
    assert isinstance(rows, list)
    return {
        (row["point_id"], disk): [found[:2] for found in ranges]
        for row in rows
        for disk, ranges in row["lost"].items()
    }


def files_of(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in (folder / kind).rglob("*") if path.is_file())


def damaged(path: Path, at: int, *, length: int = 8) -> None:
    data = bytearray(path.read_bytes())
    at %= len(data)
    for n in range(at, min(at + length, len(data))):
        data[n] ^= 0x5A
    path.write_bytes(data)


def image_of(job_id: str, device_key: int) -> bytes:
    disk = next(step for step in steps() if step.job_id == job_id).disks[device_key]
    image = bytearray(disk.capacity_bytes)
    for offset, data in disk.pieces.items():
        image[offset : offset + len(data)] = data
    return bytes(image)


def test_without_indexes_the_packs_own_footers_are_read(machines: Path, tmp_path: Path) -> None:
    shutil.rmtree(machines / "index")
    assert run(machines, "restore", "JOB00003", "--disk", "2000", "--to", f"{tmp_path}/d") == 0
    assert (tmp_path / "d").read_bytes() == image_of("JOB00003", 2000)


def test_a_damaged_index_is_told_and_does_no_harm(
    machines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in files_of(machines, "index"):
        damaged(path, 300)
    document = checked(machines, capsys)
    assert document["clean"] is False
    assert not lost(document)
    assert len(document["damage"]) == len(files_of(machines, "index"))  # type: ignore[arg-type]  # a list
    assert run(machines, "restore", "JOB00003", "--disk", "2000", "--to", f"{tmp_path}/d") == 0


def test_a_lost_trailer_is_no_loss_even_without_an_index(
    machines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(machines / "index")
    for path in files_of(machines, "packs"):
        path.write_bytes(path.read_bytes()[:-10])
    assert not lost(checked(machines, capsys))
    assert run(machines, "restore", "JOB00001", "--disk", "2000", "--to", f"{tmp_path}/d") in (0, 1)


def test_a_copy_of_keys_and_writers_is_enough(
    machines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(machines / "keys" / "0000000001", 200)
    (machines / "writers" / "0000000001-copy").unlink()
    document = checked(machines, capsys)
    assert {row["object"] for row in document["damage"]} == {  # type: ignore[attr-defined]  # a list
        "keys/0000000001",
        "writers/0000000001-copy",
    }


@pytest.mark.parametrize("job_id", ["JOB00001", "JOB00004"])
def test_exactly_what_is_lost_is_told_and_the_rest_is_right(
    job_id: str, machines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each pack in turn has a damaged blob somewhere; the disk is compared byte by byte."""
    image = image_of(job_id, 2000)
    found_any = False
    places = [(path, part) for path in files_of(machines, "packs") for part in (12, 6, 3)]
    for number, (path, part) in enumerate(places):
        whole = path.read_bytes()
        damaged(path, len(whole) // part)
        ranges = lost(checked(machines, capsys, "--read-data")).get((job_id, "2000"), [])
        to = tmp_path / f"disk{number}"
        arguments = ["restore", job_id, "--disk", "2000", "--to", str(to)]
        status = run(machines, *arguments)
        said = capsys.readouterr().err
        assert status == (1 if ranges else 0)
        assert to.exists() == (not ranges)
        assert not to.with_name(to.name + ".partial").exists()
        if ranges:
            found_any = True
            assert "--despite-damage" in said
            assert run(machines, *arguments, "--despite-damage") == 1
        expected = bytearray(image)
        for start, end in ranges:
            assert f"bytes {start} to {end}" in said
            expected[start:end] = bytes(end - start)
        assert to.read_bytes() == expected
        path.write_bytes(whole)
    assert found_any


def test_a_missing_pack_is_seen_before_anything_is_written(
    machines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in files_of(machines, "packs"):
        path.unlink()
    assert run(machines, "restore", "JOB00001", "--disk", "2000", "--to", f"{tmp_path}/d") == 1
    assert "nothing was written" in capsys.readouterr().err
    assert run(machines, "extract", "JOB00001", "--to", f"{tmp_path}/files") == 1
    assert list((tmp_path / "files").iterdir()) == []


def test_a_damaged_map_loses_what_lies_below_its_pages(
    machines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in files_of(machines, "maps"):
        path.write_bytes(path.read_bytes()[:130])
    ranges = lost(checked(machines, capsys))
    assert ranges["JOB00001", "2000"] == [[0, 40 * MIB]]
    assert ranges["JOB00004", "2001"] == [[0, 5 << 30]]


def test_a_damaged_manifest_is_named_and_the_other_points_stay(
    machines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(path for path in files_of(machines, "points") if path.name == "JOB00003")
    damaged(path, 400)
    assert run(machines, "list", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [row["job_id"] for row in document["points"]] == [
        "JOB00001", "JOB00002", "JOB00004", "JOB00005",
    ]  # fmt: skip
    assert "JOB00003" in document["damage"][0]["object"]


def test_a_wrong_grant_or_an_unlisted_writer_does_not_count_until_that_is_accepted(
    machines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(path for path in files_of(machines, "points") if path.name == "JOB00003")
    damaged(path, -10)
    arguments = ["restore", "JOB00003", "--disk", "2000", "--to", f"{tmp_path}/d"]
    assert run(machines, *arguments) == 2
    assert "its commit grant is wrong" in capsys.readouterr().err
    assert run(machines, *arguments, "--accept-unverified") == 0
    shutil.rmtree(machines / "writers")
    assert run(machines, "list") == 1
    assert "not in the list of writers" in capsys.readouterr().out


def stored(repository: Repository, folder: Path) -> str:
    """Put a repository of memory into a folder; the file that holds its sheet."""
    assert isinstance(repository.store, MemoryStore)
    for name, data in repository.store.objects.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sheet = folder.parent / "sheet"
    sheet.write_text(repository.sheet.key_text())
    return str(sheet)


@pytest.mark.parametrize("is_kept", [True, False])
def test_points_of_a_revoked_writer_count_only_if_they_were_accepted(
    is_kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = new_repository(MemoryStore())
    repository.backup(patterned(BLOCK, "early"))
    repository.keys.revoke_writer(
        repository.store,
        repository.signing_key.public_key().public_bytes_raw(),
        clock=repository.clock,
        keep_existing=is_kept,
    )
    sheet = stored(repository, tmp_path / "r")
    capsys.readouterr()
    run(tmp_path / "r", "list", "--json", sheet=sheet)
    (point,) = json.loads(capsys.readouterr().out)["points"]
    assert point["counts"] is is_kept
    assert ("revoked" in (point["refusal"] or "")) is not is_kept


def test_a_refused_command_line_says_what_is_there(
    machines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(machines, "restore", "JOB00001", "--to", "x") == 2
    assert "2000" in capsys.readouterr().err
    assert run(machines, "restore", "JOB0000", "--to", "x") == 2
    assert "is the start of 5 points" in capsys.readouterr().err
    assert run(machines, "restore", "nothing", "--to", "x") == 2
    assert run(machines, "extract", "web", "--kind", "bios", "--to", "x") == 2


class GivenChunks(rescue.Chunks):
    """Chunks whose stored bytes are given: what engines of today never write can be read all the same."""

    def __init__(self, keys: rescue.Keys, places: dict[rescue.Location, bytes]) -> None:
        locations = SimpleNamespace(of=lambda _: list(places), search_everywhere=lambda: False)
        super().__init__(cast("rescue.Folder", None), keys, cast("rescue.Locations", locations))
        self._places = places

    def plain(self, place: rescue.Location) -> bytes:
        return self._places[place]


def test_hollow_frames_are_checked_by_their_digests_and_put_together() -> None:
    authority = rescue.Authority(bytes(32))
    keys = rescue.Keys(1, bytes(16), bytes(16), (authority,), bytes(range(32)), {})
    blocks = [bytes([n]) * (BLOCK if n < 3 else 512) for n in (1, 2, 3)]
    block_key, frame_key = (
        keys.derived(b"holdfast 1 block digest"),
        keys.derived(b"holdfast 1 frame id"),
    )
    digests = b"".join(blake3(block, key=block_key).digest()[:16] for block in blocks)
    chunk_id = blake3(digests, key=frame_key).digest()

    def hollow(presence: int, *, pack: bytes, of: bytes = digests) -> rescue.Location:
        origin = rescue.Origin(bytes(16), 1, bytes(80))
        return rescue.Location(chunk_id, pack, origin, 0, 0, 0, 0, 1, 3, presence, of)

    ends, middle = blocks[0] + blocks[2], blocks[1]
    first, second = hollow(0b101, pack=b"a" * 32), hollow(0b010, pack=b"b" * 32)
    frame, _ = GivenChunks(keys, {first: ends, second: middle}).frame(chunk_id, {0, 1, 2})
    assert frame == dict(enumerate(blocks))
    frame, why = GivenChunks(keys, {first: ends}).frame(chunk_id, {1})
    assert 1 not in frame
    assert "hollow" in why
    forged = hollow(0b101, pack=b"c" * 32, of=bytes(48))
    frame, why = GivenChunks(keys, {forged: bytes(BLOCK + 512)}).frame(chunk_id, {0})
    assert not frame
    assert "another than its id says" in why


def test_all_commands_end_well_on_a_whole_repository_without_the_fast_packages(
    machines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rescue, "FAST_BLAKE3", None)
    monkeypatch.setattr(rescue, "NEW_ZSTD_DECOMPRESSOR", None)
    for form in ("raw", "vmdk", "vmdk-flat"):
        to = f"{tmp_path}/disk.{form}"
        arguments = ["restore", "JOB00003", "--disk", "2000", "--format", form, "--to", to]
        assert run(machines, *arguments, "--json") == 0
    assert (tmp_path / "disk.raw").read_bytes() == image_of("JOB00003", 2000)
    assert run(machines, "extract", "JOB00001", "--kind", "vmx", "--to", f"{tmp_path}/vmx") == 0
    assert run(machines, "check", "--read-data", "--work-folder", str(tmp_path)) == 0
    capsys.readouterr()
    assert run(machines, "points") == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 5
    assert run(machines, "list") == 0
    assert "files of the VM: vmx, nvram, ovf" in capsys.readouterr().out
