"""A plan of the days to come, for operators: page by page, with what it comes to at its end."""

from __future__ import annotations

from itertools import islice
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import UsageError
from holdfast_common.identity import AgentId
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.plan import MISSES, Act, PlanDecision
from holdfast_controller.runs.planning import plan_of
from holdfast_controller.runs.world import World

DAYS_MAX: Final = 92
PAGE_LENGTH: Final = 1000
UNCOVERED_MAX: Final = 10_000


class PlanPages:
    """One operator's plan: his calls come one after another, from whichever thread."""

    def __init__(self, world: World, request: operator_pb2.PlanRequest) -> None:
        if not 0 < request.days <= DAYS_MAX:
            raise UsageError(
                "a plan is of some days", days=request.days, expected=f"up to {DAYS_MAX}"
            )
        self._plan = plan_of(world, days=request.days, now=world.clock.now())
        self._hosts = {agent.agent_id: agent.host_name for agent in world.agents.all()}
        self._counts = dict.fromkeys(Act, 0)
        self._ended = False

    def next_page(self, _: operator_pb2.PlanRequest) -> operator_pb2.PlanPage | None:
        """None: that was all."""
        if self._ended:
            return None
        found = list(islice(self._plan.decisions, PAGE_LENGTH))
        for each in found:
            self._counts[each.act] += 1
        page = operator_pb2.PlanPage(decisions=[self._message(each) for each in found])
        if len(found) < PAGE_LENGTH:
            self._ended = True
            page.summary.CopyFrom(self._summary())
        return page

    def _summary(self) -> operator_pb2.PlanSummary:
        return operator_pb2.PlanSummary(
            policies=self._plan.policies,
            vms=self._plan.vms,
            guessed=self._plan.guessed,
            runs=self._counts[Act.DUE],
            backups=self._counts[Act.BEGIN],
            misses=sum(self._counts[act] for act in MISSES),
            uncovered=self._plan.uncovered[:UNCOVERED_MAX],
            told=self._plan.told,
        )

    def _message(self, decision: PlanDecision) -> operator_pb2.PlanDecision:
        return operator_pb2.PlanDecision(
            at=utc_text(decision.at),
            act=decision.act,
            policy=decision.policy,
            vm=decision.vm,
            level=decision.level,
            agent=self._hosts.get(AgentId(decision.agent_id), decision.agent_id),
            reason=decision.reason,
        )
