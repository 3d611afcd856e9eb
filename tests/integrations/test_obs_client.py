"""The websocket client against a stand-in that does what no real OBS can be made to do at will."""

import base64
import hashlib
import json
import logging
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from instantvision.integrations import obs_client, obs_session
from instantvision.integrations.obs_client import CONNECTED, DISCONNECTED, ObsClient
from instantvision.integrations.obs_credentials import ObsSettings
from instantvision.integrations.obs_session import WrongPassword
from instantvision.pipeline.errors import ObsError

PASSWORD = "not-to-be-seen"  # noqa: S105
SALT, CHALLENGE = "salt", "challenge"
# Nothing here takes that long; it only keeps a broken test from hanging.
LONG_S = 20.0

Handler = Callable[[ServerConnection], None]


def send(link: ServerConnection, operation: int, **content: Any) -> None:
    link.send(json.dumps({"op": operation, "d": content}))


def receive(link: ServerConnection) -> dict[str, Any]:
    return json.loads(link.recv())["d"]


def greet(link: ServerConnection) -> None:
    """As an OBS without a password."""
    send(link, 0, obsWebSocketVersion="5.1.0", rpcVersion=1)
    receive(link)
    send(link, 2, negotiatedRpcVersion=1)


def guard(link: ServerConnection) -> None:
    """As an OBS with PASSWORD: the digest is that of the protocol's description."""
    authentication = {"challenge": CHALLENGE, "salt": SALT}
    send(link, 0, obsWebSocketVersion="5.1.0", rpcVersion=1, authentication=authentication)
    secret = base64.b64encode(hashlib.sha256((PASSWORD + SALT).encode()).digest())
    expected = base64.b64encode(hashlib.sha256(secret + CHALLENGE.encode()).digest()).decode()
    if receive(link).get("authentication") == expected:
        send(link, 2, negotiatedRpcVersion=1)
    else:
        link.close(4009, "Authentication failed.")


def answer(link: ServerConnection, request: dict[str, Any], **data: Any) -> None:
    send(
        link,
        7,
        requestId=request["requestId"],
        requestStatus={"result": True, "code": 100},
        responseData=data,
    )


def announce(link: ServerConnection, name: str, **data: Any) -> None:
    send(link, 5, eventType=name, eventData=data)


def echo(link: ServerConnection) -> None:
    """Answer every request with its own data."""
    greet(link)
    for message in link:
        request = json.loads(message)["d"]
        answer(link, request, **request["requestData"])


@contextmanager
def fake_obs(handle: Handler) -> Iterator[int]:
    """The port of a server that treats each connection with `handle`."""

    def forgiving(link: ServerConnection) -> None:
        try:
            handle(link)
        except ConnectionClosed:
            return

    with serve(forgiving, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def fake_program(talk: bytes) -> Iterator[int]:
    """The port of a program that says `talk` to whoever connects, and waits for them to leave."""

    def work() -> None:
        link, _ = listener.accept()
        # Whoever is not understood is left without a goodbye.
        with link, suppress(ConnectionError):
            link.sendall(talk)
            while link.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=work)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@contextmanager
def connected(handle: Handler, timeout_s: float = LONG_S) -> Iterator[ObsClient]:
    with fake_obs(handle) as port:
        client = ObsClient(ObsSettings(port=port, timeout_s=timeout_s), jitter=lambda: 1.0)
        with closing(client):
            client.start_connected()
            yield client


def refusal(port: int, password: str = "", timeout_s: float = LONG_S) -> ObsError:
    with pytest.raises(ObsError) as caught:
        ObsClient(ObsSettings(port=port, password=password, timeout_s=timeout_s)).start_connected()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections, and that no other program gets in the meantime."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # Those of the library behind the fake server end by themselves, a moment after its connections.
    for thread in set(threading.enumerate()) - before:
        if "keepalive" in thread.name:
            thread.join(LONG_S)
    assert {thread for thread in threading.enumerate() if thread.is_alive()} - before == set()


