"""The agent: dials the controller, reads and writes disks, keeps nothing that a restart cannot rebuild."""

import holdfast_common as _before_grpc  # noqa: F401 - it must be loaded before grpc: see there
