"""Compiles the kernels of whole frames for GPUs that need not be there; run in a process of its own.

    python ahead_of_time.py CAPABILITY:KIB …

Prints a line of JSON for each GPU, kernel and tile, with the bytes of shared memory that a program has, and of memory
that a thread has for what does not fit into its registers, and how many loops have a race for registers. Networks
and pictures are on torch's meta device, so launches are those of a frame, of which nothing is computed. Of a matrix
product's launches with equal tiles the one with the most options stands for all, since tiles are what takes memory; of
other kernels the one with the largest blocks. Launches that touch e4m3 are apart from those that do not.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from instantvision import kernels
from instantvision.kernels import attention, conv3x3
from instantvision.kernels import launch as launching
from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.pipeline.autoencoder_tiny import AutoencoderTiny
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.device import placed
from instantvision.pipeline.eight_bit import CAPABILITY, E4M3
from instantvision.pipeline.frame_inputs import FrameInputs, LatentMemory
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.fused_tiny_autoencoder import FusedTinyAutoencoder
from instantvision.pipeline.latent_diffusion import LatentDiffusion, random_prompt
from instantvision.pipeline.mini import Mini
from instantvision.pipeline.mini_denoiser import STYLE_TOKENS, STYLE_WIDTH, MiniDenoiser
from instantvision.pipeline.model import Conditioning, LatentModel
from instantvision.pipeline.published import SD_TURBO
from instantvision.pipeline.unet import UNet

META = torch.device("meta")
# Turing calculates in neither bf16 nor tiles of these sizes: there only what surrounds the networks is compiled.
NETWORKS_FROM = 80
E4M3_FROM = CAPABILITY[0] * 10 + CAPABILITY[1]
# Of each kernel, the largest ones.
TILES = 4
PRODUCTS = ("conv3x3_kernel", "split_conv", "linear", "attention_conv", "attention", "gated_product")
NETWORK_MODULES = (*PRODUCTS, "group_norm", "resample", "token_ops", "library_conv")


class Compiler:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        # Kernels keep what is compiled by this number.
        return int(self._target.arch)

    def get_current_stream(self, device: int) -> int:
        del device
        return 0


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(shape, device=META, dtype=dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def frames(dtype: torch.dtype, *, fp8: bool) -> None:
    """A frame of each model, whole and warm, and what only other shapes or solvers need."""
    with META:
        codec, denoiser = Autoencoder(), MiniDenoiser(1)
        unet, tiny = UNet(SD_TURBO.unet), AutoencoderTiny(SD_TURBO.autoencoder)
    mini = Mini(codec, denoiser, ("oil",), META, dtype)
    style = empty(1, STYLE_TOKENS, STYLE_WIDTH, dtype=dtype), empty(1, STYLE_WIDTH, dtype=dtype)
    frame(mini, Conditioning(*style), Size(1024, 1024), dtype)
    for each in (False, True) if fp8 else (False,):
        turbo = LatentDiffusion(SD_TURBO, unet, tiny, random_prompt(SD_TURBO, 0), META, dtype, fp8=each)
        frame(turbo, turbo.condition(Settings().mix, Size(512, 512)), Size(512, 512), dtype)
    backend = kernels.choose("cuda")
    x, vector = empty(1, 1280, 8, 8, dtype=dtype), empty(1280, dtype=dtype)
    backend.layer_ops.channel_moments(x)
    # What only a real GPU of these models chooses.
    framed, weight = empty(1, 1280, 10, 10, dtype=dtype), empty(1280, 1280, 3, 3, dtype=dtype)
    for each, channels in itertools.product((dtype, E4M3) if fp8 else (dtype,), (640, 1280)):
        wide = empty(1280, channels, 3, 3, dtype=each)
        conv3x3.split_sum(empty(1, channels, 18, 18, dtype=each), wide, 1, None)
    sums = conv3x3.split_sum(framed, weight, 1, None)
    backend.layer_ops.finish(sums, vector, vector[None], x, moments=True)
    attention.rounded(x, E4M3 if fp8 else dtype)
    row = empty(5, dtype=torch.float32)
    backend.step_ops.denoise_step(x, x, row, extra=x, x0_out=x)


def eight_bit() -> None:
    """The tiny autoencoder in e4m3: among a whole frame's launches others with its tiles would stand for it."""
    with META:
        tiny = AutoencoderTiny(SD_TURBO.autoencoder)
    layers = kernels.choose("cuda").layer_ops
    fused = FusedTinyAutoencoder(placed(tiny, META, torch.bfloat16), layers, fp8=True)
    fused.encode(empty(1, 3, 512, 512, dtype=torch.bfloat16))
    fused.decode(empty(1, 4, 64, 64, dtype=torch.bfloat16))


