"""One connection to obs-websocket 5, from the greeting to the hanging up, on obs-websocket-py.

The library greets, authenticates and sends requests. What it receives is read here: its own receiving thread dies of
a reset connection, hides why OBS hangs up, and leaves those who wait for an answer waiting.
Knows nothing of coming back.
"""

import itertools
import json
import logging
import socket
from collections.abc import Mapping
from typing import Any

import websocket
from obswebsocket import obsws, requests
from obswebsocket.exceptions import ConnectionFailure, MessageTimeout

from instantvision.integrations.obs_credentials import VARIABLE, ObsSettings, password_file
from instantvision.pipeline.errors import ObsError

# A connection that is silent for so long is asked whether it lives, and given up after as long again.
SILENCE_S = 4.0
# Close codes and operations of the protocol.
WRONG_PASSWORD, WRONG_VERSION, SHUT_OUT = 4009, 4010, 4011
EVENT, ANSWER = 5, 7
# Linux only.
QUICKACK = getattr(socket, "TCP_QUICKACK", None)
# The library writes messages to its log, and with them what others need not know.
logging.getLogger("obswebsocket").setLevel(logging.CRITICAL + 1)


class WrongPassword(ObsError):
    """OBS refuses the password, or wants one and was given none."""


class ConnectionLost(ObsError):
    """The connection, once made, has ended."""


