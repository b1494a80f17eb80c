"""Routes for people: a file or text in, an answer or a picture out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image as Picture
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from exitlens.delivery.pictures import draw_image, draw_overlay, draw_strip
from exitlens.errors import RequestError
from exitlens.model.cutting.stage import Activations
from exitlens.serving.cascade import Ticket
from exitlens.serving.http.guard import find_exchange
from exitlens.serving.http.inference import decode_text
from exitlens.serving.http.service import Service, describe_terms, give_reason, make_route, note_answer, read_terms
from exitlens.serving.models import ServedModel
from exitlens.types import Explanation
from exitlens.types.inputs import Inputs
from exitlens.types.preprocessing import Preprocess, TextPreprocess
from exitlens.workflow.explanation import explain_batch

QUICK_BYTES = 1 << 16  # of JSON that is read at once: more is read on another thread
TOP = 5  # classes in an answer
Sample = bytes | str


class PeopleRoutes:
    """``/classify`` and ``/explain``, and the models there are."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def list_routes(self) -> list[Route]:
        """Return the routes."""
        return [
            make_route("/models", self.describe_models),
            make_route("/classify", self.classify, "POST"),
            make_route("/explain", self.explain, "POST"),
        ]

    async def describe_models(self, _: Request) -> Response:
        """Answer GET /models: every model with its policies, and what they promise."""
        repository = self.service.repository
        return JSONResponse({"models": [_describe(repository.find(name).model) for name in repository.names]})

    async def classify(self, request: Request) -> Response:
        """Answer POST /classify: one sample, or several as a form."""
        asked, model, ticket = await self._answer(request, is_explanation=False)
        rows = [_write_row(model, ticket, i) for i in range(len(ticket))]
        said = {"model": model.name, "version": model.version, **describe_terms(model, ticket.terms)}
        return JSONResponse(said | (rows[0] if not asked.is_form or len(rows) == 1 else {"answers": rows}))

    async def explain(self, request: Request) -> Response:
        """Answer POST /explain: where every exit looked, as PNG or (``Accept: application/json``) as JSON."""
        asked, model, ticket = await self._answer(request, is_explanation=True)
        as_json = "application/json" in request.headers.get("accept", "")
        if model.net is None or ticket.terms.changes_policy:
            if as_json:
                return JSONResponse(_write_row(model, ticket, 0) | {"attention": ticket.maps[0].tolist()})  # type: ignore[union-attr]
            return await self._draw(_draw_answer, model, ticket)
        why = await self.service.run_aside(_explain, model, ticket)
        if as_json:
            return JSONResponse(why.to_dict() | describe_terms(model, ticket.terms))
        return await self._draw(_draw, model, why, asked.exit)

    async def _draw(self, draw: Callable[..., Picture], *args: Any) -> Response:
        def encode() -> bytes:
            file = io.BytesIO()
            draw(*args).save(file, "PNG")
            return file.getvalue()

        return Response(await self.service.run_aside(encode), media_type="image/png")

    async def _answer(self, request: Request, is_explanation: bool) -> tuple[_Asked, ServedModel, Ticket]:
        exchange, query, repository = find_exchange(request.scope), dict(request.query_params), self.service.repository
        asked, name, version = None, query.get("model", ""), query.get("version", "")
        if not name and len(repository.names) > 1:  # only the body can say which
            asked = await self._read_request(request, query, is_explanation)
            name, version = asked.model, asked.version
        with repository.enter(name, version) as endpoint:
            model = endpoint.model
            exchange.model = model.name
            if asked is None:
                asked = await self._read_request(request, query, is_explanation)
                repository.find(asked.model or model.name, asked.version)
            terms = read_terms(model, asked.terms, exchange.started, is_explanation)
            ticket = await endpoint.answer(await self.service.run_aside(self._decode, model, asked.samples), terms)
        note_answer(exchange, model, ticket)
        return asked, model, ticket

    async def _read_request(self, request: Request, query: Mapping[str, str], is_explanation: bool) -> _Asked:
        given: dict[str, Any] = dict(query)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            samples = await _read_form(request, given, self.service.limits.max_batch)
        else:
            body = await request.body()
            is_quick = kind != "application/json" or len(body) <= QUICK_BYTES
            read = _read_body(body, kind, given) if is_quick else await self.service.run_aside(_read_body, body, kind, given)
            samples = [read]
        if len(samples) > 1 and is_explanation:
            raise RequestError(f"file: expected one, got {len(samples)}. Fix: send a request for each.")
        self.service.check_count(len(samples))
        model, version = (str(given.pop(name, "")) for name in ("model", "version"))
        exit_ = given.pop("exit", None) if is_explanation else None
        return _Asked(samples, model, version, None if exit_ is None else str(exit_), given, kind == "multipart/form-data")

    def _decode(self, model: ServedModel, samples: Sequence[Sample]) -> Activations:
        if not isinstance(model.info.preprocess, Preprocess | TextPreprocess):
            plural, known = model.info.modality.plural, model.info.preprocess is not None
            why = f"it takes {plural}" if known else f"its bundle does not say how {plural} become inputs"
            raise RequestError(f"{model.name}: {why}. Fix: use /v2/models/{model.name}/infer")
        if isinstance(model.info.preprocess, TextPreprocess):
            return model.read_texts([sample if isinstance(sample, str) else decode_text(sample) for sample in samples])
        if any(isinstance(sample, str) for sample in samples):
            raise RequestError(f"text: {model.name} takes images, got a text. Fix: send an image file.")
        return model.read_images([sample for sample in samples if isinstance(sample, bytes)], self.service.limits.max_pixels)


