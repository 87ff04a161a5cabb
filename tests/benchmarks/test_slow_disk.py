"""The file system shows a folder as it is, and takes its time for each read."""

import errno
import os
import time

import pytest

from shardline.benchmarks import slow_disk


@pytest.fixture
def folders(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "mounted"
    (source / "inner").mkdir(parents=True)
    folder.mkdir()
    (source / "inner" / "file").write_bytes(bytes(range(256)) * 64)
    (source / "empty").touch()
    return source, folder


def mounted(source, folder, seconds):
    try:
        with slow_disk.mounted(source, folder, seconds):
            pass
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    return slow_disk.mounted(source, folder, seconds)


def test_a_folder_is_shown_as_it_is_and_gone_afterwards(folders):
    source, folder = folders
    with mounted(source, folder, 0.0):
        assert sorted(path.name for path in folder.iterdir()) == ["empty", "inner"]
        assert (folder / "inner" / "file").read_bytes() == (source / "inner" / "file").read_bytes()
        assert (folder / "empty").read_bytes() == b"" and (folder / "inner").is_dir()
        with pytest.raises(FileNotFoundError):
            (folder / "nothing").read_bytes()
        with pytest.raises(OSError) as refused:
            (folder / "new").touch()
        assert refused.value.errno == errno.EROFS
    assert not list(folder.iterdir())


def test_each_read_takes_its_time(folders):
    source, folder = folders
    with mounted(source, folder, 0.05):
        file = os.open(folder / "inner" / "file", os.O_RDONLY)
        began = time.perf_counter()
        assert os.pread(file, 4, 4096) == bytes(range(4)) and os.pread(file, 4, 8192) == bytes(range(4))
        assert time.perf_counter() - began >= 0.1
        os.close(file)


def test_where_nothing_can_be_mounted_that_is_an_error_of_the_system(folders):
    source, folder = folders
    with pytest.raises(OSError), slow_disk.mounted(source, folder / "missing", 0.0):
        pass
