"""The kernels' modules under Triton's interpreter on the CPU, and compiled on a GPU where there is one."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import instantvision.kernels


@dataclass(frozen=True)
class Bench:
    """Where a kernel is tested: its modules and the device of its tensors."""

    frame_ops: ModuleType
    step_ops: ModuleType
    temporal_ops: ModuleType
    device: str


def _interpreted(name: str) -> ModuleType:
    # Triton decides at decoration whether a kernel is interpreted. A second copy of the module, decorated under the
    # switch, leaves the module that the program uses as it is.
    spec = importlib.util.spec_from_file_location(
        f"interpreted_{name}", Path(instantvision.kernels.__path__[0]) / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def interpreted() -> Bench:
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        return Bench(*(_interpreted(name) for name in ("frame_ops", "step_ops", "temporal_ops")), "cpu")


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "interpreter":
        return request.getfixturevalue("interpreted")
    from instantvision.kernels import frame_ops, step_ops, temporal_ops

    return Bench(frame_ops, step_ops, temporal_ops, "cuda")
