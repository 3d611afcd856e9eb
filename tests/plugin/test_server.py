import gc
import http.client
import json
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from instantvision.integrations.obs_controller import ObsState
from instantvision.pipeline.config import Settings
from instantvision.pipeline.control import Control
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.presets import load_presets
from instantvision.plugin.security import BODY_MAX_BYTES
from instantvision.plugin.server import ControlServer
from instantvision.plugin.thumbnails import BYTES_MAX, FOLDER, KEEP_FOR_S, Thumbnails
from tests.plugin.conftest import TOKEN, FakePreview, Running, start_server

BEARER = {"Authorization": f"Bearer {TOKEN}"}


def ask(
    running: Running, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    """A request with exactly these headers beside Host, which they may replace."""
    connection = http.client.HTTPConnection("127.0.0.1", running.server.port, timeout=10)
    try:
        connection.request("POST" if body is not None else "GET", path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def post(running: Running, change: object) -> tuple[int, Any]:
    headers = BEARER | {"Content-Type": "application/json"}
    status, _, body = ask(running, "/api/apply", headers, json.dumps(change).encode())
    return status, json.loads(body)


@contextmanager
def live(running: Running, **options: Any) -> Iterator[ClientConnection]:
    # The environment's proxy is none of a test's business.
    with connect(f"ws://127.0.0.1:{running.server.port}/api/live", proxy=None, **options) as socket:
        socket.send(json.dumps({"token": TOKEN}))
        yield socket


def message(socket: ClientConnection, kind: str) -> Any:
    """The next message of that kind."""
    for _ in range(20):
        found = json.loads(socket.recv(timeout=10))
        if found["type"] == kind:
            return found
    raise AssertionError(f"20 messages and no {kind}")


def test_the_state_carries_presets_and_figures(running: Running) -> None:
    status, headers, body = ask(running, "/api/state", BEARER)
    state = json.loads(body)
    assert status == 200
    assert headers["cache-control"] == "no-store"
    assert [look["name"] for look in state["presets"]] == list(load_presets())
    assert state["preset"] == "oil"
    assert state["stats"]["recent"]["latency_ms"]["p50"] == pytest.approx(34)


def test_a_change_reaches_the_control(running: Running) -> None:
    status, state = post(running, {"preset": "ink", "strength": 0.5})
    assert (status, state["preset"], state["changed_by"]) == (200, "ink", "script")
    assert running.control.state.settings.strength == 0.5


@pytest.mark.parametrize(
    "change", [{"preset": "inc"}, {"strength": 2}, {"colour": 1}, {"show": "camera"}, [], "x"]
)
def test_a_bad_change_is_refused_in_one_line(running: Running, change: object) -> None:
    before = running.control.state
    status, answer = post(running, change)
    assert status == 400
    assert answer["error"]
    assert "\n" not in answer["error"]
    assert running.control.state == before


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 10_000])
def test_a_body_that_is_no_json_is_refused(running: Running, body: bytes) -> None:
    assert ask(running, "/api/apply", BEARER | {"Content-Type": "application/json"}, body)[0] == 400


def test_a_form_is_no_change(running: Running) -> None:
    headers = BEARER | {"Content-Type": "text/plain"}
    assert ask(running, "/api/apply", headers, b'{"preset": "ink"}')[0] == 415


def test_a_huge_body_is_refused(running: Running) -> None:
    headers = BEARER | {"Content-Type": "application/json"}
    assert ask(running, "/api/apply", headers, b" " * (BODY_MAX_BYTES + 1))[0] == 413


def test_nothing_changes_by_get(running: Running) -> None:
    assert ask(running, "/api/apply?preset=ink", BEARER)[0] == 405


@pytest.mark.parametrize(
    "path", ["/api/state", "/api/preview/after.jpg", "/api/thumbnail/oil.jpg", "/api/nothing"]
)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
def test_the_api_needs_the_token(running: Running, path: str, headers: dict[str, str]) -> None:
    status, _, body = ask(running, path, headers)
    assert status == 401
    assert "instantvision run" in json.loads(body)["error"]


