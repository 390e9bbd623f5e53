"""What can go wrong in the lab's storage; callers turn these into vSphere faults."""

from __future__ import annotations


class StorageError(Exception):
    """Base of the storage errors of the lab."""


class DescriptorError(StorageError):
    """A VMDK descriptor or extent file cannot be understood (vSphere: InvalidDiskFormat)."""


class FileMissing(StorageError):
    """A file of the disk is not there (vSphere: FileNotFound)."""


class FileExists(StorageError):
    """A file that was to be created is already there (vSphere: FileAlreadyExists)."""


class OutOfRange(StorageError):
    """An offset or length lies outside of the disk (vSphere: InvalidArgument)."""


class LinkBusy(StorageError):
    """A link cannot be merged, moved or deleted because somebody reads it (vSphere: FileLocked)."""


class ChainError(StorageError):
    """The operation does not fit the shape of the chain, for example a shared parent."""


class ChangeIdUnknown(StorageError):
    """No answer is possible for this change id (vSphere: FileFault)."""


class TruthUnknown(StorageError):
    """The guest log cannot say what the disk held at that moment."""


class StreamRefused(StorageError):
    """An uploaded stream is not an acceptable streamOptimized VMDK."""


class StreamCut(StreamRefused):
    """An uploaded stream ended before its end marker."""


class ToolMissing(StorageError):
    """A program of the machine that is needed here is not installed."""
