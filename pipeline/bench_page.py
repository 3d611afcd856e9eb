"""Measurements as one page that needs no other file: the machine, plots and tables.

    page([report_512, report_1024], main=report_1024)       # what `instantvision bench --report` measures
    comparison_page(json.loads(...))                         # what benchmarks/peers.py writes

Knows nothing of how anything is measured.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from instantvision.pipeline.charts import Series, bars, lines, number, stacked_bar
from instantvision.pipeline.config import Size

TEMPLATE = Path(__file__).with_name("bench_page.html")
# What the live loop emits.
SIXTY_FPS = (60.0, "60 fps")
SIXTY_MS = (1000 / 60, "16.7 ms, 60 fps")

Report = Mapping[str, Any]
"""BenchReport.to_json()."""


def page(reports: Sequence[Report], main: Report) -> str:
    """The page of one model at several sizes.

    Args:
        reports: one a size, smallest first.
        main: the one of them that the page begins with.
    """
    machine = main["machine"]
    work = f"{_times(main['size'])}, {main['steps']} steps, strength {main['strength']:g}"
    sections = [
        _key_figures(main),
        _stages(main),
        _over_sizes(reports),
        _power(reports),
        _sizes_table(reports),
        _machine(machine),
    ]
    return _fill(
        heading=f"Instant Vision on {machine['device']}",
        subtitle=f"mini, {work}. Pictures of {_times(main['input'])} on the host in, stylised pictures on the host "
        f"out. {main['frames']} frames of each measurement. {machine['date'][:10]}.",
        sections=sections,
    )


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """The page of ours beside other programs: the JSON of benchmarks/peers.py."""
    machine, works = comparison["machine"], comparison["works"]
    timed = {name: entry for name, entry in works.items() if _timed(entry)}
    sections = [
        _by_method(_most_methods(timed)),
        _method_sizes(timed),
        _methods_table(works),
        _machine(machine),
    ]
    return _fill(
        heading=f"Instant Vision beside diffusers on {machine['device']}",
        subtitle="Ours: this program. eager: diffusers' classes in channels_last. compiled: these with torch.compile "
        "(max-autotune) in a CUDA graph. The same weights, sizes and noise, in one process, in turns; results were "
        f"compared before anything was timed. {machine['date'][:10]}.",
        sections=sections,
    )


def _fill(*, heading: str, subtitle: str, sections: Sequence[str]) -> str:
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(heading),
        heading=escape(heading),
        subtitle=escape(subtitle),
        sections="\n".join(sections),
    )


def _key_figures(main: Report) -> str:
    figures = [
        ("latency, median", number(main["latency_ms"]["median"]), "ms"),
        ("latency, 95th percentile", number(main["latency_ms"]["p95"]), "ms"),
        ("sustained", number(main["fps"]), "fps"),
    ]
    if main["joules_per_frame"] is not None:
        figures.append(("energy", number(main["joules_per_frame"]), "J a frame"))
    if main["peak_memory_mb"] is not None:
        figures.append(("peak memory", number(main["peak_memory_mb"]), "MiB"))
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value} <small>{unit}</small></dd></div>"
        for name, value, unit in figures
    )
    return f'<dl class="key">{items}</dl>'


def _stages(main: Report) -> str:
    medians = {name: spread["median"] for name, spread in main["stages_ms"].items()}
    svg = stacked_bar(medians, "ms, median of each stage by itself")
    return _section(
        "Where the time of a frame goes",
        f"Stages at {_times(main['size'])}. fit runs on the CPU; stages of neighbouring frames overlap in a live run.",
        _figure("", "", svg, label="Stages of a frame"),
    )


def _over_sizes(reports: Sequence[Report]) -> str:
    places = [_short(report["size"]) for report in reports]
    latency = [report["latency_ms"] for report in reports]
    spread = Series("median to p95", [s["median"] for s in latency], [s["p95"] for s in latency])
    fps = Series("fps", [report["fps"] for report in reports])
    plots = [
        _figure("Latency", "One frame at a time, host to host; the band reaches to the 95th percentile.",
                lines(places, [spread], "ms", SIXTY_MS)),
        _figure("Frames a second", "Sustained, with two frames on their way.",
                lines(places, [fps], "fps", SIXTY_FPS)),
    ]  # fmt: skip
    return _section("Over resolution", "", _plots(plots))


def _power(reports: Sequence[Report]) -> str:
    if all(report["power_w"] is None for report in reports):
        reason = reports[-1]["no_power_because"]
        return _section("Power", f"Not measured, because {reason}.", "")
    places = [_short(report["size"]) for report in reports]
    power = Series("power", [report["power_w"] for report in reports])
    energy = Series("energy", [report["joules_per_frame"] for report in reports])
    plots = [
        _figure("Board power", "Average at full speed.", lines(places, [power], "W")),
        _figure("Energy", "Of the whole GPU for one frame.", lines(places, [energy], "J a frame")),
    ]
    return _section("Power", "", _plots(plots))


def _sizes_table(reports: Sequence[Report]) -> str:
    head = ("size", "latency p50, ms", "p95", "p99", "device p50, ms", "fps", "W", "J a frame", "peak MiB")
    rows = [
        (
            _times(report["size"]),
            *(number(report["latency_ms"][name]) for name in ("median", "p95", "p99")),
            number(report["device_ms"]["median"]),
            number(report["fps"]),
            *(_known(report[name]) for name in ("power_w", "joules_per_frame", "peak_memory_mb")),
        )
        for report in reports
    ]
    return _section("All figures", "", _table(head, {"": rows}))


def _by_method(works: Mapping[str, Any]) -> str:
    plots = []
    for work, entry in works.items():
        methods = _timed(entry)
        plots.append(
            _figure(_times(work), "Median latency, and how many a second at full speed.", _speed(methods))
        )
        energies = {name: method["joules_per_frame"] for name, method in methods.items()}
        if None not in energies.values():
            said = {
                name: f"{number(energy)} J  ·  {number(methods[name]['power_w'])} W"
                for name, energy in energies.items()
            }
            caption = "Energy for one, and power, of the whole GPU."
            plots.append(_figure("", caption, bars(energies, said), label=f"{work}: energy"))
    return _section("By method", "Shorter is better.", _plots(plots)) if plots else ""


def _speed(methods: Mapping[str, Any]) -> str:
    """Bars of latency, each with its rate and how much longer it is than the first."""
    medians = {name: method["host_ms"]["median"] for name, method in methods.items()}
    first = next(iter(medians))
    said = {}
    for name, median in medians.items():
        ratio = "" if name == first else f"  ·  {number(median / medians[first])}× {first}"
        said[name] = f"{number(median)} ms  ·  {number(methods[name]['fps'])}/s{ratio}"
    return bars(medians, said)


def _most_methods(works: Mapping[str, Any]) -> dict[str, Any]:
    """Of works that differ in size only, the one that most methods were timed at."""
    kept: dict[tuple[Any, ...], str] = {}
    for name, entry in works.items():
        kind = tuple(entry["work"][key] for key in ("subject", "kind", "steps"))
        if kind not in kept or len(_timed(entry)) > len(_timed(works[kept[kind]])):
            kept[kind] = name
    return {name: works[name] for name in kept.values()}


def _method_sizes(works: Mapping[str, Any]) -> str:
    """Frames a second over resolution, where one kind of work was done at several sizes."""
    by_kind: dict[tuple[str, str, int], dict[int, Any]] = {}
    for entry in works.values():
        work = entry["work"]
        by_kind.setdefault((work["subject"], work["kind"], work["steps"]), {})[work["side"]] = _timed(entry)
    plots = []
    for (subject, kind, steps), sides in by_kind.items():
        if kind == "frame" and len(sides) > 1:
            ordered = dict(sorted(sides.items()))
            counts = Counter(name for methods in ordered.values() for name in methods)
            # A method that was timed at one size has no course.
            names = [name for name, count in counts.items() if count > 1]
            series = [
                Series(name, [methods.get(name, {}).get("fps") for methods in ordered.values()])
                for name in names
            ]
            title = f"{subject}, {steps} step{'s' * (steps > 1)}"
            svg = lines([f"{side}²" for side in ordered], series, "fps", SIXTY_FPS)
            plots.append(_figure(title, "Frames a second at full speed.", svg))
    return _section("Over resolution", "", _plots(plots)) if plots else ""


def _methods_table(works: Mapping[str, Any]) -> str:
    times = ("device p50, ms", "p95", "host p50, ms", "p95")
    head = ("", *times, "a second", "W", "J", "peak MiB", "error", "build, s", "n")
    groups = {_times(work): _method_rows(entry) for work, entry in works.items()}
    notes = [f"{_times(work)}, {note}" for work, entry in works.items() for note in _failures(entry)]
    return _section(
        "All figures",
        "error: relative to diffusers in float32. n: timed calls. build: what it took until the first result.",
        _table(head, groups) + "".join(f'<p class="soft">{escape(note)}</p>' for note in notes),
    )


def _method_rows(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    errors = entry.get("comparison", {})
    rows = []
    for name, method in _timed(entry).items():
        device, host = method["device_ms"], method["host_ms"]
        times = (device["median"], device["p95"], host["median"], host["p95"], method["fps"])
        costs = (method[key] for key in ("power_w", "joules_per_frame", "peak_memory_mb"))
        error = f"{errors[name]:.1e}" if name in errors else "–"
        end = (error, number(method["build_s"]), str(method["samples"]))
        rows.append((name, *map(number, times), *map(_known, costs), *end))
    return rows


def _failures(entry: Mapping[str, Any]) -> list[str]:
    failures = {name: method["error"] for name, method in entry["methods"].items() if "error" in method}
    if entry["error"]:
        failures["all"] = entry["error"]
    return [f"{name}: {error.splitlines()[0]}" for name, error in failures.items()]


def _machine(machine: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value).removeprefix(f'{name}: '))}</dd>"
        for name, value in machine.items()
        if value is not None
    )
    return _section("The machine", "", f'<dl class="machine">{items}</dl>')


def _section(title: str, text: str, content: str) -> str:
    paragraph = f'<p class="soft">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{paragraph}{content}</section>"


def _plots(figures: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(figures)}</div>'


def _figure(title: str, caption: str, svg: str, label: str | None = None) -> str:
    """A plot under its title and caption; `label` is for who cannot see it, where there is no title."""
    named = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label or title)}" ', 1)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure><figcaption>{heading}{escape(caption)}</figcaption>{named}</figure>"


def _table(head: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """A table of groups of rows; a group without a name has no line of its own."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    bodies = []
    for name, rows in groups.items():
        line = (
            f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}">{escape(name)}</th></tr>'
            if name
            else ""
        )
        bodies.append(f"<tbody>{line if rows else ''}{''.join(map(_row, rows))}</tbody>")
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>{"".join(bodies)}</table></div>'


def _row(cells: Sequence[str]) -> str:
    values = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{escape(cells[0])}</th>{values}</tr>'


def _timed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: method for name, method in entry["methods"].items() if "host_ms" in method}


def _known(value: float | None) -> str:
    return "–" if value is None else number(value)


def _short(size: str) -> str:
    """`1024²` for a square, `1344×768` else: as little as an axis has room for."""
    parsed = Size.parse(size)
    return f"{parsed.width}²" if parsed.width == parsed.height else _times(size)


def _times(text: str) -> str:
    """Sizes with a multiplication sign, as people write them."""
    words = [
        word.replace("x", "×") if word[:1].isdigit() and "x" in word else word for word in text.split(" ")
    ]
    return " ".join(words)
