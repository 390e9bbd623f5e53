from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from holdfast_agent.transports import restore_file
from holdfast_common.blocks.sink import BlockSink, NewDisk
from holdfast_common.blocks.source import BlockSource
from holdfast_common.errors import Refused, SourceFailed, TargetFailed
from holdfast_common.job_spec import FileFormat, FileTicket
from support.agent_configurations import agent_configuration
from support.block_source_contract import (
    CAPACITY,
    DISK_UUID,
    BlockSourceContract,
    NewDiskSinkContract,
    UnorderedSinkContract,
    sample_content,
    write_used_sectors,
)

QEMU_IMG = shutil.which("qemu-img")


def goes_on() -> None:
    """A job that nobody stops."""


def restores(tmp_path: Path) -> Path:
    folder = tmp_path / "restores"
    folder.mkdir(exist_ok=True)
    return folder


def open_sink(tmp_path: Path, file_format: FileFormat, path: Path | None = None) -> BlockSink:
    folder = restores(tmp_path)
    return restore_file.open_sink(
        FileTicket(path=str(path or folder / "disk.vmdk"), format=file_format),
        agent_configuration(restore_folders=(folder,)),
        disk=NewDisk(capacity_bytes=CAPACITY, adapter_type="lsilogic", disk_uuid=DISK_UUID),
        check=goes_on,
    )


def open_source(tmp_path: Path, file_format: FileFormat) -> BlockSource:
    folder = restores(tmp_path)
    return restore_file.open_source(
        FileTicket(path=str(folder / "disk.vmdk"), format=file_format),
        agent_configuration(restore_folders=(folder,)),
        capacity_bytes=CAPACITY,
        check=goes_on,
    )


class FileSource(BlockSourceContract):
    FORMAT: FileFormat

    @contextmanager
    def source_of(self, content: bytes, tmp_path: Path) -> Iterator[BlockSource]:
        with closing(open_sink(tmp_path, self.FORMAT)) as sink:
            write_used_sectors(sink, content)
            sink.finish()
        yield open_source(tmp_path, self.FORMAT)


class TestSparseFileSource(FileSource):
    FORMAT = FileFormat.SPARSE


class TestFlatFileSource(FileSource):
    FORMAT = FileFormat.FLAT


class TestStreamOptimizedFileSource(FileSource):
    FORMAT = FileFormat.STREAM_OPTIMIZED


class FileSink(NewDiskSinkContract):
    FORMAT: FileFormat

    def open_sink(self, disk: NewDisk, tmp_path: Path) -> BlockSink:
        return open_sink(tmp_path, self.FORMAT)

    def content_of(self, tmp_path: Path) -> bytes | None:
        if not list(restores(tmp_path).iterdir()):
            return None
        with closing(open_source(tmp_path, self.FORMAT)) as source:
            buffer = memoryview(bytearray(source.capacity_bytes))
            source.read_into(0, buffer)
        return bytes(buffer)


class TestSparseFileSink(FileSink):
    FORMAT = FileFormat.SPARSE


class TestFlatFileSink(FileSink, UnorderedSinkContract):
    FORMAT = FileFormat.FLAT


class TestStreamOptimizedFileSink(FileSink):
    FORMAT = FileFormat.STREAM_OPTIMIZED


@pytest.mark.skipif(QEMU_IMG is None, reason="package qemu-utils would run this")
@pytest.mark.parametrize("file_format", FileFormat)
def test_qemu_reads_the_restored_file_as_the_same_disk(
    tmp_path: Path, file_format: FileFormat
) -> None:
    content = sample_content()
    with closing(open_sink(tmp_path, file_format)) as sink:
        write_used_sectors(sink, content)
        sink.finish()
    raw = tmp_path / "raw"
    raw.write_bytes(content)
    restored = restores(tmp_path) / "disk.vmdk"
    subprocess.run([str(QEMU_IMG), "compare", "-f", "raw", "-F", "vmdk", raw, restored], check=True)


@pytest.mark.parametrize("file_format", FileFormat)
def test_nothing_has_the_files_name_before_it_is_complete(
    tmp_path: Path, file_format: FileFormat
) -> None:
    with closing(open_sink(tmp_path, file_format)) as sink:
        write_used_sectors(sink, sample_content())
        assert all(path.name.startswith(".") for path in restores(tmp_path).iterdir())
        sink.finish()
        assert not [p for p in restores(tmp_path).iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("file_format", FileFormat)
def test_an_existing_file_is_refused_before_anything_is_written(
    tmp_path: Path, file_format: FileFormat
) -> None:
    existing = restores(tmp_path) / "disk.vmdk"
    existing.write_text("the customer's")
    with pytest.raises(Refused):
        open_sink(tmp_path, file_format)
    assert existing.read_text() == "the customer's"
    assert list(restores(tmp_path).iterdir()) == [existing]


@pytest.mark.parametrize("name", ["disk.vmdk", "disk-flat.vmdk"])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, name: str) -> None:
    existing = restores(tmp_path) / name
    with closing(open_sink(tmp_path, FileFormat.FLAT)) as sink:
        existing.write_text("the customer's")
        with pytest.raises(Refused):
            sink.finish()
    assert existing.read_text() == "the customer's"
    assert list(restores(tmp_path).iterdir()) == [existing]


def test_a_dangling_link_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (restores(tmp_path) / "disk.vmdk").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused):
        open_sink(tmp_path, FileFormat.SPARSE)
    assert not (tmp_path / "elsewhere").exists()


def test_a_partial_file_of_a_restore_that_died_is_replaced(tmp_path: Path) -> None:
    partial = restores(tmp_path) / ".disk.vmdk.holdfast-partial"
    partial.write_text("left behind")
    with closing(open_sink(tmp_path, FileFormat.SPARSE)) as sink:
        sink.finish()
    assert [path.name for path in restores(tmp_path).iterdir()] == ["disk.vmdk"]


def test_two_restores_to_one_file_do_not_meet(tmp_path: Path) -> None:
    with closing(open_sink(tmp_path, FileFormat.SPARSE)) as sink:
        with pytest.raises(Refused, match="another restore"):
            open_sink(tmp_path, FileFormat.SPARSE)
        sink.finish()
    assert [path.name for path in restores(tmp_path).iterdir()] == ["disk.vmdk"]


@pytest.mark.parametrize(
    "path", ["/etc/disk.vmdk", "disk.vmdk", "{folder}/../disk.vmdk", "{folder}", "{folder}x/d.vmdk"]
)
def test_a_file_outside_of_the_allowed_folders_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused):
        open_sink(tmp_path, FileFormat.SPARSE, Path(path.format(folder=restores(tmp_path))))


def test_a_linked_folder_below_the_allowed_one_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (restores(tmp_path) / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(TargetFailed):
        open_sink(tmp_path, FileFormat.SPARSE, restores(tmp_path) / "link" / "disk.vmdk")
    assert not list((tmp_path / "outside").iterdir())


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match=r"disk\.vmdk"):
        open_source(tmp_path, FileFormat.SPARSE)
