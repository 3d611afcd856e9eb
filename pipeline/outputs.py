"""Files the program leaves behind: checked before anything heavy starts, and whole or not there at all."""

import os
from collections.abc import Collection
from pathlib import Path

from instantvision.pipeline.errors import SinkError


def check_output(path: Path, suffixes: Collection[str] | None = None) -> None:
    """Make sure that a file can be written to `path`, without writing it.

    Raises:
        SinkError: the ending is none of `suffixes` (None: any will do), the folder does not exist or takes no files,
            or `path` is a folder.
    """
    if suffixes is not None and path.suffix.lower() not in suffixes:
        expected = " or ".join(sorted(suffixes))
        raise SinkError(f"cannot write {path}: the name ends in {path.suffix!r}, expected {expected}")
    check_folder(path.parent)
    if path.is_dir():
        raise SinkError(f"cannot write {path}: it is a folder, expected a file name")


def check_folder(folder: Path) -> None:
    """Make sure that files can be made in a folder.

    Raises:
        SinkError: it does not exist, is no folder, or is not writable.
    """
    if not folder.exists():
        raise SinkError(f"output folder {folder} does not exist: create it with mkdir -p {folder}")
    if not folder.is_dir():
        raise SinkError(f"output folder {folder} is a file: name a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"output folder {folder} is not writable: choose another one")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is complete from the moment it has its name.

    Raises:
        SinkError: the disk is full or the folder refuses it; nothing is left behind.
    """
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise SinkError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
