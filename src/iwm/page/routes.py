"""The page's addresses, and what guards them: limits of size, the browser's own origin, no request to the outside.

The content security policy forbids the browser to load anything from elsewhere. A request that another site's page
makes in the user's browser is refused (by its origin, and by the host name where the page is local), so that no site
can ask the page something.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iwm.page.answers import LOCAL, Answers, Unknown
from iwm.page.worker import Busy, Worker
from iwm.runtime.errors import UserError

QUESTION_BYTES = 16 * 2**10
"""Largest question."""
UPLOAD_SECONDS = 60.0
"""An upload that takes longer is given up."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FILES = {
    "": ("index.html", "text/html"),
    "app.js": ("app.js", "text/javascript"),
    "style.css": ("style.css", "text/css"),
}


class TooLarge(UserError):
    """More bytes than are taken."""


def build(answers: Answers, worker: Worker, host: str) -> ASGIApp:
    """The page as an ASGI application; `host` is the address that it listens at."""
    routes = [Route(f"/{path}", _file(*content)) for path, content in FILES.items()]
    routes += [
        Route("/api/world", _get(worker, answers.world)),
        Route("/api/pictures/{key}.png", _picture(answers)),
        Route("/api/images", _upload(worker, answers), methods=["POST"]),
    ]
    for name in ("imagine", "changed", "infer", "search"):
        routes.append(Route(f"/api/{name}", _question(worker, getattr(answers, name)), methods=["POST"]))
    app = Starlette(routes=routes, exception_handlers={UserError: _refuse, HTTPException: _refuse, Exception: _fail})
    return Guard(app, (*LOCAL, "[::1]") if host in LOCAL else ())


Endpoint = Callable[[Request], Awaitable[Response]]


def _file(name: str, kind: str) -> Endpoint:
    content = resources.files("iwm").joinpath("page", "static", name).read_bytes()

    async def file(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return file


def _get(worker: Worker, answer: Callable[[], dict[str, Any]]) -> Endpoint:
    async def get(_: Request) -> Response:
        return JSONResponse(await worker.ask(answer))

    return get


def _picture(answers: Answers) -> Callable[[Request], Response]:
    def picture(request: Request) -> Response:  # in a thread of Starlette's: a picture need not wait for the model
        content = answers.png(request.path_params["key"])
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    return picture


def _upload(worker: Worker, answers: Answers) -> Endpoint:
    async def upload(request: Request) -> Response:
        data = await _body(request, answers.limits.bytes, str(answers.limits.too_large()))
        name = unquote(request.headers.get("x-file-name", ""))[:80] or "uploaded image"
        return JSONResponse(await worker.ask(answers.upload, data, name))

    return upload


def _question(worker: Worker, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Endpoint:
    async def question(request: Request) -> Response:
        body = await _body(
            request, QUESTION_BYTES, f"A question has at most {QUESTION_BYTES} bytes; send a shorter one."
        )
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise UserError("The question is no JSON object; send one.")
        return JSONResponse(await worker.ask(answer, content))

    return question


async def _body(request: Request, most: int, sentence: str) -> bytes:
    """The body of a request. Raises TooLarge as soon as more than `most` bytes are announced or come."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > most:
        raise TooLarge(sentence)
    body = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise TooLarge(sentence)
    except TimeoutError:
        raise UserError(f"The request took more than {UPLOAD_SECONDS:.0f} seconds to arrive; send it again.") from None
    except ClientDisconnect:
        raise UserError("The request broke off; send it again.") from None
    return bytes(body)


async def _refuse(_: Request, error: Exception) -> Response:
    """A sentence: of a question that cannot be answered, or of an address that is none."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": f"{error.detail}; see docs/page.md."}, error.status_code)
    status = {Unknown: 404, TooLarge: 413, Busy: 503}.get(type(error), 400)
    return JSONResponse({"error": str(error)}, status)


async def _fail(_: Request, error: Exception) -> Response:
    """A fault of the program: the traceback goes to the terminal, Starlette raises it again."""
    del error
    return JSONResponse({"error": "The page failed; the terminal where it was started says why."}, 500)


class Guard:
    """Adds the security headers, and refuses what a page of another site asks."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        """`hosts` are the names that the page may be called by; empty: any."""
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        complaint = self._complaint(Headers(scope=scope)) if scope["type"] == "http" else ""
        app = JSONResponse({"error": complaint}, 403) if complaint else self.app
        await app(scope, receive, send_with_headers)

    def _complaint(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self.hosts and name not in self.hosts:
            return f"The page is at {self.hosts[0]}, not at {name}; open that, or start it with --host."
        if origin and urlsplit(origin).netloc != host:
            return "Only the page itself may ask; open it in its own tab."
        return ""