def test_a_request_and_its_answer() -> None:
    with connected(echo) as client:
        assert client.connected
        assert client.status == "connected"
        assert client.request("GetThing", name="Talk", number=3) == {"name": "Talk", "number": 3}
        assert client.request("GetThing", {"name": "Talk"}, number=3) == {"name": "Talk", "number": 3}


def test_a_refused_request() -> None:
    def handle(link: ServerConnection) -> None:
        greet(link)
        request = receive(link)
        status = {"result": False, "code": 600, "comment": "No source of that name."}
        send(link, 7, requestId=request["requestId"], requestStatus=status)
        link.recv()

    with (
        connected(handle) as client,
        pytest.raises(ObsError, match="GetThing: No source of that name") as caught,
    ):
        client.request("GetThing")

    assert caught.value.code == 600


def test_answers_find_their_requests_in_any_order() -> None:
    def handle(link: ServerConnection) -> None:
        greet(link)
        requests = [receive(link) for _ in range(8)]
        for request in reversed(requests):
            answer(link, request, **request["requestData"])
        link.recv()

    with connected(handle) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: client.request("GetThing", number=number), range(8)))

    assert answers == [{"number": number} for number in range(8)]


def test_a_request_that_is_not_answered() -> None:
    def handle(link: ServerConnection) -> None:
        greet(link)
        while True:
            link.recv()

    with (
        connected(handle, timeout_s=0.2) as client,
        pytest.raises(ObsError, match=r"did not answer GetThing within 0\.2 s"),
    ):
        client.request("GetThing")


def test_the_connection_is_reset_with_a_request_pending() -> None:
    def handle(link: ServerConnection) -> None:
        greet(link)
        receive(link)
        # A reset, as of a killed program, instead of a goodbye.
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.socket.close()

    # The time-out is that of the whole test: only the loss can end the wait.
    with (
        connected(handle) as client,
        pytest.raises(ObsError, match="went away before it answered GetThing"),
    ):
        client.request("GetThing")


def test_a_request_without_a_connection(closed_port: int) -> None:
    client = ObsClient(ObsSettings(port=closed_port))

    with pytest.raises(ObsError, match="GetThing: not connected yet"):
        client.request("GetThing")


def test_a_listener_may_send_requests() -> None:
    def handle(link: ServerConnection) -> None:
        greet(link)
        for message in link:
            request = json.loads(message)["d"]
            answer(link, request, **request["requestData"])
            if request["requestType"] == "Begin":
                announce(link, "SceneTransitionStarted", transitionName="Fade")

    heard: queue.Queue[dict[str, Any]] = queue.Queue()
    with connected(handle) as client:
        client.on("SceneTransitionStarted", lambda data: heard.put(client.request("GetThing", data)))
        client.request("Begin")
        assert heard.get(timeout=LONG_S) == {"transitionName": "Fade"}


def test_a_listener_that_fails_silences_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def handle(link: ServerConnection) -> None:
        echo_once(link, then=lambda: (announce(link, "Tick", n=1), announce(link, "Tick", n=2)))

    def fail(data: dict[str, Any]) -> None:
        raise KeyError("mistake")

    heard: queue.Queue[int] = queue.Queue()
    with connected(handle) as client:
        client.on("Tick", fail)
        client.on("Tick", lambda data: heard.put(data["n"]))
        client.request("Begin")
        assert [heard.get(timeout=LONG_S) for _ in range(2)] == [1, 2]
    assert "a listener to the OBS event Tick failed" in caplog.text


def test_a_listener_taken_back_hears_no_more() -> None:
    def handle(link: ServerConnection) -> None:
        echo_once(link, then=lambda: announce(link, "Tick"))

    heard: queue.Queue[str] = queue.Queue()
    with connected(handle) as client:
        forget = client.on("Tick", lambda data: heard.put("first"))
        client.on("Tick", lambda data: heard.put("second"))
        forget()
        client.request("Begin")
        assert heard.get(timeout=LONG_S) == "second"
    assert heard.empty()


