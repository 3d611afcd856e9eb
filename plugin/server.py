"""The control server: a small HTTP and websocket API on loopback, and the dock page that uses it.

    GET  /                                    the dock; its script and style lie beside it, none holds a secret
    GET  /api/state                           state, presets, statistics, OBS
    POST /api/apply                           a change as for Control.apply; answers the state, or 400 and one line
    GET  /api/preview/{before|after}.jpg      newest picture, ?side=N pixels; 204 if there is none yet
    GET  /api/thumbnail/NAME.jpg              of a preset
    WS   /api/live                            first message {"token": …}, then {"type": "apply", "change": {…}}; pushes
                                              state at once and stats twice a second

It runs in a thread with an event loop of its own: neither a slow page nor a storm of requests reaches the engine's
thread. Knows nothing of torch, cameras or OBS.
"""

import asyncio
import contextlib
import json
import logging
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.pipeline.control import Control, ControlState, Show
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.meter import LiveStats
from instantvision.pipeline.presets import load_presets
from instantvision.pipeline.preview import Preview
from instantvision.plugin.security import BODY_MAX_BYTES, Bucket, Guard, Guarded
from instantvision.plugin.thumbnails import Thumbnails

log = logging.getLogger(__name__)

HOST, PORT = "127.0.0.1", 8765
DOCK = Path(__file__).parent / "dock"
PAGES = {"/": "index.html", "/dock.js": "dock.js", "/dock.css": "dock.css"}

STATS_EVERY_S = 0.5
GREETING_WITHIN_S = 5.0
# A dock, a browser, a script or two: more is a page gone wild.
CLIENTS_MAX = 16
SIDE_MIN_PX, SIDE_MAX_PX, SIDE_PX = 32, 1024, 320
START_WITHIN_S = 10.0
JOIN_S = 3.0
# Of the websocket protocol's private range.
WRONG_TOKEN, TOO_MANY = 4401, 4429


