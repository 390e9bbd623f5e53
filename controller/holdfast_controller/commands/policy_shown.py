"""Policies and what becomes of them, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.output import Output, note

NAMES_SHOWN_MAX: Final = 20  # --json has them all


def names_text(names: Sequence[str], *, count: int = 0) -> str:
    """Some names, and how many there are more. ``count``: how many there are, when these are not all."""
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    more = max(count, len(names)) - min(len(names), NAMES_SHOWN_MAX)
    return f"{shown} and {more} more" if more > 0 else shown


def moment_text(text: str) -> str:
    """A UTC time to the minute."""
    return f"{text[:16].replace('T', ' ')} UTC" if text else ""


def show_changes(changes: operator_pb2.PolicyChanges, output: Output) -> None:
    """What was made of policies, or would be, field by field."""
    if output.as_json:
        output.document("policy_changes", changes)
        return
    for each in changes.policies:
        output.line(_head(each, done=changes.done))
        for changed in each.fields:
            if changed.before:
                output.line(f"  {changed.field}: {changed.before} -> {changed.after}")
            elif changed.after not in ('""', "[]", "0"):
                output.line(f"  {changed.field} = {changed.after}")
        for warning in each.warnings:
            output.line(f"  WARNING  {warning}")
    if changes.uncovered:
        count = len(changes.uncovered)
        when = "now" if changes.done else "then"
        output.line(f"no policy covers {when}: {count} VMs: {names_text(changes.uncovered)}")
    if changes.HasField("dropped"):
        output.line(dropped_text(changes.dropped, done=changes.done))
    if not changes.done:
        note("nothing was changed: this was a dry run")


def dropped_text(dropped: operator_pb2.DroppedPoints, *, done: bool = False) -> str:
    """How many restore points a change gives away."""
    drop = "drop" if done else "would drop"
    return (
        f"the rules {drop} {dropped.points} restore points of {dropped.vms} VMs that were kept until now,"
        f" the oldest of {moment_text(dropped.oldest)}; what is held stays"
    )


def _head(change: operator_pb2.PolicyChange, *, done: bool) -> str:
    doing, did = _WORDS[change.action]
    if change.action == "delete":
        return f"{did if done else doing} {change.name}; its restore points stay"
    due = moment_text(change.next_due_at) or "never: it is switched off"
    return f"{did if done else doing} {change.name}: {change.vms} VMs, next due {due}"


_WORDS: Final = {
    "create": ("would create", "created"),
    "change": ("would change", "changed"),
    "keep": ("would keep as it is", "kept as it was"),
    "delete": ("would delete", "deleted"),
}


def show_list(reply: operator_pb2.PolicyList, output: Output) -> None:
    """One line each."""
    if output.as_json:
        output.document("policies", reply)
        return
    output.table(
        ["POLICY", "ENABLED", "NEXT DUE", "VMS", "PROMISE", "DESCRIPTION"],
        [
            [
                row.name,
                "NO" if row.problem else "yes" if row.enabled else "no",
                moment_text(row.next_due_at),
                "?" if row.problem else str(row.vms),
                row.promise,
                row.problem or row.description,
            ]
            for row in reply.policies
        ],
    )


def show_policy(detail: operator_pb2.PolicyDetail, output: Output) -> None:
    """What it says, and what that means now."""
    if output.as_json:
        output.document("policy", detail)
        return
    summary = detail.summary
    state = "enabled" if summary.enabled else "SWITCHED OFF"
    output.line(
        f"# {state}; revision {summary.revision}, changed {summary.changed_at[:19]} by {summary.changed_by}"
    )
    output.line(detail.text)
    _labelled(output, "due", [each.local for each in detail.due])
    _labelled(output, "window", [_opening_text(each) for each in detail.openings])
    names = [vm.name for vm in detail.vms]
    _labelled(output, "VMs", [f"{len(names)}: {names_text(names)}" if names else "none now"])
    spared = [vm.name for vm in detail.excluded]
    _labelled(output, "excluded", [f"{len(spared)}: {names_text(spared)}"] if spared else [])
    _labelled(output, "LEFT OUT", _bounded(_unprotected(detail.vms)))
    _labelled(output, "shared", _bounded(_shared(detail.vms)))
    _labelled(output, "WARNING", detail.warnings)


def _labelled(output: Output, label: str, lines: Iterable[str]) -> None:
    for number, line in enumerate(lines):
        output.line(f"{'' if number else label:<9} {line}")


def _opening_text(opening: operator_pb2.PolicyOpening) -> str:
    if not opening.HasField("opens"):
        return "always open"
    return f"{opening.opens.local} to {opening.closes.local}"


def _unprotected(vms: Iterable[operator_pb2.PolicyVm]) -> list[str]:
    return [f"{vm.name}: {disk}" for vm in vms for disk in vm.unprotected]


def _shared(vms: Iterable[operator_pb2.PolicyVm]) -> list[str]:
    return [
        f"{vm.name} is also in {', '.join(vm.other_policies)}" for vm in vms if vm.other_policies
    ]


def _bounded(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:NAMES_SHOWN_MAX]
    if len(lines) > NAMES_SHOWN_MAX:
        yield f"and {len(lines) - NAMES_SHOWN_MAX} more, see --json"
