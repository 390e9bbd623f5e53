"""Which points go by the rules of policies, asked at the moment in which they are to be forgotten.

Between `decide.policy_retention`, which decides, and `repository_care`, which obeys. Nothing is dropped unless it is
known of every policy which VMs it covers: one that cannot be read may want what another one drops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from holdfast_common.errors import CapabilityAbsent, Refused
from holdfast_common.identity import PointId
from holdfast_common.repository.forget import ForgetPlan
from holdfast_controller.decide.coverage import check_tags, select
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_retention import PolicyRule, plan_by_policies
from holdfast_controller.decide.retention import Decision
from holdfast_controller.decide.selection import SelectableVm
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.runs.clock_watch import clock_doubt
from holdfast_controller.runs.forget_by_rule import (
    SeenRepository,
    clock_problem_of,
    kept_by_repository,
    known_points,
)
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.inventory import KnownVm


@dataclass(slots=True, kw_only=True)
class ForgetByPolicies:
    """``rows``: the points as the catalogue has them. ``decisions`` and ``clock_problem`` are there after `choose`.

    ``rules``: of each VM that a policy covers, as they were when this was made.
    """

    world: World
    rows: Sequence[PointRow]
    rules: Mapping[str, Sequence[PolicyRule]]  # by lineage
    accept_clock: bool = False
    only: frozenset[str] = frozenset()  # of what they drop, only these; empty: all of it
    decisions: list[Decision] = field(default_factory=list)
    clock_problem: str = ""

    @classmethod
    def of(
        cls,
        world: World,
        *,
        rows: Sequence[PointRow],
        accept_clock: bool = False,
        only: frozenset[str] = frozenset(),
    ) -> ForgetByPolicies:
        """By the policies and inventories of now. Raises: Refused."""
        rules = rules_of_vms(world)
        return cls(world=world, rows=rows, rules=rules, accept_clock=accept_clock, only=only)

    def choose(self, seen: SeenRepository) -> set[PointId]:
        """The points that no rule keeps. Raises: RepositoryFailed."""
        world = self.world
        now = world.clock.now()
        if not self.accept_clock:
            self.clock_problem = clock_doubt(world) or clock_problem_of(seen, now)
        repository_id = world.keeper.repository_id
        rows = [row for row in self.rows if row.repository_id == repository_id]
        self.decisions = plan_by_policies(
            known_points(world, seen, rows),
            self.rules,
            now=now,
            clock_problem=self.clock_problem,
        )
        dropped = {each.point.point_id for each in self.decisions if not each.kept}
        if self.only:
            dropped &= self.only
        return {PointId(point_id) for point_id in dropped}

    def told(self, plan: ForgetPlan) -> list[Decision]:
        """The decisions, with what the repository itself keeps of what the rules drop."""
        return kept_by_repository(self.decisions, plan)


def rules_of_vms(world: World) -> dict[str, list[PolicyRule]]:
    """By VM of the inventory, of each policy that selects it. Raises: Refused when it cannot be said of one of them."""
    unreadable = world.policies.unreadable()
    if unreadable:
        raise Refused(
            "nothing is forgotten while a policy cannot be read: nobody knows what it keeps",
            policy=unreadable[0].name,
            problem=unreadable[0].problem,
            advice="give it anew with `holdfast policy apply`, or delete it",
        )
    inventory = world.vcenters.inventory
    pairs = inventory.selectable()
    vms = VmIndex(vm for _, vm in pairs)
    policies = [stored.policy for stored in world.policies.policies()]
    for policy in policies:
        try:
            check_tags(policy, vms, inventory.tags.sources())
        except CapabilityAbsent as error:
            raise Refused(
                f"nothing is forgotten while it is not known which VMs a policy selects: {error.message}",
                policy=policy.name,
                advice=error.advice,
            ) from error
    return rules_by_lineage(world, policies, [known for known, _ in pairs], vms)


def rules_by_lineage(
    world: World,
    policies: Sequence[Policy],
    known: Sequence[KnownVm],
    vms: Sequence[SelectableVm],
) -> dict[str, list[PolicyRule]]:
    """What each of these policies keeps of each VM that it selects. The VMs, twice in one order."""
    instance_uuids = {row.vcenter_id: row.instance_uuid for row in world.vcenters.table.all()}
    rules: dict[str, list[PolicyRule]] = {}
    for policy in policies:
        rule = PolicyRule(policy=policy.name, rule=policy.retention, enabled=policy.enabled)
        lineages = {
            lineage_of(
                vcenter_instance_uuid=instance_uuids[each.vcenter_id],
                vm_instance_uuid=each.vm.instance_uuid,
            )
            for each in (known[number] for number in select(policy, vms).chosen)
            if each.vcenter_id in instance_uuids
        }
        for lineage_id in lineages:
            rules.setdefault(lineage_id, []).append(rule)
    return rules
