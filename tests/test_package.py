"""What is installed: the files of the wheel, and that our module names get in nobody's way."""

import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEIGHTS_MAX_BYTES = 32_000_000
CODE = ("plugin", "pipeline", "kernels", "integrations", "training")
DATA_SUFFIXES = {
    "plugin": {".py", ".html", ".js", ".css", ".jpg"},
    "pipeline": {".py", ".html", ".toml", ".jpg", ".json", ".safetensors"},
    "kernels": {".py"},
    "integrations": {".py"},
    "training": {".py", ".md"},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built by the backend itself in a process of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    program = f"from scikit_build_core.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("instantvision-*.whl")))


def committed_files() -> set[str]:
    """Paths of the source files below the folders that are packaged, as they are installed."""
    paths = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path for path in paths if path.suffix in DATA_SUFFIXES[path.relative_to(ROOT).parts[0]]]
    return {f"instantvision/{path.relative_to(ROOT).as_posix()}" for path in kept} | {"instantvision/cli.py"}


def test_the_wheel_holds_the_program_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if not name.endswith("/")}
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == committed_files()
    assert not [name for name in names if "__pycache__" in name or "test" in Path(name).parts]


def test_the_wheel_holds_the_licences_and_the_console_script(wheel: zipfile.ZipFile) -> None:
    metadata = {name.split(".dist-info/")[1] for name in wheel.namelist() if ".dist-info/" in name}
    assert {"licenses/LICENSE", "licenses/NOTICE.md", "entry_points.txt", "METADATA"} <= metadata
    script = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"instantvision = instantvision.cli:main" in wheel.read(script)


def test_the_wheel_holds_the_weights_within_their_size(wheel: zipfile.ZipFile) -> None:
    weights = [info for info in wheel.infolist() if info.filename.endswith(".safetensors")]
    assert len(weights) >= 2
    assert sum(info.file_size for info in weights) <= WEIGHTS_MAX_BYTES


def test_the_console_script_is_the_installed_one() -> None:
    (script,) = entry_points(group="console_scripts", name="instantvision")
    assert script.value == "instantvision.cli:main"


@pytest.fixture
def stub_kernels(tmp_path: Path) -> Path:
    """A folder with a stand-in for the PyPI package `kernels`, which diffusers looks for, version and all."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(*_): ...\n")
    info = tmp_path / "kernels-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 9.9.9\n")
    return tmp_path


def test_diffusers_finds_the_package_kernels_and_not_ours(stub_kernels: Path) -> None:
    # Like the console script, a file outside the checkout, started in the checkout: its own folder is on the path.
    script = stub_kernels / "instantvision-like"
    script.write_text(
        "import kernels, diffusers, instantvision.kernels\n"
        "from diffusers.utils.import_utils import is_kernels_available\n"
        "assert is_kernels_available()\n"
        "assert instantvision.kernels.__file__ != kernels.__file__\n"
        "print(kernels.__file__)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(stub_kernels)


def test_the_console_script_starts_in_the_checkout() -> None:
    script = Path(sys.executable).with_name("instantvision")
    done = subprocess.run([script, "presets", "list"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
