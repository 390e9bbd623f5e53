"""``cis/tagging``: categories, tags, and what they are attached to, as clients of vCenter ask for them.

As on vCenter, what an account may not read is left out of every list without a word (here:
misbehaviour ``hide_tags``), and an object that is not there is one that may not be read.
"""

from __future__ import annotations

from holdfast_lab.rest_service import (
    UNAUTHORIZED,
    RestBody,
    RestCall,
    RestError,
    made,
    rest_operation,
)
from holdfast_lab.tags import INVALID_ARGUMENT, Category, Tag, TaggedObject, TagRefused

CATEGORY = "cis/tagging/category"
TAG = "cis/tagging/tag"
ASSOCIATION = "cis/tagging/tag-association"
RIGHTS = "InventoryService.Tagging."
OBJECTS_MAX = 2000  # more in one request are refused: the service has limits


# categories ---------------------------------------------------------------------------------


@rest_operation("GET", CATEGORY)
def list_categories(call: RestCall) -> object:
    """The ids of all categories."""
    return list(call.lab.tags.categories)


@rest_operation("POST", CATEGORY)
def create_category(call: RestCall) -> object:
    """Make one; its id."""
    call.check_privilege(f"{RIGHTS}CreateCategory")
    spec = call.spec("create_spec")
    category = call.lab.tags.add_category(
        spec.text("name"),
        description=spec.text("description"),
        cardinality=spec.text("cardinality"),
        types=spec.texts("associable_types"),
    )
    return made(category.identifier)


@rest_operation("GET", CATEGORY, one=True)
def get_category(call: RestCall) -> object:
    """One category."""
    return _category(call.lab.tags.category(call.identifier))


@rest_operation("PATCH", CATEGORY, one=True)
def update_category(call: RestCall) -> object:
    """Change one."""
    call.check_privilege(f"{RIGHTS}EditCategory")
    category, spec = call.lab.tags.category(call.identifier), call.spec("update_spec")
    types = spec.texts("associable_types") if spec.values.get("associable_types") else ()
    call.lab.tags.extend(category, cardinality=spec.text("cardinality", ""), types=types)
    if spec.values.get("name"):
        call.lab.tags.rename_category(category, spec.text("name"))
    category.description = spec.text("description", category.description)
    return None


@rest_operation("DELETE", CATEGORY, one=True)
def delete_category(call: RestCall) -> object:
    """Remove one with its tags."""
    call.check_privilege(f"{RIGHTS}DeleteCategory")
    call.lab.tags.remove_category(call.lab.tags.category(call.identifier))
    return None


# tags ---------------------------------------------------------------------------------------


@rest_operation("GET", TAG)
def list_tags(call: RestCall) -> object:
    """The ids of all tags."""
    return [each.identifier for each in call.lab.tags.tags.values() if _is_shown(call, each)]


@rest_operation("POST", TAG, action="list-tags-for-category")
@rest_operation("POST", TAG, action="list-tags-for-category", one=True)
def list_tags_for_category(call: RestCall) -> object:
    """The ids of a category's tags."""
    wanted = call.identifier or call.body.text("category_id")
    category = call.lab.tags.category(wanted)
    return [
        each.identifier
        for each in call.lab.tags.tags.values()
        if each.category is category and _is_shown(call, each)
    ]


@rest_operation("POST", TAG)
def create_tag(call: RestCall) -> object:
    """Make one; its id."""
    call.check_privilege(f"{RIGHTS}CreateTag")
    spec = call.spec("create_spec")
    category = call.lab.tags.category(spec.text("category_id"))
    tag = call.lab.tags.add_tag(spec.text("name"), category, description=spec.text("description"))
    return made(tag.identifier)


@rest_operation("GET", TAG, one=True)
def get_tag(call: RestCall) -> object:
    """One tag."""
    tag = _tag(call)
    return {
        "id": tag.identifier,
        "name": tag.name,
        "description": tag.description,
        "category_id": tag.category.identifier,
        "used_by": [],
    }


@rest_operation("PATCH", TAG, one=True)
def update_tag(call: RestCall) -> object:
    """Change one."""
    call.check_privilege(f"{RIGHTS}EditTag")
    tag, spec = _tag(call), call.spec("update_spec")
    if spec.values.get("name"):
        call.lab.tags.rename_tag(tag, spec.text("name"))
    tag.description = spec.text("description", tag.description)
    return None


