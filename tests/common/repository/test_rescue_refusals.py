"""What `rescue.py` says of objects that open and are nonsense all the same: a damaged or hostile writer made them."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import sys
import time
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_common.repository import rescue

NAME = "index/" + "ab" * 16
KEY = bytes(range(32))
NO_KEYS: Any = None  # nothing is opened with them here
ORIGIN = rescue.Origin(bytes(16), 1, bytes(80))


def new(kind: type[Any], **attributes: object) -> Any:
    """An object as far as a test needs it: what it is read from was opened before."""
    made: Any = object.__new__(kind)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def place(**changes: object) -> rescue.Location:
    values: dict[str, Any] = {
        "chunk_id": bytes(32),
        "pack": bytes(32),
        "origin": ORIGIN,
        "number": 0,
        "offset": 0,
        "stored_length": 10,
        "plain_length": 10,
        "kind": rescue.BLOB_DISK_FRAME,
        "blocks": 1,
        "presence": 1,
        "digests": None,
    }
    return rescue.Location(**(values | changes))


# --- zstd ---------------------------------------------------------------------------------------------


def test_every_way_in_which_a_table_of_zstd_can_be_wrong_is_named() -> None:
    """Noise instead of tables and blocks: it is refused, or decoded to something; never an endless loop."""
    source, said = random.Random(3), set()
    for _ in range(30_000):
        data = source.randbytes(source.choice((1, 2, 3, 5, 9, 20, 60)))
        for parse in (
            lambda data=data: rescue._fse_table(*rescue._fse_description(data, 9, 36)[:2]),
            lambda data=data: rescue._huffman_weights(data),
            lambda data=data: rescue._huffman_table(data),
            lambda data=data: rescue._ZstdFrame(1 << 17, 1 << 17).block(2, data, len(data)),
        ):
            try:
                parse()
            except rescue.DamagedError as error:
                said.add(str(error))
            except IndexError:
                said.add("beyond a table")
    assert {
        "zstd: an FSE table is too large",
        "zstd: an FSE table has too many symbols",
        "zstd: Huffman weights are cut off",
        "zstd: a Huffman table is cut off",
        "zstd: a Huffman table does not add up",
        "zstd: a block is cut off",
        "zstd: a block is too long",
        "zstd: a repeated code is out of range",
        "zstd: a table is repeated that was never given",
        "zstd: literals are cut off",
        "zstd: a Huffman table is repeated that was never given",
    } <= said


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (3, b"", "an unknown kind of block"),
        (2, b"", "an empty block"),
        (0, bytes(200), "more bytes than were announced"),
    ],
)
def test_a_block_that_cannot_be_is_refused(kind: int, data: bytes, said: str) -> None:
    with pytest.raises(rescue.DamagedError, match=said):
        rescue._ZstdFrame(1 << 17, 100).block(kind, data, len(data))


def test_an_fse_table_that_does_not_fill_its_places_is_refused() -> None:
    with pytest.raises(rescue.DamagedError, match="does not add up"):
        rescue._fse_table(5, [1])


def test_words_are_turned_round_on_a_machine_that_writes_them_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = rescue._u32_array(b"\1\2\3\4")
    wide = rescue._Lanes.of(1).words(0x04030201)
    here = rescue._little(straight)
    monkeypatch.setattr(sys, "byteorder", {"little": "big", "big": "little"}[sys.byteorder])
    assert rescue._u32_array(b"\4\3\2\1") == straight
    assert rescue._little(straight) == here[::-1]
    assert rescue._Lanes.of(1).words(0x0102030400000000) == wide


# --- what opens a repository --------------------------------------------------------------------------


def sheet(secret: bytes, check: bytes) -> str:
    """A recovery sheet whose groups are right one by one."""
    parts = []
    for number in range(1, 9):
        part = secret[4 * number - 4 : 4 * number]
        mark = rescue.blake3_of(b"holdfast 1 recovery sheet" + bytes([number]) + part)[:1]
        parts.append(part + mark)
    values = [int.from_bytes(part, "big") for part in (*parts, check)]
    return "".join(
        rescue._CROCKFORD[value >> shift & 31] for value in values for shift in range(35, -1, -5)
    )


def test_a_sheet_of_groups_that_do_not_belong_together_is_refused() -> None:
    secret = bytes(range(32))
    check = rescue.blake3_of(b"holdfast 1 recovery sheet" + secret)[:5]
    assert rescue.sheet_secret(sheet(secret, check)) == secret
    with pytest.raises(rescue.RescueError, match="group 9 does not fit the others"):
        rescue.sheet_secret(sheet(bytes(32), check))


@pytest.mark.parametrize(
    "cost",
    [
        {"memory_kib": 1 << 40, "iterations": 1, "lanes": 1},
        {"memory_kib": 8, "iterations": 1 << 30, "lanes": 1},
        {"memory_kib": 8, "iterations": 1, "lanes": 1 << 20},
        {"memory_kib": 8, "iterations": 0, "lanes": 1},
    ],
)
def test_a_passphrase_whose_cost_nobody_could_pay_is_refused(cost: dict[str, int]) -> None:
    secret = rescue.Secret("passphrase", b"x")
    with pytest.raises(rescue.DamagedError, match="beyond format 1's limits"):
        secret.private_key({"argon2id": {"salt": "00" * 16, **cost}})


def generation(
    signing: Ed25519PrivateKey,
    *,
    number: int = 1,
    body: dict[str, Any] | None = None,
    **head: object,
) -> bytes:
    """A file of a key generation, signed, with this sealed part."""
    facts: dict[str, Any] = {
        "repository_id": "11" * 16,
        "domain_id": "22" * 16,
        "generation": number,
        "salt": "00" * 32,
        "recipients": [],
        "content_public": {},
        "authority_public": signing.public_key().public_bytes_raw().hex(),
        **head,
    }
    text = json.dumps(facts).encode()
    bound = struct.pack("<8sHI", b"HFKEYS\0\0", 1, len(text)) + text
    info = b"holdfast 1 keys" + bytes.fromhex("11" * 16) + struct.pack("<I", number)
    key = rescue.hkdf(KEY, bytes(32), info)
    sealed = AESGCM(key).encrypt(bytes(12), json.dumps(body or {}).encode(), bound)
    data = bound + struct.pack("<I", len(sealed)) + sealed
    return data + signing.sign(b"holdfast 1 keys signature\0" + data)


def test_a_key_generation_under_another_number_or_with_a_forged_past_is_refused() -> None:
    signing = Ed25519PrivateKey.generate()
    found = rescue.Generation.parse("keys/0000000001", generation(signing))
    assert found.number == 1
    with pytest.raises(rescue.DamagedError, match="another generation"):
        rescue.Generation.parse("keys/0000000002", generation(signing))
    stranger = Ed25519PrivateKey.generate()
    earlier = {
        "public_key": stranger.public_key().public_bytes_raw().hex(),
        "next_generation": 1,
        "writers_number": 1,
        "signature": bytes(64).hex(),
    }
    data = generation(signing, earlier_authorities=[earlier])
    with pytest.raises(rescue.DamagedError, match="did not sign its successor"):
        rescue.Generation.parse("keys/0000000001", data)


def test_the_sealed_part_of_another_key_generation_is_refused() -> None:
    signing = Ed25519PrivateKey.generate()
    other = {"repository_id": "33" * 16, "domain_id": "22" * 16}
    found = rescue.Generation.parse("keys/0000000001", generation(signing, body=other))
    with pytest.raises(rescue.DamagedError, match="belongs to another repository"):
        found.opened(KEY)
    epoch = {"epoch": 1, "content_public": "44" * 32}
    mixed = {"repository_id": "11" * 16, "domain_id": "22" * 16, "epochs": [epoch]}
    data = generation(signing, body=mixed, content_public={"1": "55" * 32})
    with pytest.raises(rescue.DamagedError, match="different content keys"):
        rescue.Generation.parse("keys/0000000001", data).opened(KEY)


def test_without_one_whole_key_generation_the_user_reads_what_to_look_for(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "0000000001").write_bytes(b"nonsense")
    findings = rescue.Findings()
    with pytest.raises(rescue.RescueError, match="Look for a copy of the folder keys/"):
        rescue.read_generations(rescue.Folder(str(tmp_path)), findings)
    (row,) = findings.rows
    findings.add(row["object"], row["problem"])
    assert findings.rows == [row], "each is told once"


def test_a_file_larger_than_the_format_allows_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(rescue.DamagedError, match="beyond format 1's limit"):
        rescue.Folder(str(tmp_path)).read("large", 99)


def test_a_writer_without_the_role_is_told_so() -> None:
    writers = rescue.Writers(1, ({"public_key": "aa", "roles": ["write"]},))
    refused = writers.refusal(b"\xaa", "prune", bytes(32))
    assert refused is not None
    assert "has not the role 'prune'" in refused.reason
    assert writers.refusal(b"\xaa", "write", bytes(32)) is None


# --- manifests, footers, indexes ----------------------------------------------------------------------


def disk(**changes: object) -> dict[str, Any]:
    root = {"object_id": "00", "digest": "00", "length": 1, "offset": 0, "blocks": 1}
    whole: dict[str, Any] = {"header": {"capacity_bytes": 1, "device_key": 2000}, "root": root}
    return whole | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"disks": "none"},
        {"disks": [disk(header={"capacity_bytes": -1, "device_key": 1})]},
        {"disks": [disk(root={**disk()["root"], "length": 0})]},
        {"disks": [disk(root={**disk()["root"], "offset": -1})]},
        {"blobs": [{"kind": 1, "length": 1, "chunks": []}]},
        {"blobs": [{"kind": "vmx", "length": -1, "chunks": []}]},
    ],
)
def test_a_manifest_with_a_value_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    body: dict[str, Any] = {
        "point_id": "p",
        "created_at": "",
        "writer_epoch": 1,
        "disks": [disk(), disk(root=None)],
        "blobs": [],
    }
    rescue._check_shape(body)
    with pytest.raises((TypeError, ValueError)):
        rescue._check_shape(body | changes)


class OpenedObject:
    """In place of a sealed object: it opened, and holds this."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def body(self) -> bytes:
        return self._body

    def read(self, offset: int, length: int) -> bytes:
        return self._body[offset : offset + length]

    def signer(self) -> tuple[bytes, bytes]:
        return b"\xaa", bytes(32)


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        (rescue._PLAIN_HEAD.pack(b"HFPACKFX", 1, 0, 0, 0), "not of format 1"),
        (rescue._PLAIN_HEAD.pack(b"HFPACKFT", 2, 0, 0, 0), "not of format 1"),
        (rescue._PLAIN_HEAD.pack(b"HFPACKFT", 1, 0, 2**16 + 1, 0), "not of format 1"),
        (rescue._PLAIN_HEAD.pack(b"HFPACKFT", 1, 0, 0, 0) + b"more", "do not agree"),
        (rescue._PLAIN_HEAD.pack(b"HFPACKFT", 1, 0, 0, 1), "do not agree"),
    ],
)
def test_a_footer_that_opens_and_is_nonsense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bytes, said: str
) -> None:
    name = "pack-" + "00" * 32
    (tmp_path / name).write_bytes(plain)
    body = rescue.blake3_of(plain)
    monkeypatch.setattr(rescue, "SealedObject", lambda *_: OpenedObject(body))
    with pytest.raises(rescue.DamagedError, match=said):
        rescue._parse_footer(rescue.Folder(str(tmp_path)), name, NO_KEYS, (0, len(plain), 1))
    monkeypatch.setattr(rescue, "SealedObject", lambda *_: OpenedObject(bytes(32)))
    with pytest.raises(rescue.DamagedError, match="plain footer is damaged"):
        rescue._parse_footer(rescue.Folder(str(tmp_path)), name, NO_KEYS, (0, len(plain), 1))


