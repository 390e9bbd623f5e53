"""The controller: decides, talks to vSphere, keeps the ledger and the results."""

import holdfast_common as _before_grpc  # noqa: F401 - it must be loaded before grpc: see there