class ObsSession(obsws):
    """A connection that is made once and never again; `receive` in one thread, `request` in any."""

    def __init__(self, settings: ObsSettings) -> None:
        self._settings, self._ids = settings, itertools.count(1)
        super().__init__(
            settings.host, settings.port, settings.password, legacy=False, timeout=settings.timeout_s
        )
        self._gone = False

    def _next_id(self) -> int:
        return next(self._ids)

    # The library counts its requests without a lock: two threads would wait for the same answer.
    id = property(_next_id, lambda self, counted: None)

    def connect(self) -> None:
        """Connect and authenticate.

        Raises:
            WrongPassword: as it says.
            ObsError: why there is no connection, and what to do.
        """
        try:
            self.ws = self._open()
            self._greet()
            self.ws.settimeout(SILENCE_S)
        except ObsError:
            self.hang_up()
            raise

    def receive(self) -> tuple[str, dict[str, Any]] | None:
        """Wait for a message; an event is returned with its data, an answer is handed to whoever waits for it.

        Raises:
            ConnectionLost: with the reason.
        """
        try:
            text = self.ws.recv()
        except websocket.WebSocketTimeoutException:
            text = self._after_silence()
        except (OSError, websocket.WebSocketException, UnicodeDecodeError) as error:
            raise ConnectionLost(
                f"lost the connection to OBS at {self._settings.address}: {error}"
            ) from error
        try:
            return self._sort(json.loads(text)) if text else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConnectionLost(
                f"OBS at {self._settings.address} sent a message beyond the protocol"
            ) from error

    def request(self, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer's data.

        Raises:
            ObsError: OBS refuses, does not answer in time, or is gone.
        """
        try:
            answer = self.call(getattr(requests, name)(**data))
        except (OSError, websocket.WebSocketException, MessageTimeout) as error:
            raise ObsError(self._why_silent(name)) from error
        if not answer.status:
            code, comment = answer.datain.get("code"), answer.datain.get("comment") or "without a reason"
            raise ObsError(f"OBS refused {name}: {comment} (code {code})", code)
        return dict(answer.datain)

    def disconnect(self) -> None:
        """End the connection, and wake whoever waits for an answer or a message; from any thread."""
        self._gone = True
        if self.ws is not None:
            self.ws.abort()
        for event in list(self.events.values()):
            event.set()

    def hang_up(self) -> None:
        """Disconnect and release the socket; by the receiving thread, which is the last to use it."""
        self.disconnect()
        if self.ws is not None:
            self.ws.shutdown()

    def _open(self) -> "_Socket":
        settings = self._settings
        # OBS does not lie beyond a proxy, nor at another address than the one given. Validation would take longer
        # than the picture in a large answer takes to make.
        options = {"timeout": settings.timeout_s, "http_no_proxy": ["*"], "redirect_limit": 0}
        link = _Socket(skip_utf8_validation=True)
        try:
            link.connect(f"ws://{settings.address}", **options)
        except (TimeoutError, websocket.WebSocketTimeoutException) as error:
            raise ObsError(
                f"{settings.address} does not answer: is that the computer OBS runs on?"
            ) from error
        except ConnectionRefusedError as error:
            raise ObsError(
                f"nothing listens on {settings.address}: start OBS and tick Tools -> WebSocket Server Settings -> "
                "Enable WebSocket server"
            ) from error
        except (OSError, websocket.WebSocketAddressException) as error:
            raise ObsError(f"cannot reach OBS at {settings.address}: {error}") from error
        except (websocket.WebSocketException, ValueError) as error:
            raise ObsError(self._stranger()) from error
        return link

    def _greet(self) -> None:
        try:
            self._auth()
        except _ClosedByObs as closed:
            raise self._refusal(closed) from closed
        except websocket.WebSocketTimeoutException as error:
            raise ObsError(self._old() if self._speaks_version_4() else self._stranger()) from error
        except (OSError, websocket.WebSocketException) as error:
            raise ObsError(
                f"OBS at {self._settings.address} hung up while it was greeted: {error}"
            ) from error
        except (ConnectionFailure, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ObsError(self._stranger()) from error

    def _refusal(self, closed: "_ClosedByObs") -> ObsError:
        address = self._settings.address
        if closed.code == WRONG_VERSION:
            return ObsError(self._old())
        if closed.code != WRONG_PASSWORD:
            return ObsError(f"OBS at {address} hung up: {closed}")
        what = "wrong password for" if self._settings.password else "no password for"
        return WrongPassword(
            f"{what} OBS at {address}: take it from Tools -> WebSocket Server Settings -> Show Connect Info to "
            f"{VARIABLE} or {password_file()}"
        )

    def _old(self) -> str:
        address = self._settings.address
        return (
            f"OBS at {address} speaks another version of its protocol, expected 5: update to OBS 28 or later"
        )

    def _stranger(self) -> str:
        address = self._settings.address
        return f"what listens on {address} does not answer as OBS does: is that the port of another program?"

    def _speaks_version_4(self) -> bool:
        """Versions 5 speak first, versions 4 wait to be asked."""
        try:
            self.ws.send(json.dumps({"request-type": "GetVersion", "message-id": "1"}))
            return "message-id" in json.loads(self.ws.recv())
        except (OSError, websocket.WebSocketException, ValueError, TypeError):
            return False

    def _after_silence(self) -> str:
        try:
            self.ws.ping()
            return self.ws.recv()
        except (OSError, websocket.WebSocketException, UnicodeDecodeError) as error:
            raise ConnectionLost(f"OBS at {self._settings.address} does not answer any more") from error

    def _sort(self, message: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
        operation, content = message["op"], message["d"]
        if operation == EVENT:
            return content["eventType"], content.get("eventData") or {}
        if operation == ANSWER and (waiting := self.events.get(content["requestId"])):
            status = content["requestStatus"]
            # The library passes on the data alone: of a refusal, the reason.
            data = (content.get("responseData") or {}) if status["result"] else status
            self.answers[content["requestId"]] = {"requestStatus": status, "responseData": data}
            waiting.set()
        return None

    def _why_silent(self, name: str) -> str:
        address = self._settings.address
        if self._gone:
            return f"OBS at {address} went away before it answered {name}"
        return f"OBS at {address} did not answer {name} within {self._settings.timeout_s:g} s"


class _ClosedByObs(websocket.WebSocketConnectionClosedException):
    """The connection was closed in good order, with a code and mostly a reason."""

    def __init__(self, data: bytes) -> None:
        self.code = int.from_bytes(data[:2], "big")
        super().__init__(data[2:].decode("utf-8", "replace") or f"code {self.code}")


class _Socket(websocket.WebSocket):
    """Tells why the other side closed, where the library's own returns an empty text."""

    def recv(self) -> str:
        """A message's text; "" if it was but a sign of life."""
        if QUICKACK is not None and self.sock is not None:
            # OBS sends each message on its own, and its system holds one back until the one before is acknowledged,
            # which ours would put off by 40 ms. Linux forgets this wish, so it is renewed.
            self.sock.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
        with self.readlock:
            operation, data = self.recv_data(control_frame=True)
        if operation == websocket.ABNF.OPCODE_CLOSE:
            raise _ClosedByObs(data)
        return data.decode() if operation == websocket.ABNF.OPCODE_TEXT else ""