def index_body(magic: bytes = b"HFINDEX1", **sections: tuple[int, bytes]) -> bytes:
    """``sections``: number and bytes of each."""
    table, data = b"", b""
    at = rescue._INDEX_HEAD.size + len(sections) * rescue._INDEX_SECTION.size
    for number, rows in sections.values():
        table += rescue._INDEX_SECTION.pack(number, 0, at + len(data), len(rows))
        data += rows
    return rescue._INDEX_HEAD.pack(magic, len(sections), 0) + table + data


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (index_body(magic=b"HFINDEX2"), "not an index of format 1"),
        (index_body(writers=(3, bytes(33))), "section 3 has a wrong length"),
        (index_body(prefixes=(4, bytes(8)), tails=(5, bytes(23))), "section 5 has a wrong length"),
    ],
)
def test_an_index_that_opens_and_is_nonsense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, said: str
) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / NAME).write_bytes(b"x")
    monkeypatch.setattr(rescue, "SealedObject", lambda *_: OpenedObject(body))
    writers = rescue.Writers(1, ({"public_key": "aa", "roles": ["write", "prune"]},))
    with pytest.raises(rescue.DamagedError, match=said):
        list(rescue.IndexSegment(rescue.Folder(str(tmp_path)), NAME, NO_KEYS, writers).locations())


