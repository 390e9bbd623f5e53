"""A plan of 7 days over 10,000 VMs, 200 proxies and 500 datastores: seconds and memory of one process.

Ends with one JSON line of goals. Run: make bench-plan
"""

from __future__ import annotations

import json
import resource
import sys
import time
from datetime import UTC, datetime, timedelta

from holdfast_common.identity import AgentId
from holdfast_controller.decide.dispatch import Way
from holdfast_controller.decide.due_policies import PolicyHistory
from holdfast_controller.decide.load_limits import LoadKey, LoadKind, LoadLimits
from holdfast_controller.decide.plan import Act, Plan, PlannedPolicy, PlannedVm
from holdfast_controller.decide.policy import Policy

VMS, PROXIES, DATASTORES, HOSTS, CLUSTERS, DAYS = 10_000, 200, 500, 300, 20, 7
SECONDS_GOAL, MEMORY_GOAL_MIB = 60.0, 1024
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def site() -> tuple[dict[tuple[str, str], PlannedVm], list[PlannedPolicy]]:
    """Each proxy sees the datastores of its cluster; each VM lies on one or two of them."""
    proxies_of: dict[int, tuple[Way, ...]] = {}
    for cluster in range(CLUSTERS):
        proxies_of[cluster] = tuple(
            Way(
                agent_id=AgentId(f"proxy-{number}"),
                loads=(LoadKey(LoadKind.PROXY, f"proxy-{number}"),),
            )
            for number in range(PROXIES)
            if number % CLUSTERS == cluster
        )
    vms = {}
    for number in range(VMS):
        cluster = number % CLUSTERS
        key = ("vcenter", f"vm-{number:05}")
        stores = {number % DATASTORES, (number * 7 + cluster) % DATASTORES}
        vms[key] = PlannedVm(
            key=key,
            name=key[1],
            loads=(
                *(LoadKey(LoadKind.DATASTORE, f"ds-{store}") for store in sorted(stores)),
                LoadKey(LoadKind.HOST, f"host-{number % HOSTS}"),
                LoadKey(LoadKind.CLUSTER, f"cluster-{cluster}"),
                LoadKey(LoadKind.WORK, "backup", "backups"),
            ),
            ways=proxies_of[cluster],
            seconds=60.0 + number % 240,
            full_seconds=1800.0 + number % 3600,
            last_good=NOW - timedelta(hours=12 + number % 24),
            last_full=NOW - timedelta(days=number % 30),
        )
    keys = list(vms)
    made = PolicyHistory(created_at=NOW, changed_at=NOW)
    policies = [
        PlannedPolicy(
            policy_id=str(number),
            policy=Policy(
                name=f"policy-{number:02}",
                vms=("*",),
                start=f"{number * 3} {20 + number % 4} * * *",
                window="mon-sun 20:00-06:00",
                priority=number,
            ),
            history=made,
            vms=tuple(keys[number::20]),
        )
        for number in range(20)
    ]
    return vms, policies


def main() -> int:
    """Plan once; the figures go to stdout."""
    vms, policies = site()
    limits = LoadLimits(
        each={
            LoadKind.DATASTORE: 2,
            LoadKind.HOST: 4,
            LoadKind.CLUSTER: 20,
            LoadKind.PROXY: 4,
        },
        named={(LoadKind.WORK, "backups"): 400},
    )
    begun = time.process_time()
    counts: dict[str, int] = {}
    plan = Plan(
        vms=vms, policies=policies, limits=limits, now=NOW, until=NOW + timedelta(days=DAYS)
    )
    kept = []
    for decision in plan.decisions():
        counts[decision.act] = counts.get(decision.act, 0) + 1
        kept.append(decision)
    seconds = time.process_time() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{VMS} VMs, {PROXIES} proxies, {DATASTORES} datastores, {DAYS} days: {counts}")
    goals = {
        "seconds": {
            "figure": round(seconds, 2),
            "goal": SECONDS_GOAL,
            "met": seconds < SECONDS_GOAL,
        },
        "memory": {
            "figure": round(memory, 1),
            "goal": MEMORY_GOAL_MIB,
            "met": memory < MEMORY_GOAL_MIB,
        },
    }
    print(json.dumps(goals))
    return 0 if counts.get(Act.BEGIN) else 1


if __name__ == "__main__":
    sys.exit(main())
