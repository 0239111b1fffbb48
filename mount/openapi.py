"""The OpenAPI description of the control API, made from its routes and messages, so that it cannot say anything
else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from mount.messages import Problem
from vfs.fileref import SESSION_ID
from vfs.policy import SIZE, UMASK, Policy

if TYPE_CHECKING:
    from mount.api import Route

__all__ = ["FLAG", "SECONDS", "SINCE", "document"]

FLAG: Final = {"type": "boolean"}
SECONDS: Final = {"type": "number", "minimum": 0, "maximum": 3600}
SINCE: Final = {"type": "string", "pattern": "^(now|[0-9]{1,18})$"}
_PATH: Final = {"session": {"type": "string", "pattern": f"^{SESSION_ID}$"}}
_REF: Final = "#/components/schemas/{name}"


def document(routes: Iterable[Route]) -> dict[str, Any]:
    routes = tuple(routes)
    types = [kind for route in routes for kind in (route.body, route.answer) if _is_message(kind)]
    schemas, components = msgspec.json.schema_components([*types, Problem, Policy], ref_template=_REF)
    schema = {repr(kind): found for kind, found in zip([*types, Problem, Policy], schemas, strict=True)}
    _admit_text(components["Policy"]["properties"])
    components["NewSession"]["properties"]["policy"] = schema[repr(Policy)]
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mount-session",
            "version": "1",
            "description": "The daemon's control API, over its Unix socket: "
            "`curl --unix-socket STATE/.daemon/control.sock http://localhost/v1/sessions`",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _admit_text(policy: dict[str, Any]) -> None:
    """Sizes and the umask may be written as a person does (`vfs.policy.parse`)."""
    for name, field in policy.items():
        if name.endswith("_bytes"):
            policy[name] = {"anyOf": [field, {"type": "string", "pattern": SIZE}]}
        elif name == "umask":
            policy[name] = {"anyOf": [field, {"type": "string", "pattern": UMASK}]}


def _is_message(kind: Any) -> bool:
    return kind is not None and not isinstance(kind, str)


def _content(kind: Any, schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(kind, str):
        return {kind: {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": schema[repr(kind)]}}


def _operation(route: Route, schema: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PATH[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "description": meaning, "schema": kind}
        for name, (meaning, kind) in route.query.items()
    ]
    answer: dict[str, Any] = {"description": "done"}
    if route.answer is not None:
        answer["content"] = _content(route.answer, schema)
    problem = {"description": "not done, and why", "content": _content(Problem, schema)}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "parameters": parameters,
        "responses": {str(route.status): answer, "4XX": problem, "5XX": problem},
    }
    if route.alike is not None:
        operation["responses"][str(route.alike)] = answer
    if route.body is not None:
        operation["requestBody"] = {"content": _content(route.body, schema)}
    return operation
