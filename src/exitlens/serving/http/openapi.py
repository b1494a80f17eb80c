"""The routes as an OpenAPI description, which clients can be generated from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import exitlens
from exitlens.serving.answers import DEFAULT_OUTPUTS, OUTPUTS

_JSON = "application/json"
_ERROR = {
    "description": "What was wrong, and what to do.",
    "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ERRORS = {
    "400": _ERROR,
    "404": _ERROR,
    "413": _ERROR,
    "422": _ERROR,
    "429": {**_ERROR, "description": "No room: try again after `Retry-After` seconds."},
    "503": _ERROR,
    "504": {**_ERROR, "description": "The deadline passed before the first exit could answer."},
}
_TERMS = {
    "policy": ("string", "A policy of the bundle by its name; `default` is its own."),
    "max_cost": ("number", "Leave at the last exit that costs no more, as a fraction of the plain backbone's."),
    "min_confidence": ("number", "Exits before the last answer only if they are as sure as this, too."),
    "deadline_ms": ("number", "The best answer there is after so many milliseconds, marked as limited."),
}
_ANSWER: dict[str, tuple[Any, str]] = {
    "class": ("string", "Name of the class; of several labels all that it has, with ; between."),
    "label": (["integer", "array"], "Number of the class; of several labels the numbers of all that it has."),
    "confidence": ("number", "The policy's score at the exit that answered."),
    "exit": ("integer", "The exit that answered, from 0."),
    "exits": ("integer", "How many exits the network has."),
    "cost": ("number", "As a fraction of the plain backbone's."),
    "probabilities": ("object", "The most probable classes."),
    "reason": ("string", "Why this exit answered."),
    "limited": ("boolean", "The request's own limits ended it, not the policy."),
    "ms": ("number", "Milliseconds from when it was read to its answer."),
    "policy": ("string", "That it was answered under."),
    "promise": ("string", "`certified`, `calibrated`, or `none` and why."),
    "model": ("string", "Its name."),
    "version": ("string", "Names the contents of its bundle."),
}


def describe_api(models: Sequence[str]) -> dict[str, Any]:
    """OpenAPI 3.1, JSON-ready."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "exitlens",
            "version": exitlens.__version__,
            "description": "Classifiers that answer early when they can, and show why.",
        },
        "paths": _list_people(models) | _list_protocol(),
        "components": {
            "schemas": {
                "Error": _make_object({"error": ("string", "What was wrong, and what to do.")}),
                "Answer": _make_object(_ANSWER),
                "Infer": {"type": "object", "description": "See the Open Inference Protocol, version 2."},
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _make_object(fields: dict[str, tuple[str, str]]) -> dict[str, Any]:
    described = {name: {"type": kind, "description": text} for name, (kind, text) in fields.items()}
    return {"type": "object", "properties": described}


def _list_people(models: Sequence[str]) -> dict[str, Any]:
    named = {"name": "model", "in": "query", "schema": {"type": "string", "enum": list(models)}}
    terms = [
        {"name": name, "in": "query", "schema": {"type": kind}, "description": text} for name, (kind, text) in _TERMS.items()
    ]
    file = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}, "text": {"type": "string"}}}
    body = {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {"schema": file},
            "text/plain": {"schema": {"type": "string"}},
            _JSON: {"schema": _make_object({"text": ("string", "To classify."), **_TERMS})},
        },
    }
    shared = {"parameters": [named, *terms], "requestBody": body}
    picture = {"image/png": {"schema": {"type": "string", "format": "binary"}}, _JSON: {"schema": {"type": "object"}}}
    exit_ = {"name": "exit", "in": "query", "schema": {"type": "integer"}, "description": "This exit's picture alone."}
    return {
        "/classify": {"post": _make_operation("Classify an image file or a text", _refer("Answer"), **shared)},
        "/explain": {
            "post": _make_operation("Where every exit looked", picture, parameters=[named, exit_, *terms], requestBody=body)
        },
        "/models": {
            "get": _make_operation("Models, their policies, and what they promise", {_JSON: {"schema": {"type": "object"}}})
        },
        "/metrics": {"get": _make_operation("Metrics for Prometheus", {"text/plain": {"schema": {"type": "string"}}})},
    }


def _list_protocol() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path, text in (
        ("/v2", "Metadata of the server"),
        ("/v2/health/live", "Whether it runs"),
        ("/v2/health/ready", "Whether every model is ready"),
    ):
        paths[path] = {"get": _make_operation(text, _refer("Infer"))}
    names = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    version = {**names, "name": "version"}
    outputs = ", ".join(f"`{name}` ({text[1]})" for name, text in OUTPUTS.items())
    infer = (
        "Open Inference Protocol, version 2, with the binary tensor extension. The parameters of a request may be "
        f"{', '.join(f'`{name}`' for name in _TERMS)}. Outputs: {outputs}; without any named, {', '.join(DEFAULT_OUTPUTS)}."
    )
    for path, given in (("/v2/models/{name}", [names]), ("/v2/models/{name}/versions/{version}", [names, version])):
        paths[path] = {"get": _make_operation("Metadata of a model", _refer("Infer"), parameters=given)}
        paths[f"{path}/ready"] = {"get": _make_operation("Whether a model is ready", _refer("Infer"), parameters=given)}
        body = {"required": True, "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Infer"}}}}
        operation = _make_operation("Infer", _refer("Infer"), parameters=given, requestBody=body, description=infer)
        paths[f"{path}/infer"] = {"post": operation}
    return paths


def _refer(name: str) -> dict[str, Any]:
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _make_operation(summary: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"summary": summary, **more, "responses": {"200": {"description": "The answer.", "content": content}, **_ERRORS}}