# --- chunks -------------------------------------------------------------------------------------------


class KnownPlain(rescue.Chunks):
    """Chunks whose blobs decode to what a test says."""

    def __init__(self, plain: bytes) -> None:
        self._plain = plain
        self._block_key = self._frame_key = self._chunk_key = KEY

    def plain(self, place: rescue.Location) -> bytes:
        del place
        return self._plain


def test_a_blob_whose_length_nothing_has_is_not_read() -> None:
    with pytest.raises(rescue.DamagedError, match="beyond format 1's limits"):
        new(rescue.Chunks).plain(place(plain_length=1 << 40))


def test_bytes_that_are_not_what_their_id_says_never_leave() -> None:
    with pytest.raises(rescue.DamagedError, match="another chunk than its id says"):
        KnownPlain(b"bytes").verified(place(kind=rescue.BLOB_DISK_FRAME + 1))
    with pytest.raises(rescue.DamagedError, match="another than its id says"):
        KnownPlain(bytes(rescue.BLOCK_BYTES)).verified(place())
    with pytest.raises(rescue.DamagedError, match="is too short"):
        KnownPlain(bytes(10)).verified(place(blocks=2, presence=3))
    whole = rescue.blake3_of(b"bytes", KEY)
    asked = place(kind=rescue.BLOB_DISK_FRAME + 1, chunk_id=whole)
    assert KnownPlain(b"bytes").verified(asked) == {0: b"bytes"}


