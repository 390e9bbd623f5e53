"""Tags as a vCenter keeps them: categories, tags in them, and what they are attached to.

Plain state, no wire: `rest_tagging` answers clients from it, `control_tags` fills it. Every method
needs ``Lab.lock``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast_lab.faults import LabError
from holdfast_lab.lab_object import ManagedEntity

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab

SINGLE, MULTIPLE = "SINGLE", "MULTIPLE"
ALREADY_EXISTS, INVALID_ARGUMENT, NOT_FOUND = "ALREADY_EXISTS", "INVALID_ARGUMENT", "NOT_FOUND"
NAME_LENGTH_MAX = 256


class TagRefused(LabError):
    """A vCenter would refuse this; ``kind`` is the error's type on the wire."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class TaggedObject:
    """What a tag is attached to: an object's type and its id, as on the wire."""

    kind: str
    moid: str


@dataclass(slots=True, kw_only=True)
class Category:
    """A group of tags. ``types``: what its tags may be attached to; empty: anything."""

    identifier: str
    name: str
    description: str
    cardinality: str
    types: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Tag:
    """A tag, and what carries it."""

    identifier: str
    name: str
    description: str
    category: Category
    objects: set[TaggedObject] = field(default_factory=set)


class Tags:
    """All categories and tags of one lab, in the order they were made."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.categories: dict[str, Category] = {}
        self.tags: dict[str, Tag] = {}

    # looking up -------------------------------------------------------------------------

    def category(self, identifier: str) -> Category:
        """Raises: TagRefused."""
        found = self.categories.get(identifier)
        if found is None:
            raise TagRefused(NOT_FOUND, f"Tagging category {identifier} not found")
        return found

    def tag(self, identifier: str) -> Tag:
        """Raises: TagRefused."""
        found = self.tags.get(identifier)
        if found is None:
            raise TagRefused(NOT_FOUND, f"Tagging object {identifier} not found")
        return found

    def named(self, name: str) -> Tag:
        """The tag ``name`` or ``category/name``. Raises: LabError when there is none or two."""
        found = [
            each
            for each in self.tags.values()
            if name in (each.name, f"{each.category.name}/{each.name}")
        ]
        if len(found) != 1:
            raise LabError(f"{len(found)} tags are named {name!r}; say category/name")
        return found[0]

    def category_named(self, name: str) -> Category:
        """Raises: LabError."""
        for each in self.categories.values():
            if each.name == name:
                return each
        raise LabError(f"there is no category {name!r}")

    def of(self, carrier: TaggedObject) -> list[Tag]:
        """The tags that an object carries."""
        return [each for each in self.tags.values() if carrier in each.objects]

    def is_there(self, carrier: TaggedObject) -> bool:
        """Whether such an object is in the inventory."""
        found = self.lab.objects.get(carrier.moid)
        return isinstance(found, ManagedEntity) and found.ref._wsdlName == carrier.kind

    # changing ---------------------------------------------------------------------------

    def add_category(
        self, name: str, *, description: str = "", cardinality: str = MULTIPLE, types: Iterable[str]
    ) -> Category:
        """Make a category. Raises: TagRefused."""
        _check_name(name)
        if cardinality not in (SINGLE, MULTIPLE):
            raise TagRefused(INVALID_ARGUMENT, f"unknown cardinality {cardinality}")
        self._check_free(name, self.categories)
        made = Category(
            identifier=_new_id("Category"),
            name=name,
            description=description,
            cardinality=cardinality,
            types=tuple(types),
        )
        self.categories[made.identifier] = made
        return made

    def add_tag(self, name: str, category: Category, *, description: str = "") -> Tag:
        """Make a tag. Raises: TagRefused."""
        _check_name(name)
        beside = {key: each for key, each in self.tags.items() if each.category is category}
        self._check_free(name, beside)
        made = Tag(identifier=_new_id("Tag"), name=name, description=description, category=category)
        self.tags[made.identifier] = made
        return made

    def rename_tag(self, tag: Tag, name: str) -> None:
        """Give a tag another name. Raises: TagRefused."""
        _check_name(name)
        beside = {
            key: each
            for key, each in self.tags.items()
            if each.category is tag.category and each is not tag
        }
        self._check_free(name, beside)
        tag.name = name

    def rename_category(self, category: Category, name: str) -> None:
        """Give a category another name. Raises: TagRefused."""
        _check_name(name)
        others = {key: each for key, each in self.categories.items() if each is not category}
        self._check_free(name, others)
        category.name = name

    def extend(self, category: Category, *, cardinality: str, types: tuple[str, ...]) -> None:
        """A category only ever becomes wider; "" and no types: as it is. Raises: TagRefused."""
        if cardinality == SINGLE and category.cardinality == MULTIPLE:
            raise TagRefused(INVALID_ARGUMENT, "a category cannot become narrower")
        if types and types[: len(category.types)] != category.types:
            raise TagRefused(INVALID_ARGUMENT, "types of objects can only be added")
        category.cardinality = cardinality or category.cardinality
        category.types = types or category.types

    def remove_category(self, category: Category) -> None:
        """Its tags go with it."""
        del self.categories[category.identifier]
        self.tags = {key: each for key, each in self.tags.items() if each.category is not category}

    def remove_tag(self, tag: Tag) -> None:
        """Whoever carried it no longer does."""
        del self.tags[tag.identifier]

    def attach(self, tag: Tag, carrier: TaggedObject) -> None:
        """Attach; a second time is nothing. Raises: TagRefused when its category forbids it."""
        if carrier in tag.objects:
            return
        if tag.category.types and carrier.kind not in tag.category.types:
            raise TagRefused(
                INVALID_ARGUMENT, f"tags of {tag.category.name} are not for {carrier.kind}"
            )
        if tag.category.cardinality == SINGLE and any(
            each.category is tag.category for each in self.of(carrier)
        ):
            raise TagRefused(
                INVALID_ARGUMENT, f"{carrier.moid} has a tag of {tag.category.name} already"
            )
        tag.objects.add(carrier)

    def detach(self, tag: Tag, carrier: TaggedObject) -> None:
        """Take a tag off; one that is not there is nothing."""
        tag.objects.discard(carrier)

    def forget(self, moid: str) -> None:
        """An object is gone, and its tags with it."""
        for each in self.tags.values():
            each.objects = {carrier for carrier in each.objects if carrier.moid != moid}

    @staticmethod
    def _check_free(name: str, taken: Mapping[str, Category | Tag]) -> None:
        if any(each.name.casefold() == name.casefold() for each in taken.values()):
            raise TagRefused(ALREADY_EXISTS, f"{name} exists already")


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > NAME_LENGTH_MAX:
        raise TagRefused(INVALID_ARGUMENT, "a name has 1 to 256 characters")


def _new_id(kind: str) -> str:
    return f"urn:vmomi:InventoryService{kind}:{uuid.uuid4()}:GLOBAL"
