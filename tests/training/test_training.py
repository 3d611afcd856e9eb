"""Training from end to end on a handful of tiny invented photos: it runs, resumes, and refuses what does not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from instantvision.pipeline.mini import AUTOENCODER_FILE, DENOISER_FILE, MANIFEST_FILE, Mini
from instantvision.training import export as export_module
from instantvision.training import train_autoencoder, train_denoiser
from instantvision.training.bank import cut, degrade, is_held_out, load_photos, painted_batch, vary_light
from instantvision.training.distributed import World
from instantvision.training.loop import MovingAverage, Plan, Recipe, fit, learning_rate

ALONE = World(0, 1, torch.device("cpu"))
STYLES = ("photo", "risograph")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(30):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        name = f"{'people' if index % 2 else 'scene'}-{index:02d}.png"
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe that has just been run, without a minute of time: one step of each network."""
    recipe = Recipe(
        photos=photos,
        out=tmp_path_factory.mktemp("out"),
        minutes=1e-9,
        crops=1,
        batch=2,
        styles=STYLES,
        resume=False,
        compile=False,
    )
    train_autoencoder.train(recipe, ALONE)
    train_denoiser.train(recipe, ALONE)
    return recipe


def test_a_photo_is_either_trained_on_or_held_out(photos: Path) -> None:
    names = [path.name for path in photos.iterdir()]
    held_out = sum(is_held_out(name) for name in names)
    assert 0 < held_out < len(names)
    assert len(load_photos(photos, held_out=True).images) == held_out
    assert len(load_photos(photos, held_out=False).images) == len(names) - held_out


def test_a_folder_without_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_photos(tmp_path, held_out=False)


def test_people_are_drawn_most_often(photos: Path) -> None:
    loaded = load_photos(photos, held_out=False)
    people = [
        weight for weight, name in zip(loaded.weights(), loaded.classes, strict=True) if name == "people"
    ]
    assert sum(people) == pytest.approx(0.6)


def test_the_same_seed_cuts_the_same_windows(photos: Path) -> None:
    loaded = load_photos(photos, held_out=False)
    first, again = (cut(loaded, 3, 1.0, np.random.default_rng(5)) for _ in range(2))
    other = cut(loaded, 3, 1.0, np.random.default_rng(6))
    assert first.shape == (3, 3, 384, 384)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_light_and_noise_vary_and_stay_in_range() -> None:
    image = torch.rand(4, 3, 96, 96)
    for vary in (vary_light, degrade):
        varied = vary(image, torch.Generator().manual_seed(1))
        assert varied.shape == image.shape
        assert varied.min() >= 0
        assert varied.max() <= 1
        assert not torch.allclose(varied, image, atol=0.01)


def test_targets_come_in_the_order_of_the_styles(photos: Path) -> None:
    batch = painted_batch(load_photos(photos, held_out=False), STYLES, 1, torch.device("cpu"), seed=2)
    assert batch.scale == 1.0
    # `photo` is the identity on the clean view.
    assert torch.equal(batch.targets[0], batch.cameras[0])
    assert not torch.allclose(batch.targets[1], batch.cameras[0], atol=0.05)


def test_the_rate_warms_up_and_falls() -> None:
    assert learning_rate(0.0, 0, 1.0) < 0.01
    assert learning_rate(0.4, 1000, 1.0) == 1.0
    assert learning_rate(0.75, 1000, 1.0) == pytest.approx(0.5)
    assert learning_rate(1.0, 1000, 1.0) == 0.01


def test_the_loop_minimises_and_calls_back_once() -> None:
    torch.manual_seed(0)
    line, calls = nn.Linear(1, 1), []
    saved: list[dict[str, Tensor]] = []

    def loss() -> Tensor:
        x = torch.randn(64, 1)
        return (line(x) - 3 * x).square().mean()

    plan = Plan(name="line", peak_rate=0.05, weight_decay=0.0, averaging=0.9, minutes=0.03, milestone=0.5)
    fit(line, loss, lambda average: saved.append(dict(average.values)), ALONE, plan, lambda: calls.append(1))
    assert len(calls) == 1
    assert saved[-1]["weight"].item() == pytest.approx(3, abs=0.2)


def test_the_average_follows_slowly() -> None:
    line = nn.Linear(1, 1)
    average = MovingAverage(line, 0.9)
    before = average.values["weight"].clone()
    with torch.no_grad():
        line.weight += 1
    average.update(iteration=1000)
    assert torch.allclose(average.values["weight"], before + 0.1)


def test_the_autoencoder_ends_with_unit_latents(trained: Recipe) -> None:
    # The milestone comes even in the shortest run: unnormalised latents would be useless to the denoiser.
    weights = load_file(trained.out / "autoencoder.safetensors")
    model = train_denoiser.frozen_autoencoder(trained, torch.device("cpu"))
    latents = model.encode(torch.rand(2, 48, 64, 64) * 2 - 1)
    assert 0.2 < latents.std() < 5
    assert set(weights) == set(model.state_dict())


def test_resuming_goes_on_from_the_checkpoint(trained: Recipe) -> None:
    model = train_denoiser.MiniDenoiser(len(STYLES))
    train_denoiser.resume(model, trained.out / "denoiser.safetensors", STYLES)
    saved = load_file(trained.out / "denoiser.safetensors")
    assert torch.equal(model.styles.tokens, saved["styles.tokens"])
    with pytest.raises(ValueError, match="ink"):
        train_denoiser.resume(model, trained.out / "denoiser.safetensors", ("photo", "ink"))


def test_what_is_exported_is_what_the_program_loads(
    trained: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "WEIGHTS_FOLDER", tmp_path)
    export_module.export(trained.out)
    assert {path.name for path in tmp_path.iterdir()} == {AUTOENCODER_FILE, DENOISER_FILE, MANIFEST_FILE}
    assert Mini.load(folder=tmp_path).style_names == STYLES


def test_weights_beyond_the_limit_are_refused(
    trained: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "WEIGHTS_FOLDER", tmp_path)
    monkeypatch.setattr(export_module, "LIMIT_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="at most 1 MB"):
        export_module.export(trained.out)
    assert not (tmp_path / MANIFEST_FILE).exists()
