"""For all tests: our packages are loaded before any test's own imports. See holdfast_common/__init__.py."""

import holdfast_common  # noqa: F401 - before grpc, whichever test is collected first
