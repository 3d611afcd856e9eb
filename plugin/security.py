"""Who may talk to the control server.

Loopback is no boundary: every web page in the user's browser can send requests to it. So a request needs the exact
Host (a name that was rebound to 127.0.0.1 has another one), the exact Origin if it carries one, and under /api the
token. Answers carry no CORS headers and a policy that lets the page load nothing from elsewhere. Knows nothing of what
is controlled.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instantvision.integrations.clock import SYSTEM_CLOCK, Clock

# The longest honest change is a mix of all presets, under 1 kB.
BODY_MAX_BYTES = 16_384
# The dock asks 8 times a second at most, and for all thumbnails at once when it opens.
RATE_HZ, BURST = 100.0, 300.0

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """The rules for one server.

    Args:
        port: it listens on.
        token: the secret; never part of the repr.
    """

    port: int
    token: str

    def __repr__(self) -> str:
        return f"Guard(port={self.port})"

    @property
    def hosts(self) -> tuple[str, str]:
        """The only values of Host that are answered."""
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"

    def allows_host(self, hosts: Iterable[str]) -> bool:
        """Whether the request names us, once."""
        named = list(hosts)
        return len(named) == 1 and named[0] in self.hosts

    def allows_origin(self, origins: Iterable[str], host: str) -> bool:
        """Whether the request comes from our own page, or from no page at all."""
        return all(origin == f"http://{host}" for origin in origins)

    def allows_token(self, token: object) -> bool:
        """Whether it is the secret; takes as long for any wrong one."""
        if not isinstance(token, str):
            return False
        return hmac.compare_digest(token.encode(errors="replace"), self.token.encode())

    def allows_authorization(self, header: str | None) -> bool:
        """Whether the header `Authorization` carries the secret."""
        scheme, _, token = (header or "").partition(" ")
        return scheme.lower() == "bearer" and self.allows_token(token.strip())


class Bucket:
    """A limit on requests: BURST at once, RATE_HZ a second in the long run."""

    def __init__(self, now_s: float) -> None:
        self._level, self._at_s = BURST, now_s

    def take(self, now_s: float) -> bool:
        """Whether one more request is fine."""
        self._level = min(BURST, self._level + (now_s - self._at_s) * RATE_HZ)
        self._at_s = now_s
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Guarded:
    """An ASGI application behind a Guard.

    Args:
        app: sees only what is allowed; the token of a websocket it checks itself, since a page can send no headers.
        guard: the rules.
        clock: for the limit on requests.
    """

    def __init__(self, app: ASGIApp, guard: Guard, clock: Clock = SYSTEM_CLOCK) -> None:
        self._app, self._guard, self._clock = app, guard, clock
        self._bucket = Bucket(clock.now_s())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        refusal = self._refusal(scope)
        if refusal is None:
            return await self._app(scope, receive, _hardened(send))
        if scope["type"] == "websocket":
            # Before it is accepted this answers the handshake with 403.
            return await send({"type": "websocket.close", "code": 1008})
        status, reason = refusal
        return await JSONResponse({"error": reason}, status)(scope, receive, _hardened(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason in one line; None if the request is fine."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if not self._guard.allows_host(hosts):
            return 421, f"this server answers only to the host {self._guard.hosts[0]}"
        if not self._guard.allows_origin(headers.getlist("origin"), hosts[0]):
            return 403, "requests from other pages are refused"
        if scope["type"] == "websocket" or not scope["path"].startswith("/api"):
            return None
        if not self._guard.allows_authorization(headers.get("authorization")):
            return 401, "the token is missing or wrong: open the address that `instantvision run` shows"
        if not self._bucket.take(self._clock.now_s()):
            return 429, f"more than {RATE_HZ:g} requests a second: slow down"
        if not headers.get("content-length", "0").isdecimal() or "transfer-encoding" in headers:
            return 411, "the request does not tell its length"
        if int(headers.get("content-length", "0")) > BODY_MAX_BYTES:
            return 413, f"the request is longer than {BODY_MAX_BYTES} bytes"
        return None


def _hardened(send: Send) -> Send:
    """Send with our headers on every answer."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return with_headers