@dataclass(frozen=True)
class _Asked:
    """What a request holds: samples, a model and version and an exit where it names them, and its own terms."""

    samples: Sequence[Sample]
    model: str
    version: str
    exit: str | None
    terms: Mapping[str, Any]
    is_form: bool


async def _read_form(request: Request, given: dict[str, Any], most: int) -> list[Sample]:
    samples: list[Sample] = []
    async with request.form(max_files=most, max_fields=most) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                samples.append(await value.read())
            elif name == "text":
                samples.append(value)
            else:
                given[name] = value
    if not samples:
        raise RequestError("file: expected a file or text in the form, got none")
    return samples


def _read_body(body: bytes, kind: str, given: dict[str, Any]) -> Sample:
    if not body:
        raise RequestError("body: expected an image file or a text, got nothing")
    if kind == "text/plain":
        return decode_text(body)
    if kind != "application/json":
        return body
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"body: expected JSON, got something else ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("text"), str):
        raise RequestError(
            'body: expected {"text": "..."}, with parameters beside it; images come as they are, or as a form'
        )
    text: str = values.pop("text")
    given |= values
    return text


def _write_row(model: ServedModel, ticket: Ticket, i: int) -> dict[str, Any]:
    """Return one sample's answer, JSON-ready."""
    p, k = ticket.probabilities[i], int(ticket.exits[i])
    best = p.argsort()[::-1][:TOP].tolist()
    return {
        "class": model.name_answer(ticket.labels[i]),
        "label": np.flatnonzero(ticket.labels[i]).tolist() if model.gives_labels else int(ticket.labels[i]),
        "confidence": float(ticket.confidence[i]),
        "exit": k,
        "exits": model.num_exits,
        "cost": model.cost[k],
        "probabilities": {model.name_class(c): float(p[c]) for c in best},
        "reason": give_reason(model, ticket, i),
        "limited": bool(ticket.limited[i]),
        "ms": round(1000 * (ticket.done - ticket.since), 3),
    }


def _describe(model: ServedModel) -> dict[str, Any]:
    policies = {
        name: {"thresholds": policy.to_dict()["thresholds"], "score": policy.score, "certificate": policy.certificate()}
        for name, policy in model.policies.items()
    }
    return {
        "name": model.name,
        "version": model.version,
        "takes": model.info.modality.plural,
        "classes": list(model.info.classes) or model.info.num_classes,
        "cost": list(model.cost),
        "policies": policies,
    }


def _explain(model: ServedModel, ticket: Ticket) -> Explanation:
    assert model.net is not None
    names = model.spec.names
    given: Inputs = dict(zip(names, ticket.activations, strict=True)) if names else ticket.activations[0]
    return explain_batch(model.net, given, model.policies[ticket.terms.policy])[0]


def _draw(model: ServedModel, why: Explanation, exit_: str | None) -> Picture:
    """Draw every exit's overlay side by side, or one of them."""
    preprocess = _require_images(model)
    if exit_ is None:
        return draw_strip(why, preprocess)
    if exit_ not in {str(view.exit) for view in why.exits}:
        raise RequestError(f"exit: expected 0 to {model.num_exits - 1}, got {exit_!r:.60}")
    return draw_overlay(draw_image(why.inputs, preprocess, side=224), why.exits[int(exit_)].attention)


def _draw_answer(model: ServedModel, ticket: Ticket) -> Picture:
    """Draw the overlay of the exit that answered, where no more than its map is known."""
    preprocess, attention = _require_images(model), ticket.maps[0]
    assert attention is not None
    return draw_overlay(draw_image(ticket.activations[0][0], preprocess, side=224), attention)


def _require_images(model: ServedModel) -> Preprocess:
    if not isinstance(model.info.preprocess, Preprocess):
        raise RequestError("explain: these inputs have no picture. Fix: ask with Accept: application/json.", 406)
    return model.info.preprocess
