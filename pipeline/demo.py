"""The demo: a bundled portrait, brought to life by camera moves, before and after, and every preset on it.

The portrait is NASA's, in the public domain; NOTICE.md says where it is from.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from instantvision.integrations.video_reader import ClipFrame
from instantvision.integrations.video_writer import VideoWriter
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.contact_sheet import contact_sheet, side_by_side
from instantvision.pipeline.errors import SinkError
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.outputs import check_folder
from instantvision.pipeline.pictures import read_picture, write_picture
from instantvision.pipeline.presets import load_presets, settings_for
from instantvision.pipeline.render import Progress, stylise_in_order
from instantvision.pipeline.sizes import DEMO_SIDE

if TYPE_CHECKING:
    from instantvision.pipeline.engine import Engine

SAMPLE = Path(__file__).parent / "samples" / "portrait.jpg"
CLIP_NAME, SHEET_NAME = "demo.mp4", "presets.png"

# The whole demo must end within 90 s on two CPU cores. Half of that is planned with: a frame of the clip is also
# encoded, and the cores may have other work by then.
BUDGET_S = 45.0
FRAMES_MIN, FRAMES_MAX = 16, 72
# With fewer frames than for two seconds of full rate, the clip lasts as long at half the rate.
FULL_FPS, HALF_FPS = Fraction(24), Fraction(12)


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """What the demo made: `seconds`, `fps` and `mean_steps` are of the stylising of the clip's frames."""

    clip: str
    presets: str
    frames: int
    seconds: float
    fps: float
    mean_steps: float
    size: str
    preset: str
    device: str

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"before and after  {self.clip}\n"
            f"every preset      {self.presets}\n"
            f"{self.frames} frames of {self.size}, {self.mean_steps:g} steps a frame, "
            f"{self.fps:g} a second on {self.device}\n"
            "next: instantvision render VIDEO out.mp4 --preset ink\n"
            "      instantvision run --sink file:live.mp4 --duration 10"
        )


def make_demo(
    folder: Path,
    settings: Settings,
    *,
    size_given: bool = True,
    on_progress: Progress = lambda done, total: None,
    now_s: Callable[[], float] = time.perf_counter,
) -> DemoSummary:
    """Write `presets.png` and `demo.mp4` into a folder, which is made if its parent exists.

    Args:
        folder: where to write.
        settings: of the clip; on the sheet every preset has its own strength and seed.
        size_given: False takes DEMO_SIDE instead of the size in `settings`.
        on_progress: told of every stylised frame; the total is known once the sheet has shown how long a frame takes.
        now_s: clock, in seconds.

    Raises:
        SinkError: the folder cannot be made or written to.
        WeightsError, EngineError: the model cannot run.
    """
    check_demo_folder(folder)
    portrait = read_picture(SAMPLE)

    # Here and not above: torch takes seconds to import, and a folder that cannot be used is refused before that.
    from instantvision.pipeline.start import started_engine

    size_on = None if size_given else DEMO_SIDE.square_on
    begun_s = now_s()
    with started_engine(settings, size_on) as (engine, device):
        settings = engine.settings
        _make_folder(folder)
        frame_s = _write_sheet(folder / SHEET_NAME, engine, portrait, on_progress, now_s)
        engine.update(settings)
        started_s = now_s()
        count, fps = plan_clip(frame_s, begun_s + BUDGET_S - started_s)
        steps = _write_clip(
            folder / CLIP_NAME, engine, moving_portrait(portrait, settings.size, count, fps), on_progress
        )
        seconds = now_s() - started_s
        return DemoSummary(
            clip=str(folder / CLIP_NAME),
            presets=str(folder / SHEET_NAME),
            frames=count,
            seconds=round(seconds, 3),
            fps=round(count / seconds, 2) if seconds > 0 else 0.0,
            mean_steps=round(steps / count, 2),
            size=str(settings.size),
            preset=str(settings.mix),
            device=device,
        )


