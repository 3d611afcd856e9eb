"""What a command uses when the user gives no size or number of frames: as much as a device does in useful time.

Knows nothing of torch: the device is a word, `cuda` or `cpu`.
"""

from dataclasses import dataclass

from instantvision.pipeline.config import SIZE_MAX_PX, SIZE_MIN_PX, SIZE_MULTIPLE_PX, Size


@dataclass(frozen=True, kw_only=True)
class PerDevice:
    """A number for a GPU and one for a CPU."""

    gpu: int
    cpu: int

    def on(self, device_type: str) -> int:
        """The number for a device; whatever is no CPU counts as a GPU."""
        return self.cpu if device_type == "cpu" else self.gpu

    def square_on(self, device_type: str) -> Size:
        """The square with that side, in pixels."""
        return Size(self.on(device_type), self.on(device_type))

    def __str__(self) -> str:
        return f"{self.gpu} on a GPU, {self.cpu} on a CPU"


RUN_SIDE = PerDevice(gpu=1024, cpu=256)
RENDER_SIDE = PerDevice(gpu=1024, cpu=384)
DEMO_SIDE = PerDevice(gpu=768, cpu=384)
BENCH_SIDE = PerDevice(gpu=1024, cpu=256)
# Enough for a 99th percentile on a GPU; a CPU would take minutes for as many.
BENCH_FRAMES = PerDevice(gpu=300, cpu=10)
# What the plots of `bench --report` go over: from what any camera gives to more than most screens have.
BENCH_SIDES_GPU = (512, 768, 1024, 1280, 1536)
BENCH_SIDES_CPU = (128, 192, 256, 384)


def bench_sides(device_type: str) -> tuple[int, ...]:
    """The squares that a report covers on a device, smallest first, in pixels."""
    return BENCH_SIDES_CPU if device_type == "cpu" else BENCH_SIDES_GPU


def shape_within(width: int, height: int, longest_px: int) -> Size:
    """The size with the shape of a width x height picture, shrunk until its longer side is at most `longest_px`.

    Sides are rounded to the nearest multiple of 16 that Size allows; a smaller picture is not enlarged.
    """
    scale = min(1.0, longest_px / max(width, height))
    return Size(_nearest_side(width * scale), _nearest_side(height * scale))


def _nearest_side(px: float) -> int:
    rounded = round(px / SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX
    return max(SIZE_MIN_PX, min(SIZE_MAX_PX, rounded))
