"""What the Open Inference Protocol says of the server and its models: their routes."""

from __future__ import annotations

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import exitlens
from exitlens.serving.answers import OUTPUTS, shape_output
from exitlens.serving.http.infer import InferApp
from exitlens.serving.http.metadata import TensorMetadata, describe_model, describe_server
from exitlens.serving.http.requests import Service, note
from exitlens.serving.http.tensors import name_datatype
from exitlens.serving.models import IMAGE, TEXT
from exitlens.types import Preprocess, TextPreprocess

PLATFORM = "exitlens"
EXTENSIONS = ("binary_tensor_data",)


class ProtocolRoutes:
    """The protocol's routes."""

    def __init__(self, service: Service, infer: InferApp) -> None:
        self.service, self.infer = service, infer

    def list_routes(self) -> list[Route]:
        """For the app."""
        routes = [
            Route("/v2", self.describe_server),
            Route("/v2/health/live", self.tell_live),
            Route("/v2/health/ready", self.tell_ready),
        ]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(path, self.describe_model),
                Route(f"{path}/ready", self.tell_model_ready),
                Route(f"{path}/infer", self.infer, methods=["POST"]),
            ]
        return routes

    async def describe_server(self, request: Request) -> Response:
        """GET /v2."""
        note(request, "/v2")
        return JSONResponse(describe_server(exitlens.__version__, EXTENSIONS))

    async def tell_live(self, request: Request) -> Response:
        """GET /v2/health/live: 200, or 503 once the thread of a model has ended, which nothing but a restart mends."""
        note(request, "/v2/health/live")
        alive = self.service.repository.is_alive
        return JSONResponse({"live": alive}, 200 if alive else 503)

    async def tell_ready(self, request: Request) -> Response:
        """GET /v2/health/ready: 200, or 503 while any model is not ready."""
        note(request, "/v2/health/ready")
        ready = self.service.repository.is_ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def tell_model_ready(self, request: Request) -> Response:
        """GET /v2/models/{name}/ready."""
        note(request, "/v2/models/{name}/ready")
        endpoint = self.service.repository.find(*_name(request))
        return JSONResponse({"name": endpoint.model.name, "ready": endpoint.is_ready}, 200 if endpoint.is_ready else 503)

    async def describe_model(self, request: Request) -> Response:
        """GET /v2/models/{name}."""
        note(request, "/v2/models/{name}")
        model = self.service.repository.find(*_name(request)).model
        inputs = [TensorMetadata(x.name, name_datatype(np.empty(0, x.dtype), x.name), (-1, *x.shape)) for x in model.inputs]
        for kind, other in ((Preprocess, IMAGE), (TextPreprocess, TEXT)):
            if isinstance(model.info.preprocess, kind):
                inputs.append(TensorMetadata(other, "BYTES", (-1,)))
        outputs = [TensorMetadata(name, kind, shape_output(model, name)) for name, (kind, *_) in OUTPUTS.items()]
        return JSONResponse(describe_model(model.name, [model.version], PLATFORM, inputs, outputs))


def _name(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")
