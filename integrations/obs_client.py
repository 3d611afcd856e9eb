"""A connection to OBS that comes back by itself, for as long as the program runs.

One thread connects, receives and connects again; another one calls the listeners, so that these may send requests.
Listeners outlive the connection. Knows nothing of scenes or presets.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.integrations.obs_credentials import ObsSettings, find_settings
from instantvision.integrations.obs_session import ConnectionLost, ObsSession, WrongPassword
from instantvision.pipeline.errors import InstantVisionError, ObsError

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]

# Names as of events: called with {} whenever the connection is made or lost.
CONNECTED, DISCONNECTED = "Connected", "Disconnected"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 5.0
# A connection that held for so long was a good one: the next loss is a new matter.
GOOD_S = 5.0
# Beyond that the listeners hang, and what they miss first is the oldest.
EVENTS_MAX = 256
JOIN_S = 2.0


class ObsClient:
    """Speaks with one OBS. Thread-safe.

    Args:
        settings: where it is.
        refresh: asked for other settings after a wrong password; None tries the same ones again.
        clock: what the waits between attempts are measured with.
        jitter: of a wait, 0..1, so that many programs do not come back at once.
    """

    def __init__(
        self,
        settings: ObsSettings,
        *,
        refresh: Callable[[], ObsSettings] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        # Not for secrets.
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self._refresh, self._clock, self._jitter = refresh, clock, jitter
        self._stop, self._events = threading.Event(), _Events()
        self._changed = threading.Condition()
        self._session: ObsSession | None = None
        self._status = "not connected yet"
        self._threads: list[threading.Thread] = []
        self._beginning = threading.Lock()

    @property
    def status(self) -> str:
        """`connected`, or in one line why not and what to do."""
        return self._status

    @property
    def connected(self) -> bool:
        """Whether requests reach OBS at this moment."""
        return self._session is not None

    def start(self) -> None:
        """Begin to connect, and return at once."""
        self._begin(None)

    def start_connected(self) -> None:
        """Connect, and only then return.

        Raises:
            ObsError: OBS cannot be reached; nothing was started.
        """
        session = ObsSession(self.settings)
        session.connect()
        self._enter(session)
        self._begin(session)

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for a connection; whether there is one."""
        with self._changed:
            return self._changed.wait_for(lambda: self._session is not None, timeout_s)

    def request(self, name: str, data: Mapping[str, Any] | None = None, /, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; listeners may do so too.

        Args:
            name: as in obs-websocket's protocol: SetCurrentProgramScene.
            data: the request's data.
            fields: more of it: sceneName="Talk".

        Returns:
            The answer's data.

        Raises:
            ObsError: OBS refuses (with its code), does not answer in time, or is not connected.
        """
        session = self._session
        if session is None:
            raise ObsError(f"OBS was not asked for {name}: {self._status}")
        return session.request(name, {**(data or {}), **fields})

    def on(self, event: str, listener: Listener) -> Callable[[], None]:
        """Call `listener` with the data of each event of that name, one event at a time, in their order.

        Args:
            event: as in obs-websocket's protocol, CONNECTED or DISCONNECTED.
            listener: what it raises is logged.

        Returns:
            What ends that.
        """
        return self._events.add(event, listener)

    def close(self) -> None:
        """Hang up for good; may be called twice, from a listener too."""
        self._stop.set()
        if session := self._session:
            session.disconnect()
        self._events.close()
        # The first thread may close before the second has been started.
        with self._beginning:
            threads = tuple(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)

    def _begin(self, session: ObsSession | None) -> None:
        with self._beginning:
            for name, work in (("obs", lambda: self._run(session)), ("obs-events", self._events.run)):
                # Daemons: a host that swallows packets holds a connecting thread for the whole time-out.
                thread = threading.Thread(target=work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self, session: ObsSession | None) -> None:
        wait_s = FIRST_WAIT_S
        while not self._stop.is_set():
            try:
                session = session or self._connect()
                began_s = self._clock.now_s()
                self._receive(session)
                wait_s = wait_s if self._clock.now_s() - began_s < GOOD_S else FIRST_WAIT_S
            except WrongPassword:
                # Somebody has to type another one first.
                wait_s = LONGEST_WAIT_S
            except ObsError:
                log.debug("next attempt in %.1f s", wait_s)
            session = None
            self._clock.wait(self._stop, wait_s * (1 - self._jitter() / 2))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        if session:
            self._leave(session)

    def _connect(self) -> ObsSession:
        session = ObsSession(self.settings)
        try:
            session.connect()
        except ObsError as error:
            self._tell(str(error))
            if isinstance(error, WrongPassword):
                self._look_for_password()
            raise
        self._enter(session)
        return session

    def _look_for_password(self) -> None:
        try:
            self.settings = self._refresh() if self._refresh else self.settings
        except InstantVisionError as error:
            self._tell(str(error))

    def _receive(self, session: ObsSession) -> None:
        try:
            while not self._stop.is_set():
                if event := session.receive():
                    self._events.put(*event)
        except ConnectionLost as error:
            if not self._stop.is_set():
                self._tell(str(error))
        finally:
            self._leave(session)

    def _enter(self, session: ObsSession) -> None:
        self._tell("connected")
        with self._changed:
            self._session = session
            self._changed.notify_all()
        self._events.put(CONNECTED, {})

    def _leave(self, session: ObsSession) -> None:
        self._session = None
        session.hang_up()
        self._events.put(DISCONNECTED, {})

    def _tell(self, status: str) -> None:
        """Once, and not at each of the attempts that end the same way."""
        if status != self._status:
            self._status = status
            log.info("OBS: %s", status)


class _Events:
    """Hands events to listeners in a thread of its own."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque(maxlen=EVENTS_MAX)
        self._listeners: dict[str, tuple[Listener, ...]] = {}
        self._condition = threading.Condition()
        self._closed = False

    def add(self, event: str, listener: Listener) -> Callable[[], None]:
        with self._condition:
            self._listeners[event] = (*self._listeners.get(event, ()), listener)
        return lambda: self._remove(event, listener)

    def put(self, event: str, data: dict[str, Any]) -> None:
        with self._condition:
            if event in self._listeners:
                self._waiting.append((event, data))
                self._condition.notify()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def run(self) -> None:
        """Until closed."""
        while (call := self._take()) is not None:
            event, data = call
            for listener in self._listeners.get(event, ()):
                self._call(listener, event, data)

    def _take(self) -> tuple[str, dict[str, Any]] | None:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._closed)
            return None if self._closed else self._waiting.popleft()

    def _call(self, listener: Listener, event: str, data: dict[str, Any]) -> None:
        try:
            listener(data)
        except InstantVisionError as error:
            log.warning("OBS event %s: %s", event, error)
        # One listener's mistake may not silence the others, who may be the panic button.
        except Exception:
            log.exception("a listener to the OBS event %s failed", event)

    def _remove(self, event: str, listener: Listener) -> None:
        with self._condition:
            self._listeners[event] = tuple(each for each in self._listeners[event] if each is not listener)


def connect(settings: ObsSettings | None = None) -> ObsClient:
    """A client that is connected already.

    Args:
        settings: None looks for them where the user keeps them.

    Raises:
        ObsError: OBS cannot be reached, or refuses the password.
        ConfigError: others may read the password file.
    """
    client = ObsClient(settings or find_settings(), refresh=None if settings else find_settings)
    client.start_connected()
    return client
