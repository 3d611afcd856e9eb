"""Keys at the terminal: what each does, and a real program on a real (pseudo) terminal."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instantvision.pipeline.config import Settings
from instantvision.pipeline.control import Control, Show
from instantvision.plugin import keys
from instantvision.plugin.keys import HELP, SURE_WITHIN_S, Keyboard, open_keys, open_terminal
from instantvision.plugin.running import running_state

# Nothing here takes that long; it only keeps a broken program from hanging the tests.
LONG_S = 60.0


class Pressed:
    """A keyboard, what it changes and what it says."""

    def __init__(self, panic: Show = Show.SLATE) -> None:
        self.control, self.stop, self.said = Control(Settings(), panic=panic), threading.Event(), list[str]()
        self.keyboard = Keyboard(self.control, self.stop, self.said.append)

    def take(self, text: str, now_s: float = 100.0) -> Show:
        self.keyboard.take(text, now_s)
        return self.control.state.show


@pytest.fixture
def pressed() -> Pressed:
    return Pressed()


@pytest.mark.parametrize("panic", [Show.SLATE, Show.FREEZE, Show.LAST_LOOK, Show.CAMERA])
def test_panic_stays_panic_however_often_it_is_pressed(panic: Show) -> None:
    pressed = Pressed(panic)
    assert [pressed.take(text) for text in ("p", "p", "pp", "xpx")] == 4 * [panic]
    assert pressed.take("e") is Show.EFFECT
    assert pressed.control.state.changed_by == "cli"


def test_looks_are_walked(pressed: Pressed) -> None:
    pressed.take("n")
    assert str(pressed.control.state.settings.mix) == "papercut"
    pressed.take("N")
    pressed.take("N")
    assert str(pressed.control.state.settings.mix) == "neon"


def test_the_camera_takes_two_presses(pressed: Pressed) -> None:
    assert pressed.take("b", 10.0) is Show.EFFECT
    assert "REAL CAMERA" in pressed.said[-1]
    assert pressed.take("b", 10.0 + SURE_WITHIN_S - 0.1) is Show.CAMERA
    assert pressed.said[-1] == HELP
    assert pressed.take("b", 20.0) is Show.EFFECT


@pytest.mark.parametrize(
    "texts",
    [["b", "n", "b"], ["b", "x", "b"], ["bb"], ["b", "rabbit", "b"], ["b", "\x1b[B", "b"], ["b", "bb"]],
)
def test_a_slip_does_not_show_the_camera(pressed: Pressed, texts: list[str]) -> None:
    assert {pressed.take(text) for text in texts} == {Show.EFFECT}


def test_a_press_long_after_the_first_is_a_first_one(pressed: Pressed) -> None:
    pressed.take("b", 100.0)
    assert pressed.take("b", 100.0 + SURE_WITHIN_S) is Show.EFFECT


@pytest.mark.parametrize("hidden", [Show.SLATE, Show.FREEZE, Show.LAST_LOOK])
def test_what_is_hidden_is_not_bypassed(hidden: Show) -> None:
    pressed = Pressed(hidden)
    pressed.take("p")
    assert [pressed.take("b"), pressed.take("b")] == [hidden, hidden]
    assert "hidden" in pressed.said[-1]
    # Not even if it was asked for just before the panic.
    pressed.take("e")
    pressed.take("b")
    pressed.take("p")
    assert pressed.take("b") is hidden


def test_q_ends_the_run_and_other_keys_do_nothing(pressed: Pressed) -> None:
    before = pressed.control.state
    for text in ("x", " ", "\n", "Q", "P", "\x1b[A", "\x1bp", "é", ""):
        pressed.take(text)
    assert pressed.control.state is before
    assert not pressed.stop.is_set()
    pressed.take("q")
    assert pressed.stop.is_set()


def test_without_a_terminal_there_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    said, threads = list[str](), threading.active_count()
    with (
        open(os.devnull) as nothing,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", nothing)
        with open_keys(Control(Settings()), threading.Event(), said.append):
            assert threading.active_count() == threads
        assert said == []
        patch.setattr(sys, "stdin", None)
        assert open_terminal() is None


def test_a_console_of_windows_gives_letters_and_swallows_arrows(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = list("n\xe0Pp\x00;")
    console = type(sys)("msvcrt")
    console.kbhit = lambda: bool(typed)  # type: ignore[attr-defined]
    console.getwch = lambda: typed.pop(0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msvcrt", console)
    stop = threading.Event()
    stop.set()
    assert keys.WindowsTerminal().read(stop, 0.1) == "np"
    assert keys.WindowsTerminal().read(stop, 0.1) == ""


pytestmark_posix = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind"
)

# As a login shell has it: the leader of a session, whose terminal this is.
OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
MAIN = "from instantvision.cli import main; main()"
RUN = (
    *(
        "run",
        "--source",
        "test-pattern",
        "--sink",
        "null",
        "--preset",
        "photo",
        "--size",
        "64",
        "--steps",
        "1",
    ),
    *("--fps", "20", "--control-port", "0"),
)


class OnTerminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, code: str, arguments: tuple[str, ...], state_home: Path) -> None:
        import pty
        import termios

        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.output = ""
        environment = os.environ | {"XDG_STATE_HOME": str(state_home), "TERM": "xterm", "COLUMNS": "300"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", OWN_TERMINAL + code, *arguments],
            **dict.fromkeys(("stdin", "stdout", "stderr"), self.slave),
            env=environment,
            start_new_session=True,
        )

    def press(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, part: str) -> None:
        """Until the terminal shows it, after what was waited for before."""
        while part not in self.output:
            ready = select.select([self.master], [], [], LONG_S)[0]
            assert ready, f"{part!r} is not in {self.output[-2000:]!r}"
            self.output += os.read(self.master, 65536).decode(errors="replace")
        self.output = self.output.partition(part)[2]

    def end(self) -> int:
        """Its exit code; reads on, so that it never waits for us."""
        reader = threading.Thread(target=self._drain, daemon=True)
        reader.start()
        code = self.process.wait(LONG_S)
        reader.join()
        return code

    def _drain(self) -> None:
        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536).decode(errors="replace")

    @property
    def is_as_before(self) -> bool:
        import termios

        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def on_terminal(tmp_path: Path) -> Iterator[Callable[..., OnTerminal]]:
    opened: list[OnTerminal] = []

    def start(*arguments: str, code: str = MAIN) -> OnTerminal:
        opened.append(OnTerminal(code, arguments, tmp_path))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytestmark_posix
def test_keys_control_a_running_program(on_terminal: Callable[..., OnTerminal], tmp_path: Path) -> None:
    found = on_terminal(*RUN)
    found.wait_for("q quit")
    assert not found.is_as_before
    found.press("n")
    found.wait_for("poster 64x64")
    found.press("p")
    found.wait_for("THE SLATE IS ON AIR")
    assert running_state(tmp_path / "instantvision")["show"] == "slate"
    found.press("b")
    found.wait_for("the picture is hidden")
    found.press("e")
    found.wait_for("q quit")
    for said in ("REAL CAMERA to everybody", "THE REAL CAMERA IS ON AIR"):
        found.press("b")
        found.wait_for(said)
    assert running_state(tmp_path / "instantvision")["changed_by"] == "cli"
    found.press("q")
    assert (found.end(), found.is_as_before) == (0, True)
    assert "Traceback" not in found.output


@pytestmark_posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_signal_leaves_the_terminal_as_it_was(
    on_terminal: Callable[..., OnTerminal], number: int, code: int
) -> None:
    found = on_terminal(*RUN)
    found.wait_for("q quit")
    if number == signal.SIGINT:
        # As the key does, through the terminal.
        found.press("\x03")
    else:
        found.process.send_signal(number)
    assert (found.end(), found.is_as_before) == (code, True)


@pytestmark_posix
def test_an_error_leaves_the_terminal_as_it_was(on_terminal: Callable[..., OnTerminal]) -> None:
    broken = (
        "from instantvision.integrations import null\n"
        "from instantvision.pipeline.errors import SinkError\n"
        "def send(self, frame):\n"
        "    self.sent = getattr(self, 'sent', 0) + 1\n"
        "    if self.sent > 40: raise SinkError('unplugged')\n"
        "null.NullSink.send = send\n"
    )
    found = on_terminal(*RUN, code=broken + MAIN)
    found.wait_for("q quit")
    assert (found.end(), found.is_as_before) == (1, True)
    assert "SinkError: unplugged" in found.output


@pytestmark_posix
def test_a_program_in_the_background_is_not_halted_by_its_terminal(
    on_terminal: Callable[..., OnTerminal],
) -> None:
    shell = (
        "import subprocess, sys\n"
        f"done = subprocess.run([sys.executable, '-P', '-c', {MAIN!r}, *sys.argv[1:]], process_group=0)\n"
        "print('it ended with', done.returncode)\n"
    )
    found = on_terminal(*RUN, "--duration", "2", code=shell)
    found.press("q")
    found.wait_for("it ended with 0")
    assert found.end() == 0
    assert found.is_as_before
