"""What a frame is made with besides its pixels, and what it hands on to the next one.

Knows nothing of how the arithmetic runs (frame_pass.py) or of who decides on the work (temporal.py).
"""

from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from instantvision.pipeline.config import Settings
from instantvision.pipeline.model import Deep, LatentModel, Prepared
from instantvision.pipeline.schedule import noise_coefficients, warm_timesteps
from instantvision.pipeline.solvers import NOISY_SOLVERS, SOLVERS
from instantvision.pipeline.spacing import SPACINGS
from instantvision.pipeline.temporal import Plan, Work

# Root mean square distance of latents, of unit variance, over a position and its neighbours: a webcam's noise and
# compression make 0.1 to 0.13, a hand or a turning head 0.3 and more, as measured with mini. A gate opens smoothly from
# the first limit to the second, by at most a twentieth at that noise: a narrower one flickers more where little moves,
# one that is wide open only later leaves ghosts.
MOTION_LIMITS = (0.08, 0.45)
# Of FrameInputs, besides what is prepared.
TENSORS = ("noise", "coefficients", "start", "rejoin", "limits", "noises")
# No distance is below these: every gate is open.
ALWAYS_OPEN = (-2.0, -1.0)


@dataclass(frozen=True)
class FrameInputs:
    """What a frame is made with besides its pixels; constant while the settings are.

    Args:
        prepared: of the model, one row a step.
        noise: unit normal field, [1, C, h, w].
        coefficients: one row a step, [S, 4], or [S, 5] of solvers that want something extra, float32.
        start: shares of picture and noise at the first timestep, [2], float32.
        rejoin: the same at the second timestep, zeros if there is none; a warm frame starts again from there.
        limits: distances of latents between which a warm frame's gate opens, [2], float32.
        noises: unit normal fields of the steps for solvers that want them, [S, C, h, w]; otherwise [0, C, h, w].
        slots: of each step, where in `LatentMemory.deep` it keeps what it finds in the deep part of the network, None
            for nowhere; empty without reuse.
        whole: the one step that evaluates the whole network, while the others look into their slots; None: all.
    """

    prepared: Prepared
    noise: Tensor
    coefficients: Tensor
    start: Tensor
    rejoin: Tensor
    limits: Tensor
    noises: Tensor
    slots: tuple[int | None, ...] = ()
    whole: int | None = None

    @property
    def steps(self) -> int:
        """Evaluations of the denoiser; 0 at strength 0."""
        return len(self.coefficients)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Of all tensors: inputs of equal shapes can be written over each other."""
        return tuple(tensor.shape for tensor in self._tensors())

    def clone(self) -> "FrameInputs":
        """The same values in memory of their own."""
        return replace(
            self,
            prepared=tuple(tensor.contiguous().clone() for tensor in self.prepared),
            **{name: getattr(self, name).clone() for name in TENSORS},
        )

    def mixed_in(self, step: int, before: Tensor) -> Tensor | None:
        """What the solver's row for a step mixes in: noise, or `before`, the clean latents of the step before."""
        if self.coefficients.shape[1] == 4:
            return None
        return self.noises[step : step + 1] if len(self.noises) else before

    def all_mixed_in(self, before: Tensor) -> Tensor | None:
        """`mixed_in` of all steps at once, [S, C, h, w], for frames that are each at another."""
        if self.coefficients.shape[1] == 4:
            return None
        return self.noises if len(self.noises) else before

    def freshen(self, generator: torch.Generator) -> None:
        """Draw all noise anew, on the generator's device."""
        self.noise.normal_(generator=generator)
        if len(self.noises):
            self.noises.normal_(generator=generator)

    def copy_(self, other: "FrameInputs") -> None:
        """Take over the values of inputs of equal shapes, slots and whole step."""
        for mine, new in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(new)

    def copy_step_(self, other: "FrameInputs", step: int) -> None:
        """Take over what a frame needs at one step; what it needs at its start with the first."""
        pairs = [*zip(self.prepared, other.prepared, strict=True), (self.coefficients, other.coefficients)]
        for mine, new in pairs:
            mine[step].copy_(new[step])
        if len(self.noises):
            self.noises[step].copy_(other.noises[step])
        if step == 0:
            self.noise.copy_(other.noise)
            self.start.copy_(other.start)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.prepared, *(getattr(self, name) for name in TENSORS))


def frame_inputs(model: LatentModel, settings: Settings) -> FrameInputs:
    """Of a frame with all steps that takes nothing over, on the model's device.

    Raises:
        UnknownPreset: the model has no such preset.
    """
    return Course(model, settings).full


