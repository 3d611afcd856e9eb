"""A model small enough to run a whole engine in milliseconds."""

import zlib
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.errors import UnknownPreset
from instantvision.pipeline.model import Conditioning, Deep, Prepared
from instantvision.pipeline.schedule import cosine_alphas_cumprod


class ToyModel:
    """A LatentModel of a few matrices: latents are shrunken pixels, the style is a colour the latents drift to."""

    fold, downsampling, latent_channels = 4, 16, 8
    prediction: Literal["epsilon", "v_prediction", "sample"] = "sample"

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.alphas_cumprod = cosine_alphas_cumprod(1000)
        generator = torch.Generator().manual_seed(7)
        basis, _ = torch.linalg.qr(torch.randn(48, self.latent_channels, generator=generator))
        self._basis = basis.T.contiguous()[:, :, None, None].to(self.device, dtype)
        self.conditions = 0

    def encode(self, pixels: Tensor) -> Tensor:
        return F.conv2d(F.avg_pool2d(pixels, 4), self._basis)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(F.conv_transpose2d(latents, self._basis), scale_factor=4)

    def condition(self, mix: Mix, size: Size) -> Conditioning:
        self.conditions += 1
        pooled = torch.zeros(1, self.latent_channels)
        for name, weight in mix.parts:
            if name == "unknown":
                raise UnknownPreset("there is no preset unknown")
            seed = zlib.crc32(name.encode())
            pooled += weight * torch.randn(pooled.shape, generator=torch.Generator().manual_seed(seed))
        return Conditioning(torch.zeros(1, 2, 4), pooled.to(self.device, self.dtype))

    def prepare(self, timesteps: Tensor, conditioning: Conditioning) -> Prepared:
        share = (timesteps / 1000).to(self.dtype)[:, None]
        return (conditioning.pooled.expand(len(timesteps), -1), share)

    def predict_prepared(self, noisy: Tensor, source: Tensor, prepared: Prepared) -> Tensor:
        colour, share = prepared
        return 0.6 * noisy + 0.3 * source + 0.1 * (1 + share[..., None, None]) * colour[:, :, None, None]


class LayeredToyModel(ToyModel):
    """A ToyModel whose look at the source is its deep part; counts both kinds of evaluations."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(device, dtype)
        self.whole = self.shallow = 0

    def predict_keeping(self, noisy: Tensor, source: Tensor, prepared: Prepared) -> tuple[Tensor, Deep]:
        self.whole += 1
        return self.predict_prepared(noisy, source, prepared), (source.clone(),)

    def predict_reusing(self, noisy: Tensor, source: Tensor, prepared: Prepared, deep: Deep) -> Tensor:
        assert deep[0].shape == source.shape
        self.shallow += 1
        return self.predict_prepared(noisy, deep[0], prepared)


@pytest.fixture
def layered_toy_model() -> LayeredToyModel:
    return LayeredToyModel()


@pytest.fixture
def layered_toy_model_on_gpu() -> LayeredToyModel:
    return LayeredToyModel("cuda", torch.bfloat16)


@pytest.fixture
def toy_model() -> ToyModel:
    return ToyModel()


@pytest.fixture
def toy_model_on_gpu() -> ToyModel:
    return ToyModel("cuda", torch.bfloat16)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def model(request: pytest.FixtureRequest) -> ToyModel:
    return request.getfixturevalue("toy_model" if request.param == "cpu" else "toy_model_on_gpu")


@pytest.fixture
def make_engine(model: ToyModel) -> Iterator[Callable[[Settings], Engine]]:
    engines: list[Engine] = []

    def make(settings: Settings) -> Engine:
        engines.append(Engine(model, settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
