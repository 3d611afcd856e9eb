"""The embedded model: autoencoder, denoiser and styles, from the weights in this package.

Implements LatentModel. Knows nothing of frames, schedules or graphs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from instantvision import kernels
from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.pipeline.checkpoint import WithoutWeights, load_into, load_tensors, unpack
from instantvision.pipeline.config import Mix, Size
from instantvision.pipeline.device import placed
from instantvision.pipeline.eight_bit import check_device
from instantvision.pipeline.errors import WeightsError
from instantvision.pipeline.fused_autoencoder import FusedAutoencoder
from instantvision.pipeline.fused_unet import FusedUNet
from instantvision.pipeline.mini_denoiser import STYLE_TOKENS, MiniDenoiser, log2_stroke_scale
from instantvision.pipeline.model import Conditioning, Deep, Prepared
from instantvision.pipeline.presets import resolve
from instantvision.pipeline.schedule import cosine_alphas_cumprod

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
MANIFEST_FILE = "mini.json"
AUTOENCODER_FILE = "mini-autoencoder.safetensors"
DENOISER_FILE = "mini-denoiser.safetensors"


class Mini:
    """Our own latent diffusion model; see training/README.md for its card.

    Args:
        autoencoder: with trained weights.
        denoiser: with trained weights.
        style_names: in the order of the denoiser's style table.
        device: where to run.
        dtype: of all arithmetic that is not a sum.
        fp8: multiply what is normalised in e4m3, where that is faster.

    Raises:
        EngineError: the GPU has no arithmetic in e4m3.
    """

    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: MiniDenoiser,
        style_names: tuple[str, ...],
        device: torch.device,
        dtype: torch.dtype,
        *,
        fp8: bool = False,
    ) -> None:
        if fp8:
            check_device(device)
        self.style_names, self.device, self.dtype = style_names, device, dtype
        # The style table stays in fp32: it is read once a preset, not once a frame.
        self._styles = denoiser.styles.to(device).eval().requires_grad_(False)
        self._unet = placed(denoiser.unet, device, dtype)
        backend = kernels.choose(device.type)
        self._autoencoder = FusedAutoencoder(placed(autoencoder, device, dtype), backend.layer_ops)
        self._fused = FusedUNet(
            self._unet, backend.layer_ops, backend.token_ops, context=STYLE_TOKENS, fp8=fp8
        )
        config = autoencoder.config
        self.fold, self.downsampling, self.latent_channels = (
            config.fold,
            config.downsampling,
            config.latent_channels,
        )
        self.alphas_cumprod = cosine_alphas_cumprod(1000)

    @classmethod
    def load(
        cls,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        folder: Path = WEIGHTS_FOLDER,
        *,
        fp8: bool = False,
    ) -> "Mini":
        """Read and check the weights.

        Args:
            device: where to run.
            dtype: None takes bfloat16 on a GPU and float32 on the CPU.
            folder: other weights than the package's.
            fp8: see the class.

        Raises:
            EngineError: the GPU has no arithmetic in e4m3.
            WeightsError: a file is missing, damaged or of another model.
        """
        device = torch.device(device)
        manifest = _manifest(folder)
        with WithoutWeights():
            autoencoder, denoiser = Autoencoder(), MiniDenoiser(len(manifest["styles"]))
        for module, name in ((autoencoder, AUTOENCODER_FILE), (denoiser, DENOISER_FILE)):
            # Unpacked where they are used: a quarter of the bytes goes there.
            packed = load_tensors(folder / name, manifest["sha256"][name], device)
            load_into(module, unpack(packed), shared=True)
        default = torch.float32 if device.type == "cpu" else torch.bfloat16
        return cls(autoencoder, denoiser, tuple(manifest["styles"]), device, dtype or default, fp8=fp8)

    def encode(self, pixels: Tensor) -> Tensor:
        """See LatentModel."""
        return self._autoencoder.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """See LatentModel."""
        return self._autoencoder.decode(latents)

    def condition(self, mix: Mix, size: Size) -> Conditioning:
        """See LatentModel."""
        return self.condition_styles(resolve(mix), size)

    @torch.no_grad()
    def condition_styles(self, styles: Mapping[str, float], size: Size) -> Conditioning:
        """Conditioning for weighted styles rather than presets.

        Args:
            styles: weights by style name, adding up to 1.
            size: of the picture; its height sets the size of strokes.

        Raises:
            WeightsError: these weights do not have such a style.
        """
        if unknown := sorted(set(styles) - set(self.style_names)):
            raise WeightsError(
                f"the weights have no style {unknown[0]!r}, they have {', '.join(self.style_names)}"
            )
        weights = torch.tensor([[styles.get(name, 0.0) for name in self.style_names]], device=self.device)
        scale = torch.tensor([log2_stroke_scale(size.height)], device=self.device)
        tokens, pooled = self._styles(weights, scale)
        return Conditioning(tokens=tokens.to(self.dtype), pooled=pooled.to(self.dtype))

    def prepare(self, timesteps: Tensor, conditioning: Conditioning) -> Prepared:
        """See LatentModel."""
        pooled = conditioning.pooled.expand(len(timesteps), -1)
        return self._fused.prepare(self._unet.embed(timesteps, class_labels=pooled), conditioning.tokens)

    def predict_prepared(self, noisy: Tensor, source: Tensor, prepared: Prepared) -> Tensor:
        """See LatentModel."""
        return self._fused((noisy, source), prepared)

    def predict_keeping(self, noisy: Tensor, source: Tensor, prepared: Prepared) -> tuple[Tensor, Deep]:
        """See ReusableModel."""
        return self._fused.keeping((noisy, source), prepared)

    def predict_reusing(self, noisy: Tensor, source: Tensor, prepared: Prepared, deep: Deep) -> Tensor:
        """See ReusableModel."""
        return self._fused.reusing((noisy, source), prepared, deep)


def _manifest(folder: Path) -> dict[str, Any]:
    """The list of styles and hashes beside the weights."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        styles, hashes = manifest["styles"], manifest["sha256"]
        complete = bool(styles) and {AUTOENCODER_FILE, DENOISER_FILE} <= hashes.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} cannot be read ({type(error).__name__}): install the program again"
        ) from error
    if not complete:
        raise WeightsError(f"{path} does not list styles and both weights files: install the program again")
    return {"styles": styles, "sha256": hashes}