class Course:
    """Everything that frames with these settings need, computed once, on the model's device.

    Raises:
        UnknownPreset: the model has no such preset.
    """

    def __init__(self, model: LatentModel, settings: Settings, noise: Tensor | None = None) -> None:
        self._model = model
        self._conditioning = model.condition(settings.mix, settings.size)
        self._solver = settings.solver
        timesteps = SPACINGS[settings.spacing](model.alphas_cumprod, settings.steps, settings.strength)
        self._timesteps = timesteps
        if noise is None:
            # The first is what frames start from, and the same whatever comes after it.
            count = len(timesteps) if settings.solver in NOISY_SOLVERS else 0
            drawn = noise_fields(model, settings, 1 + count)
            noise = _sent(drawn.to(model.dtype, memory_format=torch.channels_last), model.device)
        self._all_noise = noise
        self._noise, self._noises = noise.tensor_split([1])
        self._warm_timesteps = warm_timesteps(timesteps, settings.steps_ceiling)
        self._keeps_deep = settings.temporal == "full"
        self._warm: dict[tuple[int, ...], FrameInputs] = {}
        self._variations: dict[Plan, FrameInputs] = {}

    @property
    def steps(self) -> int:
        """Evaluations of a full frame; 0 at strength 0."""
        return len(self._timesteps)

    def with_look(self, settings: Settings) -> "Course":
        """For settings that differ in the mix and the strength only, without drawing the noise again.

        Raises:
            UnknownPreset: the model has no such preset.
        """
        return Course(self._model, settings, self._all_noise)

    # What is not asked for is not made: a cross-fade has a course for each of its frames.
    @cached_property
    def full(self) -> FrameInputs:
        """Of a frame with all steps that takes nothing over."""
        timesteps = self._timesteps
        return self._inputs(
            timesteps, self._prepare(timesteps), self._rows(timesteps), self._noises, ALWAYS_OPEN
        )

    @cached_property
    def _warm_prepared(self) -> Prepared:
        return self._prepare(self._warm_timesteps)

    @cached_property
    def _settle(self) -> FrameInputs:
        return replace(self.full, limits=_sent(torch.tensor(MOTION_LIMITS), self._model.device))

    def _prepare(self, timesteps: list[int]) -> Prepared:
        if not timesteps:
            return ()
        device = self._model.device
        return self._model.prepare(_sent(torch.tensor(timesteps), device), self._conditioning)

    def inputs(self, plan: Plan) -> FrameInputs:
        """For a plan with any work in it; the same object whenever it is the same plan."""
        if plan.warm:
            if plan not in self._variations:
                self._variations[plan] = self._variation(plan)
            return self._variations[plan]
        return self._settle if plan.work is Work.SETTLE else self.full

    def _variation(self, plan: Plan) -> FrameInputs:
        inputs = self.warm(plan.kept)
        if plan.work is Work.FADE:
            return replace(inputs, limits=_sent(torch.tensor(ALWAYS_OPEN), self._model.device))
        return inputs if plan.whole is None else replace(inputs, whole=plan.whole)

    def warm(self, kept: tuple[int, ...]) -> FrameInputs:
        """For some of the warm schedule's steps, by index; does not wait for the device."""
        if kept not in self._warm:
            # Slices and not a list of indices, which would have to be brought to the device.
            prepared = tuple(torch.cat([rows[i : i + 1] for i in kept]) for rows in self._warm_prepared)
            timesteps = [self._warm_timesteps[i] for i in kept]
            # A warm frame begins anew at its second step: what a solver looks back on does not reach beyond.
            rows = torch.cat([self._rows(timesteps[:1]), self._rows(timesteps[1:])])
            noises = torch.cat([self._noises[i : i + 1] for i in kept])
            self._warm[kept] = self._inputs(timesteps, prepared, rows, noises, MOTION_LIMITS)
        return self._warm[kept]

    def _rows(self, timesteps: list[int]) -> Tensor:
        return SOLVERS[self._solver](self._model.alphas_cumprod, timesteps, self._model.prediction)

    def _inputs(
        self,
        timesteps: list[int],
        prepared: Prepared,
        rows: Tensor,
        noises: Tensor,
        limits: tuple[float, float],
    ) -> FrameInputs:
        alphas_cumprod, device = self._model.alphas_cumprod, self._model.device
        start, rejoin = (
            noise_coefficients(alphas_cumprod, timesteps[i]) if i < len(timesteps) else torch.zeros(2)
            for i in (0, 1)
        )
        return FrameInputs(
            prepared,
            self._noise,
            _sent(rows, device),
            _sent(start, device),
            _sent(rejoin, device),
            _sent(torch.tensor(limits), device),
            noises,
            self._slots(timesteps),
        )

    def _slots(self, timesteps: list[int]) -> tuple[int | None, ...]:
        """A slot for each step of the warm schedule, which those of full frames at the same timesteps fill too."""
        if not self._keeps_deep:
            return ()
        slots = {timestep: slot for slot, timestep in enumerate(self._warm_timesteps)}
        return tuple(slots.get(timestep) for timestep in timesteps)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values on their way to a device: from pinned memory, which nobody has to wait for."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class LatentMemory:
    """What a frame leaves behind on the device for the next one.

    Args:
        source: the picture's latents, [1, C, h, w]: of each region, from when it last moved.
        stylised: the clean latents that were painted from it, likewise.
        numbers: float32 [STEPS]: the share of the picture that moved, then the root mean square change of x0, where it
            moved, by each step after the first; 0 for steps that were not taken.
        deep: what evaluations found in the deep part of the network, by slot; each gets its memory when it is first
            filled, which a frame with all steps does.
    """

    source: Tensor
    stylised: Tensor
    numbers: Tensor
    deep: dict[int, Deep] = field(default_factory=dict)

    def keep_deep(self, slot: int, found: Deep) -> None:
        """Take over what an evaluation found."""
        if slot not in self.deep:
            self.deep[slot] = tuple(torch.empty_like(tensor) for tensor in found)
        for kept, new in zip(self.deep[slot], found, strict=True):
            kept.copy_(new)

    @classmethod
    def empty(cls, model: LatentModel, settings: Settings) -> "LatentMemory":
        """For a size; a frame whose gates are all open must come first."""
        source, stylised = (_zero_latents(model, settings) for _ in range(2))
        return cls(source, stylised, torch.zeros(settings.steps_ceiling, device=model.device))


