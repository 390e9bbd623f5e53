"""What an agent needs to open one disk of our snapshot, or one new disk: no account, no session.

After `changed_areas`; the run puts tickets into the agent's job. A direct ticket has nothing to give
back; `hot_add` and `transfer_leases` make the others, each in a ``with`` over the ledger.
"""

from __future__ import annotations

from holdfast_common.errors import Refused
from holdfast_common.job_spec import ChainFile, DirectTicket
from holdfast_controller.facts import ChainLink, DiskFacts


def direct_ticket(disk: DiskFacts) -> DirectTicket:
    """The chain of a frozen disk, base first, for an agent that has its datastores mounted.

    Raises: Refused when a link lies on a datastore without a lasting id.
    """
    if not disk.chain:
        raise Refused("the disk's backing has no files to read", disk=disk.label)
    return DirectTicket(chain=tuple(_chain_file(link) for link in disk.chain))


def direct_target(disk: DiskFacts) -> DirectTicket:
    """The one link of a new disk (of a VM of ours that is powered off), to be written.

    Raises: Refused when the disk stands on a chain: a base must never be written under a snapshot.
    """
    if len(disk.chain) != 1:
        raise Refused("only a disk without snapshots can be written directly", disk=disk.label)
    return direct_ticket(disk)


def _chain_file(link: ChainLink) -> ChainFile:
    if not link.datastore_id:
        raise Refused("a disk's datastore is not known by its id", file=link.name)
    return ChainFile(datastore_id=link.datastore_id, path=link.path)
