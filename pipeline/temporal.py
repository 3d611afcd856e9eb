"""How much work a frame needs, decided on the host before it is submitted: nothing, a few steps, or all of them.

Looks at the incoming picture, and at the numbers that the frames before left behind. Deterministic: counts frames and
knows no clock. Knows nothing of torch, devices or latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
from numpy.typing import NDArray

from instantvision.pipeline.config import Settings
from instantvision.pipeline.frames import Pixels

# Pictures are compared by the means over blocks of this side: an eyelid fills one at 512x512, and a camera's noise of
# 4 levels a pixel becomes one of half a level.
BLOCK_PX = 8
# Levels of 255 by which the mean of no block may have changed in a picture that stands still.
STILL_LEVELS = 5
# Below this correlation of two pictures nothing of the first is of use for the second. A person who crosses the whole
# picture stays above it; light that comes and goes does not change it at all.
CUT_CORRELATION = 0.5
# Contrast, in levels, that a picture has to have for its correlation to mean anything.
FLAT_LEVELS = 2.0
# Share of the picture, by its gate, beyond which deep features are renewed in every step. Somebody who signs before a
# webcam moves a quarter to a third of its picture.
REFRESH_SHARE = 0.35
# Frames without motion, half a second at 30 Hz, after which the picture is painted once more with all steps.
SETTLE_FRAMES = 15
# A step is left out once it has been under epsilon for so many frames; one too many costs less than one too few.
SKIP_PATIENCE = 8
# Two steps become one when the step between them goes, which then changes x0 by at most twice epsilon: half as much
# again is well apart from that.
WAKE_RATIO = 3.0


class View(Enum):
    """What a picture is beside the one painted last."""

    STILL = "still"
    MOVED = "moved"
    CUT = "cut"


class Work(Enum):
    """What to do for a frame.

    REPEAT: nothing, the picture before is shown again. WARM: a few steps, from the frame before where it stood still.
    FADE: all steps of those few, and all over the picture, for a look that the frame before did not have. SETTLE: all
    steps, on what the frames before have gathered of the picture. FULL: all steps, from nothing.
    """

    REPEAT = "repeat"
    WARM = "warm"
    FADE = "fade"
    SETTLE = "settle"
    FULL = "full"


@dataclass(frozen=True)
class Plan:
    """The work for a frame.

    Args:
        work: what is done.
        kept: for WARM and FADE, which of the warm schedule's steps are taken, by index.
        whole: which of these evaluate the whole network, while the others leave its deep part to what the frames before
            have found; None: all.
    """

    work: Work
    kept: tuple[int, ...] = ()
    whole: int | None = None

    @property
    def warm(self) -> bool:
        """Whether it starts from the frame before."""
        return self.work in (Work.WARM, Work.FADE)


class Watch:
    """Tells what moved between the picture painted last and the next, from small copies."""

    def __init__(self) -> None:
        self._painted: NDArray[np.uint8] | None = None
        self._looked_at: NDArray[np.uint8] | None = None

    def look(self, pixels: Pixels) -> View:
        """What a picture [H, W, 3] is beside the one painted last; a first one is a cut."""
        small, before = shrunken(pixels), self._painted
        self._looked_at = small
        if before is None or before.shape != small.shape:
            return View.CUT
        if int(cv2.absdiff(small, before).max()) <= STILL_LEVELS:
            return View.STILL
        return View.CUT if correlation(small, before) < CUT_CORRELATION else View.MOVED

    def painted(self) -> None:
        """The picture looked at last gets painted: those to come are compared with it and not with each other, so that
        what changes slowly is noticed too.
        """
        self._painted = self._looked_at


def shrunken(pixels: Pixels) -> NDArray[np.uint8]:
    """Means over blocks of BLOCK_PX, [H / BLOCK_PX, W / BLOCK_PX, 3]."""
    height, width = pixels.shape[:2]
    size = (max(width // BLOCK_PX, 1), max(height // BLOCK_PX, 1))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Of two small pictures' brightness, -1..1; 1 if both are flat, 0 if one of them is."""
    values = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float32) for each in (one, other)]
    centred = [value - value.mean() for value in values]
    spreads = [float(np.sqrt(np.square(value).mean())) for value in centred]
    flat = [spread < FLAT_LEVELS for spread in spreads]
    if any(flat):
        return float(all(flat))
    return float((centred[0] * centred[1]).mean()) / (spreads[0] * spreads[1])