def echo_once(link: ServerConnection, then: Callable[[], object]) -> None:
    greet(link)
    request = receive(link)
    answer(link, request)
    then()
    link.recv()


def test_listeners_outlive_the_connection() -> None:
    connections: queue.Queue[ServerConnection] = queue.Queue()

    def handle(link: ServerConnection) -> None:
        greet(link)
        number = connections.qsize()
        connections.put(link)
        announce(link, "Tick", n=number)
        link.recv()

    heard: queue.Queue[str] = queue.Queue()
    with fake_obs(handle) as port, closing(ObsClient(ObsSettings(port=port), jitter=lambda: 1.0)) as client:
        client.on("Tick", lambda data: heard.put(f"tick {data['n']}"))
        client.on(CONNECTED, lambda data: heard.put("connected"))
        client.on(DISCONNECTED, lambda data: heard.put("disconnected"))
        client.start()
        assert [heard.get(timeout=LONG_S) for _ in range(2)] == ["connected", "tick 0"]
        connections.queue[0].close()
        assert [heard.get(timeout=LONG_S) for _ in range(3)] == ["disconnected", "connected", "tick 1"]
        assert client.wait_connected(LONG_S)


def test_a_silent_connection_is_asked_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs_session, "SILENCE_S", 0.05)
    lost = threading.Event()

    with fake_obs_that_freezes() as port, closing(ObsClient(ObsSettings(port=port))) as client:
        client.on(DISCONNECTED, lambda data: lost.set())
        client.start_connected()
        assert lost.wait(LONG_S)


@contextmanager
def fake_obs_that_freezes() -> Iterator[int]:
    """An OBS that greets, and answers nothing from then on, not even the question whether it lives."""

    def frame(message: dict[str, Any]) -> bytes:
        text = json.dumps(message).encode()
        return bytes([0x81, len(text)]) + text

    def work() -> None:
        link, _ = listener.accept()
        with link:
            head = link.recv(4096).decode()
            key = head.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
            accept = base64.b64encode(
                hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()  # noqa: S324
            ).decode()
            link.sendall(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
            )
            link.sendall(frame({"op": 0, "d": {"rpcVersion": 1}}))
            link.recv(4096)
            link.sendall(frame({"op": 2, "d": {"negotiatedRpcVersion": 1}}))
            while link.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=work)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_nothing_listens(closed_port: int) -> None:
    assert f"nothing listens on 127.0.0.1:{closed_port}: start OBS" in str(refusal(closed_port))


@pytest.mark.parametrize(
    ("password", "words"), [("other", "wrong password for OBS"), ("", "no password for OBS")]
)
def test_a_wrong_password(password: str, words: str) -> None:
    with fake_obs(guard) as port:
        error = refusal(port, password)

    assert isinstance(error, WrongPassword)
    assert words in str(error)


def test_the_right_password() -> None:
    def handle(link: ServerConnection) -> None:
        guard(link)
        link.recv()

    with fake_obs(handle) as port, closing(ObsClient(ObsSettings(port=port, password=PASSWORD))) as client:
        client.start_connected()
        assert client.connected


def test_a_later_protocol() -> None:
    def handle(link: ServerConnection) -> None:
        send(link, 0, obsWebSocketVersion="6.0.0", rpcVersion=2)
        receive(link)
        link.close(4010, "Unsupported RPC version.")

    with fake_obs(handle) as port:
        assert "another version of its protocol, expected 5" in str(refusal(port))


def test_an_earlier_protocol() -> None:
    def handle(link: ServerConnection) -> None:
        request = json.loads(link.recv())
        link.send(json.dumps({"message-id": request["message-id"], "status": "ok", "version": 1.1}))
        link.recv()

    with fake_obs(handle) as port:
        assert "another version of its protocol, expected 5" in str(refusal(port, timeout_s=0.3))


