"""What the user must do to have a virtual camera, on this very system. Standard library only."""

import platform as running
import sys
from pathlib import Path

MODPROBE = 'sudo modprobe v4l2loopback devices=1 exclusive_caps=1 card_label="Instant Vision"'

# First word of ID or ID_LIKE in os-release that is known decides.
INSTALL = {
    "debian": "sudo apt install v4l2loopback-dkms",
    "ubuntu": "sudo apt install v4l2loopback-dkms",
    "fedora": "sudo dnf install v4l2loopback (from RPM Fusion)",
    "arch": "sudo pacman -S v4l2loopback-dkms",
    "suse": "sudo zypper install v4l2loopback-kmp-default",
    "opensuse": "sudo zypper install v4l2loopback-kmp-default",
}


def install_hint(
    platform: str = sys.platform,
    os_release: Path = Path("/etc/os-release"),
    modules: Path = Path("/lib/modules"),
) -> str:
    """One line: the commands or steps that give this system a virtual camera.

    Args:
        platform: sys.platform.
        os_release: the file that names the distribution.
        modules: the folder of kernel modules: where the driver is installed, loading it is enough.
    """
    if platform == "win32":
        return "install OBS Studio (https://obsproject.com), which brings the virtual camera"
    if platform == "darwin":
        return "install OBS Studio 30 or newer (https://obsproject.com) and start its virtual camera once"
    if _installed(modules):
        return f"load its driver with: {MODPROBE}"
    for word in _distribution(os_release):
        if word in INSTALL:
            return f"install its driver with: {INSTALL[word]} && {MODPROBE}"
    return f"install the package v4l2loopback of your distribution, then: {MODPROBE}"


def _installed(modules: Path) -> bool:
    index = modules / running.release() / "modules.dep"
    return index.is_file() and "/v4l2loopback.ko" in index.read_text(encoding="utf-8", errors="replace")


def _distribution(os_release: Path) -> list[str]:
    """ID, then the words of ID_LIKE."""
    if not os_release.is_file():
        return []
    lines = os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    return (pairs.get("ID", "") + " " + pairs.get("ID_LIKE", "")).replace('"', "").lower().split()
