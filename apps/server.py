"""The HTTP side of `manifold serve`: addresses, limits on what arrives, and errors as JSON.

Whatever goes wrong is answered with a status and `{"error": "one sentence"}`: 4xx where the request was at fault, with
the sentence that the command line would print; 5xx where the server was, with the cause in its own log and no path in
the answer. A body is counted while it arrives, so a false or missing Content-Length gains nothing.

A browser can be made to send requests to a local address by any page it shows, and by a trick with names (DNS rebinding)
that page could read the answers. So a server on a local address answers only to local names in the Host header.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manifold.errors import InputError, ManifoldError, NonFiniteError, ShapeError

from .search_service import Limits, SearchService
from .server_models import ErrorBody, Health, ImageQuery, Info, LatentQuery, Record, SearchAnswer
from .server_page import api_page

__all__ = ["create_app"]

_LOG = logging.getLogger(__name__)
_FIELD_BYTES = 4096
"""Longest text field of a form; the image is not one."""

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"


def create_app(
    workspace: str | Path,
    *,
    limits: Limits | None = None,
    images: str | Path | None = None,
    encoder: str | None = None,
    thumbnail_px: int = 256,
    hosts: frozenset[str] | None = None,
) -> FastAPI:
    """The service over one workspace, as an ASGI application.

    Arguments
        workspace, limits, images, encoder, thumbnail_px: see `SearchService.open`.
        hosts: names that the Host header may have, without port, in lower case; None allows all.

    Raises: all of `SearchService.open`.
    """
    service = SearchService.open(
        workspace, limits=limits, images=images, encoder=encoder, thumbnail_px=thumbnail_px
    )  # fmt: skip

    def up_to_date() -> None:
        if service.outdated:
            raise HTTPException(503, "the workspace has changed since the server opened it; start the server again")

    app = FastAPI(
        dependencies=[Depends(up_to_date)],
        title=f"manifold serve: {service.info['name']}",
        description=f"{service.rows:,} rows of {service.info['collection']}. An error is a status of 400 or more and "
        '`{"error": "one sentence"}`.',
        version="1",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(_Guard, max_body_bytes=service.limits.max_body_bytes, hosts=hosts)
    _answer_errors(app)
    _add_reading(app, service)
    _add_search(app, service)
    return app


def _add_reading(app: FastAPI, service: SearchService) -> None:
    no_row: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody, "description": "No such row, or no picture of it."},
                                               422: {"model": ErrorBody, "description": "Not a row number."}}  # fmt: skip

    @app.get("/health", summary="Is the server up?")
    def health() -> Health:
        return Health(rows=service.rows)

    @app.get("/info", summary="The collection, its encoder, its spectrum, and this server's limits.")
    def info() -> Info:
        return Info.model_validate(service.info)

    @app.get("/images/{row}", summary="What is known of one row.", responses=no_row)
    def images(row: int) -> Record:
        _require_row(service, row)
        return Record.model_validate(service.record(row))

    @app.get(
        "/thumbnails/{row}",
        summary="A small picture of one row: its image where the collection was found, else its decoded latent; the "
        "header X-Picture-Of says which.",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **no_row},
    )
    def thumbnails(row: int, request: Request) -> Response:
        _require_row(service, row)
        try:
            jpeg, origin = service.thumbnail(row)
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        headers = {
            "X-Picture-Of": origin,
            # After a removal a row number means another image: a browser may keep a picture, but has to ask each time.
            "Cache-Control": "private, no-cache",
            "ETag": f'"{hashlib.sha256(jpeg).hexdigest()}"',
            "X-Content-Type-Options": "nosniff",
        }
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(jpeg, media_type="image/jpeg", headers=headers)

    @app.get("/", include_in_schema=False)
    def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()), headers={"Content-Security-Policy": _PAGE_POLICY})


def _add_search(app: FastAPI, service: SearchService) -> None:
    pending = 0

    @contextmanager
    def admitted() -> Iterator[None]:
        """Count a search in; only the event loop's thread comes here."""
        nonlocal pending
        if pending >= service.limits.max_pending:
            raise HTTPException(
                503, f"{pending} searches are waiting already; try again in a moment", headers={"Retry-After": "1"}
            )
        pending += 1
        try:
            yield
        finally:
            pending -= 1

    refusals = {
        400: "Not a form, or cut off.", 408: "The body did not arrive in time.", 413: "The body is too large.",
        415: "Neither a form nor JSON.", 422: "The image, the latent or an option cannot be used.",
        503: "Too many searches, or a workspace that has changed.",
    }  # fmt: skip

    @app.post(
        "/search",
        summary="Search with an image (a form) or with a latent (JSON).",
        description="Search with an image, as a form: it is encoded as the collection was and noised to (alpha, sigma) "
        "with a seed. Or with a latent, as JSON: it is the noisy state at (alpha, sigma), and taken as it stands.",
        responses={status: {"model": ErrorBody, "description": text} for status, text in refusals.items()},
        openapi_extra={"requestBody": _search_body()},
    )
    async def search(request: Request) -> SearchAnswer:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        with admitted():
            try:
                with anyio.fail_after(service.limits.body_timeout_s):
                    if kind == "multipart/form-data":
                        data, fields = await _read_form(request)
                    elif kind == "application/json":
                        data, fields = await request.body(), None
                    else:
                        raise HTTPException(
                            415, f"a search is multipart/form-data with an image or application/json with a latent, "
                            f"not {kind or 'of no stated type'}",
                        )  # fmt: skip
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the body did not arrive within {service.limits.body_timeout_s:g} s; send it again"
                ) from error
            return SearchAnswer.model_validate(await run_in_threadpool(_search, service, data, fields))


