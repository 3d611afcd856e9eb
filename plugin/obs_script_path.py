"""Where the script for OBS's Tools → Scripts lies once we are installed. Imports nothing of it: only OBS can."""

from pathlib import Path


def script_path() -> Path:
    """The script's absolute path, for the user to choose in OBS."""
    return Path(__file__).resolve().with_name("obs_script.py")
