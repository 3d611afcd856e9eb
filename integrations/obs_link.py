"""What the parts that use OBS want of its websocket client; tests put a fake in its place."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class ObsLink(Protocol):
    """A connection to obs-websocket 5 that comes back by itself: ObsClient. Thread-safe."""

    def request(self, name: str, data: Mapping[str, Any] | None = None, /) -> dict[str, Any]:
        """Send one request and return its answer's data.

        Raises:
            ObsError: OBS refuses the request (with its code), or cannot be reached (without one).
        """

    def on(self, event: str, listener: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Call `listener` with the data of each event of that name; returns what ends that."""

    def close(self) -> None:
        """Hang up; may be called twice."""
