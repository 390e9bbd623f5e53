"""Which proxy works on the repository itself: checks it, mends it, or lists what is in it."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_common.errors import Refused
from holdfast_common.listed_folders import is_listed
from holdfast_controller.runs.agent_link import ConnectedAgent
from holdfast_controller.runs.world import World

REPAIR_FOLDERS = "[repair] folders"


def proxies_with_repository(world: World, wanted: str = "") -> list[ConnectedAgent]:
    """All connected proxies that reach the repository, one at least. ``wanted``: the id or host name of one.

    Raises: Refused.
    """
    repository_id = world.keeper.repository_id
    connected = world.link.connected()
    found = [
        agent
        for agent in connected
        if agent.role == "proxy" and repository_id in agent.repositories
    ]
    if wanted:
        return [_named(wanted, connected, found)]
    if not found:
        raise Refused(
            "no connected proxy reaches the repository",
            advice="see `holdfast agent list` and `holdfast doctor`",
        )
    return found


def proxy_with_repository(world: World) -> ConnectedAgent:
    """Any connected proxy that reaches the repository. Raises: Refused."""
    return proxies_with_repository(world)[0]


def proxy_for_repair(world: World, *, source_folder: str, wanted: str = "") -> ConnectedAgent:
    """One that may read the copy at ``source_folder`` ("": there is none), or the one that is ``wanted``.

    That one judges by itself whether it may read there. Raises: Refused.
    """
    found = proxies_with_repository(world, wanted)
    if wanted or not source_folder:
        return found[0]
    for agent in found:
        if is_listed(source_folder, agent.repair_folders):
            return agent
    raise Refused(
        f"no connected proxy that reaches the repository lists that folder under {REPAIR_FOLDERS};"
        " nothing was changed: " + "; ".join(_folders_text(agent) for agent in found),
        path=source_folder[:300],
        advice=f"name the folder under {REPAIR_FOLDERS} in the agent.toml of a proxy that sees it; its agent"
        " takes that up by itself. --agent NAME chooses a proxy",
    )


def _named(
    wanted: str, connected: Sequence[ConnectedAgent], found: Sequence[ConnectedAgent]
) -> ConnectedAgent:
    named = [agent for agent in connected if wanted == agent.agent_id]
    named = named or [agent for agent in connected if wanted == agent.host_name]
    if not named:
        raise Refused(
            "no such agent is connected; nothing was begun",
            agent=wanted[:100],
            proxies=_names(found),
            advice="see `holdfast agent list`",
        )
    if len(named) > 1:
        raise Refused(
            "more than one connected agent has this name; nothing was begun",
            agent=wanted[:100],
            advice="name it by its id; see `holdfast agent list`",
        )
    if named[0] not in found:
        raise Refused(
            "that agent is no proxy that reaches the repository; nothing was begun",
            agent=wanted[:100],
            proxies=_names(found),
            advice="see `holdfast agent list` and `holdfast doctor`",
        )
    return named[0]


def _names(agents: Sequence[ConnectedAgent]) -> str:
    return ", ".join(agent.host_name for agent in agents) or "none"


def _folders_text(agent: ConnectedAgent) -> str:
    return f"{agent.host_name} lists {', '.join(agent.repair_folders) or 'none'}"