class Skipper:
    """Which steps of the warm schedule are worth their time.

    A step whose change of x0 stays under epsilon for SKIP_PATIENCE frames is left out; as soon as a step changes x0
    by WAKE_RATIO times epsilon, the one left out before it comes back. What lies between changes nothing, so the
    count does not flap.

    Args:
        ceiling: steps of the schedule, at least 1.
        floor: steps never gone below, 1..ceiling.
        epsilon: root mean square change of x0, where latents have unit variance; 0 leaves nothing out.
    """

    def __init__(self, ceiling: int, floor: int, epsilon: float) -> None:
        self._all, self._floor, self._epsilon = tuple(range(ceiling)), floor, epsilon
        self.kept = self._all
        self._quiet_frames = 0

    def measured(self, kept: tuple[int, ...], changes: Sequence[float]) -> None:
        """Learn from a finished frame.

        Args:
            kept: the steps it was made with; numbers of others than the present ones are out of date.
            changes: of x0 by each of these steps but the first.
        """
        if kept != self.kept or not self._epsilon:
            return
        if self._wake(changes):
            self._quiet_frames = 0
            return
        quiet = bool(changes) and min(changes) < self._epsilon and len(kept) > self._floor
        self._quiet_frames = self._quiet_frames + 1 if quiet else 0
        if self._quiet_frames >= SKIP_PATIENCE:
            self.kept = tuple(step for step in kept if step != kept[1 + int(np.argmin(changes))])
            self._quiet_frames = 0

    def _wake(self, changes: Sequence[float]) -> bool:
        """Bring back what was left out beside a step that has much to do; whether there was any."""
        for step, change in zip(self.kept[1:], changes, strict=True):
            left_out = [other for other in self._all if other not in self.kept]
            if change > WAKE_RATIO * self._epsilon and left_out:
                nearest = min(left_out, key=lambda other: (abs(other - step), other))
                self.kept = tuple(sorted((*self.kept, nearest)))
                return True
        return False


class Turns:
    """Which step of a frame evaluates the whole network when deep features are reused: each in its turn.

    Args:
        steps: of a frame, at least 1.
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._next, self._all = steps, 0, False

    def take(self) -> int | None:
        """The step of the next frame, by index; None: all of them."""
        if self._all:
            self._all = False
            return None
        self._next = (self._next + 1) % self._steps
        return self._next

    def measured(self, moved: float) -> None:
        """Learn what share of a finished frame moved, 0..1."""
        self._all = moved > REFRESH_SHARE


class Planner:
    """What each frame is made with under temporal reuse.

    Args:
        settings: floor, ceiling and epsilon of the steps, and whether deep features are reused.
        steps: that a full frame has; 0 at strength 0, where there is nothing to take over.
    """

    def __init__(self, settings: Settings, steps: int) -> None:
        self.ceiling = min(settings.steps_ceiling, steps)
        full = settings.temporal == "full"
        self._watch = Watch()
        # Beside shallow steps there is little to be won by leaving some out.
        epsilon = 0.0 if full else settings.epsilon
        self._skipper = Skipper(self.ceiling, min(settings.steps_floor, self.ceiling), epsilon)
        self._turns = Turns(self.ceiling) if full and self.ceiling else None
        self._still_frames, self._settled = 0, False
        self._new_look = self._faded = False

    def plan(self, pixels: Pixels) -> Plan:
        """Decide on a frame, which is then to be painted unless the plan is to repeat.

        Args:
            pixels: as the model will see it, uint8 [H, W, 3].
        """
        view = self._watch.look(pixels)
        plan = self._plan(view)
        if plan.work is not Work.REPEAT:
            self._watch.painted()
            self._settled = plan.work in (Work.SETTLE, Work.FULL)
            self._faded = plan.work is Work.FADE
            self._new_look = False
        return plan

    def change_look(self) -> None:
        """The look differs a little from the next frame on, as in a cross-fade."""
        self._new_look = True

    def measured(self, plan: Plan, numbers: Sequence[float]) -> None:
        """Learn from a finished frame's numbers, as `LatentMemory.numbers` has them."""
        if plan.work is Work.WARM:
            self._skipper.measured(plan.kept, numbers[1 : len(plan.kept)])
            if self._turns:
                self._turns.measured(numbers[0])

    def _plan(self, view: View) -> Plan:
        self._still_frames = self._still_frames + 1 if view is View.STILL else 0
        if view is View.CUT:
            return Plan(Work.FULL)
        if self._new_look and self.ceiling:
            # All of them: most of the picture stays as this frame paints it until the fade is over.
            return Plan(Work.FADE, tuple(range(self.ceiling)))
        if self._faded:
            # The fade is over: its last look with all steps, also where nothing will ever move.
            return Plan(Work.SETTLE)
        if view is View.MOVED and not self.ceiling:
            return Plan(Work.FULL)
        if view is View.MOVED:
            return Plan(Work.WARM, self._skipper.kept, self._turns.take() if self._turns else None)
        if self._still_frames >= SETTLE_FRAMES and not self._settled:
            return Plan(Work.SETTLE)
        return Plan(Work.REPEAT)
