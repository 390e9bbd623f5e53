from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast_common.errors import UsageError
from holdfast_controller.decide.disk_choice import check_disk_selector
from holdfast_controller.decide.selection import (
    SELECTOR_LENGTH_MAX,
    SelectableVm,
    Whereabouts,
    check_selector,
    matches,
)
from holdfast_controller.facts import PlaceFacts, VmTag
from support.vm_facts import HOST
from support.vm_facts import VM as SOME_VM

VM = replace(
    SOME_VM,
    name="web1",
    instance_uuid="50aa",
    place="/Berlin/web",
    host_moref="host-1",
    host_name="esx1.lab",
    pool_moref="pool-2",
    datastore_names=("nfs1", "ssd"),
    power_state="poweredOn",
)


def place(moref: str, kind: str, name: str, parent: str, path: str) -> PlaceFacts:
    return PlaceFacts(moref=moref, kind=kind, name=name, parent_moref=parent, path=path)


PLACES = (
    place("dc-1", "Datacenter", "Berlin", "", "/Berlin"),
    place("cluster-1", "ClusterComputeResource", "prod", "dc-1", "/Berlin/prod"),
    place("compute-2", "ComputeResource", "esx2.lab", "dc-1", "/Berlin/esx2.lab"),
    place("pool-0", "ResourcePool", "Resources", "cluster-1", "/Berlin/prod/Resources"),
    place("pool-1", "ResourcePool", "gold", "pool-0", "/Berlin/prod/Resources/gold"),
    place("pool-2", "VirtualApp", "shop", "pool-1", "/Berlin/prod/Resources/gold/shop"),
)
HOSTS = (
    replace(HOST, moref="host-1", name="esx1.lab", compute_moref="cluster-1"),
    replace(HOST, moref="host-2", name="esx2.lab", compute_moref="compute-2"),
)
WHEREABOUTS = Whereabouts.of(HOSTS, PLACES)
TAGS = (VmTag(category="Backup", name="gold"), VmTag(category="Site/A", name="row 1/left"))
WEB = WHEREABOUTS.selectable("vc1", VM, TAGS)
ALONE = WHEREABOUTS.selectable(
    "vc2",
    replace(VM, host_moref="host-2", host_name="esx2.lab", pool_moref="", power_state="poweredOff"),
)


@pytest.mark.parametrize(
    ("selector", "web", "alone"),
    [
        ("web1", True, True),
        ("50aa", True, True),
        ("web?", True, True),
        ("tag:gold", True, False),
        ("tag:Backup/gold", True, False),
        ("tag:B*/g*", True, False),
        ("tag:Tier/gold", False, False),
        ("tag:Backup", False, False),
        ("tag:B*", False, False),
        ("tag:Gold", False, False),
        ("tag:row 1/left", True, False),
        ("tag:Site/A/row 1/left", True, False),
        ("tag:A/row 1/left", False, False),
        ("WEB1", False, False),
        ("vc1/web*", True, False),
        ("vc1/db*", False, False),
        ("folder:/Berlin", True, True),
        ("folder:Berlin/web/", True, True),
        ("folder:/Ber", False, False),
        ("host:esx1*", True, False),
        ("cluster:prod", True, False),
        ("cluster:p*", True, False),
        ("cluster:*", True, False),
        ("cluster:esx2.lab", False, False),
        ("pool:gold", True, False),
        ("pool:shop", True, False),
        ("pool:/Berlin/prod/Resources/gold", True, False),
        ("pool:prod", False, False),
        ("pool:*", True, False),
        ("datastore:ssd", True, True),
        ("datastore:nfs2", False, False),
        ("power:on", True, False),
        ("power:off", False, True),
        ("power:suspended", False, False),
    ],
)
def test_a_selector_names_what_is_there_or_is_so(selector: str, web: bool, alone: bool) -> None:
    check_selector(selector)
    assert (matches(WEB, selector), matches(ALONE, selector)) == (web, alone)


def test_a_vm_whose_name_looks_like_a_glob_is_named_by_it() -> None:
    odd = SelectableVm(vcenter_name="vc1", vm=replace(VM, name="[old] web"))
    assert matches(odd, "[old] web")
    assert not matches(WEB, "[old] web")


@pytest.mark.parametrize(
    "selector", ["", "folder:", "host:", "tag:", "tag:/gold", "tag:Tier/", "power:of", "power:"]
)
def test_a_selector_that_nobody_can_answer_is_refused_and_says_what_can_be(selector: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_selector(selector)
    assert "cluster:" in caught.value.advice


def test_a_selector_has_an_upper_length_and_its_error_stays_short() -> None:
    longest = "folder:/" + "f" * (SELECTOR_LENGTH_MAX - 8)
    check_selector(longest)
    for check, selector in (
        (check_selector, f"{longest}f"),
        (check_disk_selector, "disk:" + longest),
    ):
        with pytest.raises(UsageError, match="too long") as caught:
            check(selector)
        assert caught.value.facts["length"] == len(selector)
        assert len(str(caught.value)) < 400


def test_pools_that_claim_to_hold_each_other_end_somewhere() -> None:
    circle = Whereabouts.of(
        (),
        (
            place("pool-1", "ResourcePool", "a", "pool-2", "/a"),
            place("pool-2", "ResourcePool", "b", "pool-1", "/b"),
        ),
    )
    assert circle.selectable("vc1", VM).pool_names == ("b", "a")