@pytest.mark.parametrize("path", ["/", "/dock.js", "/api/state"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}"]
)
def test_a_rebound_name_is_refused(running: Running, path: str, host: str) -> None:
    assert ask(running, path, BEARER | {"Host": host.format(port=running.server.port)})[0] == 421


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:{port}", "https://127.0.0.1:{port}"]
)
def test_another_origin_is_refused(running: Running, origin: str) -> None:
    headers = BEARER | {"Origin": origin.format(port=running.server.port)}
    status, answered, _ = ask(running, "/api/state", headers)
    assert status == 403
    assert not [name for name in answered if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/dock.js", "/dock.css", "/api/state"])
def test_every_answer_carries_the_policy(running: Running, path: str) -> None:
    status, headers, body = ask(running, path, BEARER)
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert TOKEN.encode() not in body


def test_only_loopback_is_bound(running: Running) -> None:
    bound = running.server._server.servers[0].sockets[0].getsockname()[0]  # type: ignore[union-attr]
    assert bound == "127.0.0.1"


def test_the_token_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    control = Control(Settings())
    with caplog.at_level(logging.DEBUG):
        server = start_server(control, FakePreview())
        running = Running(control, FakePreview(), server)
        ask(running, "/api/state", BEARER)
        ask(running, "/api/state", {"Authorization": "Bearer wrong-one"})
        server.close()
    assert TOKEN not in caplog.text
    assert "wrong-one" not in caplog.text


def test_previews(running: Running) -> None:
    status, headers, body = ask(running, "/api/preview/before.jpg?side=64", BEARER)
    assert (status, headers["content-type"], body[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert running.preview.asked == [(64, "before")]
    running.preview.brightness = -1
    assert ask(running, "/api/preview/after.jpg", BEARER)[0] == 204


@pytest.mark.parametrize("query", ["side=0", "side=99999", "side=x", "side=-64"])
def test_a_preview_of_no_size_is_refused(running: Running, query: str) -> None:
    assert ask(running, f"/api/preview/after.jpg?{query}", BEARER)[0] == 400


def test_thumbnails(running: Running) -> None:
    assert ask(running, "/api/thumbnail/oil.jpg", BEARER)[2] == (FOLDER / "oil.jpg").read_bytes()
    for name in ("nothing", "..%2f..%2fdock", "..", "%2e%2e%2findex"):
        assert ask(running, f"/api/thumbnail/{name}.jpg", BEARER)[0] == 404


def test_every_preset_has_a_small_thumbnail() -> None:
    sizes = {path.stem: path.stat().st_size for path in FOLDER.glob("*.jpg")}
    assert set(sizes) == set(load_presets())
    assert max(sizes.values()) <= BYTES_MAX


def test_the_users_own_picture_replaces_the_packaged_one() -> None:
    thumbnails = Thumbnails(lambda side_px: b"own")
    for tick in range(3):
        thumbnails.refresh("oil", 1, 1.0, tick * 0.5)
    assert not thumbnails.numbers, "the look had not faded in"
    for tick in range(3, 6):
        thumbnails.refresh("oil", 1, 1.0, tick * 0.5)
    assert (thumbnails.find("oil"), thumbnails.numbers) == (b"own", {"oil": 1})
    thumbnails.refresh("oil", 1, 1.0, 2.5 + KEEP_FOR_S)
    assert thumbnails.numbers == {"oil": 2}


def test_a_change_starts_the_thumbnails_waiting_again() -> None:
    thumbnails = Thumbnails(lambda side_px: b"own")
    for tick in range(12):
        thumbnails.refresh("oil", tick, 1.0, tick * 0.5)
    assert not thumbnails.numbers


def test_the_live_link_pushes_state_and_figures(running: Running) -> None:
    with live(running) as socket:
        assert message(socket, "state")["preset"] == "oil"
        running.control.apply({"preset": "neon"}, by="obs")
        changed = message(socket, "state")
        assert (changed["preset"], changed["changed_by"]) == ("neon", "obs")
        assert message(socket, "stats")["stats"]["recent"]["fps_out"] == pytest.approx(60, rel=0.02)
        running.obs = ObsState(connected=True, scene="Talk", streaming=True)
        while (obs := message(socket, "stats")["obs"]) is None:
            pass
        assert (obs["scene"], obs["streaming"], obs["recording"]) == ("Talk", True, False)


def test_the_live_link_takes_changes(running: Running) -> None:
    with live(running) as socket:
        message(socket, "state")
        socket.send(json.dumps({"type": "apply", "change": {"preset": "wave"}}))
        assert message(socket, "state")["changed_by"] == "dock"
        socket.send(json.dumps({"type": "apply", "change": {"preset": "wav"}}))
        refused = message(socket, "error")
        assert "wave" in refused["error"]
        assert refused["state"]["preset"] == "wave"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"type": "quit"}', '{"type": "apply", "change": 3}', "[" * 9000]
)
def test_the_live_link_survives_nonsense(running: Running, text: str) -> None:
    with live(running) as socket:
        message(socket, "state")
        socket.send(text)
        assert message(socket, "error")["error"]
        socket.send(json.dumps({"type": "apply", "change": {"preset": "wave"}}))
        assert message(socket, "state")["preset"] == "wave"


@pytest.mark.parametrize("greeting", ['{"token": "wrong"}', "{}", "[]", "x", '{"token": null}'])
def test_the_live_link_needs_the_token(running: Running, greeting: str) -> None:
    with connect(f"ws://127.0.0.1:{running.server.port}/api/live", proxy=None) as socket:
        socket.send(greeting)
        with pytest.raises(ConnectionClosed) as refusal:
            socket.recv(timeout=10)
    assert refusal.value.rcvd is not None
    assert refusal.value.rcvd.code == 4401


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_the_live_link_refuses_other_origins(running: Running, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refusal, live(running, origin=origin):
        pass
    assert refusal.value.response.status_code == 403


def test_the_live_link_refuses_a_rebound_name(running: Running) -> None:
    address = f"ws://evil.example:{running.server.port}/api/live"
    with (
        socket.create_connection(("127.0.0.1", running.server.port)) as raw,
        pytest.raises(InvalidStatus) as refusal,
        connect(address, sock=raw, proxy=None),
    ):
        pass
    assert refusal.value.response.status_code == 403


def test_a_taken_port_is_told(running: Running) -> None:
    other = ControlServer(Control(Settings()), FakePreview(), port=running.server.port, token=TOKEN)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=str(running.server.port)):
        other.start()


def test_closing_frees_the_port_and_may_be_repeated(running: Running) -> None:
    with live(running) as socket:
        message(socket, "state")
        running.server.close()
        with pytest.raises(ConnectionClosed):
            message(socket, "good-bye")
    running.server.close()
    running.control.apply({"preset": "ink"}, by="cli")
    again = start_server(running.control, running.preview, running.server.port)
    again.close()


def test_closing_leaves_no_socket_that_came_while_it_closed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn says good-bye to those it knows when it starts to; here it knows nobody yet."""

    async def shut_down(*_: object, **__: object) -> None:
        pass

    left: list[str] = []
    monkeypatch.setattr(uvicorn.Server, "shutdown", shut_down)
    monkeypatch.setattr(sys, "unraisablehook", lambda found: left.append(str(found.exc_value)))
    with socket.create_connection(("127.0.0.1", running.server.port)) as page:
        page.sendall(f"GET /dock.js HTTP/1.1\r\nHost: 127.0.0.1:{running.server.port}\r\n\r\n".encode())
        assert b" 200 " in page.recv(4096)
        running.server.close()
        gc.collect()
    assert left == []
