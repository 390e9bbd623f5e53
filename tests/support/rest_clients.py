"""A plain REST client of a lab, with both dialects of vCenter's interface."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import lax_context

SESSION = "vmware-api-session-id"


def basic(user: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class RestClient:
    """Requests over one connection; ``headers`` go with each."""

    connection: http.client.HTTPSConnection
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status, and the parsed answer (None: it had no body)."""
        data = None if body is None else json.dumps(body).encode()
        self.connection.request(method, path, body=data, headers=self.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None


@contextmanager
def rest_client(
    lab: RunningLab, *, log_in: bool = True, user: str = "", password: str = ""
) -> Iterator[RestClient]:
    """A client of ``/api``, logged in unless told otherwise."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", lab.port, context=lax_context(), timeout=30
    )
    try:
        client = RestClient(connection)
        if log_in:
            client.headers = {"Authorization": basic(user or lab.user, password or lab.password)}
            status, identifier = client("POST", "/api/session")
            assert status == 201
            client.headers = {SESSION: identifier}
        yield client
        if SESSION in client.headers:
            client("DELETE", "/api/session")
    finally:
        connection.close()
