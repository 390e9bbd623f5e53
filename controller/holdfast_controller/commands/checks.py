"""Lists of checks, as `vcenter test` and `doctor` print them."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.output import Output


def show_checks(checks: Sequence[operator_pb2.CheckLine], output: Output) -> int:
    """Print them for people; returns 1 when one failed, else 0."""
    for check in checks:
        output.line(f"{check.state:<8} {check.name}: {check.detail}")
        if check.advice and check.state != "ok":
            output.line(f"         {check.advice}")
    return 1 if any(check.state == "failed" for check in checks) else 0
