from pathlib import Path

import numpy as np
import pytest

from instantvision.pipeline.errors import SinkError, SourceError
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.outputs import check_folder, check_output, write_whole
from instantvision.pipeline.pictures import read_picture, write_picture


def test_a_file_replaces_the_one_before_as_a_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", b"one")
    write_whole(tmp_path / "a.json", b"two")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"two"}


def test_a_disk_that_is_full_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"before")

    def full(self: Path, data: bytes) -> int:
        self.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SinkError, match=r"cannot write .*a\.json: No space left"):
        write_whole(path, b"after")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "before"}


def test_a_folder_is_checked_without_writing_to_it(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_output(tmp_path / "out.MP4", {".mp4"})
    check_output(tmp_path / "anything")
    with pytest.raises(SinkError, match="does not exist: create it with mkdir -p"):
        check_folder(tmp_path / "none")
    with pytest.raises(SinkError, match=r"expected \.mkv or \.mp4"):
        check_output(tmp_path / "out.avi", {".mp4", ".mkv"})
    with pytest.raises(SinkError, match="is a folder"):
        check_output(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser, whom tests may run as, can write everywhere.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SinkError, match="is not writable"):
        check_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_picture_is_read_as_it_was_written(tmp_path: Path, picture: Pixels, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    write_picture(path, picture)
    np.testing.assert_array_equal(read_picture(path), picture)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    for name, data in {"empty.png": b"", "text.png": b"no picture"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=f"{name}: it is no picture"):
            read_picture(tmp_path / name)
    with pytest.raises(SourceError, match=r"none\.png: No such file"):
        read_picture(tmp_path / "none.png")


def test_a_picture_of_an_unknown_kind_is_not_written(tmp_path: Path, picture: Pixels) -> None:
    with pytest.raises(SinkError, match=r"ends in '\.gif'"):
        write_picture(tmp_path / "out.gif", picture)
    assert list(tmp_path.iterdir()) == []
