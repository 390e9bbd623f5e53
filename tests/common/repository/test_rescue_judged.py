"""`rescue.py` before the damages that the engine's check is judged by: found, no wrong byte, and no other end.

The oracle is the originals: what rescue.py gives out is compared with them block by block.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.repository import rescue
from support.damaged_worlds import Original
from support.damages import FREE_TO_GO, KINDS, Damage, Damaged, drawn
from support.repositories import BLOCK, DEVICE_KEY

SEED = 7000
NOT_ITS_OWN = {"description"}  # rescue.py reads no page about itself
# What nobody needs who only wants to restore, and of which only the catalogue or later objects know.
NOT_SEEN = FREE_TO_GO | {
    ("index", Damage.REMOVE),  # the packs' own footers are read instead
    ("manifest", Damage.REMOVE),
    ("fence", Damage.REMOVE),
    *((kind, damage) for kind in ("lease", "proof") for damage in (Damage.SWAP, Damage.REPLAY)),
}
LISTS = {"list of writers", "copy of the list"}


def may_be_clean(damaged: Damaged, kind: str, damage: Damage) -> bool:
    """Whether rescue.py need not find it: a list of writers is superseded by the next one."""
    names = [name for name in damaged.world.store.objects if name.startswith("writers/")]
    is_superseded = damaged.name.removesuffix("-copy") < max(names).removesuffix("-copy")
    return (kind, damage) in NOT_SEEN or (kind in LISTS and is_superseded)


def on_disk(damaged: Damaged, folder: Path) -> list[str]:
    """The command line's beginning."""
    for name, data in damaged.store.objects.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sheet = folder.parent / "sheet"
    sheet.write_text(damaged.world.repository.sheet.key_text())
    return [str(folder), "--recovery-sheet-file", str(sheet)]


def opened(line: list[str]) -> rescue.Rescue:
    options = argparse.Namespace(
        folder=line[0],
        key_file=None,
        private_key_file=None,
        passphrase_file=None,
        recovery_sheet_file=line[2],
        accept_unverified=False,
    )
    return rescue.Rescue(options)


def lost_blocks(found: rescue.Rescue, original: Original, *, point: rescue.Point) -> set[int]:
    """Compares what is given out with the original; the blocks that are not."""
    (disk,) = (d for d in point.disks if int(d["header"]["device_key"]) == DEVICE_KEY)
    disk_map = rescue.DiskMap(found.folder, found.keys, point, disk)
    image = bytearray(len(original.image))
    lost: set[int] = set()
    for piece in rescue.disk_pieces(disk_map, found.chunks):
        if isinstance(piece, rescue.Gap):
            lost |= set(range(piece.start // BLOCK, -(-piece.end // BLOCK)))
        else:
            image[piece[0] : piece[0] + len(piece[1])] = piece[1]
    for number in set(range(-(-len(image) // BLOCK))) - lost:
        start = number * BLOCK
        assert image[start : start + BLOCK] == original.image[start : start + BLOCK], "a wrong byte"
    return lost


def told_lost(ranges: list[list[int]]) -> set[int]:
    return {block for start, end, *_ in ranges for block in range(start // BLOCK, -(-end // BLOCK))}


def judged(
    damaged: Damaged, folder: Path, capsys: pytest.CaptureFixture[str], *, is_harmless: bool
) -> Iterator[str]:
    """What is wrong with rescue.py's answer."""
    line = on_disk(damaged, folder)
    capsys.readouterr()
    status = rescue.main([line[0], "check", "--read-data", "--json", *line[1:]])
    document = json.loads(capsys.readouterr().out)
    if status != (0 if document["clean"] else 1):
        yield f"exit status {status}"
    if document["clean"] and not is_harmless:
        yield "not found"
    rows = {row["point_id"]: row for row in document["points"]}
    found = opened(line)
    points = {point.point_id: point for point in found.points if point.refusal is None}
    if points.keys() != rows.keys():
        yield "check and list name different points"
    for original in damaged.world.originals:
        point_id = original.point.point_id
        if point_id not in points:
            continue
        lost = lost_blocks(found, original, point=points[point_id])
        told = told_lost(rows[point_id]["lost"].get(str(DEVICE_KEY), []))
        if lost != told:
            yield f"{point_id}: lost {sorted(lost)[:5]}, told {sorted(told)[:5]}"
        for blob in points[point_id].body["blobs"]:
            data, gaps = rescue.blob_bytes(found, blob)
            if bool(gaps) != (blob["kind"] in rows[point_id]["lost_blobs"]):
                yield f"{point_id}: {blob['kind']} is told wrongly"
            assert gaps or data == original.blobs[blob["kind"]], "a wrong byte of a blob"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_ITS_OWN])
def test_rescue_finds_every_damage_and_gives_out_no_wrong_byte(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for damage in Damage:
        damaged = drawn(kind, damage, SEED)
        harmless = may_be_clean(damaged, kind, damage)
        found = judged(damaged, tmp_path / damage / "r", capsys, is_harmless=harmless)
        wrong += [f"{damaged.told}: {each}" for each in found]
    assert not wrong, "\n".join(wrong)
