"""Single keys at the terminal that a run was started from: panic, bypass, the next look, quit.

There are none where standard input is no terminal, or while another program is in its foreground. The terminal is given
back as it was as soon as the run is told to stop, so that even a second Ctrl-C, which ends the program at once, finds
it so. Knows nothing of pictures.
"""

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from instantvision.integrations.clock import SYSTEM_CLOCK
from instantvision.pipeline.control import Control, Show
from instantvision.pipeline.errors import ConfigError

HELP = "p panic · e effect · b bypass · n/N look · q quit"
BY = "cli"
# How often the stop event is looked at, and whether the terminal is still ours.
POLL_S = 0.1
JOIN_S = 1.0
# The real camera takes two presses: long enough to read the question, too short to meet a slip an hour later.
SURE_WITHIN_S = 5.0
# More than one at once is an arrow key or pasted text, in which only panic is heeded.
READ_BYTES = 64

Say = Callable[[str], None]


class Keyboard:
    """What each key does; knows nothing of terminals.

    Args:
        control: is changed.
        stop: set by `q`.
        say: told what to show beside the figures: what the keys are, or what became of the last one.
    """

    def __init__(self, control: Control, stop: threading.Event, say: Say) -> None:
        self._control, self._stop, self._say = control, stop, say
        self._sure_until_s = 0.0
        say(HELP)

    def take(self, text: str, now_s: float) -> None:
        """Heed what one look at the terminal found.

        Args:
            text: what was typed since the last look.
            now_s: the clock.
        """
        if len(text) > 1:
            text = "p" if "p" in text and not text.startswith("\x1b") else "other"
        if text:
            self.press(text, now_s)

    def press(self, key: str, now_s: float) -> None:
        """Do what one key asks for; other keys do nothing."""
        sure = now_s < self._sure_until_s
        self._sure_until_s = 0.0
        if key == "b":
            self._bypass(sure, now_s)
        elif key == "p":
            self._apply({"panic": True})
        elif key == "e":
            self._apply({"show": "effect"})
        elif key in ("n", "N"):
            self._apply({"look": "next" if key == "n" else "previous"})
        elif key == "q":
            self._say("ending")
            self._stop.set()

    def _bypass(self, sure: bool, now_s: float) -> None:
        show = self._control.state.show
        if show is Show.CAMERA:
            self._apply({"bypass": False})
        elif show is not Show.EFFECT:
            self._say("the picture is hidden: press e for the effect before the bypass")
        elif sure:
            self._apply({"bypass": True, "consent": True})
        else:
            self._sure_until_s = now_s + SURE_WITHIN_S
            self._say("show the REAL CAMERA to everybody? press b again")

    def _apply(self, change: dict[str, object]) -> None:
        try:
            self._control.apply(change, by=BY)
        except ConfigError as error:
            self._say(str(error))
        else:
            self._say(HELP)


class Terminal(Protocol):
    """Where single keys come from."""

    def read(self, stop: threading.Event, timeout_s: float) -> str | None:
        """What was typed within that time, "" if nothing; None once there will never be any more."""

    def give_back(self) -> None:
        """Leave it as it was found."""


@contextmanager
def open_keys(control: Control, stop: threading.Event, say: Say) -> Iterator[None]:
    """Heed keys within the block, where there is a terminal to press them at."""
    terminal = open_terminal()
    if terminal is None:
        yield
        return
    ended = threading.Event()
    keyboard = Keyboard(control, stop, say)

    def listen() -> None:
        try:
            while not (stop.is_set() or ended.is_set()):
                text = terminal.read(stop, POLL_S)
                if text is None:
                    return
                keyboard.take(text, SYSTEM_CLOCK.now_s())
        finally:
            terminal.give_back()

    thread = threading.Thread(target=listen, name="keys", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(JOIN_S)


def open_terminal() -> Terminal | None:
    """The terminal of standard input, or None if that is none."""
    # A program without a console has no standard input at all.
    if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
        return None
    return WindowsTerminal() if sys.platform == "win32" else PosixTerminal(sys.stdin.fileno())


class PosixTerminal:
    """A terminal that hands on each key at once and does not show it; Ctrl-C and Ctrl-Z go on doing what they do.

    Args:
        descriptor: of an open terminal.
    """

    def __init__(self, descriptor: int) -> None:
        import termios

        self._descriptor = descriptor
        self._before = termios.tcgetattr(descriptor)

    def read(self, stop: threading.Event, timeout_s: float) -> str | None:
        """See Terminal."""
        # In the background, reading or setting the terminal would halt the whole program.
        if not self._is_ours():
            stop.wait(timeout_s)
            return ""
        try:
            # At each look: after Ctrl-Z and fg, the shell has put its own mode back.
            self._take_keys()
            if not select.select([self._descriptor], [], [], timeout_s)[0] or not self._is_ours():
                return ""
            return os.read(self._descriptor, READ_BYTES).decode(errors="replace") or None
        except OSError:
            # Its window was closed.
            return None

    def give_back(self) -> None:
        """See Terminal."""
        import termios

        if self._is_ours():
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def _is_ours(self) -> bool:
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            return False

    def _take_keys(self) -> None:
        import termios

        mode = termios.tcgetattr(self._descriptor)
        if mode[3] & termios.ICANON:
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mode)


class WindowsTerminal:
    """The console, which hands on each key at once anyway."""

    def read(self, stop: threading.Event, timeout_s: float) -> str | None:
        """See Terminal."""
        import msvcrt

        if not msvcrt.kbhit():  # type: ignore[attr-defined,unused-ignore]
            stop.wait(timeout_s)
        text = ""
        while len(text) < READ_BYTES and msvcrt.kbhit():  # type: ignore[attr-defined,unused-ignore]
            key = msvcrt.getwch()  # type: ignore[attr-defined,unused-ignore]
            if key in ("\x00", "\xe0"):
                # An arrow or function key: its second half is no letter.
                msvcrt.getwch()  # type: ignore[attr-defined,unused-ignore]
            else:
                text += key
        return text

    def give_back(self) -> None:
        """See Terminal."""
