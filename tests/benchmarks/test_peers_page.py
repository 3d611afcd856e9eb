"""Results of several runs on one page."""

import json
import sys

import pytest

import peers_page

MACHINE = {"device": "GPU", "date": "2026-11-23T00:00:00+00:00"}


def result(device="GPU", **works):
    return {"machine": MACHINE | {"device": device}, "works": works}


def test_later_works_replace_earlier_ones():
    merged = peers_page.merge([result(a=1, b=2), result(b=3, c=4)])
    assert merged["works"] == {"a": 1, "b": 3, "c": 4}


def test_devices_are_not_mixed():
    with pytest.raises(ValueError, match="GPU, other, expected one device"):
        peers_page.merge([result(), result("other")])


def test_the_command_writes_the_page(tmp_path, monkeypatch):
    source, out = tmp_path / "peers.json", tmp_path / "page.html"
    source.write_text(json.dumps(result(work={"methods": {}, "error": "Refused: differs", "work": {}})))
    monkeypatch.setattr(sys, "argv", ["peers_page.py", str(source), "--out", str(out)])
    assert peers_page.main() == 0
    assert "work, all: Refused: differs" in out.read_text(encoding="utf-8")