class ControlServer:
    """Serves one running program; start and close are called once, from any thread.

    Args:
        control: what the user wants; changed with by="dock", or "script" over POST.
        preview: pictures before and after.
        port: 0 takes a free one.
        token: the secret of this user.
        clock: of the limits and the thumbnails.
        obs: asked how OBS does, as plain values; None where it is not followed.
    """

    def __init__(
        self,
        control: Control,
        preview: Preview,
        *,
        port: int = PORT,
        token: str,
        clock: Clock = SYSTEM_CLOCK,
        obs: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        self._obs = obs
        self._control, self._preview, self._clock = control, preview, clock
        self.port, self._token = port, token
        self._thumbnails = Thumbnails(lambda side_px: preview.take_jpeg(side_px, "after"))
        self._stats: LiveStats | None = None
        self._clients: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def url(self) -> str:
        """The dock's address; the fragment, which browsers never send, carries the token."""
        return f"http://{HOST}:{self.port}/#token={self._token}"

    def start(self) -> None:
        """Listen, and return once requests are answered.

        Raises:
            ConfigError: the port is taken.
        """
        try:
            listener = socket.create_server((HOST, self.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {HOST}:{self.port}: {error.strerror}: choose another port, 0 for any"
            ) from error
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        self._server = _Server(self._config(), ready)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener), name="control", daemon=True
        )
        self._thread.start()
        if not ready.wait(START_WITHIN_S):
            raise ConfigError(f"the control server did not start within {START_WITHIN_S:g} s: try again")
        self._unsubscribe = self._control.subscribe(self._changed)

    def close(self) -> None:
        """Say good-bye to everybody and wait for the thread; nothing happens the second time."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(JOIN_S)
            self._server = self._thread = None

    def offer_stats(self, stats: LiveStats) -> None:
        """Newest figures; only kept here, and sent from the server's own thread."""
        self._stats = stats

    def _config(self) -> uvicorn.Config:
        guarded = Guarded(self._routes(), Guard(self.port, self._token), self._clock)
        return uvicorn.Config(
            guarded,
            ws="websockets-sansio",
            ws_max_size=BODY_MAX_BYTES,
            lifespan="off",
            # An access log would be written for every preview picture; errors still go to logging.
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=1,
        )

    def _routes(self) -> Starlette:
        routes = [Route(path, _page(DOCK / file), methods=["GET"]) for path, file in PAGES.items()]
        return Starlette(
            routes=[
                *routes,
                Route("/api/state", self._get_state, methods=["GET"]),
                Route("/api/apply", self._post_apply, methods=["POST"]),
                Route("/api/preview/{which}.jpg", self._get_preview, methods=["GET"]),
                Route("/api/thumbnail/{name}.jpg", self._get_thumbnail, methods=["GET"]),
                WebSocketRoute("/api/live", self._live),
            ]
        )

    def _run(self, server: uvicorn.Server, listener: socket.socket) -> None:
        with listener:
            asyncio.run(self._serve(server, listener))

    async def _serve(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        keeper = asyncio.create_task(self._keep_thumbnails())
        try:
            await server.serve(sockets=[listener])
        finally:
            keeper.cancel()
            # Who came while uvicorn said good-bye to the others got none, and a socket left open outlives the loop.
            for connection in tuple(server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)

    def _changed(self, _: ControlState) -> None:
        """Called in the thread that changed the state: hand over and leave."""
        if self._loop is not None:
            # The loop may have ended between the last change and close.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for client in self._clients:
            client.set()

    async def _keep_thumbnails(self) -> None:
        """While a page is open, keep the user's own picture of the look that is on."""
        while True:
            await asyncio.sleep(STATS_EVERY_S)
            state = self._control.state
            parts = state.settings.mix.parts
            if self._clients and len(parts) == 1 and state.show is Show.EFFECT:
                settles_s = state.fade_s + STATS_EVERY_S
                now_s = self._clock.now_s()
                await run_in_threadpool(
                    self._thumbnails.refresh, parts[0][0], state.version, settles_s, now_s
                )

    def _state_json(self) -> dict[str, Any]:
        presets = [{"name": look.name, "description": look.description} for look in load_presets().values()]
        return {**self._control.state.to_json(), "presets": presets, **self._figures_json()}

    def _figures_json(self) -> dict[str, Any]:
        return {"stats": self._stats_json(), "obs": self._obs()}

    def _stats_json(self) -> dict[str, Any] | None:
        return None if self._stats is None else self._stats.to_json()

    async def _get_state(self, _: Request) -> Response:
        return JSONResponse(self._state_json())

    async def _post_apply(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("application/json"):
            return JSONResponse({"error": "the body is no application/json: send the change as JSON"}, 415)
        try:
            await self._apply(_parse(await request.body()), by="script")
        except ConfigError as error:
            return JSONResponse({"error": _one_line(error)}, 400)
        return JSONResponse(self._state_json())

    async def _apply(self, change: object, *, by: str) -> None:
        if not isinstance(change, dict):
            raise ConfigError('the change is no object: send one such as {"preset": "oil"}')
        # A listener may take its time, and the loop serves everybody.
        await run_in_threadpool(self._control.apply, change, by=by)

    async def _get_preview(self, request: Request) -> Response:
        which, side = request.path_params["which"], request.query_params.get("side", str(SIDE_PX))
        if which not in ("before", "after"):
            return JSONResponse({"error": f"no preview {which!r}: there are before and after"}, 404)
        if not re.fullmatch(r"\d{1,4}", side) or not SIDE_MIN_PX <= int(side) <= SIDE_MAX_PX:
            reason = f"side is {side!r}, expected {SIDE_MIN_PX} to {SIDE_MAX_PX}"
            return JSONResponse({"error": reason}, 400)
        picture = await run_in_threadpool(self._preview.take_jpeg, int(side), which)
        return Response(status_code=204) if picture is None else Response(picture, media_type="image/jpeg")

    async def _get_thumbnail(self, request: Request) -> Response:
        name = request.path_params["name"]
        picture = await run_in_threadpool(self._thumbnails.find, name)
        if picture is None:
            return JSONResponse({"error": f"no thumbnail of {name!r}"}, 404)
        return Response(picture, media_type="image/jpeg")

    async def _live(self, socket: WebSocket) -> None:
        await socket.accept()
        if len(self._clients) >= CLIENTS_MAX:
            return await socket.close(TOO_MANY, f"more than {CLIENTS_MAX} pages are open: close one")
        changed = asyncio.Event()
        self._clients.add(changed)
        try:
            if await self._greeted(socket):
                await self._talk(socket, changed)
        except (WebSocketDisconnect, RuntimeError):
            # The page went away, maybe while we were sending.
            log.debug("a dock went away")
        finally:
            self._clients.discard(changed)

    async def _greeted(self, socket: WebSocket) -> bool:
        """Whether the first message carried the token."""
        try:
            greeting = _parse(await asyncio.wait_for(socket.receive_text(), GREETING_WITHIN_S))
        except (TimeoutError, ConfigError):
            greeting = None
        token = greeting.get("token") if isinstance(greeting, dict) else None
        allowed = Guard(self.port, self._token).allows_token(token)
        if not allowed:
            await socket.close(WRONG_TOKEN, "wrong token")
        return allowed

    async def _talk(self, socket: WebSocket, changed: asyncio.Event) -> None:
        pushing = asyncio.create_task(self._push(socket, changed))
        try:
            limit = Bucket(self._clock.now_s())
            async for text in socket.iter_text():
                if not limit.take(self._clock.now_s()):
                    return await socket.close(TOO_MANY, "too many messages: slow down")
                await self._answer(socket, text)
        finally:
            pushing.cancel()
            # It ends by this, or did by itself when the page went away.
            await asyncio.gather(pushing, return_exceptions=True)

    async def _push(self, socket: WebSocket, changed: asyncio.Event) -> None:
        """State at once, figures twice a second; a slow page gets the newest state, never a queue of old ones."""
        version = None
        while True:
            # Cleared first, so that a change during the sending is not lost.
            changed.clear()
            if self._control.state.version != version:
                version = self._control.state.version
                await socket.send_json({"type": "state", **self._state_json()})
            try:
                await asyncio.wait_for(changed.wait(), STATS_EVERY_S)
            except TimeoutError:
                numbers = self._thumbnails.numbers
                await socket.send_json({"type": "stats", **self._figures_json(), "thumbnails": numbers})

    async def _answer(self, socket: WebSocket, text: str) -> None:
        try:
            message = _parse(text)
            if not isinstance(message, dict) or message.get("type") != "apply":
                raise ConfigError('the message is unknown: send {"type": "apply", "change": {…}}')
            await self._apply(message.get("change"), by="dock")
        except ConfigError as error:
            # With the state, so that a page that showed the change at once takes it back.
            await socket.send_json({"type": "error", "error": _one_line(error), "state": self._state_json()})


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()


def _page(file: Path) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        return FileResponse(file)

    return answer


def _parse(text: str | bytes) -> object:
    """Read JSON from outside.

    Raises:
        ConfigError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the message is no JSON that can be read") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
