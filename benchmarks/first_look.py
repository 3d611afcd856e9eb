"""`instantvision run` until its sink has a stylised picture; prints the seconds since its process was asked for.

    python first_look.py SPAWNED_S [OPTION …]

SPAWNED_S is time.monotonic(), which all processes share, right before this one was started; options are those of the
command. Imports nothing that the command does not import by then: live.py runs it.
"""

import signal
import sys
import time

from instantvision.cli import app
from instantvision.integrations.null import NullSink
from instantvision.pipeline import live
from instantvision.pipeline.frames import Frame, Origin


class FirstLook(NullSink):
    """Ends the program with the first stylised picture."""

    def __init__(self, spawned_s: float) -> None:
        super().__init__()
        self._spawned_s: float | None = spawned_s

    def send(self, frame: Frame) -> None:
        """See Sink."""
        super().send(frame)
        if frame.origin is Origin.STYLISED and self._spawned_s is not None:
            print(time.monotonic() - self._spawned_s, flush=True)
            self._spawned_s = None
            # As Ctrl-C does.
            signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sink = FirstLook(float(sys.argv[1]))
    vars(live)["parse_sink"] = lambda _text: sink
    app(["run", "--source", "test-pattern", "--sink", "null", "--no-control", *sys.argv[2:]])
