"""What a measurement was taken on: hardware, versions, commit, and the GPU's energy counter."""

import contextlib
import importlib.metadata
import logging
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from instantvision import kernels

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything needed to read a figure again later.

    Args:
        device: name of the GPU or CPU.
        cuda: version torch was built with; None on a CPU.
        kernels: implementation and reason.
        commit: of the checkout, with `-dirty` for changed files; None outside of a checkout.
        date: UTC, ISO 8601.
    """

    device: str
    platform: str
    python: str
    torch: str
    triton: str | None
    cuda: str | None
    kernels: str
    commit: str | None
    date: str


def describe_machine(device: torch.device, commit: str | None = None) -> Machine:
    """The machine as seen from this process, where whoever names the commit knows better than the checkout."""
    gpu = device.type == "cuda"
    return Machine(
        device=torch.cuda.get_device_name(device) if gpu else _cpu_name(),
        platform=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton") or _version("triton-windows"),
        cuda=torch.version.cuda if gpu else None,
        kernels=str(kernels.choose(device.type)),
        commit=commit or _commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """What a GPU's speed depends on at the moment of asking."""

    sm_clock_mhz: int
    memory_clock_mhz: int
    temperature_c: int
    power_limit_w: float


class EnergyCounter:
    """The energy a GPU has used since its driver was loaded, in joules; closed after use.

    Args:
        device: of torch.

    `reason` says why there is no counter; None if there is one.
    """

    def __init__(self, device: torch.device) -> None:
        self.reason: str | None = None
        self._nvml: Any = None
        if device.type != "cuda":
            self.reason = "the device is no NVIDIA GPU"
            return
        try:
            import pynvml
        except ImportError:
            self.reason = "nvidia-ml-py is not installed: pip install nvidia-ml-py"
            return
        try:
            pynvml.nvmlInit()
            # By its identity: CUDA_VISIBLE_DEVICES renumbers the devices of torch, not those of NVML.
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            self._nvml = pynvml
        except pynvml.NVMLError as error:
            self.reason = f"the GPU's energy counter cannot be read ({error})"

    def read_j(self) -> float | None:
        """The counter's value, to 0.001 J, renewed by the GPU some ten times a second; None without a counter."""
        if self._nvml is None:
            return None
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def state(self) -> GpuState | None:
        """Clocks, temperature and power limit now; None without a counter or where the GPU does not tell them."""
        nvml = self._nvml
        if nvml is None:
            return None
        try:
            return GpuState(
                sm_clock_mhz=nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM),
                memory_clock_mhz=nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_MEM),
                temperature_c=nvml.nvmlDeviceGetTemperature(self._handle, nvml.NVML_TEMPERATURE_GPU),
                power_limit_w=nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1e3,
            )
        except nvml.NVMLError as error:
            log.info("the GPU does not tell its clocks (%s)", error)
            return None

    def close(self) -> None:
        """Let go of the driver's library."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None


@contextlib.contextmanager
def energy_counter(device: torch.device) -> Iterator[EnergyCounter]:
    """An EnergyCounter that is closed at the end of the block."""
    counter = EnergyCounter(device)
    try:
        yield counter
    finally:
        counter.close()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    root, git = Path(__file__).resolve().parents[1], shutil.which("git")
    # Installed inside some other project's checkout, its commit would say nothing about this program.
    if git is None or not (root / ".git").exists():
        return None
    # The tags are left out so that it is always a hash. S603: nothing in the command comes from outside.
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or None
