"""The page about a measurement: one file, all figures, nothing that could be taken for markup."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from instantvision.pipeline import bench, bench_report
from instantvision.pipeline.bench_page import comparison_page, page
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.errors import ConfigError, EngineError

SETTINGS = Settings(size=Size(64, 64), steps=2)
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The words of a page, and whether its elements are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words, self.outside, self.plots = [], [], [], 0
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.plots += tag == "svg"
        self.outside += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.words.append(data.strip())


@pytest.fixture
def report(toy_model):
    return bench.run(toy_model, SETTINGS, 2).to_json()


def with_power(report, size):
    return report | {"size": size, "power_w": 363.2, "joules_per_frame": 2.732, "peak_memory_mb": 238.0}


def test_the_page_is_one_file_with_all_figures(report):
    reports = [with_power(report, size) for size in ("512x512", "1344x768")]
    found = Page(page(reports, reports[0]))
    assert found.outside == []
    assert found.plots == 5
    assert {"512×512", "1344×768", "363", "2.73", "238", "torch", report["machine"]["torch"]} <= set(
        found.words
    )


def test_without_a_counter_the_page_says_why(report):
    found = Page(page([report], report))
    assert found.plots == 3
    assert "Not measured, because the device is no NVIDIA GPU." in found.words


def test_a_device_is_no_markup(report):
    report["machine"]["device"] = "<b>GPU</b> & more"
    assert "Instant Vision on <b>GPU</b> & more" in Page(page([report], report)).words


def method(ms, joules=0.5):
    spread = {"median": ms, "p95": 1.1 * ms, "p99": 1.2 * ms}
    return {
        "build_s": 2.0,
        "peak_memory_mb": None,
        "host_ms": spread,
        "device_ms": spread,
        "samples": 200,
        "fps": 1000 / ms,
        "power_w": None if joules is None else 300.0,
        "joules_per_frame": joules,
    }


def entry(side, methods, error=None):
    work = {"subject": "mini", "kind": "frame", "side": side, "steps": 8}
    return {"work": work, "methods": methods, "error": error, "comparison": {"ours": 0.01}}


def comparison(report, works):
    return comparison_page({"machine": report["machine"], "works": works})


def test_methods_stand_beside_each_other(report):
    works = {"mini frame, 8 steps, 64x64": entry(64, {"ours": method(4.0), "eager": method(10.0)})}
    found = Page(comparison(report, works))
    assert found.plots == 2
    assert {"4.00 ms  ·  250/s", "10.0 ms  ·  100/s  ·  2.50× ours", "0.5 J  ·  300 W"} <= set(found.words)
    assert {"mini frame, 8 steps, 64×64", "1.0e-02", "200"} <= set(found.words)


def test_sizes_of_one_work_become_a_course(report):
    works = {
        "small": entry(64, {"ours": method(2.0, None)}),
        "middle": entry(128, {"ours": method(4.0, None), "eager": method(10.0, None)}),
        "failed": entry(256, {"compiled": {"error": "not finished: slow\nmore"}}, "Refused: <differs>"),
    }
    found = Page(comparison(report, works))
    # The bars of the one with most methods, and the course; no energy.
    assert found.plots == 2
    assert {"64²", "128²"} <= set(found.words)
    assert {"failed, all: Refused: <differs>", "failed, compiled: not finished: slow"} <= set(found.words)


def test_a_report_in_a_folder(toy_model, tmp_path):
    folder, told = tmp_path / "new" / "folder", []
    bench_report.prepare_folder(folder)
    main = bench_report.write_report(
        folder, toy_model, SETTINGS, 2, (64, 96), lambda done, total: told.append((done, total))
    )
    assert main.size == "64x64"
    assert [report["size"] for report in json.loads((folder / "bench.json").read_text())] == [
        "64x64",
        "96x96",
    ]
    assert "96×96" in Page((folder / "index.html").read_text(encoding="utf-8")).words
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_size_that_does_not_fit_is_left_out(toy_model, tmp_path, monkeypatch, caplog):
    measure = bench.run

    def run(model, settings, frames):
        if settings.size.width > 64:
            raise EngineError("too little memory for 96x96")
        return measure(model, settings, frames)

    monkeypatch.setattr(bench, "run", run)
    bench_report.write_report(tmp_path, toy_model, SETTINGS, 2, (64, 96))
    assert len(json.loads((tmp_path / "bench.json").read_text())) == 1
    assert "too little memory" in caplog.text
    with pytest.raises(EngineError):
        bench_report.write_report(tmp_path, toy_model, replace(SETTINGS, size=Size(96, 96)), 2, ())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="pass another --report"):
        bench_report.prepare_folder(tmp_path / "file")
