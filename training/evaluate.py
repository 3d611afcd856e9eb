"""Measure the packaged weights on photos that were never trained on.

    python -m instantvision.training.evaluate PHOTOS [--photos N] [--styled N] [--sheet FILE]

Prints JSON: PSNR of the autoencoder at 512x512; for each style PSNR of 8 steps against 50 and against the painter.
With --sheet also a picture of all styles beside their painters.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.mini import Mini
from instantvision.training.bank import load_photos
from instantvision.training.painters import PAINTERS, paint

RECONSTRUCTION_PX = 512
STYLED_PX = 384


def square(image: Tensor, side: int) -> np.ndarray:
    """Centre square of uint8 [3, H, W], resized to [side, side, 3]."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    edge = min(picture.width, picture.height)
    left, top = (picture.width - edge) / 2, (picture.height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return np.array(picture.resize((side, side), Image.Resampling.LANCZOS, box=box))


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@torch.inference_mode()
def reconstruction_psnr_db(model: Mini, pictures: Sequence[np.ndarray]) -> float:
    """Mean PSNR of decode(encode(picture)) over uint8 [H, W, 3] pictures."""
    values = []
    for picture in pictures:
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(model.device, model.dtype)
        output = model.decode(model.encode(F.pixel_unshuffle(pixels / 127.5 - 1, model.fold)))
        folded = F.pixel_shuffle(output.float(), model.fold)[0].permute(1, 2, 0)
        restored = ((folded + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
        values.append(psnr_db(picture, restored))
    return float(np.mean(values))


def painted(style: str, picture: np.ndarray) -> np.ndarray:
    """What the style's painter makes of a uint8 [H, W, 3] picture."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    target = paint(style, pixels, picture.shape[0] / 512, 0)
    return (target[0].permute(1, 2, 0) * 255).round().byte().numpy()


def stylise(model: Mini, style: str, picture: np.ndarray, steps: int) -> np.ndarray:
    """One picture through the engine; presets of one style have the style's name."""
    size = Size(picture.shape[1], picture.shape[0])
    engine = Engine(model, Settings(mix=Mix.parse(style), size=size, steps=steps, temporal="noise"))
    try:
        return engine.stylise(picture)
    finally:
        engine.close()


def evaluate(folder: Path, photos: int, styled: int, sheet: Path | None) -> dict[str, object]:
    """All figures, and the sheet if asked for."""
    model = Mini.load("cuda" if torch.cuda.is_available() else "cpu")
    held_out = load_photos(folder, held_out=True)
    chosen = np.linspace(0, len(held_out.images) - 1, min(photos, len(held_out.images))).round().astype(int)
    psnr = reconstruction_psnr_db(model, [square(held_out.images[i], RECONSTRUCTION_PX) for i in chosen])
    people = [
        image for image, name in zip(held_out.images, held_out.classes, strict=True) if name == "people"
    ]
    pictures = [square(image, STYLED_PX) for image in people[:styled]]
    rows, styles = [np.hstack([p for p in pictures for _ in range(2)])], {}
    for style in PAINTERS:
        eight = [stylise(model, style, p, 8) for p in pictures]
        fifty = [stylise(model, style, p, 50) for p in pictures]
        targets = [painted(style, p) for p in pictures]
        styles[style] = {
            "psnr_8_against_50_steps_db": float(
                np.mean([psnr_db(a, b) for a, b in zip(eight, fifty, strict=True)])
            ),
            "psnr_8_steps_against_painter_db": float(
                np.mean([psnr_db(a, b) for a, b in zip(eight, targets, strict=True)])
            ),
        }
        rows.append(np.hstack([x for pair in zip(targets, eight, strict=True) for x in pair]))
    if sheet:
        Image.fromarray(np.vstack(rows)).save(sheet)
    return {
        "held_out_photos": len(held_out.images),
        "autoencoder_psnr_db": psnr,
        "autoencoder_photos": len(chosen),
        "styles": styles,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of photos, as in training")
    parser.add_argument("--photos", type=int, default=48, help="held-out photos for the autoencoder")
    parser.add_argument("--styled", type=int, default=3, help="held-out people for the styles")
    parser.add_argument(
        "--sheet", type=Path, help="write a picture: painter and model side by side, a row a style"
    )
    args = parser.parse_args()
    print(json.dumps(evaluate(args.folder, args.photos, args.styled, args.sheet), indent=2))


if __name__ == "__main__":
    main()