def test_a_file_of_a_vm_whose_chunks_do_not_add_up_is_told_and_filled_with_zeros() -> None:
    chunks = SimpleNamespace(whole=lambda _: b"abc")
    found = SimpleNamespace(chunks=chunks)
    blob = {"chunks": [("00", 3), ("01", 4)], "length": 8}
    data, gaps = rescue.blob_bytes(found, blob)  # type: ignore[arg-type]  # all that it asks of it
    assert data == b"abc" + bytes(4)
    assert [(gap.start, gap.end) for gap in gaps] == [(3, 7), (0, 8)]
    assert "another length" in gaps[0].why


# --- maps ---------------------------------------------------------------------------------------------


def disk_map(capacity: int = rescue.LEAF_BYTES, root: object = None) -> Any:
    return new(
        rescue.DiskMap,
        capacity=capacity,
        _root=root,
        _page_key=KEY,
        _tag=bytes(16),
        _objects={bytes(16): OpenedObject(PAGE)},
    )


def leaf(*runs: tuple[int, int], frames: int = 1) -> bytes:
    """Runs as (first block, blocks)."""
    head = rescue._PAGE_HEAD.pack(0, 0, len(runs), frames, 0, 0)
    return head + b"".join(bytes([first, count - 1, 0, 0]) for first, count in runs) + bytes(32)


