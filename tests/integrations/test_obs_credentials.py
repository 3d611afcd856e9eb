"""Where the password comes from, and that nobody else may read it."""

# The passwords here open nothing.
# ruff: noqa: S105, S106

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from instantvision.integrations import obs_credentials
from instantvision.integrations.obs_credentials import ObsSettings, find_settings, read_own_settings
from instantvision.pipeline.errors import ConfigError

INI = """\ufeff[General]
FirstRun=true

[OBSWebSocket]
ServerEnabled=true
ServerPort=4460
AuthRequired={auth}
ServerPassword=50%;of ini
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder without a keyring, on Linux."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(obs_credentials.VARIABLE, raising=False)
    # None makes importing it an ImportError.
    monkeypatch.setitem(sys.modules, "keyring", None)
    return tmp_path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def write_ini(folder: Path, auth: str = "true") -> None:
    write(folder / "obs-studio" / "global.ini", INI.format(auth=auth))


def write_json(folder: Path, text: str | None = None, auth: bool = True) -> None:
    table = {"server_enabled": True, "server_port": 4470, "server_password": "of json", "auth_required": auth}
    path = folder / "obs-studio" / "plugin_config" / "obs-websocket" / "config.json"
    write(path, json.dumps(table) if text is None else text)


def test_nothing_is_known(home: Path) -> None:
    assert find_settings() == ObsSettings(host="127.0.0.1", port=4455, password="")


def test_the_order_of_the_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ini(home / "config")
    assert find_settings().password == "50%;of ini"
    keyring = SimpleNamespace(get_password=lambda service, user: f"{service} {user}")
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    assert find_settings().password == "instantvision obs"
    write(obs_credentials.password_file(), "of the file\n")
    assert find_settings().password == "of the file"
    monkeypatch.setenv(obs_credentials.VARIABLE, "of the variable")
    assert find_settings().password == "of the variable"


def test_the_port_of_obs_itself(home: Path) -> None:
    write_ini(home / "config")

    assert find_settings().port == 4460
    assert find_settings(port=4499).port == 4499


@pytest.mark.parametrize("host", ["studio.example", "192.0.2.7"])
def test_another_computer_has_other_settings(home: Path, host: str) -> None:
    write_ini(home / "config")

    assert find_settings(host) == ObsSettings(host=host, port=4455, password="")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "::1"])
def test_names_of_this_computer(home: Path, host: str) -> None:
    write_ini(home / "config")

    assert find_settings(host).port == 4460


def test_the_newer_settings_come_first(home: Path) -> None:
    write_ini(home / "config")
    write_json(home / "config")

    assert find_settings() == ObsSettings(port=4470, password="of json")


def test_damaged_settings_are_passed_over(home: Path) -> None:
    write_ini(home / "config")
    for text in ("", "{", "[]", '{"server_port": "many"}'):
        write_json(home / "config", text)
        assert find_settings().port == 4460


def test_settings_of_the_flatpak(home: Path) -> None:
    write_ini(home / ".var" / "app" / "com.obsproject.Studio" / "config")

    assert find_settings().port == 4460


def test_an_obs_without_a_password(home: Path) -> None:
    write_ini(home / "config", auth="false")
    assert find_settings().password == ""
    write_json(home / "config", auth=False)
    assert find_settings().password == ""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_that_others_may_use(home: Path, mode: int) -> None:
    path = obs_credentials.password_file()
    write(path, "secret of the file", mode)

    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600 {path}") as caught:
        find_settings()

    assert "secret of the file" not in str(caught.value)


def test_a_file_that_is_no_text(home: Path) -> None:
    path = obs_credentials.password_file()
    write(path, "")
    path.write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match="cannot read the password file"):
        find_settings()


def test_a_keyring_that_fails(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def get_password(service: str, user: str) -> str:
        raise RuntimeError("locked")

    monkeypatch.setitem(sys.modules, "keyring", SimpleNamespace(get_password=get_password))

    assert find_settings().password == ""
    assert "RuntimeError" in caplog.text


def test_no_password_is_printed(home: Path) -> None:
    write_ini(home / "config")

    assert "of ini" not in repr(find_settings())
    assert "of ini" not in repr(read_own_settings())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": ""}, "host of OBS is empty"),
        ({"port": 0}, "port of OBS is 0"),
        ({"port": 65536}, "port of OBS is 65536"),
        ({"timeout_s": 0.0}, "time-out of OBS is 0 s"),
    ],
)
def test_malformed_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ObsSettings(**settings)


def test_an_address() -> None:
    assert ObsSettings(host="::1", port=1).address == "[::1]:1"
    assert ObsSettings(host="studio", port=1).address == "studio:1"
