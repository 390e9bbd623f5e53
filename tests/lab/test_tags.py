"""Tags over REST, in both dialects of vCenter's interface."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from holdfast_lab.control_client import ControlFailed
from holdfast_lab.inventory_plan import InventoryPlan, MachinePlan
from holdfast_lab.main import cli
from holdfast_lab.server import RunningLab, running_lab
from support.rest_clients import SESSION, RestClient, basic, rest_client

ASSOCIATION = "/api/cis/tagging/tag-association"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    machines = tuple(
        MachinePlan(name=name, datastore="nfs1", disks=()) for name in ("web", "db", "gone")
    )
    with running_lab(
        tmp_path_factory.mktemp("lab"), inventory=InventoryPlan(machines=machines)
    ) as running:
        yield running
        bugs = running.lab.calls.events(event="lab_bug")
        assert not bugs, bugs


@pytest.fixture(autouse=True)
def _clean(lab: RunningLab) -> Iterator[None]:
    yield
    lab.lab.misbehaviour.disarm()
    lab.lab.tags.tags.clear()
    lab.lab.tags.categories.clear()


@pytest.fixture
def ask(lab: RunningLab) -> Iterator[RestClient]:
    with rest_client(lab) as client:
        yield client


def vm(lab: RunningLab, name: str = "web") -> dict[str, str]:
    """A VM as requests name it."""
    return {"type": "VirtualMachine", "id": lab.lab.machine(name).moid}


def kind_of(answer: Any) -> str:
    return str(answer["error_type"])


def new_tag(lab: RunningLab, name: str = "gold", category: str = "Backup", **more: Any) -> str:
    """A tag in a category of its own; its id."""
    lab.control.call("tag-category-add", name=category, **more)
    return str(lab.control.call("tag-add", category=category, name=name)["id"])


def test_who_logs_in_with_the_right_password_gets_a_session_and_gives_it_back(
    lab: RunningLab,
) -> None:
    with rest_client(lab, log_in=False) as ask:
        status, refused = ask("GET", "/api/cis/tagging/tag")
        assert (status, kind_of(refused)) == (401, "UNAUTHENTICATED")
        ask.headers = {"Authorization": basic(lab.user, "wrong")}
        assert ask("POST", "/api/session")[0] == 401
        ask.headers = {"Authorization": basic(lab.user, lab.password)}
        status, identifier = ask("POST", "/api/session")
        assert status == 201
        ask.headers = {SESSION: identifier}
        assert ask("GET", "/api/session")[1]["user"] == lab.user
        assert "rest" in {each["interface"] for each in lab.control.call("session-list")}
        assert ask("DELETE", "/api/session") == (204, None)
        assert ask("GET", "/api/cis/tagging/tag")[0] == 401
    assert "rest" not in {each["interface"] for each in lab.control.call("session-list")}


def test_categories_and_tags_are_made_read_changed_and_removed(ask: RestClient) -> None:
    spec = {"name": "Tier", "description": "", "cardinality": "MULTIPLE", "associable_types": []}
    status, category = ask("POST", "/api/cis/tagging/category", spec)
    assert status == 201 and category.startswith("urn:vmomi:InventoryServiceCategory:")
    assert ask("POST", "/api/cis/tagging/category", spec)[1]["error_type"] == "ALREADY_EXISTS"
    status, refused = ask("POST", "/api/cis/tagging/category", {"name": "half"})
    assert (status, kind_of(refused)) == (400, "INVALID_ARGUMENT")
    assert ask("GET", "/api/cis/tagging/category") == (200, [category])
    tag_spec = {"name": "gold", "description": "the best", "category_id": category}
    status, tag = ask("POST", "/api/cis/tagging/tag", tag_spec)
    assert status == 201
    assert ask("POST", "/api/cis/tagging/tag", tag_spec)[0] == 400
    assert ask("GET", f"/api/cis/tagging/tag/{tag}")[1] == {
        "id": tag,
        "name": "gold",
        "description": "the best",
        "category_id": category,
        "used_by": [],
    }
    assert ask("PATCH", f"/api/cis/tagging/tag/{tag}", {"name": "silver"}) == (204, None)
    assert ask("GET", f"/api/cis/tagging/tag/{tag}")[1]["name"] == "silver"
    listing = "/api/cis/tagging/tag?action=list-tags-for-category"
    assert ask("POST", listing, {"category_id": category}) == (200, [tag])
    assert ask("PATCH", f"/api/cis/tagging/category/{category}", {"name": "Class"})[0] == 204
    assert ask("GET", f"/api/cis/tagging/category/{category}")[1]["name"] == "Class"
    assert ask("DELETE", f"/api/cis/tagging/category/{category}") == (204, None)
    status, refused = ask("GET", f"/api/cis/tagging/tag/{tag}")
    assert (status, kind_of(refused)) == (404, "NOT_FOUND")


def test_what_is_attached_is_listed_by_object_and_by_tag(lab: RunningLab, ask: RestClient) -> None:
    gold = new_tag(lab)
    silver = str(lab.control.call("tag-add", category="Backup", name="silver")["id"])
    for _ in ("once", "again"):
        given = {"object_id": vm(lab)}
        assert ask("POST", f"{ASSOCIATION}/{gold}?action=attach", given) == (204, None)
    lab.control.call("tag-attach", tag="Backup/silver", name="web")
    lab.control.call("tag-attach", tag="gold", name="nfs1", kind="datastore")
    assert ask("POST", f"{ASSOCIATION}?action=list-attached-tags", {"object_id": vm(lab)}) == (
        200,
        [gold, silver],
    )
    asked = {"object_ids": [vm(lab, "db"), vm(lab)]}
    status, found = ask("POST", f"{ASSOCIATION}?action=list-attached-tags-on-objects", asked)
    assert (status, found) == (200, [{"object_id": vm(lab), "tag_ids": [gold, silver]}])
    status, found = ask(
        "POST", f"{ASSOCIATION}?action=list-attached-objects-on-tags", {"tag_ids": [gold]}
    )
    store = {"type": "Datastore", "id": lab.lab.datastore("nfs1").moid}
    assert status == 200
    assert found[0]["tag_id"] == gold
    assert sorted(found[0]["object_ids"], key=str) == sorted([store, vm(lab)], key=str)
    assert ask("POST", f"{ASSOCIATION}/{gold}?action=detach", {"object_id": vm(lab)})[0] == 204
    assert ask("POST", f"{ASSOCIATION}/{gold}?action=list-attached-objects")[1] == [store]


def test_the_older_dialect_wraps_its_values(lab: RunningLab) -> None:
    gold = new_tag(lab)
    lab.control.call("tag-attach", tag="gold", name="web")
    older = "/rest/com/vmware/cis"
    with rest_client(lab, log_in=False) as ask:
        ask.headers = {"Authorization": basic(lab.user, lab.password)}
        status, answer = ask("POST", f"{older}/session")
        assert status == 200
        ask.headers = {SESSION: answer["value"]}
        assert ask("GET", f"{older}/tagging/tag") == (200, {"value": [gold]})
        assert ask("GET", f"{older}/tagging/tag/id:{gold}")[1]["value"]["name"] == "gold"
        status, refused = ask("GET", f"{older}/tagging/tag/id:nobody")
        assert (status, refused["type"]) == (404, "com.vmware.vapi.std.errors.not_found")
        assert refused["value"]["messages"][0]["default_message"]
        status, answer = ask(
            "POST",
            f"{older}/tagging/tag-association?~action=list-attached-tags-on-objects",
            {"object_ids": [vm(lab)]},
        )
        assert answer == {"value": [{"object_id": vm(lab), "tag_ids": [gold]}]}
        assert ask("DELETE", f"{older}/session") == (200, None)
        assert ask("GET", f"{older}/tagging/tag")[0] == 401


def test_a_category_decides_how_many_of_its_tags_and_on_what(
    lab: RunningLab, ask: RestClient
) -> None:
    gold = new_tag(lab, single=True, types=["VirtualMachine"])
    silver = str(lab.control.call("tag-add", category="Backup", name="silver")["id"])
    lab.control.call("tag-attach", tag="gold", name="web")
    status, refused = ask("POST", f"{ASSOCIATION}/{silver}?action=attach", {"object_id": vm(lab)})
    assert (status, kind_of(refused)) == (400, "INVALID_ARGUMENT")
    store = {"type": "Datastore", "id": lab.lab.datastore("nfs1").moid}
    status, answer = ask(
        "POST",
        f"{ASSOCIATION}/{gold}?action=attach-tag-to-multiple-objects",
        {"object_ids": [vm(lab, "db"), store]},
    )
    assert status == 200
    assert answer["success"] is False
    assert len(answer["error_messages"]) == 1
    with pytest.raises(ControlFailed, match="not for Datastore"):
        lab.control.call("tag-attach", tag="gold", name="nfs1", kind="datastore")


def test_an_object_that_is_gone_has_no_tags_and_may_not_be_read(
    lab: RunningLab, ask: RestClient
) -> None:
    new_tag(lab)
    lab.control.call("tag-attach", tag="gold", name="gone")
    gone = vm(lab, "gone")
    lab.control.call("vm-remove", vm="gone")
    assert lab.control.call("tag-list")[0]["objects"] == []
    asked = {"object_ids": [vm(lab), gone]}
    status, refused = ask("POST", f"{ASSOCIATION}?action=list-attached-tags-on-objects", asked)
    assert (status, kind_of(refused)) == (403, "UNAUTHORIZED")


def test_a_tag_that_may_not_be_read_is_left_out_without_a_word(
    lab: RunningLab, ask: RestClient
) -> None:
    gold = new_tag(lab)
    lab.control.call("tag-attach", tag="gold", name="web")
    lab.lab.misbehaviour.arm("hide_tags", match={"tag": "gold"}, times=None)
    asked = {"object_ids": [vm(lab)]}
    assert ask("POST", f"{ASSOCIATION}?action=list-attached-tags-on-objects", asked) == (200, [])
    assert ask("GET", "/api/cis/tagging/tag") == (200, [])
    assert ask("GET", f"/api/cis/tagging/tag/{gold}")[0] == 403


def test_who_lacks_the_right_makes_no_tag(lab: RunningLab) -> None:
    new_tag(lab)
    lab.control.call("user-add", name="reader", password="pass", privileges=["System.Read"])
    with rest_client(lab, user="reader", password="pass") as ask:
        status, categories = ask("GET", "/api/cis/tagging/category")
        assert status == 200
        spec = {"name": "other", "description": "", "category_id": categories[0]}
        status, refused = ask("POST", "/api/cis/tagging/tag", spec)
        assert (status, kind_of(refused)) == (403, "UNAUTHORIZED")


@pytest.mark.parametrize(
    ("rule", "status"), [("unavailable", 503), ("expire_session", 401), ("fail_call", 500)]
)
def test_rest_goes_wrong_on_request(
    lab: RunningLab, ask: RestClient, rule: str, status: int
) -> None:
    lab.lab.misbehaviour.arm(rule, match={"method": "GET /api/cis/tagging/tag"})
    assert ask("GET", "/api/cis/tagging/tag")[0] == status
    logged = lab.lab.calls.events(event="rest")[-1]
    assert logged["method"] == "GET /api/cis/tagging/tag"
    assert logged["fault"]


def test_a_lost_reply_cuts_the_connection(lab: RunningLab, ask: RestClient) -> None:
    lab.lab.misbehaviour.arm("lost_reply", match={"method": "* /api/cis/*"})
    with pytest.raises((http.client.HTTPException, OSError)):
        ask("GET", "/api/cis/tagging/category")


def test_a_single_host_has_no_tags(tmp_path: Path) -> None:
    with running_lab(tmp_path, mode="host") as host:
        with rest_client(host, log_in=False) as ask:
            for path in ("/api/session", "/rest/com/vmware/cis/session"):
                ask.connection.request("POST", path)
                answer = ask.connection.getresponse()
                assert (answer.status, bool(answer.read())) == (404, True)
        with pytest.raises(ControlFailed, match="no tags"):
            host.control.call("tag-list")


def test_the_program_makes_tags_and_attaches_them(lab: RunningLab) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["tag", *arguments, "--state", str(lab.state)])
        assert done.exit_code == 0, done.output
        return done.output

    run("category", "Tier", "--single", "--for", "VirtualMachine", "--for", "Folder")
    run("add", "Tier", "gold")
    run("attach", "Tier/gold", "web")
    run("attach", "gold", "vm", "--kind", "folder")
    assert "objects=['vm', 'web']" in run("list")
    run("rename", "gold", "best")
    run("detach", "best", "web")
    assert "objects=['vm']" in run("list")
    run("remove", "best")
    assert run("list").strip() == "none"
