"""The dock in a real browser, against a real server and a real Control."""

import shutil
from collections.abc import Iterator

import pytest

from instantvision.integrations.obs_controller import ObsState
from tests.plugin.conftest import Running, start_server

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def page(browser: "sync_api.Browser") -> Iterator["sync_api.Page"]:
    """A page that fails the test if its script fails or the policy blocks something."""
    troubles: list[str] = []
    page = browser.new_page(viewport={"width": 300, "height": 800})
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda said: troubles.append(said.text) if "Content Security" in said.text else None)
    yield page
    page.close()
    assert not troubles


def opened(page: "sync_api.Page", running: Running) -> None:
    page.goto(running.server.url)
    page.wait_for_selector("body[data-link=on]")


def chosen(page: "sync_api.Page", name: str) -> None:
    page.wait_for_selector(f".look[data-name={name}][aria-checked=true]")


def wait_for_preset(page: "sync_api.Page", running: Running, preset: str) -> None:
    for _ in range(100):
        if str(running.control.state.settings.mix) == preset:
            return
        page.wait_for_timeout(50)
    pytest.fail(f"the preset is {running.control.state.settings.mix}, expected {preset}")


def test_a_click_changes_the_look(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    chosen(page, "oil")
    page.click(".look[data-name=ink]")
    chosen(page, "ink")
    wait_for_preset(page, running, "ink")
    assert running.control.state.changed_by == "dock"


# The policy forbids playwright's wait_for_function, which evaluates text in the page.
def until(page: "sync_api.Page", expression: str) -> None:
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never came true: {expression}")


BRIGHTNESS = """(() => {
    const canvas = document.createElement('canvas'), picture = document.getElementById('after');
    if (!picture.naturalWidth) return -1;
    canvas.width = canvas.height = 1;
    canvas.getContext('2d').drawImage(picture, 0, 0, 1, 1);
    return canvas.getContext('2d').getImageData(0, 0, 1, 1).data[0];
})()"""


def test_the_preview_follows_the_picture(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    until(page, f"{BRIGHTNESS} > 180")
    running.preview.brightness = 40
    until(page, f"0 < {BRIGHTNESS} && {BRIGHTNESS} < 60")
    assert "before" not in {which for _, which in running.preview.asked}
    page.locator("#split").fill("50")
    until(page, "document.getElementById('before').naturalWidth > 0")


def test_changes_from_elsewhere_are_shown(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    running.control.apply({"preset": "neon:0.7,wave:0.3", "strength": 0.4}, by="obs")
    chosen(page, "neon")
    assert page.text_content("#look-name") == "Neon + Wave"
    assert page.input_value("#second") == "wave"
    assert page.input_value("#strength") == "0.4"


def test_obs_is_shown_where_it_is_followed(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    assert not page.locator("#obs").is_visible()
    running.obs = ObsState(connected=True, status="connected", scene="Talk", streaming=True)
    page.wait_for_selector("#obs:visible")
    assert page.text_content("#obs span") == "Talk"
    assert [page.locator(name).is_visible() for name in ("#streaming", "#recording")] == [True, False]
    running.obs = ObsState(connected=True, status="connected", scene="Break", recording=True)
    page.wait_for_selector("#recording:visible")
    assert [page.locator(name).is_visible() for name in ("#streaming", "#recording")] == [False, True]
    # As of the last time it was connected, which nobody should take for now.
    running.obs = ObsState(status="no OBS at 127.0.0.1:4455", scene="Break", recording=True)
    page.wait_for_selector("#recording", state="hidden")
    assert page.text_content("#obs span") == "no OBS at 127.0.0.1:4455"


def test_a_wrong_token_is_told(page: "sync_api.Page", running: Running) -> None:
    page.goto(f"{running.base}/#token=wrong")
    page.wait_for_selector("body[data-link=refused]")
    assert "instantvision run" in (page.text_content("#gate") or "")
    assert not page.locator("#panic").is_visible()


def test_the_page_recovers_when_the_server_comes_back(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    running.server.close()
    page.wait_for_selector("body[data-link=off]")
    assert "Not running" in (page.text_content("#link") or "")
    running.control.apply({"preset": "wave"}, by="cli")
    running.server = start_server(running.control, running.preview, running.server.port)
    page.wait_for_selector("body[data-link=on]")
    chosen(page, "wave")
    page.click(".look[data-name=ink]")
    wait_for_preset(page, running, "ink")


def test_the_keyboard_alone_chooses(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    chosen(page, "oil")
    for _ in range(3):
        if page.evaluate("document.activeElement.dataset.name") == "oil":
            break
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.name") == "oil"
    page.keyboard.press("ArrowRight")
    wait_for_preset(page, running, "papercut")
    page.keyboard.press("Home")
    wait_for_preset(page, running, "anime")
    assert page.locator(".look[tabindex='0']").count() == 1


def test_panic_and_back(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    page.click("#panic")
    page.wait_for_selector("#panic[aria-pressed=true]")
    assert running.control.state.show.value == "slate"
    page.click("#panic")
    page.wait_for_selector("#panic[aria-pressed=false]")
    assert running.control.state.show.value == "effect"


def test_what_frames_keep_of_each_other_is_chosen(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    page.select_option("#temporal", "warm")
    for _ in range(200):
        if running.control.state.settings.temporal == "warm":
            break
        page.wait_for_timeout(50)
    assert running.control.state.settings.temporal == "warm"
    # The page shows what the program says, not what was clicked.
    running.control.apply({"temporal": "off"}, by="script")
    until(page, "document.getElementById('temporal').value === 'off'")


def test_the_camera_needs_a_yes(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    page.click("#bypass")
    page.keyboard.press("Enter")
    page.wait_for_selector("#consent", state="hidden")
    assert running.control.state.show.value == "effect"
    page.click("#bypass")
    page.click("#yes")
    page.wait_for_selector("#bypass[aria-pressed=true]")
    assert running.control.state.show.value == "camera"


def test_a_refused_change_is_told_and_taken_back(page: "sync_api.Page", running: Running) -> None:
    opened(page, running)
    page.fill("#steps", "99")
    page.keyboard.press("Tab")
    page.wait_for_selector("#toast:visible")
    assert "99" in (page.text_content("#toast") or "")
    until(page, "document.getElementById('steps').value === '8'")


@pytest.mark.parametrize("width", [300, 420, 720, 1200])
def test_nothing_is_wider_than_the_page(page: "sync_api.Page", running: Running, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    opened(page, running)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_another_page_gets_nothing(browser: "sync_api.Browser", running: Running) -> None:
    other = start_server(running.control, running.preview)
    # Without its policy, the page of another port stands for any page of the web.
    context = browser.new_context(bypass_csp=True)
    try:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{other.port}/")
        fetched = f"fetch('{running.base}/api/state').then(() => 'answered', () => 'refused')"
        assert page.evaluate(fetched) == "refused"
        address = f"ws://127.0.0.1:{running.server.port}/api/live"
        opened = f"""new Promise((end) => {{ const link = new WebSocket('{address}');
            link.onopen = () => end('open'); link.onerror = () => end('refused'); }})"""
        assert page.evaluate(opened) == "refused"
    finally:
        context.close()
        other.close()
