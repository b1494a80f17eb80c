"""Routes for people: a file or text in, an answer or a picture out."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from exitlens.delivery.pictures import draw_image, draw_overlay, draw_strip
from exitlens.errors import RequestError
from exitlens.model.cutting.stage import Activations
from exitlens.serving.answers import give_reason
from exitlens.serving.batching.tickets import Terms, Ticket
from exitlens.serving.http.requests import Service, describe_terms, note, note_answer, read_terms
from exitlens.serving.models import ServedModel
from exitlens.types import Explanation, Preprocess, TextPreprocess
from exitlens.types.inputs import Inputs
from exitlens.workflow.explanation import explain_batch

QUICK_BYTES = 1 << 16  # of JSON that is read at once: more is read on another thread
TOP = 5  # classes in an answer
Sample = bytes | str


class PeopleRoutes:
    """``/classify`` and ``/explain``, and what there is to ask."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def list_routes(self) -> list[Route]:
        """For the app."""
        return [
            Route("/models", self.describe_models),
            Route("/classify", self.classify, methods=["POST"]),
            Route("/explain", self.explain, methods=["POST"]),
        ]

    async def describe_models(self, request: Request) -> Response:
        """GET /models: every model with its policies, and what they promise."""
        note(request, "/models")
        repository = self.service.repository
        return JSONResponse({"models": [_describe(repository.find(name).model) for name in repository.names]})

    async def classify(self, request: Request) -> Response:
        """POST /classify: one sample, or several as a form."""
        note(request, "/classify")
        asked = await self._ask(request, several=True)
        model, ticket = await self._answer(request, asked, attention=False)
        rows = [_write_row(model, ticket, i) for i in range(len(ticket))]
        said = {"model": model.name, "version": model.version, **describe_terms(model, ticket.terms)}
        return JSONResponse(said | (rows[0] if not asked.is_form or len(rows) == 1 else {"answers": rows}))

    async def explain(self, request: Request) -> Response:
        """POST /explain: where every exit looked, as PNG or (``Accept: application/json``) as JSON."""
        note(request, "/explain")
        asked = await self._ask(request, several=False)
        as_json = "application/json" in request.headers.get("accept", "")
        exit_ = asked.take("exit")
        model, ticket = await self._answer(request, asked, attention=True)
        if model.net is None or ticket.terms.changes_policy:
            if as_json:
                return JSONResponse(_write_row(model, ticket, 0) | {"attention": ticket.maps[0].tolist()})  # type: ignore[union-attr]
            return _send(await self.service.run_aside(_draw_answer, model, ticket))
        why = await self.service.run_aside(_explain, model, ticket)
        if as_json:
            return JSONResponse(why.to_dict() | describe_terms(model, ticket.terms))
        return _send(await self.service.run_aside(_draw, model, why, exit_))

    async def _ask(self, request: Request, several: bool) -> _Asked:
        given: dict[str, Any] = dict(request.query_params)
        if "model" in given or len(self.service.repository.names) == 1:  # else the form may say it
            self.service.repository.find(given.get("model", "")).batcher.check_room(1)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            samples = await _read_form(request, given, self.service.limits.max_batch)
        else:
            body = await request.body()
            quick = kind != "application/json" or len(body) <= QUICK_BYTES
            samples = [
                _read_body(body, kind, given) if quick else await self.service.run_aside(_read_body, body, kind, given)
            ]
        if len(samples) > 1 and not several:
            raise RequestError(f"file: expected one, got {len(samples)}: send one request for each")
        self.service.check_count(len(samples))
        return _Asked(samples, given, kind == "multipart/form-data")

    async def _answer(self, request: Request, asked: _Asked, attention: bool) -> tuple[ServedModel, Ticket]:
        started, name, version = time.monotonic(), asked.take("model") or "", asked.take("version") or ""

        async def prepare(model: ServedModel) -> tuple[Activations, Terms]:
            terms = read_terms(model, asked.given, started, attention)
            return await self.service.run_aside(self._read, model, asked.samples), terms

        request.state.model = self.service.repository.find(name, version).model.name
        model, ticket = await self.service.repository.answer(name, version, prepare)
        note_answer(request.scope["state"], model, ticket)
        return model, ticket

    def _read(self, model: ServedModel, samples: Sequence[Sample]) -> Activations:
        if not isinstance(model.info.preprocess, Preprocess | TextPreprocess):
            plural, known = model.info.modality.plural, model.info.preprocess is not None
            why = f"it takes {plural}" if known else f"its bundle does not say how {plural} become inputs"
            raise RequestError(f"{model.name}: {why}: use /v2/models/{model.name}/infer")
        if isinstance(model.info.preprocess, TextPreprocess):
            return model.read_texts([_to_text(one) for one in samples])
        if any(isinstance(one, str) for one in samples):
            raise RequestError(f"text: {model.name} takes images: send an image file")
        return model.read_images([one for one in samples if isinstance(one, bytes)], self.service.limits.max_pixels)


class _Asked:
    """What a request holds: samples, and its parameters, which are taken one by one."""

    def __init__(self, samples: Sequence[Sample], given: dict[str, Any], is_form: bool) -> None:
        self.samples, self.given, self.is_form = samples, given, is_form

    def take(self, name: str) -> str | None:
        """A parameter that is no term of the policy."""
        value = self.given.pop(name, None)
        return None if value is None else str(value)


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
        return _to_text(body)
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


def _to_text(sample: Sample) -> str:
    if isinstance(sample, str):
        return sample
    try:
        return sample.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"text: expected UTF-8, got other bytes ({error.reason})") from error


def _write_row(model: ServedModel, ticket: Ticket, i: int) -> dict[str, Any]:
    """One sample's answer, JSON-ready."""
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


def _draw(model: ServedModel, why: Explanation, exit_: str | None) -> bytes:
    """Every exit's overlay side by side, or one of them."""
    preprocess = model.info.preprocess
    if not isinstance(preprocess, Preprocess):
        raise RequestError("explain: no picture of these inputs: ask with Accept: application/json", 406)
    if exit_ is None:
        return _encode(draw_strip(why, preprocess))
    if exit_ not in {str(view.exit) for view in why.exits}:
        raise RequestError(f"exit: expected 0 to {model.num_exits - 1}, got {exit_!r:.60}")
    return _encode(draw_overlay(draw_image(why.image, preprocess, side=224), why.exits[int(exit_)].attention))


def _draw_answer(model: ServedModel, ticket: Ticket) -> bytes:
    """The overlay of the exit that answered, where no more than its map is known."""
    preprocess, attention = model.info.preprocess, ticket.maps[0]
    if not isinstance(preprocess, Preprocess) or attention is None:
        raise RequestError("explain: no picture of these inputs: ask with Accept: application/json", 406)
    return _encode(draw_overlay(draw_image(ticket.activations[0][0], preprocess, side=224), attention))


def _encode(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _send(png: bytes) -> Response:
    return Response(png, media_type="image/png")
