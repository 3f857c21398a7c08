"""Files that are written whole or not at all, and paths as one types them."""

import os
import time
from pathlib import Path
from threading import Thread

import pytest

from stability.core.files import open_to_read, replacing, short_path, write_atomically


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_is_kept_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_path_is_short_inside_the_current_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "outputs" / "single") == "outputs/single"
    assert short_path(Path("outputs")) == "outputs"
    assert short_path(tmp_path.parent) == str(tmp_path.parent)


def test_a_pipe_that_nobody_writes_to_is_empty_and_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open_to_read(tmp_path / "pipe") as file:
        assert file.read() == b""
    ours, theirs = os.pipe()

    def write() -> None:
        time.sleep(0.05)
        os.write(theirs, b"late")
        os.close(theirs)

    writer = Thread(target=write)
    with open_to_read(Path(f"/proc/self/fd/{ours}")) as file:
        writer.start()
        assert file.read() == b"late"
    writer.join()
    os.close(ours)
