"""Names for pyVmomi's values, whose types are made at run time and cannot be told to mypy."""

from __future__ import annotations

from typing import Any

WireObject = Any  # a data object, a reference or a list of them
WireType = Any  # the class of one
