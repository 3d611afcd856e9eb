"""What loads, what is refused and how it is said, and how much packing costs."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from instantvision.pipeline.checkpoint import (
    WithoutWeights,
    file_sha256,
    load_diffusers_folder,
    load_into,
    load_tensors,
    pack_int8,
    packing_errors,
    unpack,
)
from instantvision.pipeline.errors import WeightsError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "mini.safetensors"
    save_file({"weight": torch.arange(600.0).reshape(20, 30), "bias": torch.ones(20)}, path)
    return path


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_loads_with_and_without_a_hash(weights: Path) -> None:
    for expected in (None, file_sha256(weights), file_sha256(weights).upper()):
        tensors = load_tensors(weights, expected)
        assert tensors.keys() == {"weight", "bias"}
        assert torch.equal(tensors["weight"], torch.arange(600.0).reshape(20, 30))


def test_another_hash_is_refused_with_both(weights: Path) -> None:
    found = file_sha256(weights)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    message = refusal(lambda: load_tensors(weights, found))
    assert found[:12] in message
    assert file_sha256(weights)[:12] in message


@pytest.mark.parametrize("kept", [0, 4, 30, -1], ids=["empty", "no length", "half a header", "a byte short"])
def test_truncated_file_is_refused(weights: Path, kept: int) -> None:
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "cannot be read" in refusal(lambda: load_tensors(weights, None))


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: load_tensors(tmp_path / "no.safetensors", None))
    (tmp_path / "folder.safetensors").mkdir()
    assert "folder.safetensors" in refusal(lambda: load_tensors(tmp_path / "folder.safetensors", None))


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["m.bin", "m.pt", "m.pth", "m.ckpt", "m.CKPT", "m.pkl", "m.onnx", "m.safetensors"]
)
def test_pickle_is_never_read(tmp_path: Path, name: str) -> None:
    exploded = tmp_path / "exploded"
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(exploded)))
    assert name in refusal(lambda: load_tensors(tmp_path / name, None))
    assert not exploded.exists()


def test_load_into_copies_in_the_modules_dtype() -> None:
    module = nn.Linear(3, 2).to(torch.bfloat16)
    load_into(module, {"weight": torch.full((2, 3), 0.5), "bias": torch.ones(2)})
    assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight, torch.full((2, 3), 0.5, dtype=torch.bfloat16))


def test_load_into_names_what_does_not_fit() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    odd = {"weight": torch.zeros(2, 4)} | {f"extra{i}": torch.zeros(1) for i in range(5)}
    message = refusal(lambda: load_into(module, odd))
    assert "1 missing (bias)" in message
    assert "5 unexpected (extra0, extra1, extra2, …)" in message
    assert "weight is [2, 4], expected [2, 3]" in message
    assert torch.equal(module.weight, before)


def make_folder(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"in_channels": 4}')
    save_file(tensors, folder / WEIGHTS)
    return folder


def make_sharded_folder(folder: Path, weight_map: dict[str, str]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(2)}, folder / "part-1.safetensors")
    save_file({"b": torch.ones(3)}, folder / "part-2.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_folder_gives_config_and_tensors(tmp_path: Path) -> None:
    config, tensors = load_diffusers_folder(make_folder(tmp_path / "unet", {"a": torch.ones(2)}))
    assert config == {"in_channels": 4}
    assert torch.equal(tensors["a"], torch.ones(2))


def test_sharded_folder_gives_all_tensors(tmp_path: Path) -> None:
    folder = make_sharded_folder(tmp_path / "unet", {"a": "part-1.safetensors", "b": "part-2.safetensors"})
    tensors = load_diffusers_folder(folder)[1]
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"a": [0, 0], "b": [1, 1, 1]}


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "part-1.safetensors", "b": "../unet/part-2.safetensors"}, "same folder"),
        ({"a": "part-1.safetensors", "b": "part-3.safetensors"}, "part-3.safetensors does not exist"),
        ({"a": "part-1.safetensors", "c": "part-2.safetensors"}, "differ in b, c"),
        ({"a": "part-1.safetensors", "b": "part-2.bin"}, "pickled"),
        ({"a": 1}, "weight_map"),
    ],
)
def test_wrong_index_is_refused(tmp_path: Path, weight_map: dict[str, str], said: str) -> None:
    folder = make_sharded_folder(tmp_path / "unet", weight_map)
    assert said in refusal(lambda: load_diffusers_folder(folder))


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_damaged_config_is_refused(tmp_path: Path, content: str) -> None:
    folder = make_folder(tmp_path / "unet", {"a": torch.ones(2)})
    (folder / "config.json").write_text(content, encoding="latin-1")
    assert "config.json" in refusal(lambda: load_diffusers_folder(folder))


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    assert "config.json does not exist" in refusal(lambda: load_diffusers_folder(tmp_path))
    folder = make_folder(tmp_path / "unet", {"a": torch.ones(2)})
    (folder / WEIGHTS).unlink()
    assert f"{WEIGHTS} does not exist" in refusal(lambda: load_diffusers_folder(folder))
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"")
    assert "pickled" in refusal(lambda: load_diffusers_folder(folder))


def gaussian_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Channels of very different size: each needs a scale of its own.
    sizes = torch.logspace(-4, 1, 64)
    return {
        "conv.weight": torch.randn(64, 32, 3, 3, generator=generator) * sizes[:, None, None, None],
        "linear.weight": torch.randn(64, 256, generator=generator) * sizes[:, None],
        "linear.bias": torch.randn(64, generator=generator),
        "small.weight": torch.randn(4, 8, generator=generator),
    }


def test_packing_gaussian_weights_costs_less_than_a_percent(tmp_path: Path) -> None:
    tensors = gaussian_weights()
    save_file(pack_int8(tensors), tmp_path / "packed.safetensors")
    packed = load_tensors(tmp_path / "packed.safetensors", None)
    restored = unpack(packed)
    assert restored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        rows, found = tensor.reshape(len(tensor), -1), restored[name].reshape(len(tensor), -1)
        assert restored[name].shape == tensor.shape
        assert ((found - rows).norm(dim=1) / rows.norm(dim=1)).max() < 0.01
    assert max(packing_errors(tensors, packed).values()) < 0.01


def test_packed_dtypes_and_shapes() -> None:
    packed = pack_int8(gaussian_weights())
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in packed.items()} == {
        "conv.weight": (torch.int8, [64, 32, 3, 3]),
        "conv.weight.scale": (torch.float32, [64]),
        "linear.weight": (torch.int8, [64, 256]),
        "linear.weight.scale": (torch.float32, [64]),
        "linear.bias": (torch.float16, [64]),
        "small.weight": (torch.float16, [4, 8]),
    }


def test_rare_large_values_are_cut_off() -> None:
    weight = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(2))
    weight[0, 0] = 9.0
    scale = pack_int8({"weight": weight})["weight.scale"]
    assert scale[0] < 9.0 / 127 * 0.99
    plain = (weight[0] / (9.0 / 127)).round() * (9.0 / 127)
    restored = unpack(pack_int8({"weight": weight}))["weight"]
    assert (restored[0] - weight[0]).norm() < (plain - weight[0]).norm()


def test_zeros_stay_zeros_and_dtype_is_asked_for() -> None:
    tensors = {"weight": torch.zeros(32, 32)}
    assert torch.equal(unpack(pack_int8(tensors))["weight"], tensors["weight"])
    assert packing_errors(tensors, pack_int8(tensors)) == {"weight": 0.0}
    assert unpack(pack_int8(gaussian_weights()), torch.float16)["conv.weight"].dtype == torch.float16


def test_packing_errors_see_damage() -> None:
    tensors = gaussian_weights()
    packed = pack_int8(tensors)
    packed["conv.weight"] = -packed["conv.weight"]
    errors = packing_errors(tensors, packed)
    assert errors["conv.weight"] == pytest.approx(2.0, abs=0.01)
    assert errors["linear.weight"] < 0.01


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"ids": torch.arange(3)}, "torch.int64"),
        ({"weight": torch.full((32, 32), torch.nan)}, "not finite"),
        ({"bias": torch.tensor([1e5])}, "float16"),
        ({"w": torch.zeros(32, 32), "w.scale": torch.ones(32)}, "w.scale"),
    ],
)
def test_what_cannot_be_packed_is_refused(tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pack_int8(tensors)


def test_int8_without_its_scale_is_refused() -> None:
    packed = pack_int8({"weight": torch.ones(32, 32)})
    assert "missing" in refusal(lambda: unpack({"weight": packed["weight"]}))
    assert "[3]" in refusal(lambda: unpack(packed | {"weight.scale": torch.ones(3)}))


def test_modules_without_weights_draw_no_random_numbers() -> None:
    before = torch.get_rng_state()
    with WithoutWeights():
        module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(8, 8), nn.Embedding(4, 8))
    assert torch.equal(torch.get_rng_state(), before)
    weights = {name: torch.full_like(value, 0.5) for name, value in module.state_dict().items()}
    load_into(module, weights)
    assert all(parameter.detach().eq(0.5).all() for parameter in module.parameters())


def test_load_into_can_share_tensors() -> None:
    module = nn.Linear(3, 2)
    weight = torch.full((2, 3), 0.5, dtype=torch.bfloat16)
    load_into(module, {"weight": weight, "bias": torch.ones(2)}, shared=True)
    assert module.weight.data_ptr() == weight.data_ptr()
    assert module.weight.dtype == torch.bfloat16
