"""The table of methods and of HTTP paths that the lab answers; other modules plug in here.

    @soap_method("RemoveSnapshot_Task")
    def remove_snapshot(call: Call) -> vim.Task:
        snapshot = call.lab.get(call.this, MachineSnapshot)
        ...

A method runs with ``Lab.lock`` held (unless ``locked=False``) and must not block; long work
belongs in a task. A module's methods exist once the module was imported: ``plugins.py`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast_lab.faults import invalid_argument

if TYPE_CHECKING:
    from holdfast_lab.http_exchange import HttpExchange
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of one call, by their wire names; absent ones are None or empty lists."""

    values: Mapping[str, object]

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The argument, or None. Raises: SoapFault when it has another type."""
        value = self.values.get(name)
        if value is None or isinstance(value, kind):
            return value
        raise invalid_argument(name)

    def required(self, name: str, kind: type[T]) -> T:
        """The argument. Raises: SoapFault when it is absent or has another type."""
        value = self.optional(name, kind)
        if value is None:
            raise invalid_argument(name, f"argument {name} is required")
        return value

    def text(self, name: str, default: str = "") -> str:
        """A string argument."""
        value = self.optional(name, str)
        return default if value is None else str(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean argument."""
        value = self.optional(name, bool)
        return default if value is None else value

    def number(self, name: str, default: int = 0) -> int:
        """An integer argument."""
        value = self.optional(name, int)
        return default if value is None else int(value)

    def sequence(self, name: str, kind: type[T]) -> list[T]:
        """A list argument; empty when absent."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise invalid_argument(name)
        return list(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One method call: who is called, with what, by whom, over which connection."""

    lab: Lab
    method: str
    this: Any  # a pyVmomi ManagedObject: only its type and id matter here
    arguments: Arguments
    session: Session
    exchange: HttpExchange


@dataclass(frozen=True, slots=True)
class SoapMethod:
    """How one method is answered."""

    name: str
    answer: Callable[[Call], object]
    locked: bool


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """Which function answers requests whose path starts with ``prefix``."""

    prefix: str
    answer: Callable[[Lab, HttpExchange], None]


SOAP_METHODS: dict[str, SoapMethod] = {}
HTTP_ROUTES: list[HttpRoute] = []
Answer = TypeVar("Answer", bound=Callable[[Call], object])
RouteAnswer = TypeVar("RouteAnswer", bound=Callable[..., None])


def soap_method(name: str, *, locked: bool = True) -> Callable[[Answer], Answer]:
    """Register the answer of the method with wire name ``name`` (such as ``PowerOnVM_Task``)."""

    def register(answer: Answer) -> Answer:
        if name in SOAP_METHODS:
            raise ValueError(f"{name} is registered twice")
        SOAP_METHODS[name] = SoapMethod(name, answer, locked)
        return answer

    return register


def http_route(prefix: str) -> Callable[[RouteAnswer], RouteAnswer]:
    """Register ``answer(lab, exchange)`` for every request below ``prefix``; no lock is held."""

    def register(answer: RouteAnswer) -> RouteAnswer:
        HTTP_ROUTES.append(HttpRoute(prefix, answer))
        HTTP_ROUTES.sort(key=lambda route: -len(route.prefix))
        return answer

    return register
