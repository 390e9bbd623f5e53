"""One file per way to reach a disk. Transports do not know each other."""
