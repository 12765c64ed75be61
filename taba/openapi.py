"""A service's routes as an OpenAPI 3.1 document: the table of definitions in the words of that format. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taba.routes import EVENTS, FLAG, FORM, JSON, LINES, WHOLE, Parameter, Route
from taba.tokens import ANY, OPEN

VERSION = "3.1.0"
ERROR = {
    "type": "object",
    "description": "What went wrong: `error` for programs, `detail` for people.",
    "properties": {"error": {"type": "string"}, "detail": {"type": "string"}},
    "required": ["error", "detail"],
}

PROMETHEUS_ERROR = {
    "type": "object",
    "description": "What went wrong, as Prometheus says it.",
    "properties": {"status": {"const": "error"}, "errorType": {"type": "string"}, "error": {"type": "string"}},
    "required": ["status", "errorType", "error"],
}


def describe(routes: Sequence[Route], title: str, version: str) -> dict[str, Any]:
    """The document. `version`: of the service."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": VERSION,
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR, "PrometheusError": PROMETHEUS_ERROR},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A token of the kind that the operation names."}
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    errors = [{"$ref": f"#/components/schemas/{name}"} for name in (["Error", "PrometheusError"] if route.is_lenient else ["Error"])]
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{''.join(part.capitalize() for part in _words(route.path))}",
        "summary": route.answer,
        "responses": {
            str(route.status): {"description": route.answer, "content": {kind: _content(kind) for kind in route.produces}},
            "default": {
                "description": "Anything else.",
                "content": {JSON: {"schema": errors[0] if len(errors) == 1 else {"anyOf": errors}}},
            },
        },
    }
    if route.parameters:
        operation["parameters"] = [_parameter(route, parameter) for parameter in route.parameters]
    if route.body is not None:
        content = _content(route.body) if route.body_schema is None else {"schema": dict(route.body_schema)}
        operation["requestBody"] = {"required": not route.is_lenient, "content": {route.body: content}}
    if route.token != OPEN:
        kind = "any kind" if route.token == ANY else f"the kind {route.token}"
        operation["security"] = [{"token": []}, {}]  # on loopback none need be asked for
        operation["description"] = f"Where tokens are asked for, takes one of {kind}."
    return operation


def _parameter(route: Route, parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if parameter.kind == FLAG:
        schema = {"type": "integer", "enum": [0, 1], "default": 0}
    elif parameter.kind == WHOLE:
        schema = {"type": "integer", "minimum": parameter.least, "maximum": parameter.most}
        if parameter.default is not None:
            schema["default"] = parameter.default
    if parameter.repeatable:
        schema = {"type": "array", "items": schema, **({"maxItems": parameter.most} if parameter.most else {})}
    place = "path" if parameter.name in route.path_names else "query"
    return {
        "name": parameter.name,
        "in": place,
        "required": parameter.is_required or place == "path",
        "description": parameter.help,
        "schema": schema,
    }


def _content(kind: str) -> dict[str, Any]:
    if kind in (LINES, EVENTS):
        return {"schema": {"type": "string"}}
    if kind in (JSON, FORM):
        return {"schema": {"type": ["object", "array", "string", "number", "boolean", "null"]} if kind == JSON else {"type": "object"}}
    return {}  # bytes, of which the format has nothing to say


def _words(path: str) -> list[str]:
    return [part for part in path.replace("{", "/").replace("}", "").replace("-", "/").replace(".", "/").split("/") if part]