def frame(model: LatentModel, conditioning: Conditioning, size: Size, dtype: torch.dtype) -> None:
    latents = empty(
        1,
        model.latent_channels,
        size.height // model.downsampling,
        size.width // model.downsampling,
        dtype=dtype,
    )
    numbers = [empty(*shape, dtype=torch.float32) for shape in ((1, 4), (2,), (2,), (2,))]
    timesteps = torch.empty(1, dtype=torch.int64, device=META)
    inputs = FrameInputs(model.prepare(timesteps, conditioning), latents, *numbers, latents[:0])
    memory = LatentMemory(latents, latents, empty(4, dtype=torch.float32))
    pixels, frame_pass = empty(size.height, size.width, 3, dtype=torch.uint8), FramePass(model)
    frame_pass(pixels, inputs, mirror=False)
    frame_pass(pixels, inputs, mirror=True, memory=memory, warm=True)


def representatives(launches: Iterable[launching.Launch]) -> list[launching.Launch]:
    """Few launches that stand for all of a kernel's."""
    chosen: dict[object, launching.Launch] = {}
    for entry in launches:
        kernel, _, _, meta = entry
        tiles = {name: value for name, value in meta.items() if name.startswith(("BLOCK", "num_"))}
        key = kernel, in_e4m3(entry), tuple(tiles.items()) if module_of(kernel) in PRODUCTS else ()
        if key not in chosen or weight(entry) > weight(chosen[key]):
            chosen[key] = entry
    kept: dict[object, list[launching.Launch]] = {}
    for entry in sorted(chosen.values(), key=tile, reverse=True):
        kept.setdefault((entry[0], in_e4m3(entry)), []).append(entry)
    return [entry for entries in kept.values() for entry in entries[:TILES]]


def in_e4m3(entry: launching.Launch) -> bool:
    """Whether any of the arguments is, or describes, a tensor in e4m3."""
    return any(getattr(getattr(arg, "base", arg), "dtype", None) == E4M3 for arg in entry[2])


def tile(entry: launching.Launch) -> int:
    """What grows with a program's memory."""
    meta = entry[3]
    sides = [value for name, value in meta.items() if name.startswith("BLOCK")]
    return sum(sides) * max(sides, default=0) * int(meta.get("num_stages", 1))


def weight(entry: launching.Launch) -> int:
    """How much a kernel has to do, by the blocks and options that it is told of."""
    return sum(int(value or 0) for value in entry[3].values() if isinstance(value, int | None))


def stack(machine_code: bytes) -> int:
    """Bytes of a thread's stack: nothing but spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"STACK:(\d+)", usage)))


def races(code: str) -> int:
    """Loops, in Triton's last code of its own, that load registers anew while a product may still read them.

    A product goes on while the next round begins, unless the loop waits for all of them. Where its left side is in
    registers, the next round's beginning is to load them: Triton 3.6 and 3.7 do not wait for that.
    """
    found, depth = 0, 0
    # Of each open loop how deep it lies, and whether it has such a product and such a wait.
    loops: list[tuple[int, set[str]]] = []
    for line in code.splitlines():
        if "scf.for" in line:
            loops.append((depth, set()))
        depth += line.count("{") - line.count("}")
        if loops and "warp_group_dot " in line and ": tensor<" in line:
            loops[-1][1].add("product")
        if loops and "warp_group_dot_wait" in line and "pendings = 0 " in line:
            loops[-1][1].add("wait")
        while loops and depth <= loops[-1][0]:
            found += loops.pop()[1] == {"product"}
    return found


def module_of(kernel: Any) -> str:
    return str(kernel.fn.__module__.rpartition(".")[2])


def main(capability: int, shared_kib: int) -> None:
    driver.set_active(Compiler(capability))
    # The two questions that launches ask of a device.
    places: Any = launching
    places.hopper = lambda _device: capability >= 90
    places._shared_memory = lambda _device: shared_kib * 1024
    dtype = torch.bfloat16 if capability >= NETWORKS_FROM else torch.float16
    with kernels.forced("triton"), torch.inference_mode():
        fp8 = capability >= E4M3_FROM
        chosen = representatives(launching.noted(lambda: frames(dtype, fp8=fp8)))
        if fp8:
            chosen += representatives(
                [entry for entry in launching.noted(eight_bit) if entry[3].get("SCALED")]
            )
    for kernel, grid, args, meta in chosen:
        if capability < NETWORKS_FROM and module_of(kernel) in NETWORK_MODULES:
            continue
        compiled = kernel.warmup(*args, grid=grid, **meta)
        line = {
            "capability": capability,
            "kernel": kernel.fn.__name__,
            "shared": compiled.metadata.shared,
            "stack": stack(compiled.asm["cubin"]),
            "races": races(compiled.asm["ttgir"]),
        }
        sys.stdout.write(f"{json.dumps(line)}\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        capability, _, kib = argument.partition(":")
        main(int(capability), int(kib))