def _search(service: SearchService, data: bytes, fields: dict[str, Any] | None) -> dict[str, Any]:
    """In a worker thread: parse, then search, with an image if there are form fields, else with the latent in `data`."""
    try:
        if fields is None:
            latent_query = LatentQuery.model_validate_json(data)
        else:
            image_query = ImageQuery.model_validate(fields)
    except ValidationError as error:
        raise HTTPException(422, _sentence(error.errors(include_input=False, include_url=False))) from error
    return service.by_latent(latent_query) if fields is None else service.by_image(data, image_query)


async def _read_form(request: Request) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the field `image`, and the other fields as text."""
    try:
        async with request.form(max_files=1, max_fields=20, max_part_size=_FIELD_BYTES) as form:
            fields: dict[str, Any] = dict(form)
            fields["where"] = [text for text in form.getlist("where") if text]  # a form sends fields left empty, too
            image = fields.pop("image", None)
            if not isinstance(image, UploadFile):
                raise HTTPException(422, "the form must have an image file in its field image")
            return await image.read(), fields
    except FormParserError as error:  # newer versions of Starlette answer 400 themselves
        raise HTTPException(400, f"the form is damaged: {error}") from error


def _search_body() -> dict[str, Any]:
    form = ImageQuery.model_json_schema()
    image = {"type": "string", "format": "binary", "description": "An image file."}
    form["properties"] = {"image": image, **form["properties"]}
    form["required"] = ["image"]
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": LatentQuery.model_json_schema()},
        },
    }


def _require_row(service: SearchService, row: int) -> None:
    if not 0 <= row < service.rows:
        raise HTTPException(404, f"there is no row {row}; rows are numbered 0 to {service.rows - 1}")


def _answer_errors(app: FastAPI) -> None:
    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, AnyHTTPException)
        sentence = str(error.detail)
        if sentence == HTTPStatus(error.status_code).phrase:  # the framework's own, for an unknown address or method
            sentence = f"{request.method} {request.url.path} is not served here; /docs lists what is"
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return JSONResponse({"error": _sentence(error.errors())}, 422)

    def unusable(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    def broken(request: Request, error: Exception) -> Response:
        _LOG.error("%s %s: %s", request.method, request.url.path, error)
        return JSONResponse({"error": "the server's workspace cannot be read; its log says why"}, 500)

    def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server failed at this request; its log says why"}, 500)

    def gone(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the connection ended before the body did"}, 400)

    app.add_exception_handler(AnyHTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (InputError, ShapeError, NonFiniteError):
        app.add_exception_handler(kind, unusable)
    app.add_exception_handler(ManifoldError, broken)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, failed)


def _sentence(errors: Any) -> str:
    """The first of pydantic's errors as a sentence; its list would repeat what was sent."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("path", "body") and "[" not in str(part))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 and not field.startswith(("latent", "x0_hat")) else ""
    message = first["msg"].removeprefix("Value error, ")  # pydantic says of our own sentences what kind they are
    return f"{field or 'the body'}: {message[:300]}{more}"


class _Guard:
    """Refuses names of other hosts, and bodies that grow beyond the limit."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = _host_name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            sentence = f"this server does not answer to the name {host!r}; start it with --allow-host {host}"
            await JSONResponse({"error": sentence}, 421)(scope, receive, send)
            return
        seen = 0
        stated = headers.get("content-length", "0")

        async def counted() -> Message:
            nonlocal seen
            if stated.isdecimal() and int(stated) > self._max_body_bytes:
                raise HTTPException(413, self._too_large)
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body_bytes:
                raise HTTPException(413, self._too_large)
            return message

        if scope["method"] == "HEAD":  # answered as GET is, whose body the server below leaves out
            scope = {**scope, "method": "GET"}
        await self._app(scope, counted, send)

    @property
    def _too_large(self) -> str:
        return f"the body has more than {self._max_body_bytes:,} bytes, the limit of this server; send a smaller one"


def _host_name(header: str) -> str:
    """The name in a Host header: without port, and without the brackets of IPv6."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
