"""Every kernel compiles for a GPU, on machines without one too: the interpreter accepts more than the compiler.

In processes of their own, since Triton decides once a process whether kernels are interpreted.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import instantvision.kernels

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

PROGRAM = Path(__file__).with_name("ahead_of_time.py")
# The GPU generations we care for, and the KiB of shared memory that a program may have there: Turing, data centre
# Ampere, Ada (and its consumer siblings), and Hopper, which is what we measure on.
SHARED_KIB = {75: 64, 80: 163, 89: 99, 90: 227}
# The targets of each process; importing torch and describing networks takes as long as a third of the work.
PROCESSES = ((80, 75), (90, 89))
# Of the frame and the step only: the networks' kernels want Ampere.
ON_TURING = 75
# The tiles are measured on Hopper only, whose tensor memory accelerator one kernel cannot do without.
ON_HOPPER = 90
ONLY_ON_HOPPER = {"strip_conv3x3_kernel", "line_sum_kernel", "gated_product_kernel"}


def compile_for(capabilities: tuple[int, ...], folder: Path) -> list[dict[str, object]]:
    """What the program prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, PROGRAM, *(f"{each}:{SHARED_KIB[each]}" for each in capabilities)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def compilations(tmp_path_factory) -> list[Future[list[dict[str, object]]]]:
    """One after another of each process's, all processes under way."""
    folder = tmp_path_factory.mktemp("compiled")
    with ThreadPoolExecutor(len(PROCESSES)) as pool:
        return [pool.submit(compile_for, each, folder) for each in PROCESSES]


def kernel_names() -> set[str]:
    """Of all functions in the kernels' sources that a launch can name."""
    folder = Path(next(iter(instantvision.kernels.__path__)))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        function.name
        for function in functions
        if function.name.endswith("_kernel")
        and any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)
    }


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_KIB)
def test_kernels_compile_within_shared_memory(compilations, capability):
    compiled = [each for done in compilations for each in done.result() if each["capability"] == capability]
    limit = SHARED_KIB[capability] * 1024
    too_large = [each for each in compiled if not int(each["shared"]) <= limit]
    assert not too_large
    names = {each["kernel"] for each in compiled}
    if capability == ON_TURING:
        assert {"pixels_to_input_kernel", "denoise_step_kernel", "blend_kernel"} <= names <= kernel_names()
    else:
        assert names == kernel_names() - (ONLY_ON_HOPPER if capability < ON_HOPPER else set())


@pytest.mark.slow
def test_no_register_is_spilled_on_hopper(compilations):
    compiled = [each for done in compilations for each in done.result() if each["capability"] == ON_HOPPER]
    assert compiled
    assert not [each for each in compiled if each["stack"]]


@pytest.mark.slow
def test_no_product_reads_registers_that_are_loaded_anew(compilations):
    compiled = [each for done in compilations for each in done.result()]
    assert not [each for each in compiled if each["races"]]
