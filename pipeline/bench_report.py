"""Measure one model at several sizes and write a page about it, with the figures beside it."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from instantvision.pipeline import bench
from instantvision.pipeline.bench import BenchReport
from instantvision.pipeline.bench_page import page
from instantvision.pipeline.charts import check_installed
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.errors import ConfigError, EngineError
from instantvision.pipeline.model import LatentModel

log = logging.getLogger(__name__)

PAGE_FILE, FIGURES_FILE = "index.html", "bench.json"


def prepare_folder(folder: Path) -> None:
    """Make the folder, and make sure that the page can be drawn: before minutes are spent on measuring.

    Raises:
        ConfigError: the folder cannot be made, or what draws the plots is not installed.
    """
    check_installed()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {folder} ({error.strerror}): pass another --report"
        ) from error


def write_report(
    folder: Path,
    model: LatentModel,
    settings: Settings,
    frames: int,
    sides: Sequence[int],
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> BenchReport:
    """Measure at the settings' size and as squares, and write `index.html` and `bench.json`.

    Args:
        folder: from `prepare_folder`.
        model, settings, frames: see bench.run.
        sides: of the squares, in pixels; one that the device cannot run is left out, with a warning.
        on_progress: told the sizes that are done and how many there are.

    Returns:
        The report at the settings' own size.

    Raises:
        UnknownPreset, EngineError: at the settings' own size.
    """
    sizes = [Size(side, side) for side in sides if Size(side, side) != settings.size]
    on_progress(0, len(sizes) + 1)
    main = bench.run(model, settings, frames)
    reports = {settings.size: main}
    for done, size in enumerate(sizes, 1):
        on_progress(done, len(sizes) + 1)
        try:
            reports[size] = bench.run(model, replace(settings, size=size), frames)
        except EngineError as error:
            log.warning("no figures at %s: %s", size, error)
    on_progress(len(sizes) + 1, len(sizes) + 1)
    ordered = [reports[size].to_json() for size in sorted(reports, key=lambda size: size.width * size.height)]
    (folder / FIGURES_FILE).write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    (folder / PAGE_FILE).write_text(page(ordered, main.to_json()), encoding="utf-8")
    return main