@rest_operation("DELETE", TAG, one=True)
def delete_tag(call: RestCall) -> object:
    """Remove one."""
    call.check_privilege(f"{RIGHTS}DeleteTag")
    call.lab.tags.remove_tag(_tag(call))
    return None


# what carries them --------------------------------------------------------------------------


@rest_operation("POST", ASSOCIATION, action="attach", one=True)
def attach(call: RestCall) -> object:
    """Attach a tag to an object."""
    call.check_privilege(f"{RIGHTS}AttachTag")
    call.lab.tags.attach(_tag(call), _there(call, call.body.part("object_id")))
    return None


@rest_operation("POST", ASSOCIATION, action="detach", one=True)
def detach(call: RestCall) -> object:
    """Take a tag off an object."""
    call.check_privilege(f"{RIGHTS}AttachTag")
    call.lab.tags.detach(_tag(call), _there(call, call.body.part("object_id")))
    return None


@rest_operation("POST", ASSOCIATION, action="attach-tag-to-multiple-objects", one=True)
def attach_to_multiple(call: RestCall) -> object:
    """Attach a tag to many objects; each that could not be is told."""
    call.check_privilege(f"{RIGHTS}AttachTag")
    tag, problems = _tag(call), []
    for each in call.body.parts("object_ids"):
        try:
            call.lab.tags.attach(tag, _there(call, each))
        except TagRefused as error:
            problems.append({"args": [], "default_message": str(error), "id": "lab.not_attached"})
    return {"success": not problems, "error_messages": problems}


@rest_operation("POST", ASSOCIATION, action="list-attached-tags")
def list_attached_tags(call: RestCall) -> object:
    """The ids of an object's tags."""
    return _ids_on(call, _there(call, call.body.part("object_id")))


@rest_operation("POST", ASSOCIATION, action="list-attached-tags-on-objects")
def list_attached_tags_on_objects(call: RestCall) -> object:
    """The ids of the tags of each object that has some."""
    found = []
    for given in _bounded(call.body.parts("object_ids")):
        carrier = _there(call, given)
        if ids := _ids_on(call, carrier):
            found.append({"object_id": _object(carrier), "tag_ids": ids})
    return found


@rest_operation("POST", ASSOCIATION, action="list-attached-objects", one=True)
def list_attached_objects(call: RestCall) -> object:
    """The objects that carry a tag."""
    return _carriers(_tag(call))


@rest_operation("POST", ASSOCIATION, action="list-attached-objects-on-tags")
def list_attached_objects_on_tags(call: RestCall) -> object:
    """The objects that carry each of these tags."""
    wanted = call.body.texts("tag_ids")
    shown = [each for each in map(call.lab.tags.tag, wanted) if _is_shown(call, each)]
    return [{"tag_id": each.identifier, "object_ids": _carriers(each)} for each in shown]


def _category(category: Category) -> dict[str, object]:
    return {
        "id": category.identifier,
        "name": category.name,
        "description": category.description,
        "cardinality": category.cardinality,
        "associable_types": list(category.types),
        "used_by": [],
    }


def _tag(call: RestCall) -> Tag:
    tag = call.lab.tags.tag(call.identifier)
    if not _is_shown(call, tag):
        raise RestError(UNAUTHORIZED, f"{tag.identifier} may not be read")
    return tag


def _is_shown(call: RestCall, tag: Tag) -> bool:
    return call.lab.misbehaviour.due("hide_tags", tag=tag.name, user=call.user.name) is None


def _ids_on(call: RestCall, carrier: TaggedObject) -> list[str]:
    return [each.identifier for each in call.lab.tags.of(carrier) if _is_shown(call, each)]


def _carriers(tag: Tag) -> list[dict[str, str]]:
    return [_object(each) for each in sorted(tag.objects, key=lambda each: each.moid)]


def _object(carrier: TaggedObject) -> dict[str, str]:
    return {"id": carrier.moid, "type": carrier.kind}


def _there(call: RestCall, given: RestBody) -> TaggedObject:
    carrier = TaggedObject(given.text("type"), given.text("id"))
    if not call.lab.tags.is_there(carrier):
        raise RestError(UNAUTHORIZED, f"{carrier.kind}:{carrier.moid} may not be read")
    return carrier


def _bounded(given: list[RestBody]) -> list[RestBody]:
    if len(given) > OBJECTS_MAX:
        raise RestError(INVALID_ARGUMENT, f"more than {OBJECTS_MAX} objects in one request")
    return given
