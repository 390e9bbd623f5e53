"""A process that backs a disk up with the product's writer and stops itself right before its manifest's put."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import SystemClock
from holdfast_common.errors import HoldfastError
from holdfast_common.identity import JobId
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.keys import open_repository
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.recipients import KeyFileUnlock
from holdfast_common.repository.writer import PointWriter
from support.repositories import BLOCK, LINEAGE, disk_header, patterned

KEY_FILE = b"holdfast-key-1:" + b"5a" * 32 + b"\n"
SIGNING_KEY = bytes(range(32))


class Stopping(DirectoryStore):
    """Stands still after every look at the repository, with nothing left to do but the put."""

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if name.startswith("points/"):
            os.kill(os.getpid(), signal.SIGSTOP)
        super().put(name, data)


def main(folder: str, job_id: str) -> None:
    store = Stopping.open(Path(folder))
    keys = open_repository(store, KeyFileUnlock(KEY_FILE))
    image = patterned(8 * BLOCK, "suspended")
    with PointWriter(
        store,
        keys.writer_keys(LINEAGE),
        signing_key=Ed25519PrivateKey.from_private_bytes(SIGNING_KEY),
        agent_id="proxy-2",
        job_id=JobId(job_id),
        attempt=1,
        clock=SystemClock(),
        workers=0,
    ) as writer:
        disk = writer.begin_disk(disk_header(len(image)))
        disk.write(0, image)
        disk.finish()
        prepared = writer.prepare(ManifestFacts())
        grant = keys.commit_grant(
            job_id=job_id,
            attempt=1,
            manifest_digest=prepared.manifest_digest,
            controller_epoch=1,
        )
        try:
            writer.publish(prepared, grant)
        except HoldfastError as error:
            print(error.line())
            sys.exit(1)
    print("acknowledged")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
