"""The values a user can set, each defined, defaulted and validated once.

Knows nothing of the command line, torch or threads. Frozen, so a Settings object may cross threads.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from instantvision.pipeline.errors import ConfigError

# The autoencoder folds 16x16 pixels into one latent position.
SIZE_MULTIPLE_PX = 16
SIZE_MIN_PX, SIZE_MAX_PX = 64, 4096
STEPS_MAX = 50
FPS_MAX = 240.0

Fit = Literal["cover", "letterbox"]
Temporal = Literal["off", "noise", "warm", "full"]
Spacing = Literal["log-snr", "uniform", "karras", "trailing"]
Solver = Literal["ddim", "2m", "lcm", "tcd"]
Pipeline = Literal["latency", "throughput"]

# Of the second-order solver: its first and last step look along nothing.
SECOND_ORDER_STEPS_MIN = 3


@dataclass(frozen=True)
class Size:
    """Width and height of the engine's picture in pixels, multiples of 16 in 64..4096."""

    width: int
    height: int

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if not SIZE_MIN_PX <= value <= SIZE_MAX_PX:
                raise ConfigError(
                    f"{name} is {value} px, expected {SIZE_MIN_PX} to {SIZE_MAX_PX}: try --size 512"
                )
            if value % SIZE_MULTIPLE_PX:
                low = value - value % SIZE_MULTIPLE_PX
                raise ConfigError(
                    f"{name} is {value} px, expected a multiple of {SIZE_MULTIPLE_PX}: use {max(low, SIZE_MIN_PX)} "
                    f"or {low + SIZE_MULTIPLE_PX}"
                )

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Read `512` (square) or `1280x720` (width x height).

        Raises:
            ConfigError: not of that form, or out of range.
        """
        match = re.fullmatch(r"\s*(-?\d+)(?:\s*[xX×]\s*(-?\d+))?\s*", text)
        if match is None:
            raise ConfigError(
                f"size is {text!r}, expected N or WIDTHxHEIGHT, as in --size 512 or --size 1280x720"
            )
        width = int(match[1])
        return cls(width, int(match[2]) if match[2] else width)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Mix:
    """One or more presets with positive weights that add up to 1."""

    parts: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("the preset mix is empty: name a preset, as in --preset oil")
        for name, weight in self.parts:
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(
                    f"preset {name} has weight {weight}, expected a positive number: try oil:0.7,ink:0.3"
                )
        names = [name for name, _ in self.parts]
        if len(set(names)) < len(names):
            raise ConfigError(f"the preset mix names a preset twice: {', '.join(names)}")
        total = sum(weight for _, weight in self.parts)
        object.__setattr__(self, "parts", tuple((name, weight / total) for name, weight in self.parts))

    @classmethod
    def parse(cls, text: str) -> "Mix":
        """Read `oil` or `oil:0.7,ink:0.3`; whether the presets exist is checked by the presets module.

        Raises:
            ConfigError: not of that form.
        """
        parts = []
        for item in text.split(","):
            name, separator, weight = item.strip().partition(":")
            try:
                parts.append((name.strip(), float(weight) if separator else 1.0))
            except ValueError:
                raise ConfigError(
                    f"preset weight is {weight!r}, expected a number: try oil:0.7,ink:0.3"
                ) from None
            if not name.strip():
                raise ConfigError(f"preset mix is {text!r}, expected NAME or NAME:WEIGHT,NAME:WEIGHT")
        return cls(tuple(parts))

    def __str__(self) -> str:
        if len(self.parts) == 1:
            return self.parts[0][0]
        return ",".join(f"{name}:{weight:.2g}" for name, weight in self.parts)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the engine reads between two frames.

    Args:
        mix: presets and weights.
        size: the engine's picture.
        steps: denoiser evaluations a frame, 1..50.
        strength: how far from the camera picture to start, 0 (the picture itself) .. 1 (pure noise).
        seed: of the noise field, 0..2**31-1.
        fit: how a picture of another shape is brought to `size`: cover (fill, centre-crop) or letterbox (bars).
        mirror: flip the input left-right.
        temporal: what a frame takes over from the one before: nothing (off: fresh noise every frame), the noise field
            (noise), also what did not move (warm), and also what the deep part of the network found (full).
        epsilon: with warm, a step that changes the clean latents by less than this is left out of the frames to come;
            root mean square, latents have unit variance. 0 leaves none out.
        steps_floor, steps_ceiling: with warm, evaluations of a frame that is like the one before, 1..50; never more
            than `steps`, which a frame after a cut has. With full it has as many as the ceiling: most are shallow.
        spacing: where the steps lie: evenly in log-SNR, evenly in time (uniform), at Karras' noise levels, or at the
            noisy end of equal parts (trailing), as distilled models want it.
        solver: how a step is made: first order (ddim), second order from 3 steps on (2m), or as latent (lcm) and
            trajectory (tcd) consistency models are distilled for.
        pipeline: finish each frame before the next (latency), or advance as many frames as there are steps by one step
            at a time, all in one evaluation (throughput): more pictures a second, each steps - 1 pictures later.
    """

    mix: Mix = field(default_factory=lambda: Mix((("oil", 1.0),)))
    size: Size = field(default_factory=lambda: Size(512, 512))
    steps: int = 8
    strength: float = 1.0
    seed: int = 0
    fit: Fit = "cover"
    mirror: bool = False
    temporal: Temporal = "warm"
    epsilon: float = 0.08
    steps_floor: int = 2
    steps_ceiling: int = 3
    spacing: Spacing = "log-snr"
    solver: Solver = "ddim"
    pipeline: Pipeline = "latency"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= STEPS_MAX:
            raise ConfigError(f"steps is {self.steps}, expected 1 to {STEPS_MAX}: 8 is the default")
        if not 0.0 <= self.strength <= 1.0:
            raise ConfigError(f"strength is {self.strength}, expected 0 to 1: 1 is the full effect")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}, expected 0 to {2**31 - 1}")
        if self.fit not in ("cover", "letterbox"):
            raise ConfigError(f"fit is {self.fit!r}, expected cover or letterbox")
        if self.temporal not in get_args(Temporal):
            raise ConfigError(f"temporal is {self.temporal!r}, expected {_choices(get_args(Temporal))}")
        self._check_schedule()
        if not 0 <= self.epsilon <= 1:
            raise ConfigError(f"epsilon is {self.epsilon:g}, expected 0 to 1: 0 leaves no step out")
        if not 1 <= self.steps_floor <= self.steps_ceiling <= STEPS_MAX:
            raise ConfigError(
                f"steps are {self.steps_floor} to {self.steps_ceiling}, expected 1 or more to {STEPS_MAX} or less, "
                "floor before ceiling"
            )
        self._check_pipeline()

    def _check_pipeline(self) -> None:
        if self.pipeline not in get_args(Pipeline):
            raise ConfigError(f"pipeline is {self.pipeline!r}, expected {_choices(get_args(Pipeline))}")
        if self.pipeline == "throughput" and self.temporal not in ("off", "noise"):
            raise ConfigError(
                f"temporal is {self.temporal} and pipeline is throughput, where no frame is finished when the next "
                "begins: use --temporal noise or --pipeline latency"
            )

    def _check_schedule(self) -> None:
        if self.spacing not in get_args(Spacing):
            raise ConfigError(f"spacing is {self.spacing!r}, expected {_choices(get_args(Spacing))}")
        if self.solver not in get_args(Solver):
            raise ConfigError(f"solver is {self.solver!r}, expected {_choices(get_args(Solver))}")
        if self.solver == "2m" and self.steps < SECOND_ORDER_STEPS_MIN:
            raise ConfigError(
                f"solver 2m has {self.steps} steps, expected {SECOND_ORDER_STEPS_MIN} or more to look back on: "
                "pass --solver ddim"
            )


def _choices(values: tuple[str, ...]) -> str:
    return f"{', '.join(values[:-1])} or {values[-1]}"


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """How a live run is paced and when it ends.

    Args:
        fps: rate at which the sink is fed, in (0, 240].
        duration_s: stop after that long; None runs until Ctrl-C or the end of the source.
        stale_s: after that long without a fresh stylised frame the slate is shown.
    """

    fps: float = 60.0
    duration_s: float | None = None
    stale_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.fps <= FPS_MAX:
            raise ConfigError(
                f"fps is {self.fps:g}, expected more than 0 and at most {FPS_MAX:g}: 60 is the default"
            )
        if self.duration_s is not None and not self.duration_s > 0:
            raise ConfigError(f"duration is {self.duration_s:g} s, expected more than 0")
        if not self.stale_s > 0:
            raise ConfigError(f"stale is {self.stale_s:g} s, expected more than 0")
