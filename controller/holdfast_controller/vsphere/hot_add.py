"""A snapshot's disks (or new disks) attached to a proxy's VM, always detached again: ledger first.

After `snapshot`, before the agent. A device is ours only when controller, unit and file all match
the ledger's entry; nothing else of the proxy is touched, and no file is ever deleted here.
"""