def check_demo_folder(folder: Path) -> None:
    """Refuse a folder that can neither be used nor made, without making it.

    Raises:
        SinkError: its parent does not exist, or it is no writable folder.
    """
    check_folder(folder if folder.exists() else folder.absolute().parent)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise SinkError(f"cannot make folder {folder}: {error.strerror}") from error


def _write_sheet(
    path: Path, engine: "Engine", portrait: Pixels, on_progress: Progress, now_s: Callable[[], float]
) -> float:
    """Write the overview of all presets; returns the seconds a frame took, the first one (a warm-up) left out."""
    picture = camera_picture(portrait, engine.settings.size, 0.0)
    tiles, ends_s = [("camera", picture)], []
    for done, name in enumerate(load_presets(), 1):
        engine.update(
            settings_for(Mix(((name, 1.0),)), size=engine.settings.size, steps=engine.settings.steps)
        )
        tiles.append((name, engine.stylise(picture)))
        ends_s.append(now_s())
        on_progress(done, None)
    write_picture(path, contact_sheet(tiles))
    return (ends_s[-1] - ends_s[0]) / max(1, len(ends_s) - 1)


def plan_clip(frame_s: float, left_s: float) -> tuple[int, Fraction]:
    """How many frames the clip gets, and its rate, when stylising one takes `frame_s` and `left_s` are left."""
    affordable = FRAMES_MAX if frame_s <= 0 else int(left_s / frame_s)
    count = max(FRAMES_MIN, min(FRAMES_MAX, affordable))
    return count, FULL_FPS if count >= 2 * FULL_FPS else HALF_FPS


def moving_portrait(portrait: Pixels, size: Size, count: int, fps: Fraction) -> list[ClipFrame]:
    """One round of the camera over the portrait, in `count` frames; the last leads back to the first."""
    return [
        ClipFrame(pixels=camera_picture(portrait, size, index / count), index=index, pts_s=index / fps)
        for index in range(count)
    ]


def _write_clip(path: Path, engine: "Engine", frames: Sequence[ClipFrame], on_progress: Progress) -> int:
    """The evaluations that all frames took together."""
    size, label, before = engine.settings.size, str(engine.settings.mix), len(load_presets())
    fps, steps = 1 / (frames[1].pts_s - frames[0].pts_s), 0
    with VideoWriter(path, Size(2 * size.width, size.height), fps) as out:
        for pending, frame in stylise_in_order(engine, frames):
            out.write(side_by_side(("camera", frame.pixels), (label, pending.result())), frame.pts_s)
            steps += pending.steps
            on_progress(before + frame.index + 1, before + len(frames))
    return steps


def camera_picture(portrait: Pixels, size: Size, phase: float) -> Pixels:
    """What the camera sees at `phase` of its round, 0..1, as RGB uint8 [size.height, size.width, 3]."""
    view = camera_view(phase, portrait.shape[0], size)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(portrait, view, (size.width, size.height), flags=flags)
    return seen.astype(np.uint8, copy=False)


def camera_view(phase: float, side_px: int, size: Size) -> NDArray[np.float64]:
    """The affine map [2, 3] from positions in the camera's picture to positions in the square portrait.

    A slow push-in and pan with the small faster sway of a hand-held camera, all of whole periods, so it loops.

    Args:
        phase: 0..1.
        side_px: side of the portrait.
        size: of the camera's picture; its longer side spans the portrait at zoom 1.
    """
    turn = 2 * math.pi * phase
    zoom = 1.74 - 0.09 * math.cos(turn)
    centre_x = side_px * (0.455 + 0.022 * math.sin(turn + 0.5) + 0.005 * math.sin(3 * turn + 1.0))
    centre_y = side_px * (0.335 + 0.010 * math.sin(2 * turn + 2.0) + 0.004 * math.sin(3 * turn))
    angle = math.radians(1.3 * math.sin(turn) + 0.3 * math.sin(2 * turn + 0.7))
    scale = side_px / (zoom * max(size.width, size.height))
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    half_width, half_height = (size.width - 1) / 2, (size.height - 1) / 2
    return np.array(
        [
            [cos, -sin, centre_x - cos * half_width + sin * half_height],
            [sin, cos, centre_y - sin * half_width - cos * half_height],
        ]
    )
