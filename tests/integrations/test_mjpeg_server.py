import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse

import cv2
import numpy as np
import pytest

from instantvision.integrations.mjpeg_address import HOST, PATH, address
from instantvision.integrations.mjpeg_server import READERS_MAX, MjpegSink
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError
from instantvision.pipeline.frames import Frame, Origin, Pixels

SIZE = Size(64, 64)
GREEN, BLUE = (40, 200, 40), (40, 40, 200)
# Only keeps a broken server from hanging the tests.
PATIENCE_S = 20.0


@pytest.fixture
def sink() -> Iterator[MjpegSink]:
    sink = MjpegSink(0)
    sink.open(SIZE, 30.0)
    yield sink
    sink.close()


def ask(sink: MjpegSink, path: str = PATH, method: str = "GET", **headers: str) -> HTTPResponse:
    """The answer's head; `Host_` and the like become headers."""
    connection = HTTPConnection(HOST, sink.port, timeout=PATIENCE_S)
    named = {name.strip("_").replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in named)
    for name, value in named.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse()


def picture(answer: HTTPResponse) -> Pixels:
    """The next picture of the stream."""
    lines = iter(answer.readline, b"\r\n")
    head = dict(line.decode().strip().split(": ") for line in lines if b": " in line)
    data = answer.read(int(head["Content-Length"]))
    assert answer.readline() == b"\r\n"
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def test_a_reader_sees_what_is_sent(sink: MjpegSink, make_frame: Callable[..., Frame]) -> None:
    sink.send(make_frame(rgb=GREEN))
    answer = ask(sink)
    assert answer.headers["Content-Type"] == "multipart/x-mixed-replace;boundary=frame"
    shown = picture(answer)
    assert shown.shape == (64, 64, 3)
    np.testing.assert_allclose(shown[32, 32], GREEN, atol=6)
    sink.send(make_frame(rgb=BLUE))
    np.testing.assert_allclose(picture(answer)[32, 32], BLUE, atol=6)


def test_every_reader_gets_the_same_picture(sink: MjpegSink, make_frame: Callable[..., Frame]) -> None:
    sink.send(make_frame(rgb=GREEN))
    assert picture(ask(sink)).tobytes() == picture(ask(sink)).tobytes()


def test_a_late_reader_gets_the_newest_picture_only(
    sink: MjpegSink, make_frame: Callable[..., Frame]
) -> None:
    sink.send(make_frame(rgb=GREEN))
    answer = ask(sink)
    picture(answer)
    for rgb in (BLUE, GREEN, BLUE):
        sink.send(make_frame(rgb=rgb))
    # Those in between may have been sent or not; the last one always is.
    seen = [picture(answer)[32, 32]]
    while np.abs(seen[-1].astype(int) - BLUE).max() > 6:
        seen.append(picture(answer)[32, 32])
    assert len(seen) <= 3


def test_nothing_is_compressed_while_nobody_watches(
    sink: MjpegSink, make_frame: Callable[..., Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compress(*arguments: object) -> None:
        raise AssertionError("compressed")

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imencode", compress)
        sink.send(make_frame())
    assert picture(ask(sink)).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"Host": "localhost:{port}"}, PATH, 200),
        ({"Host": "evil.example:{port}"}, PATH, 403),
        ({"Host": "127.0.0.1"}, PATH, 403),
        ({"Host": "127.0.0.1.evil.example:{port}"}, PATH, 403),
        ({"Origin": "http://evil.example"}, PATH, 403),
        ({"Sec_Fetch_Site": "cross-site"}, PATH, 403),
        ({"Sec_Fetch_Site": "none"}, PATH, 200),
        ({}, "/", 404),
        ({}, "/v.mjpg/../etc", 404),
    ],
)
def test_only_players_of_this_computer_are_served(
    sink: MjpegSink, headers: dict[str, str], path: str, status: int
) -> None:
    named = {name: value.format(port=sink.port) for name, value in headers.items()}
    assert ask(sink, path, **named).status == status


def test_two_hosts_are_none(sink: MjpegSink) -> None:
    with socket.create_connection((HOST, sink.port), timeout=PATIENCE_S) as client:
        good = f"Host: {HOST}:{sink.port}\r\n"
        client.sendall(f"GET {PATH} HTTP/1.0\r\n{good}Host: evil.example\r\n\r\n".encode())
        assert b" 403 " in client.recv(100)


def test_nothing_can_be_posted(sink: MjpegSink) -> None:
    assert ask(sink, method="POST").status == http.client.NOT_IMPLEMENTED


def test_the_answer_may_not_be_shown_by_other_sites(sink: MjpegSink) -> None:
    answer = ask(sink)
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Python" not in answer.headers["Server"]


def test_a_crowd_is_refused(sink: MjpegSink) -> None:
    inside = [ask(sink) for _ in range(READERS_MAX)]
    assert {answer.status for answer in inside} == {200}
    assert ask(sink).status == 503


def test_only_this_computer_can_connect(sink: MjpegSink) -> None:
    assert sink._server is not None
    assert sink._server.server_address[0] == "127.0.0.1"


def test_the_raw_picture_is_refused(sink: MjpegSink, make_frame: Callable[..., Frame]) -> None:
    with pytest.raises(ValueError, match="raw camera picture"):
        sink.send(make_frame(origin=Origin.RAW))


def test_a_picture_of_another_size_is_refused(sink: MjpegSink, make_frame: Callable[..., Frame]) -> None:
    with pytest.raises(ValueError, match="32x64, expected 64x64"):
        sink.send(make_frame(32, 64))


def test_a_port_in_use_is_an_error_with_a_way_out(sink: MjpegSink) -> None:
    second = MjpegSink(sink.port)
    with pytest.raises(SinkError, match=rf"port {sink.port} .* --sink mjpeg:PORT"):
        second.open(SIZE, 30.0)
    second.close()


def test_close_ends_the_stream_and_frees_the_port(make_frame: Callable[..., Frame]) -> None:
    sink = MjpegSink(0)
    sink.open(SIZE, 30.0)
    sink.send(make_frame())
    answer = ask(sink)
    picture(answer)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(answer.read()))
    reader.start()
    sink.close()
    sink.close()
    reader.join(PATIENCE_S)
    assert got == [b""]
    with pytest.raises(ValueError, match="not open"):
        sink.send(make_frame())
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((HOST, sink.port), timeout=PATIENCE_S)


def test_the_address_is_the_one_that_obs_is_given() -> None:
    assert address(1234) == "http://127.0.0.1:1234/v.mjpg"
    assert (MjpegSink().name, MjpegSink(1234).name) == ("obs", "mjpeg:1234")
