"""Binary VMDKs that an attacker would write: each is refused within bounded memory and time."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast_common.errors import FormatError
from holdfast_common.formats.vmdk_chain import open_chain_at
from holdfast_common.formats.vmdk_descriptor import CreateType, ExtentKind, ExtentLine
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text
from holdfast_common.formats.vmdk_sparse_writer import SparseWriter
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from support.vmdk_hostile import assert_refused, read_everything, watched
from support.vmdk_redo_logs import cowd_bytes, sesparse_bytes, write_redo_log

MIB = 1 << 20
CAPACITY = 40 * MIB + 512
GRAIN = 65536
BASE_CID = 0x12345678


def sparse_file(folder: Path) -> bytearray:
    path = folder / "made.vmdk"
    sink = SparseWriter(path.open("xb", buffering=0), CAPACITY, file_name="disk.vmdk")
    for offset in (0, 5 * GRAIN, 33 * MIB, CAPACITY - 512):
        sink.write(offset, memoryview(b"\x5a" * min(GRAIN, CAPACITY - offset)))
    sink.finish()
    sink.close()
    data = bytearray(path.read_bytes())
    path.unlink()
    return data


def stream_file(folder: Path) -> bytearray:
    path = folder / "made.vmdk"
    with path.open("xb") as stream:
        sink = StreamOptimizedWriter(stream, CAPACITY)
        for offset in (0, 5 * GRAIN, 33 * MIB, CAPACITY - 512):
            length = min(GRAIN, CAPACITY - offset)
            sink.write(offset, memoryview(random.Random(offset).randbytes(length)))
        sink.finish()
    data = bytearray(path.read_bytes())
    path.unlink()
    return data


def put(form: str, offset: int, *values: int | bytes) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        struct.pack_into("<" + form, image, offset, *values)

    return change


def sector_of(image: bytes | bytearray, offset: int, form: str = "Q") -> int:
    value: int = struct.unpack_from("<" + form, image, offset)[0]
    return value * 512


def both(*changes: Callable[[bytearray], None]) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        for one in changes:
            one(image)

    return change


def put_in_directory(value: int) -> Callable[[bytearray], None]:
    return lambda image: struct.pack_into("<I", image, sector_of(image, 56), value)


def put_in_table(value: int, entry: int = 0) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        table = sector_of(image, sector_of(image, 56), "I")
        struct.pack_into("<I", image, table + 4 * entry, value)

    return change


def share_grains(image: bytearray) -> None:
    table = sector_of(image, sector_of(image, 56), "I")
    first = image[table : table + 4]
    image[table : table + 2048] = first * 512


def replace_text(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        assert old in image
        assert len(old) == len(new)
        image[:] = image.replace(old, new, 1)

    return change


def cut(length: int) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        del image[length:]

    return change


U64 = (1 << 64) - 1
EVIL_SPARSE: dict[str, Callable[[bytearray], None]] = {
    "magic": put("4s", 0, b"VMDK"),
    "magic in the other order": put("4s", 0, b"VMDK"[::-1][:3] + b"x"),
    "version 0": put("I", 4, 0),
    "version 4": put("I", 4, 4),
    "version huge": put("I", 4, 0xFFFFFFFF),
    "unknown flag": put("I", 8, 3 | 1 << 5),
    "all flags": put("I", 8, 0xFFFFFFFF),
    "compressed without markers": put("I", 8, 3 | 1 << 16),
    "markers without compression": put("I", 8, 3 | 1 << 17),
    "compression without flag": put("H", 77, 1),
    "unknown compression": put("H", 77, 2),
    "compressed though it is not": both(put("I", 8, 3 | 3 << 16), put("H", 77, 1)),
    "capacity 0": put("Q", 12, 0),
    "capacity 1": put("Q", 12, 1),
    "capacity above 64 TiB": put("Q", 12, (64 << 40) // 512 + 1),
    "capacity huge": put("Q", 12, U64),
    "capacity that overflows": put("Q", 12, 1 << 55),
    "capacity of another disk": put("Q", 12, CAPACITY // 512 + 1),
    "grain 0": put("Q", 20, 0),
    "grain 1 sector": put("Q", 20, 1),
    "grain 3 sectors": put("Q", 20, 96),
    "grain 2 MiB": put("Q", 20, 4096),
    "grain huge": put("Q", 20, U64),
    "no descriptor": put("Q", 28, 0),
    "descriptor elsewhere": put("Q", 28, 30),
    "descriptor past the file": put("Q", 28, 1 << 30),
    "descriptor huge offset": put("Q", 28, U64),
    "descriptor length 0": put("Q", 36, 0),
    "descriptor above 1 MiB": put("Q", 36, 2049),
    "descriptor length huge": put("Q", 36, U64),
    "no entries in a table": put("I", 44, 0),
    "one entry in a table": put("I", 44, 1),
    "too many entries in a table": put("I", 44, 0xFFFFFFFF),
    "redundant directory huge": put("Q", 48, U64),
    "directory 0": put("Q", 56, 0),
    "directory past the file": put("Q", 56, 1 << 30),
    "directory huge": put("Q", 56, U64 - 1),
    "directory at the end without a footer": put("Q", 56, U64),
    "overhead huge": put("Q", 64, U64),
    "open for writing": put("B", 72, 1),
    "open in an unknown way": put("B", 72, 7),
    "line ends changed": put("4s", 73, b"\n \n\n"),
    "table past the file": put_in_directory(0xFFFFFFFF),
    "table at the file's end": put_in_directory(10_000),
    "table in the header": put_in_directory(1),
    "grain past the file": put_in_table(0xFFFFFFFF),
    "grain in the header": put_in_table(1),
    "many grains at one place": share_grains,
    "cut in the header": cut(511),
    "cut after the header": cut(512),
    "cut in the descriptor": cut(700),
    "cut in the tables": cut(21 * 512 + 100),
    "cut in the last grain": cut(65536 * 4 + 100),
    "embedded kind of a flat disk": replace_text(b'"monolithicSparse"', b'"monolithicFlat"  '),
    "embedded kind of a stream": replace_text(b"Sparse", b"sparse"),
    "embedded path": replace_text(b'SPARSE "disk.vmdk"', b'SPARSE "/etc/pass"'),
    "embedded size": replace_text(b"RW 81921 ", b"RW 81920 "),
    "embedded parent": replace_text(b"parentCID=ffffffff", b"parentCID=00000001"),
    "embedded NUL": replace_text(b"version=1", b"version=\0"),
}


@pytest.mark.parametrize("case", EVIL_SPARSE)
def test_a_malformed_sparse_disk_is_refused(tmp_path: Path, case: str) -> None:
    image = sparse_file(tmp_path)
    EVIL_SPARSE[case](image)
    (tmp_path / "disk.vmdk").write_bytes(image)
    assert_refused([tmp_path / "disk.vmdk"])


def footer_of(image: bytearray) -> int:
    return len(image) - 1024


EVIL_COMPRESSED: dict[str, Callable[[bytearray], None]] = {
    "no footer": cut(-512),
    "cut in the middle": cut(100_000),
    "something after it": lambda image: image.extend(b"x" * 512),
    "footer's marker": lambda image: put("I", footer_of(image) - 500, 2)(image),
    "footer's marker length": lambda image: put("Q", footer_of(image) - 512, 9)(image),
    "end's marker": lambda image: put("I", len(image) - 500, 1)(image),
    "footer's magic": lambda image: put("4s", footer_of(image), b"XXXX")(image),
    "footer's capacity": lambda image: put("Q", footer_of(image) + 12, 128)(image),
    "footer's grain": lambda image: put("Q", footer_of(image) + 20, 8)(image),
    "footer's version": lambda image: put("I", footer_of(image) + 4, 1)(image),
    "footer's descriptor": lambda image: put("Q", footer_of(image) + 28, 2)(image),
    "footer's flags": lambda image: put("I", footer_of(image) + 8, 0x30003)(image),
    "footer's directory at the end again": lambda image: put("Q", footer_of(image) + 56, U64)(
        image
    ),
    "footer's directory past the file": lambda image: put("Q", footer_of(image) + 56, 1 << 31)(
        image
    ),
    "grain's place": put("Q", 65536, 1280),
    "grain's length 0": put("I", 65536 + 8, 0),
    "grain's length huge": put("I", 65536 + 8, 0xFFFFFFFF),
    "grain's length past the file": put("I", 65536 + 8, 0x1FFFF),
    "grain's length short": put("I", 65536 + 8, 100),
    "grain's data": put("16s", 65536 + 12, bytes(16)),
    "grain's check sum": put("4s", 65536 + 5000, b"evil"),
}


@pytest.mark.parametrize("case", EVIL_COMPRESSED)
def test_a_malformed_compressed_disk_is_refused(tmp_path: Path, case: str) -> None:
    image = stream_file(tmp_path)
    EVIL_COMPRESSED[case](image)
    (tmp_path / "disk.vmdk").write_bytes(image)
    assert_refused([tmp_path / "disk.vmdk"])


def test_a_grain_that_inflates_to_a_gibibyte_is_refused(tmp_path: Path) -> None:
    image = stream_file(tmp_path)
    squeezer = zlib.compressobj(9)
    bomb = b"".join(squeezer.compress(bytes(MIB)) for _ in range(1024)) + squeezer.flush()
    assert len(bomb) > 1_000_000
    struct.pack_into("<I", image, 65536 + 8, 131072)
    image[65536 + 12 : 65536 + 12 + 131072] = bomb[:131072]
    (tmp_path / "disk.vmdk").write_bytes(image)
    with (
        watched([str(tmp_path), "disk.vmdk"]),
        pytest.raises(FormatError, match="inflates"),
        open_chain_at([tmp_path / "disk.vmdk"]) as chain,
    ):
        chain.read_into(0, memoryview(bytearray(512)))


EVIL_COWD: dict[str, Callable[[bytearray], None]] = {
    "magic": put("4s", 0, b"DWOC"),
    "version": put("I", 4, 2),
    "capacity 0": put("I", 12, 0),
    "capacity huge": put("I", 12, 0xFFFFFFFF),
    "capacity of another disk": put("I", 12, CAPACITY // 512 - 1),
    "grain 0": put("I", 16, 0),
    "grain 3": put("I", 16, 3),
    "grain above 1 MiB": put("I", 16, 4096),
    "grain huge": put("I", 16, 0xFFFFFFFF),
    "directory 0": put("I", 20, 0),
    "directory past the file": put("I", 20, 0xFFFFFFFF),
    "directory too short": put("I", 24, 1),
    "no directory entries": put("I", 24, 0),
    "table past the file": put("I", 2048, 0xFFFFFFFF),
    "table in the header": put("I", 2048, 1),
    "grain past the file": lambda image: put("I", sector_of(image, 2048, "I"), 0x7FFFFFFF)(image),
    "grain in the header": lambda image: put("I", sector_of(image, 2048, "I"), 1)(image),
    "cut in the header": cut(31),
    "cut after the header": cut(2048),
    "cut in a table": cut(2048 + 512 + 100),
    "empty": cut(0),
}


def redo_chain(folder: Path, kind: str, image: bytearray) -> list[Path]:
    with (folder / "base-flat.vmdk").open("xb") as file:
        file.truncate(CAPACITY)
    extent = ExtentLine(kind=ExtentKind.VMFS, length=CAPACITY, file_name="base-flat.vmdk")
    base = folder / "base.vmdk"
    base.write_text(
        descriptor_text(create_type=CreateType.VMFS, extents=[extent], content_id=BASE_CID)
    )
    child = write_redo_log(
        folder, "c", kind, CAPACITY, image, parent_cid=BASE_CID, hint="/etc/passwd"
    )
    return [base, child]


@pytest.mark.parametrize("case", EVIL_COWD)
def test_a_malformed_cowd_redo_log_is_refused(tmp_path: Path, case: str) -> None:
    image = cowd_bytes(CAPACITY, {0: b"a" * 512, 9: b"b" * 512, 81920: b"c" * 512})
    EVIL_COWD[case](image)
    assert_refused(redo_chain(tmp_path, "vmfsSparse", image))


def se_table(image: bytearray) -> int:
    return sector_of(image, 144)


EVIL_SE: dict[str, Callable[[bytearray], None]] = {
    "magic": put("Q", 0, 0xCAFEBABF),
    "version": put("Q", 8, 1),
    "capacity 0": put("Q", 16, 0),
    "capacity above 64 TiB": put("Q", 16, (64 << 40) // 512 + 1),
    "capacity huge": put("Q", 16, U64),
    "capacity of another disk": put("Q", 16, CAPACITY // 512 - 1),
    "grain": put("Q", 24, 16),
    "grain 0": put("Q", 24, 0),
    "table size": put("Q", 32, 128),
    "table size 0": put("Q", 32, 0),
    "flags": put("Q", 40, 1),
    "reserved": put("Q", 48, 1),
    "last reserved": put("Q", 72, 1),
    "padding": put("B", 511, 1),
    "volatile header 0": put("Q", 80, 0),
    "volatile header elsewhere": put("Q", 80, 2),
    "volatile header huge": put("Q", 80, U64),
    "volatile magic": put("Q", 512, 1),
    "journal waits": put("Q", 512 + 24, 1),
    "volatile padding": put("B", 1023, 1),
    "directory 0": put("Q", 128, 0),
    "directory huge": put("Q", 128, U64),
    "directory past the file": put("Q", 128, 1 << 30),
    "directory length 0": put("Q", 136, 0),
    "tables huge": put("Q", 144, U64),
    "tables past the file": put("Q", 144, 1 << 30),
    "no tables": put("Q", 152, 0),
    "grains huge": put("Q", 192, U64),
    "grains past the file": put("Q", 192, 1 << 31),
    "directory entry's mark": put("Q", 4096, 0x2000000000000000),
    "directory entry without mark": put("Q", 4096, 1),
    "directory entry's table": put("Q", 4096, 0x10000000FFFFFFFF),
    "table entry's mark": lambda image: put("Q", se_table(image), 0x4000000000000000)(image),
    "table entry's high mark": lambda image: put("Q", se_table(image), U64)(image),
    "table entry without mark": lambda image: put("Q", se_table(image), 5)(image),
    "grain past the file": lambda image: put("Q", se_table(image), 0x3FFF000000000000)(image),
    "grain far past the file": lambda image: put("Q", se_table(image), 0x3FFFFFFFFFFFFFFF)(image),
    "cut in the header": cut(511),
    "cut in the volatile header": cut(1000),
    "cut in the directory": cut(4100),
    "cut in the grains": cut(-1),
}


@pytest.mark.parametrize("case", EVIL_SE)
def test_a_malformed_se_sparse_redo_log_is_refused(tmp_path: Path, case: str) -> None:
    last = CAPACITY // 4096 - 1
    grains = {0: b"a" * 4096, 9: b"b" * 4096, 5000: b"c" * 4096, last: b"d" * 4096}
    image = sesparse_bytes(CAPACITY, grains)
    EVIL_SE[case](image)
    assert_refused(redo_chain(tmp_path, "seSparse", image))


def test_a_huge_disk_in_a_small_file_that_shares_its_tables_is_refused_quickly(
    tmp_path: Path,
) -> None:
    """62 TiB of grains in 64 MiB of file: a walk of it would never end."""
    capacity = 62 << 40
    image = sesparse_bytes(capacity, {2 * n: b"a" * 4096 for n in range(2048)})
    directory = 8 * 512
    count = capacity // (4096 * 4096)
    image[directory : directory + count * 8] = image[directory : directory + 8] * count
    extents = [ExtentLine(kind=ExtentKind.ZERO, length=capacity)]
    (tmp_path / "base.vmdk").write_text(
        descriptor_text(create_type=CreateType.TWO_GB_SPARSE, extents=extents, content_id=BASE_CID)
    )
    child = write_redo_log(
        tmp_path, "c", "seSparse", capacity, image, parent_cid=BASE_CID, hint="base.vmdk"
    )
    del image
    allowed = [str(tmp_path), "base.vmdk", "c.vmdk", "c-sesparse.vmdk"]
    with watched(allowed), pytest.raises(FormatError, match="tables overlap"):
        read_everything([tmp_path / "base.vmdk", child])


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_of_the_metadata_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    """Never another error than ours, never much memory, never another file."""
    source = random.Random(seed)
    kind = source.choice(["sparse", "stream", "vmfsSparse", "seSparse"])
    if kind == "sparse":
        image = sparse_file(tmp_path)
    elif kind == "stream":
        image = stream_file(tmp_path)
    elif kind == "vmfsSparse":
        image = cowd_bytes(CAPACITY, {n * 97: bytes([n]) * 512 for n in range(1, 50)})
    else:
        image = sesparse_bytes(CAPACITY, {n * 97: bytes([n]) * 4096 for n in range(1, 50)})
    for _ in range(source.choice([1, 2, 8, 64])):
        place = source.randrange(min(len(image), source.choice([80, 512, 2048, 65536])))
        image[place] = source.choice([0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)])
    if kind in {"sparse", "stream"}:
        (tmp_path / "disk.vmdk").write_bytes(image)
        paths = [tmp_path / "disk.vmdk"]
    else:
        paths = redo_chain(tmp_path, kind, image)
    allowed = {str(tmp_path)} | {path.name for path in tmp_path.iterdir()}
    with watched(sorted(allowed)), suppress(FormatError):
        read_everything(paths)