PAGE = leaf((0, 1))


def test_a_disk_without_a_map_is_all_zeros() -> None:
    assert list(disk_map().leaves()) == []
    assert disk_map().mapped_bytes == 0


def test_a_disk_larger_than_the_format_allows_is_lost_and_told() -> None:
    root = {"object_id": "00", "offset": 0, "length": 1, "digest": "00", "blocks": 1}
    capacity = rescue.LEAF_BYTES * 256 ** (rescue.TREE_LEVELS_MAX + 1)
    (gap,) = disk_map(capacity, root).leaves()
    assert (gap.start, gap.end) == (0, capacity)
    assert "larger than format 1 allows" in gap.why


@pytest.mark.parametrize(
    ("page", "blocks", "said"),
    [
        (leaf((4, 2), (5, 1)), 3, "overlap"),
        (leaf((255, 2)), 2, "maps more than the disk has"),
        (leaf((0, 2)), 3, "another number of blocks"),
    ],
)
def test_a_leaf_that_cannot_be_is_refused(page: bytes, blocks: int, said: str) -> None:
    with pytest.raises(rescue.DamagedError, match=said):
        disk_map()._runs(page, 0, blocks)


def test_children_out_of_order_are_refused() -> None:
    rows = [rescue._PAGE_CHILD.pack(slot, 0, 0, 1, 0, 1, bytes(32)) for slot in (2, 1)]
    page = rescue._PAGE_HEAD.pack(1, 0, 2, 1, 0, 0) + bytes(16) + b"".join(rows)
    with pytest.raises(rescue.DamagedError, match="not in order"):
        disk_map()._children(page, 0)


def test_a_page_with_other_bytes_or_of_another_place_is_refused() -> None:
    digest = rescue.blake3_of(PAGE, KEY)
    right = rescue.PageReference(bytes(16), 0, len(PAGE), digest, 1)
    found = disk_map()
    found._objects = OrderedDict(found._objects)
    assert found._page(0, 0, right) == PAGE
    for level, number, reference, said in (
        (0, 0, rescue.PageReference(bytes(16), 0, 0, digest, 1), "beyond format 1's limits"),
        (0, 0, rescue.PageReference(bytes(16), 0, len(PAGE), bytes(32), 1), "other bytes"),
        (0, 1, right, "another place"),
        (1, 0, right, "another place"),
    ):
        with pytest.raises(rescue.DamagedError, match=said):
            found._page(level, number, reference)


# --- what is written ----------------------------------------------------------------------------------


def test_without_hard_links_a_result_is_renamed_and_never_replaces_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    image = rescue.RawImage(tmp_path / "disk.raw", 10)
    image.write(0, b"0123456789")
    image.finish()
    assert (tmp_path / "disk.raw").read_bytes() == b"0123456789"
    second = rescue.RawImage(tmp_path / "other.raw", 10)
    (tmp_path / "other.raw").write_bytes(b"somebody's")
    with pytest.raises(rescue.RescueError, match="appeared in the meantime"):
        second.finish()
    assert (tmp_path / "other.raw").read_bytes() == b"somebody's"


def test_a_vmdk_that_no_program_could_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rescue.RescueError, match="quotation marks"):
        rescue.FlatVmdk(tmp_path / 'a"b.vmdk', 1 << 20)
    with pytest.raises(rescue.RescueError, match="ends at 2 TiB"):
        rescue.SparseVmdk(tmp_path / "large.vmdk", 1 << 42)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_a_line_on_a_terminal_that_is_wiped_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    now = iter((0.0, 3.0, 3.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    progress = rescue.Progress("restoring", 4 << 40)
    progress.add(1 << 40)
    assert terminal.getvalue() == "\rrestoring: 25 % of 4.0 TiB "
    progress.end()
    assert terminal.getvalue().endswith("\r")