class Belt:
    """Frames on their way at once, one at each step: the newest at the first, the oldest at the last.

    Each is made with the inputs that it came with, whatever the settings have become meanwhile.

    Args:
        model: of the frames.
        settings: their size.
        steps: how many frames, at least 1.
    """

    def __init__(self, model: LatentModel, settings: Settings, steps: int) -> None:
        self.sources, self.latents, self.clean = (_zero_latents(model, settings, steps) for _ in range(3))
        """Of each frame the picture's latents, its own after its last step, and x0 at that step, [S, C, h, w]."""
        self._entered: deque[FrameInputs] = deque(maxlen=steps)
        self._written: list[FrameInputs | None] = [None] * steps

    def restart(self) -> None:
        """Forget the frames on their way; call it where the device's work is queued."""
        # Whatever is left there must be numbers: a kernel may read a neighbour's values and weigh them with zero.
        for latents in (self.sources, self.latents, self.clean):
            latents.zero_()
        self._entered.clear()
        self._written = [None] * len(self._written)

    def enter(self, inputs: FrameInputs, static: FrameInputs) -> int | None:
        """Let a frame in, at the end of the belt one out.

        Args:
            inputs: of the new frame.
            static: what the next pass reads; each step's share becomes that of the frame which is at that step. Its
                memory stays, and nothing is copied while all frames have the same inputs.

        Returns:
            How many frames ago the one that comes out went in; None while the belt is filling.
        """
        self._entered.appendleft(inputs)
        for step, its_own in enumerate(self._entered):
            if self._written[step] is not its_own:
                static.copy_step_(its_own, step)
                self._written[step] = its_own
        count = len(self._written)
        return count - 1 if len(self._entered) == count else None


def noise_fields(model: LatentModel, settings: Settings, count: int) -> Tensor:
    """The frozen noise of a seed and size, [count, C, h, w], float32 on the CPU; the first is the same for any count.

    Drawn on the CPU: generators of different devices give different numbers for one seed.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    shape = _latent_shape(model, settings)
    return torch.cat([torch.randn(shape, generator=generator) for _ in range(count)])


def _zero_latents(model: LatentModel, settings: Settings, frames: int = 1) -> Tensor:
    """Zeros on the model's device, in the memory order that all latents have, [frames, C, h, w]."""
    _, *shape = _latent_shape(model, settings)
    zeros = torch.zeros((frames, *shape), dtype=model.dtype, device=model.device)
    return zeros.contiguous(memory_format=torch.channels_last)


def _latent_shape(model: LatentModel, settings: Settings) -> tuple[int, int, int, int]:
    size, pixels = settings.size, model.downsampling
    return (1, model.latent_channels, size.height // pixels, size.width // pixels)
