"""Disk tickets. Dataclass <-> message."""

from __future__ import annotations

from holdfast_common.errors import UsageError
from holdfast_common.identity import (
    DatastoreId,
)
from holdfast_common.job_spec import (
    ChainFile,
    DirectTicket,
    DiskTicket,
    FileFormat,
    FileTicket,
    HotAddTicket,
    NfcTicket,
)
from holdfast_common.wire import job_pb2

_FILE_FORMATS = {
    FileFormat.SPARSE: job_pb2.FILE_FORMAT_SPARSE,
    FileFormat.FLAT: job_pb2.FILE_FORMAT_FLAT,
    FileFormat.STREAM_OPTIMIZED: job_pb2.FILE_FORMAT_STREAM_OPTIMIZED,
}


_FILE_FORMATS_BACK = {number: kind for kind, number in _FILE_FORMATS.items()}


def ticket_to_message(ticket: DiskTicket) -> job_pb2.DiskTicket:
    """A ticket's message."""
    match ticket:
        case DirectTicket():
            chain = [
                job_pb2.ChainFile(datastore_id=link.datastore_id, path=link.path)
                for link in ticket.chain
            ]
            return job_pb2.DiskTicket(direct=job_pb2.DirectTicket(chain=chain))
        case HotAddTicket():
            return job_pb2.DiskTicket(
                hotadd=job_pb2.HotAddTicket(
                    bus_number=ticket.bus_number,
                    unit_number=ticket.unit_number,
                    disk_uuid=ticket.disk_uuid,
                )
            )
        case NfcTicket():
            return job_pb2.DiskTicket(
                nfc=job_pb2.NfcTicket(
                    url=ticket.url,
                    certificate_sha256=ticket.certificate_sha256,
                    create=ticket.create,
                )
            )
        case FileTicket():
            return job_pb2.DiskTicket(
                file=job_pb2.FileTicket(path=ticket.path, format=_FILE_FORMATS[ticket.format])
            )


def ticket_from_message(message: job_pb2.DiskTicket) -> DiskTicket:
    """Raises: UsageError when no known kind is set."""
    match message.WhichOneof("kind"):
        case "direct":
            return DirectTicket(
                chain=tuple(
                    ChainFile(datastore_id=DatastoreId(link.datastore_id), path=link.path)
                    for link in message.direct.chain
                )
            )
        case "hotadd":
            return HotAddTicket(
                bus_number=message.hotadd.bus_number,
                unit_number=message.hotadd.unit_number,
                disk_uuid=message.hotadd.disk_uuid,
            )
        case "nfc":
            return NfcTicket(
                url=message.nfc.url,
                certificate_sha256=message.nfc.certificate_sha256,
                create=message.nfc.create,
            )
        case "file":
            file_format = _FILE_FORMATS_BACK.get(message.file.format)
            if file_format is None:
                raise UsageError("unknown file format in a ticket", number=message.file.format)
            return FileTicket(path=message.file.path, format=file_format)
        case _:
            raise UsageError("a disk ticket of no known kind")
