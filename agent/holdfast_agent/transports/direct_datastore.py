"""Transport `direct`: an NFS datastore is mounted here, its VMDK files are local files.

Reads chains; writes flat disks, into new files only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.contained_paths import Place, can_read_directly, place_below
from holdfast_agent.new_files import NewFiles, sync
from holdfast_common.blocks.sink import NewDisk, UnorderedWrites
from holdfast_common.blocks.source import BlockSource
from holdfast_common.errors import HoldfastError, Refused, SourceFailed, TargetFailed
from holdfast_common.formats.vmdk_chain import ImageName, open_chain
from holdfast_common.formats.vmdk_descriptor import CreateType
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text, extents_of_one_file
from holdfast_common.formats.vmdk_flat import FlatWriter, pwrite_all
from holdfast_common.job_spec import ChainFile, DirectTicket, DiskTicket

_SUFFIX = ".vmdk"


def open_source(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    capacity_bytes: int,
    check: Callable[[], None],
) -> BlockSource:
    """The disk that the ticket's chain holds, read past the page cache where that is possible.

    Raises: Refused, SourceFailed, FormatError.
    """
    assert isinstance(ticket, DirectTicket)
    check()
    with ExitStack() as places:
        found = [
            places.enter_context(_place_of(file, configuration, failure=SourceFailed))
            for file in ticket.chain
        ]
        return open_chain(
            [ImageName(directory_fd=place.directory_fd, name=place.name) for place in found],
            capacity_bytes=capacity_bytes,
            direct=all(can_read_directly(place) for place in found),
        )


def open_sink(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    disk: NewDisk,
    check: Callable[[], None],
) -> NewFlatDisk:
    """A new flat disk at the ticket's one path. Raises: Refused (it exists), TargetFailed."""
    assert isinstance(ticket, DirectTicket)
    check()
    if len(ticket.chain) != 1:
        raise Refused("a new disk is one file, not a chain", count=len(ticket.chain))
    with _place_of(ticket.chain[0], configuration, failure=TargetFailed) as place:
        return NewFlatDisk(place, disk)


class NewFlatDisk:
    """A `BlockSink`: the flat file comes first, the descriptor, which makes it a disk, last.

    The names are final from the start: what a killed agent leaves behind is where the ticket says.
    """

    def __init__(self, place: Place, disk: NewDisk) -> None:
        if not place.name.endswith(_SUFFIX):
            raise Refused("a new disk's name ends in .vmdk", name=place.name[:300])
        self._disk = disk
        self._name = place.name
        self._flat_name = place.name.removesuffix(_SUFFIX) + "-flat" + _SUFFIX
        self._files = NewFiles(place)
        try:
            self._files.refuse_existing(self._name)
            self._writer = FlatWriter(self._files.make(self._flat_name), disk.capacity_bytes)
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

    def unordered(self) -> UnorderedWrites:
        """For writing it in any order, instead of `write`."""
        return self._writer.unordered()

    def finish(self) -> None:
        """Make the data durable, then write the descriptor. Raises: Refused, TargetFailed."""
        self._writer.finish()
        text = descriptor_text(
            create_type=CreateType.VMFS,
            extents=extents_of_one_file(
                CreateType.VMFS,
                file_name=self._flat_name,
                capacity_bytes=self._disk.capacity_bytes,
            ),
            adapter_type=self._disk.adapter_type,
            disk_uuid=self._disk.disk_uuid,
            thin=True,
        )
        with self._files.make(self._name) as file:
            pwrite_all(file, 0, text.encode())
            sync(file, name=self._name)
        self._files.keep()

    def close(self) -> None:
        """Close; what was not finished is removed again. Raises: TargetFailed."""
        self._writer.close()
        self._files.close()


@contextmanager
def _place_of(
    file: ChainFile, configuration: AgentConfiguration, *, failure: type[HoldfastError]
) -> Iterator[Place]:
    folder = configuration.datastores.get(file.datastore_id)
    if folder is None:
        raise Refused(
            "this agent does not reach the datastore",
            datastore_id=file.datastore_id,
            advice="name its folder under [datastores] in the agent's configuration",
        )
    with place_below(Path(folder), file.path, failure=failure) as place:
        yield place
