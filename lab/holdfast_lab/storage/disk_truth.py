"""A disk's ground truth: replayed from its log of guest writes, never read from its own files.

Between ``disk_links`` and ``disk``.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from holdfast_lab.storage.disk_links import LinkedDisk
from holdfast_lab.storage.disk_values import DiskReader, Provisioning
from holdfast_lab.storage.errors import TruthUnknown
from holdfast_lab.storage.guest_log import GuestLog
from holdfast_lab.storage.links import LinkTree
from holdfast_lab.storage.readers import RawReader, first_difference


class DiskWithTruth(LinkedDisk):
    """A disk of links, and the log that says what its guest wrote."""

    def __init__(self, tree: LinkTree, log: GuestLog, *, provisioning: Provisioning) -> None:
        super().__init__(tree, provisioning=provisioning)
        self._log = log

    @property
    def guest_log_directory(self) -> Path:
        """Where the guest log lies."""
        return self._log.directory

    @property
    def sequence(self) -> int:
        """The number of the log's newest record."""
        return self._log.sequence

    def truth_sequence(self, descriptor: Path | None = None) -> int:
        """The sequence at which a link was frozen; the newest for the tip (None)."""
        with self.lock:
            link = self._link(descriptor)
            if link is self._tree.tip:
                return self._log.sequence
            if link.sequence is None:
                raise TruthUnknown(f"{link.path.name} was frozen before this guest log began")
            return link.sequence

    def settle_truth(self) -> None:
        """Take the base image that the ground truth still owes, while the files are there."""
        with self.lock:
            self._take_baseline_if_pending()

    def truth(self, to: Path, at: int | None = None) -> None:
        """Replay the guest log up to a sequence (None: all) into a new sparse raw file."""
        with self.lock:
            self._take_baseline_if_pending()
            self._log.truth(to, at)

    def first_difference(self, candidate: Path | DiskReader, at: int | None = None) -> int | None:
        """The first offset where a raw file or reader differs from the truth; None: equal."""
        file = self._log.directory / f"truth-{secrets.token_hex(8)}.raw"
        try:
            self.truth(file, at)
            with RawReader(file) as truth, contextlib.ExitStack() as opened:
                if isinstance(candidate, Path):
                    return first_difference(truth, opened.enter_context(RawReader(candidate)))
                return first_difference(truth, candidate)
        finally:
            file.unlink(missing_ok=True)

    def _take_baseline_if_pending(self) -> None:
        if self._log.baseline_pending:
            self._log.take_baseline(self.materialise)
