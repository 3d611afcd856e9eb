"""Put trained weights into the package: int8 per output channel, with their hashes.

    python -m instantvision.training.export OUT

Reads OUT/autoencoder.safetensors and OUT/denoiser.safetensors, writes pipeline/weights/, prints what packing cost.
"""

import argparse
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from instantvision.pipeline.checkpoint import file_sha256, pack_int8, packing_errors
from instantvision.pipeline.mini import AUTOENCODER_FILE, DENOISER_FILE, MANIFEST_FILE, WEIGHTS_FOLDER

# All weights in the repository together, so that the checkout stays light.
LIMIT_BYTES = 32_000_000


def export(out: Path) -> None:
    """Pack both networks.

    Raises:
        ValueError: together they are larger than the limit.
    """
    sources = {AUTOENCODER_FILE: out / "autoencoder.safetensors", DENOISER_FILE: out / "denoiser.safetensors"}
    with safe_open(sources[DENOISER_FILE], "pt") as file:
        styles = file.metadata()["styles"].split(",")
    for name, source in sources.items():
        tensors = load_file(source)
        packed = pack_int8(tensors)
        errors = packing_errors(tensors, packed)
        worst = max(errors, key=lambda key: errors[key])
        save_file(packed, WEIGHTS_FOLDER / name)
        # The library writes for the owner only; an installed program is read by everybody.
        (WEIGHTS_FOLDER / name).chmod(0o644)
        size_mb = (WEIGHTS_FOLDER / name).stat().st_size / 1e6
        print(f"{name}: {size_mb:.2f} MB, relative error at most {errors[worst]:.4f} ({worst})")
    total = sum((WEIGHTS_FOLDER / name).stat().st_size for name in sources)
    if total > LIMIT_BYTES:
        raise ValueError(f"the weights are {total / 1e6:.2f} MB, at most {LIMIT_BYTES / 1e6:.0f} MB may ship")
    manifest = {"styles": styles, "sha256": {name: file_sha256(WEIGHTS_FOLDER / name) for name in sources}}
    (WEIGHTS_FOLDER / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the checkpoints")
    export(parser.parse_args().out)


if __name__ == "__main__":
    main()
