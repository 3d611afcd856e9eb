import os
from pathlib import Path

import pytest

from instantvision.plugin.control_file import CONTROL_FILE, TOKEN_FILE, ControlFile, read_token
from instantvision.plugin.security import BURST, RATE_HZ, Bucket, Guard

TOKEN = "t" * 43
GUARD = Guard(8765, "secret-token")


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765"])
def test_our_own_names_are_answered(host: str) -> None:
    assert GUARD.allows_host([host])
    assert GUARD.allows_origin([f"http://{host}"], host)
    assert GUARD.allows_origin([], host)


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["127.0.0.1"],
        ["127.0.0.1:8766"],
        ["evil.example:8765"],
        ["127.0.0.1.evil.example:8765"],
        ["localhost:8765", "evil.example:8765"],
        ["user@localhost:8765"],
        ["LOCALHOST:8765 "],
    ],
)
def test_other_hosts_are_refused(hosts: list[str]) -> None:
    assert not GUARD.allows_host(hosts)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "https://localhost:8765",
        "http://localhost:1",
        "http://127.0.0.1:8765",
    ],
)
def test_other_origins_are_refused(origin: str) -> None:
    assert not GUARD.allows_origin([origin], "localhost:8765")


@pytest.mark.parametrize("token", [None, "", "secret-toke", "secret-token ", "ä", 7, ["secret-token"]])
def test_wrong_tokens_are_refused(token: object) -> None:
    assert not GUARD.allows_token(token)


def test_the_header_carries_the_token() -> None:
    assert GUARD.allows_authorization("Bearer secret-token")
    for header in (None, "", "secret-token", "Basic secret-token", "Bearer", "Bearer other"):
        assert not GUARD.allows_authorization(header)


def test_the_token_is_not_in_the_repr() -> None:
    assert "secret" not in repr(GUARD)


def test_a_burst_is_fine_and_a_storm_is_not() -> None:
    bucket = Bucket(0.0)
    assert all(bucket.take(0.0) for _ in range(int(BURST)))
    assert not bucket.take(0.0)
    assert bucket.take(1.5 / RATE_HZ)
    assert not bucket.take(1.5 / RATE_HZ)


def test_the_token_stays_and_is_private(tmp_path: Path) -> None:
    token = read_token(tmp_path)
    assert read_token(tmp_path) == token
    assert len(token) == 43
    assert [path.name for path in tmp_path.iterdir()] == [TOKEN_FILE]
    if os.name == "posix":
        assert (tmp_path / TOKEN_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_token_others_could_read_is_replaced(tmp_path: Path) -> None:
    token = read_token(tmp_path)
    (tmp_path / TOKEN_FILE).chmod(0o644)
    assert read_token(tmp_path) != token
    assert (tmp_path / TOKEN_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "short", "x" * 43 + "!", "é" * 43])
def test_a_damaged_token_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / TOKEN_FILE
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    assert read_token(tmp_path) != text


def test_the_control_file_is_there_while_the_program_runs(tmp_path: Path) -> None:
    path = tmp_path / CONTROL_FILE
    with ControlFile(tmp_path, url="http://127.0.0.1:1/", token=TOKEN, port=1):
        assert f'"pid": {os.getpid()}' in path.read_text()
        if os.name == "posix":
            assert path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.iterdir())


def test_a_later_programs_control_file_stays(tmp_path: Path) -> None:
    with ControlFile(tmp_path, url="http://127.0.0.1:1/", token=TOKEN, port=1):
        (tmp_path / CONTROL_FILE).write_text("{}")
    assert (tmp_path / CONTROL_FILE).read_text() == "{}"
