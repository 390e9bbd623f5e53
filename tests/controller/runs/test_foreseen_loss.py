"""Which points a change of policies would give away: told by a dry run, and refused unless it is allowed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from holdfast_common.clock import utc_text
from holdfast_common.errors import Refused
from holdfast_common.identity import JobId, PointId, new_ulid
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_checks import Oddity
from holdfast_controller.decide.policy_text import policies_text
from holdfast_controller.decide.retention import RetentionRule
from holdfast_controller.runs.foreseen_loss import ForeseenLoss
from holdfast_controller.runs.policies import ChangeRequest, PolicyDesk
from holdfast_controller.runs.world import lineage_of
from holdfast_controller.store.catalogue import PointRow
from support.one_process import OneProcess
from support.policies import policy

NOTHING = ForeseenLoss()


class Desk:
    """Policies of a controller whose VM has five points, one a day, the newest of today."""

    def __init__(self, holdfast: OneProcess) -> None:
        self.holdfast = holdfast
        self.desk = PolicyDesk(holdfast.world)
        self.made_at = [
            utc_text(holdfast.world.clock.now() - timedelta(days=days)) for days in range(5)
        ]
        (known,) = holdfast.world.vcenters.inventory.select(["web"])
        (vcenter,) = holdfast.world.vcenters.table.all()
        for at in self.made_at:
            holdfast.world.catalogue.add(
                PointRow(
                    point_id=PointId(new_ulid()),
                    repository_id=holdfast.world.keeper.repository_id,
                    lineage_id=lineage_of(
                        vcenter_instance_uuid=vcenter.instance_uuid,
                        vm_instance_uuid=known.vm.instance_uuid,
                    ),
                    job_id=JobId(new_ulid()),
                    vcenter_id=vcenter.instance_uuid,
                    instance_uuid=known.vm.instance_uuid,
                    vm_name="web",
                    created_at=at,
                    record="{}",
                )
            )

    def apply(self, *made: Policy, dry_run: bool = False, allow: bool = False) -> ForeseenLoss:
        allowed = {Oddity.UNMATCHED, Oddity.FORGET} if allow else {Oddity.UNMATCHED}
        request = ChangeRequest(text=policies_text(made), allowed=allowed)
        return self.desk.change(request, actor="anna", dry_run=dry_run).loss

    def delete(self, name: str, *, dry_run: bool = True) -> ForeseenLoss:
        return self.desk.delete(name, revision=0, actor="anna", dry_run=dry_run).loss


@pytest.fixture
def desk(holdfast: OneProcess) -> Desk:
    return Desk(holdfast)


def keeping(count: int, name: str = "gold", vms: str = "web", *, enabled: bool = True) -> Policy:
    rule = RetentionRule(keep_last=count)
    return policy(name, vms=(vms,), retention=rule, enabled=enabled)


def test_a_shorter_rule_is_refused_with_what_it_drops_unless_it_is_allowed(desk: Desk) -> None:
    assert desk.apply(keeping(5)) == NOTHING
    lost = ForeseenLoss(points=3, vms=1, oldest=desk.made_at[-1])
    assert desk.apply(keeping(2), dry_run=True) == lost
    with pytest.raises(Refused, match="would be dropped") as refused:
        desk.apply(keeping(2))
    assert refused.value.facts == {"points": 3, "vms": 1, "oldest": desk.made_at[-1]}
    assert "--allow forget" in refused.value.advice
    (stored,) = desk.holdfast.world.policies.policies()
    assert stored.policy == keeping(5)
    assert desk.apply(keeping(2), allow=True) == lost
    assert desk.apply(keeping(2)) == NOTHING, "what is due to go already is no change"


def test_a_rule_for_a_vm_that_no_policy_covered_gives_away_what_it_does_not_keep(
    desk: Desk,
) -> None:
    assert desk.apply(keeping(1), dry_run=True).points == 4
    assert desk.apply(keeping(1, enabled=False)) == NOTHING
    assert desk.apply(keeping(1), dry_run=True).points == 4, "it is switched on"


def test_what_another_policy_keeps_is_not_given_away(desk: Desk) -> None:
    desk.apply(keeping(4, "silver"), allow=True)
    assert desk.apply(keeping(1)) == NOTHING
    assert desk.apply(keeping(4, "silver", "db"), dry_run=True).points == 3, "it spares the VM now"
    assert desk.delete("silver").points == 3
    assert desk.delete("gold") == NOTHING
    assert desk.delete("silver", dry_run=False).points == 3
    assert desk.delete("gold") == NOTHING, "without any policy everything stays"


def test_a_point_in_doubt_does_not_stand_for_a_good_one(desk: Desk) -> None:
    desk.apply(keeping(5))
    newest = desk.holdfast.world.catalogue.points()[0]
    desk.holdfast.world.catalogue.doubt_tracking(
        newest.lineage_id, "it was caught", suspects=[newest.point_id]
    )
    assert desk.apply(keeping(1), dry_run=True).points == 3


def test_a_change_of_something_else_asks_for_no_point(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.apply(keeping(5))
    monkeypatch.setattr(desk.holdfast.world.catalogue, "of_lineage", pytest.fail)
    renamed = policy(
        "gold", vms=("web",), retention=RetentionRule(keep_last=5), description="changed"
    )
    assert desk.apply(renamed) == NOTHING
