"""Every kernel compiles for a GPU, on machines without one too: the interpreter accepts more than the compiler."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile  # noqa: A004

from instantvision.kernels import frame_ops, step_ops, temporal_ops

# The GPU generations we care for: Turing has no bf16, Hopper is what we measure on.
TARGETS = [(75, "*fp16"), (80, "*bf16"), (90, "*bf16")]
FRAME = {"FOLD": 4, "BGR": False, "BLOCK": 1024}
STRIDES = {"channel_stride": "i32", "row_stride": "i32", "column_stride": "i32"}
LATENT_SIZES = {"columns": "i32", "channels": "i32", "count": "i32"}


def strides(*tensors):
    return {f"{tensor}_{axis}": "i32" for tensor in tensors for axis in ("channel", "row", "column")}


KERNELS = [
    (
        frame_ops.pixels_to_input_kernel,
        {"p_pixels": "*u8", "p_out": "LATENT", "columns": "i32"},
        {**FRAME, "MIRROR": True},
    ),
    (
        frame_ops.output_to_pixels_kernel,
        {"p_output": "LATENT", "p_out": "*u8", "width": "i32", **STRIDES},
        FRAME,
    ),
    (
        step_ops.add_noise_kernel,
        {
            "p_clean": "LATENT",
            "p_noise": "LATENT",
            "p_coefficients": "*fp32",
            "p_out": "LATENT",
            "count": "i32",
        },
        {"BLOCK": 1024},
    ),
    (
        step_ops.denoise_step_kernel,
        {
            "p_prediction": "LATENT",
            "p_noisy": "LATENT",
            "p_extra": "LATENT",
            "p_coefficients": "*fp32",
            "p_out": "LATENT",
            "p_x0": "LATENT",
            "count": "i32",
            "columns": "i32",
        },
        {"READ_EXTRA": True, "WRITE_X0": True, "BLOCK": 1024},
    ),
    (
        temporal_ops.motion_kernel,
        {"p_latents": "LATENT", "p_before": "LATENT", "p_out": "*fp32"}
        | strides("one", "other")
        | {"columns": "i32", "count": "i32"},
        {"CHANNELS": 32, "BLOCK": 128},
    ),
    (
        temporal_ops.gate_kernel,
        {"p_motion": "*fp32", "p_limits": "*fp32", "p_out": "*fp32", "rows": "i32", "columns": "i32"},
        {"BLOCK": 128},
    ),
    (
        temporal_ops.spread_kernel,
        {"p_gate": "*fp32", "p_out": "*fp32", "rows": "i32", "columns": "i32"},
        {"BLOCK": 128},
    ),
    (
        temporal_ops.blend_kernel,
        {"p_kept": "LATENT", "p_new": "LATENT", "p_share": "*fp32", "p_out": "LATENT"}
        | strides("kept", "new", "out")
        | LATENT_SIZES,
        {"CHANNELS": 32, "POSITIONS": 32},
    ),
]


@pytest.mark.parametrize(("capability", "latent"), TARGETS)
@pytest.mark.parametrize(("kernel", "arguments", "constants"), KERNELS)
def test_compiles(kernel, arguments, constants, capability, latent, tmp_path, monkeypatch):
    if not hasattr(kernel, "arg_names"):
        pytest.skip("the kernels are interpreted in this run")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {name: latent if kind == "LATENT" else kind for name, kind in arguments.items()}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    compiled = compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
