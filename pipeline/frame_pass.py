"""The arithmetic of one frame, from bytes to bytes. What it needs besides the frame comes from frame_inputs.py.

The same on every device. Knows nothing of streams, graphs or threads.
"""

import torch
from torch import Tensor

from instantvision import kernels
from instantvision.pipeline.frame_inputs import Belt, FrameInputs, LatentMemory
from instantvision.pipeline.model import LatentModel, ReusableModel
from instantvision.pipeline.sampler import Predict, denoise


class FramePass:
    """One frame as five stages, each of which can be measured by itself: a picture is painted, then shown.

    Args:
        model: on any device.
    """

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        backend = kernels.choose(model.device.type)
        self._frame_ops, self._step_ops = backend.frame_ops, backend.step_ops
        self.encode, self.decode = model.encode, model.decode
        self._temporal_ops = backend.temporal_ops

    def __call__(
        self,
        pixels: Tensor,
        inputs: FrameInputs,
        *,
        mirror: bool,
        memory: LatentMemory | None = None,
        warm: bool = False,
        belt: Belt | None = None,
    ) -> Tensor:
        """Stylise a picture: show what was painted. Arguments as of `paint`, result as of `show`."""
        return self.show(self.paint(pixels, inputs, mirror=mirror, memory=memory, warm=warm, belt=belt))

    def paint(
        self,
        pixels: Tensor,
        inputs: FrameInputs,
        *,
        mirror: bool,
        memory: LatentMemory | None = None,
        warm: bool = False,
        belt: Belt | None = None,
    ) -> Tensor:
        """From a picture to the clean latents of the stylised one.

        Args:
            pixels: uint8 RGB [H, W, 3] on the model's device.
            inputs: for its size.
            mirror: flip left and right.
            memory: of the frame before, brought up to this one; None takes nothing over.
            warm: start from the frame before, and keep what it had where nothing moved; needs `memory`.
            belt: let the picture in there, and give the one that comes out; its inputs are `inputs`.

        Returns:
            [1, C, h, w], which may be what `memory` or `belt` keeps.
        """
        source = self.encode(self.unpack(pixels, mirror=mirror))
        if belt is not None:
            return self.advance(source, inputs, belt)
        if memory is None or not inputs.steps:
            return self.denoise(source, inputs)
        gate = self._take_in(source, inputs, memory)
        if warm:
            self._denoise_warm(inputs, memory, gate)
        else:
            memory.stylised.copy_(self.denoise(memory.source, inputs, memory))
        return memory.stylised

    def show(self, latents: Tensor, out: Tensor | None = None) -> Tensor:
        """Clean latents to bytes, uint8 RGB [H, W, 3], written to `out` if given."""
        return self.pack(self.decode(latents), out=out)

    def unpack(self, pixels: Tensor, *, mirror: bool) -> Tensor:
        """Bytes to the encoder's input, [1, 3 * fold**2, H / fold, W / fold]."""
        model = self.model
        return self._frame_ops.pixels_to_input(
            pixels, fold=model.fold, mirror=mirror, bgr=False, dtype=model.dtype
        )

    def denoise(self, source: Tensor, inputs: FrameInputs, memory: LatentMemory | None = None) -> Tensor:
        """Add the noise field to the picture's latents and follow the denoiser back; [1, C, h, w]."""
        if not inputs.steps:
            return source
        # One memory order for all latents of the frame, whatever the encoder returned.
        source = source.contiguous(memory_format=torch.channels_last)
        noisy = self._step_ops.add_noise(source, inputs.noise, inputs.start)
        noises = inputs.noises.split(1) if len(inputs.noises) else None
        predict = self._predictor(source, inputs, memory)
        return denoise(predict, noisy, inputs.coefficients, self._step_ops, noises)

    def advance(self, source: Tensor, inputs: FrameInputs, belt: Belt) -> Tensor:
        """Let a picture's latents in and take all frames on the belt one step on; clean latents of the oldest."""
        source = source.contiguous(memory_format=torch.channels_last)
        entering = self._step_ops.add_noise(source, inputs.noise, inputs.start)
        # Joined in memory of their own, since every frame moves to where the next one still is.
        noisy = _pushed(entering, belt.latents)
        belt.sources.copy_(_pushed(source, belt.sources))
        prediction = self.model.predict_prepared(noisy, belt.sources, inputs.prepared)
        extra = inputs.all_mixed_in(_pushed(torch.zeros_like(source), belt.clean))
        x0_out = None if extra is None else belt.clean
        self._step_ops.denoise_step(
            prediction, noisy, inputs.coefficients, extra=extra, out=belt.latents, x0_out=x0_out
        )
        return belt.latents[-1:]

    def _predictor(self, source: Tensor, inputs: FrameInputs, memory: LatentMemory | None) -> Predict:
        model = self.model

        def predict(noisy: Tensor, step: int) -> Tensor:
            rows = tuple(tensor[step : step + 1] for tensor in inputs.prepared)
            slot = inputs.slots[step] if inputs.slots else None
            if slot is None or memory is None or not isinstance(model, ReusableModel):
                return model.predict_prepared(noisy, source, rows)
            if inputs.whole not in (None, step):
                return model.predict_reusing(noisy, source, rows, memory.deep[slot])
            prediction, found = model.predict_keeping(noisy, source, rows)
            memory.keep_deep(slot, found)
            return prediction

        return predict

    def _take_in(self, source: Tensor, inputs: FrameInputs, memory: LatentMemory) -> Tensor:
        """Bring the remembered picture up to the new one where that moved; how much it did, [1, 1, h, w].

        Compared is with what is remembered, not with the frame before: what changes slowly moves in the end too, and
        the noise of a camera hardly gets in.
        """
        ops = self._temporal_ops
        source = source.contiguous(memory_format=torch.channels_last)
        gate = ops.gate(ops.motion(source, memory.source), inputs.limits)
        ops.blend(memory.source, source, gate, out=memory.source)
        memory.numbers.zero_()
        memory.numbers[:1].copy_(gate.mean(dim=(1, 2, 3)))
        return gate

    def _denoise_warm(self, inputs: FrameInputs, memory: LatentMemory, gate: Tensor) -> None:
        """Bring the remembered latents up to the remembered picture, where that moved.

        The first evaluation starts from the noise field and shows what is new. There it is taken, elsewhere the
        latents of the frame before; with the noise field on top the next steps make one picture of both. At the
        end, what did not move is exactly what it was.
        """
        ops, steps = self._temporal_ops, inputs.steps
        predict = self._predictor(memory.source, inputs, memory)
        reach = ops.spread(gate)
        noisy = self._step_ops.add_noise(memory.source, inputs.noise, inputs.start)
        x0 = torch.empty_like(noisy)
        noisy = self._step_ops.denoise_step(
            predict(noisy, 0), noisy, inputs.coefficients[0], extra=inputs.mixed_in(0, noisy), x0_out=x0
        )
        changes = gate.new_empty((steps - 1, 1, *gate.shape[2:]))
        if steps > 1:
            x0 = ops.blend(memory.stylised, x0, reach)
            noisy = self._step_ops.add_noise(x0, inputs.noise, inputs.rejoin)
        for step in range(1, steps):
            before, x0 = x0, torch.empty_like(x0)
            noisy = self._step_ops.denoise_step(
                predict(noisy, step),
                noisy,
                inputs.coefficients[step],
                extra=inputs.mixed_in(step, before),
                x0_out=x0,
            )
            ops.motion(x0, before, out=changes[step - 1 : step])
        # What the last step goes to: not every solver ends at its x0.
        ops.blend(memory.stylised, noisy, reach, out=memory.stylised)
        # Where nothing moved nothing changes either, and a hand must count as much as a crowd. The small number is for
        # a picture in which nothing moved at all.
        mean = (changes * reach).sum(dim=(1, 2, 3)) / (reach.sum() + 1e-6)
        memory.numbers[1:steps].copy_(mean.sqrt())

    def pack(self, output: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The decoder's output to bytes, [H, W, 3]."""
        return self._frame_ops.output_to_pixels(output, fold=self.model.fold, bgr=False, out=out)


def _pushed(first: Tensor, row: Tensor) -> Tensor:
    """A new row of latents that begins with `first`, and whose last has fallen off."""
    return torch.cat([first, row[:-1]]).contiguous(memory_format=torch.channels_last)