@pytest.mark.parametrize("greeting", ["hello", "[]", '{"op": 0}', '{"op": 5, "d": {}}', "3"])
def test_another_websocket_program(greeting: str) -> None:
    def handle(link: ServerConnection) -> None:
        link.send(greeting)
        link.recv()

    with fake_obs(handle) as port:
        assert "does not answer as OBS does" in str(refusal(port))


@pytest.mark.parametrize("talk", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"220 mail\r\n\r\n"])
def test_another_program(talk: bytes) -> None:
    with fake_program(talk) as port:
        assert "does not answer as OBS does" in str(refusal(port, timeout_s=0.3))


def test_a_program_that_says_nothing() -> None:
    with fake_program(b"") as port:
        assert "does not answer" in str(refusal(port, timeout_s=0.2))


def test_obs_closes_during_the_greeting() -> None:
    with fake_obs(lambda link: link.close(1001, "Server stopping.")) as port:
        assert "hung up: Server stopping." in str(refusal(port))


def test_garbage_ends_the_connection() -> None:
    said: queue.Queue[str] = queue.Queue()

    def handle(link: ServerConnection) -> None:
        greet(link)
        receive(link)
        link.send("garbage")
        link.recv()

    with connected(handle) as client:
        client.on(DISCONNECTED, lambda data: said.put(client.status))
        with pytest.raises(ObsError, match="went away"):
            client.request("Begin")
        assert "beyond the protocol" in said.get(timeout=LONG_S)


def waits_of(client: ObsClient, clock: Any, count: int) -> list[float]:
    """The first waits between attempts."""
    done = threading.Event()

    def on_wait() -> None:
        if len(clock.waits) == count:
            client.close()
            done.set()

    clock.on_wait = on_wait
    client.start()
    assert done.wait(LONG_S)
    client.close()
    return clock.waits


def test_the_waits_double_up_to_five_seconds(closed_port: int, clock: Any) -> None:
    client = ObsClient(ObsSettings(port=closed_port), clock=clock, jitter=lambda: 0.0)

    assert waits_of(client, clock, 7) == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert "nothing listens" in client.status


def test_jitter_shortens_a_wait_by_up_to_a_half(closed_port: int, clock: Any) -> None:
    client = ObsClient(ObsSettings(port=closed_port), clock=clock, jitter=lambda: 1.0)

    assert waits_of(client, clock, 2) == [0.125, 0.25]


def test_a_wrong_password_is_tried_slowly(clock: Any) -> None:
    with fake_obs(guard) as port:
        client = ObsClient(ObsSettings(port=port), clock=clock, jitter=lambda: 0.0)
        assert waits_of(client, clock, 3) == [5.0, 5.0, 5.0]
    assert "no password" in client.status


def test_a_password_that_was_put_right_is_found() -> None:
    def handle(link: ServerConnection) -> None:
        guard(link)
        link.recv()

    with fake_obs(handle) as port:
        right = ObsSettings(port=port, password=PASSWORD)
        clock = ImpatientClock()
        client = ObsClient(ObsSettings(port=port), refresh=lambda: right, clock=clock)
        with closing(client):
            client.start()
            assert client.wait_connected(LONG_S)


class ImpatientClock:
    """Waits a hundredth of what it is told to."""

    def now_s(self) -> float:
        return obs_client.SYSTEM_CLOCK.now_s()

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        return obs_client.SYSTEM_CLOCK.wait(stop, timeout_s / 100)


def test_the_password_is_never_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = ObsSettings(port=1, password=PASSWORD)
    with fake_obs(lambda link: link.close(4009, "Authentication failed.")) as port:
        error = refusal(port, PASSWORD)
    with connected(echo) as client:
        client.request("GetThing", name="Talk")

    told = (
        f"{settings!r} {settings} {error!r} {caplog.text} {ObsClient(settings)!r} {vars(ObsClient(settings))}"
    )
    assert PASSWORD not in told
    # Nor what it is proved with.
    assert "authentication" not in told
