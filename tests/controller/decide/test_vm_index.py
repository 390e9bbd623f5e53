from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_controller.decide.coverage import select
from holdfast_controller.decide.selection import POWER_STATES, SelectableVm, matches
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.facts import VmTag
from support.policies import policy
from support.vm_facts import VM

WORDS = ("a", "ab", "b/a", "a*", "*", "?", "[ab]", "a:b", "tag:a", "50aa", "A")
words = st.sampled_from(WORDS)
paths = st.lists(st.sampled_from(("a", "ab", "b")), max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
several = st.lists(words, max_size=2).map(tuple)
tags = st.builds(lambda category, name: VmTag(category=category, name=name), words, words)
vms = st.builds(
    lambda vcenter, cluster, pool, pools, facts, tags: SelectableVm(
        vcenter_name=vcenter,
        cluster_name=cluster,
        pool_path=pool,
        pool_names=pools,
        vm=facts,
        tags=tags,
    ),
    words,
    words | st.just(""),
    paths,
    several,
    st.builds(
        lambda name, identity, place, host, datastores, power: replace(
            VM,
            name=name,
            instance_uuid=identity,
            place=place,
            host_name=host,
            datastore_names=datastores,
            power_state=power,
        ),
        words,
        words,
        paths,
        words,
        several,
        st.sampled_from(sorted(POWER_STATES.values())),
    ),
    st.none() | st.lists(tags, max_size=2).map(tuple),
)
kinds = st.sampled_from(("folder", "host", "cluster", "pool", "datastore", "tag", "unknown"))
selectors = (
    words
    | st.builds("{}/{}".format, words, words)
    | st.builds("{}:{}".format, kinds, words | paths)
    | st.sampled_from(("power:on", "power:off"))
)


@settings(max_examples=150)
@given(st.lists(vms, max_size=8), st.lists(selectors, min_size=1, max_size=4))
def test_it_names_what_each_vm_alone_says_of_itself(
    all_vms: list[SelectableVm], asked: list[str]
) -> None:
    index = VmIndex(all_vms)
    assert list(index) == all_vms
    for selector in asked:
        expected = {number for number, vm in enumerate(all_vms) if matches(vm, selector)}
        assert index.named(selector) == expected


def test_a_power_state_that_no_vm_has_is_refused_here_too() -> None:
    with pytest.raises(UsageError, match="on, off or suspended"):
        VmIndex([SelectableVm(vcenter_name="vc1", vm=VM)]).named("power:up")


def test_a_selector_by_place_asks_as_often_as_there_are_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def counted(each: SelectableVm, selector: str) -> bool:
        asked.append(each.vm.name)
        return matches(each, selector)

    monkeypatch.setattr("holdfast_controller.decide.vm_index.matches", counted)
    many = [
        SelectableVm(
            vcenter_name="vc1",
            vm=replace(VM, name=f"vm{number}", host_name=f"esx{number % 7}", place="/dc1/prod"),
        )
        for number in range(500)
    ]
    index = VmIndex(many)
    made = policy(vms=("folder:/dc1/prod", "vm5"), exclude=("host:esx3", "host:esx4"))
    assert len(select(made, index).chosen) == 358
    assert len(asked) == 1 + 7 + 7
