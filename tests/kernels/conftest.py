"""The kernels' modules under Triton's interpreter on the CPU, and compiled on a GPU where there is one."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import instantvision.kernels
from instantvision.kernels.token_reference import rounded

LAYERS = (
    "softmax",
    "resample",
    "split_conv",
    "library_conv",
    "narrow_conv",
    "strip_conv",
    "taps",
    "conv3x3_kernel",
    "conv3x3",
    "group_norm",
    "linear",
    "attention_conv",
)
TOKENS = ("softmax", "attention", "gated_product", "token_ops")


@dataclass(frozen=True)
class Bench:
    """Where a kernel is tested: its modules and the device of its tensors."""

    frame_ops: ModuleType
    step_ops: ModuleType
    layer_ops: Any
    token_ops: Any
    temporal_ops: ModuleType
    device: str
    # Triton's own functions, sums and the like, that the kernels call while they are interpreted.
    library: dict[str, Any] = field(default_factory=dict)


def _interpreted(name: str) -> ModuleType:
    return _copy(Path(instantvision.kernels.__path__[0]) / f"{name}.py", f"interpreted_{name}")


def _copy(path: Path, name: str) -> ModuleType:
    # Triton decides at decoration whether a kernel is interpreted. A second copy of the module, decorated under the
    # switch, leaves the module that the program uses as it is.
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _interpreted_layers(names: tuple[str, ...]) -> SimpleNamespace:
    modules = {name: _interpreted(name) for name in names}
    # What they have of each other, as parts of kernels or layers, is to be interpreted as well.
    for module in modules.values():
        for name, value in list(vars(module).items()):
            owner = str(getattr(value, "__module__", "")).removeprefix("instantvision.kernels.")
            if owner in modules:
                setattr(module, name, getattr(modules[owner], name))
    functions = {
        name: f
        for module in modules.values()
        for name, f in vars(module).items()
        if getattr(f, "__module__", None) == module.__name__
    }
    return SimpleNamespace(**functions)


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Bench]:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    # Copies import what they build on: imported under the switch for the first time, it would stay interpreted.
    importlib.import_module("instantvision.kernels.layer_ops")
    importlib.import_module("instantvision.kernels.token_ops")
    patch_tensor = interpreter._patch_lang_tensor
    # Looks at Triton's own functions when it is imported, which the interpreter would do while they are exchanged.
    importlib.import_module("triton.experimental.gluon")

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        # A loop's bound is an array of one element, which NumPy from 2.4 on does not take for a number.
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    convert = interpreter._convert_float

    def convert_or_round(values: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        # To e4m3 the interpreter cuts digits off, and what is too large becomes NaN; a GPU does as `rounded` says.
        if (given.name, wanted.name) != ("fp32", "fp8e4nv"):
            return convert(values, given, wanted, rounding)
        return rounded(torch.from_numpy(values), torch.float8_e4m3fn).view(torch.uint8).numpy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", patch_tensor_and_index)
        patch.setattr(interpreter, "_convert_float", convert_or_round)
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.language.standard as standard

        copy = _copy(Path(standard.__file__), "triton.language.interpreted_standard")
        kinds = interpreter.InterpretedFunction
        library = {name: f for name, f in vars(copy).items() if isinstance(f, kinds)}
        bench = Bench(
            _interpreted("frame_ops"),
            _interpreted("step_ops"),
            _interpreted_layers(LAYERS),
            _interpreted_layers(TOKENS),
            _interpreted("temporal_ops"),
            "cpu",
            library,
        )
        patch.delenv("TRITON_INTERPRET")
        yield bench


@pytest.fixture
def interpreter(interpreted: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The interpreted kernels, with Triton's own functions interpreted for the time of a test."""
    import triton.language

    # Also in the module they come from: the interpreter knows sums and maxima by it, and hands them to NumPy.
    for module in (triton.language, triton.language.standard):
        for name, function in interpreted.library.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, function)
    return interpreted


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "interpreter":
        return request.getfixturevalue("interpreter")
    from instantvision.kernels import frame_ops, layer_ops, step_ops, temporal_ops, token_ops

    return Bench(frame_ops, step_ops, layer_ops, token_ops, temporal_ops, "cuda")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote to reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Make:
    """Tensors of one test: float32 for the interpreter, bfloat16 on a GPU, where float32 products are rounded."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.tolerance = 1e-5 if device == "cpu" else 2e-2
        self._seed = 0

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        self._seed += 1
        values = torch.randn(shape, generator=torch.Generator().manual_seed(self._seed)) * scale
        tensor = values.to(self.device, self.dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    def close(self, result: Tensor, expected: Tensor) -> None:
        """Every value within the tolerance of the reference, relative to the largest of all."""
        assert result.shape == expected.shape
        difference = (result.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert difference <= self.tolerance, difference

    def neighbours(self, result: Tensor, expected: Tensor, floor: float = 2e-3) -> None:
        """The same numbers of e4m3, or those beside them, an eighth of their size apart; `floor` counts near zero."""
        assert result.dtype == expected.dtype == torch.float8_e4m3fn
        assert result.shape == expected.shape
        result, expected = result.float(), expected.float()
        assert ((result - expected).abs() <= expected.abs() / 7 + floor).all()

    def exact(self, argument: Any) -> Any:
        """An argument of the reference: in float32, so that only the kernel rounds."""
        if isinstance(argument, Tensor):
            return argument.float()
        return tuple(self.exact(item) for item in argument) if isinstance(argument, tuple) else argument

    def compare(self, function: Any, expected: Any, *args: Any, **options: Any) -> None:
        """Call kernel and reference; compare all they return, moments by their sums over parts."""
        results = function(*args, **options)
        references = expected(*self.exact(args), **{key: self.exact(item) for key, item in options.items()})
        if isinstance(results, Tensor):
            results, references = (results,), (references,)
        for result, wanted in zip(results, references, strict=True):
            moments = wanted is not None and wanted.dim() == 4 and wanted.shape[2] == 2
            if moments and wanted.shape != result.shape:
                result = result.sum(1, keepdim=True)
            if wanted is None:
                assert result is None
            else:
                self.close(result, wanted)


@pytest.fixture
def make(bench: Bench) -> Make:
    return Make(bench.device)


@pytest.fixture
def make_on_cpu() -> Make:
    return Make("cpu")


@pytest.fixture
def make_on_gpu() -> Make:
    return Make("cuda")
