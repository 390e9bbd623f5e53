"""Transport `file`: a single disk as a VMDK file on this machine, below a folder that is allowed.

A file gets its name when it is complete; until then it is a hidden partial file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.contained_paths import Place, below_one_of, can_read_directly, place_below
from holdfast_agent.new_files import NewFiles, sync
from holdfast_common.blocks.sink import BlockSink, NewDisk, UnorderedSink, UnorderedWrites
from holdfast_common.blocks.source import BlockSource
from holdfast_common.errors import Refused, SourceFailed, TargetFailed
from holdfast_common.formats.vmdk_chain import ImageName, open_chain
from holdfast_common.formats.vmdk_descriptor import CreateType
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text, extents_of_one_file
from holdfast_common.formats.vmdk_flat import FlatWriter, pwrite_all
from holdfast_common.formats.vmdk_sparse_writer import SparseWriter
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from holdfast_common.job_spec import DiskTicket, FileFormat, FileTicket

_SUFFIX = ".vmdk"


def open_source(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    capacity_bytes: int,
    check: Callable[[], None],
) -> BlockSource:
    """A VMDK file of any of the formats, read past the page cache where that is possible.

    Raises: Refused, SourceFailed, FormatError.
    """
    assert isinstance(ticket, FileTicket)
    check()
    folder, relative = below_one_of(configuration.restore.folders, ticket.path)
    with place_below(folder, relative, failure=SourceFailed) as place:
        image = ImageName(directory_fd=place.directory_fd, name=place.name)
        return open_chain([image], capacity_bytes=capacity_bytes, direct=can_read_directly(place))


def open_sink(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    disk: NewDisk,
    check: Callable[[], None],
) -> NewVmdkFile:
    """A new VMDK file of the ticket's format. Raises: Refused (it exists), TargetFailed."""
    assert isinstance(ticket, FileTicket)
    check()
    folder, relative = below_one_of(configuration.restore.folders, ticket.path)
    with place_below(Path(folder), relative, failure=TargetFailed) as place:
        return NewVmdkFile(place, disk, file_format=ticket.format)


def check_new_vmdk_file(ticket: FileTicket, configuration: AgentConfiguration) -> None:
    """Whether `open_sink` would make its files; makes none. Raises: Refused, TargetFailed."""
    folder, relative = below_one_of(configuration.restore.folders, ticket.path)
    with place_below(Path(folder), relative, failure=TargetFailed) as place:
        _refuse_other_names(place)
        with closing(NewFiles(place)) as files:
            for name in {place.name, _DATA_NAMES[ticket.format](place.name)}:
                files.refuse_existing(name)
            files.check_writable()


def set_aside(ticket: FileTicket, configuration: AgentConfiguration) -> str:
    """Rename a disk that is not what it should be, so that nobody uses it; the new path.

    The descriptor goes first: without it the data is no disk. Raises: Refused, TargetFailed.
    """
    folder, relative = below_one_of(configuration.restore.folders, ticket.path)
    with place_below(Path(folder), relative, failure=TargetFailed) as place:
        _refuse_other_names(place)
        with closing(NewFiles(place)) as files:
            aside = files.set_aside(place.name)
            data_name = _DATA_NAMES[ticket.format](place.name)
            if data_name != place.name:
                files.set_aside(data_name)
            files.keep()
    return str(Path(ticket.path).with_name(aside))


def _refuse_other_names(place: Place) -> None:
    if not place.name.endswith(_SUFFIX):
        raise Refused("a restored disk's name ends in .vmdk", name=place.name[:300])


class NewVmdkFile:
    """A `BlockSink` into partial files, which `finish` gives their names."""

    def __init__(self, place: Place, disk: NewDisk, *, file_format: FileFormat) -> None:
        _refuse_other_names(place)
        self._disk = disk
        self._name = place.name
        self._data_name = _DATA_NAMES[file_format](place.name)
        self._files = NewFiles(place)
        try:
            self._files.refuse_existing(self._name)
            self._file = self._files.make_partial(self._data_name)
            self._writer = _WRITERS[file_format](self._file, disk, self._data_name)
        except BaseException:
            self._files.close()
            raise

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._disk.capacity_bytes

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors, ascending. Raises: TargetFailed."""
        self._writer.write(offset, data)

    def unordered(self) -> UnorderedWrites | None:
        """For writing it in any order, instead of `write`; None: this format only grows in order."""
        return self._writer.unordered() if isinstance(self._writer, UnorderedSink) else None

    def finish(self) -> None:
        """Complete the file, make it durable, name it. Raises: Refused, TargetFailed."""
        self._writer.finish()
        sync(self._file, name=self._data_name)
        if self._data_name != self._name:
            self._write_descriptor()
            self._files.publish(self._data_name)
        self._files.publish(self._name)
        self._files.keep()

    def close(self) -> None:
        """Close; what was not finished is removed again. Raises: TargetFailed."""
        self._writer.close()
        self._file.close()
        self._files.close()

    def _write_descriptor(self) -> None:
        text = descriptor_text(
            create_type=CreateType.MONOLITHIC_FLAT,
            extents=extents_of_one_file(
                CreateType.MONOLITHIC_FLAT,
                file_name=self._data_name,
                capacity_bytes=self._disk.capacity_bytes,
            ),
            adapter_type=self._disk.adapter_type,
            disk_uuid=self._disk.disk_uuid,
        )
        with self._files.make_partial(self._name) as file:
            pwrite_all(file, 0, text.encode())
            sync(file, name=self._name)


def _flat_writer(file: BinaryIO, disk: NewDisk, name: str) -> BlockSink:
    return FlatWriter(file, disk.capacity_bytes)


def _sparse_writer(file: BinaryIO, disk: NewDisk, name: str) -> BlockSink:
    return SparseWriter(
        file,
        disk.capacity_bytes,
        file_name=name,
        adapter_type=disk.adapter_type,
        disk_uuid=disk.disk_uuid,
    )


def _stream_writer(file: BinaryIO, disk: NewDisk, name: str) -> BlockSink:
    return StreamOptimizedWriter(
        file,
        disk.capacity_bytes,
        file_name=name,
        adapter_type=disk.adapter_type,
        disk_uuid=disk.disk_uuid,
    )


_WRITERS: Final[Mapping[FileFormat, Callable[[BinaryIO, NewDisk, str], BlockSink]]] = {
    FileFormat.FLAT: _flat_writer,
    FileFormat.SPARSE: _sparse_writer,
    FileFormat.STREAM_OPTIMIZED: _stream_writer,
}
_DATA_NAMES: Final[Mapping[FileFormat, Callable[[str], str]]] = {
    FileFormat.FLAT: lambda name: name.removesuffix(_SUFFIX) + "-flat" + _SUFFIX,
    FileFormat.SPARSE: lambda name: name,
    FileFormat.STREAM_OPTIMIZED: lambda name: name,
}
