"""Object stores for tests: a folder that fails when told to, in place of pyarrow's file systems; and moto's S3."""

import contextlib
import io
import os
from collections import Counter
from pathlib import Path

import pyarrow.fs

from shardline.pipeline import remote


class FolderStore:
    """What `remote` needs of a pyarrow file system, over a local folder.

    `faults` are taken in turn by each opening of a file of that name: an exception, or a function of its content.
    """

    def __init__(self, root):
        self.root, self.faults, self.opened = Path(root), {}, Counter()
        self.order = []

    def open_input_stream(self, path):
        name = os.path.relpath(path, "bucket/data")
        self.opened[name] += 1
        self.order.append(name)
        fault = self.faults[name].pop(0) if self.faults.get(name) else None
        if isinstance(fault, Exception):
            raise fault
        content = (self.root / name).read_bytes()
        return io.BytesIO(fault(content) if fault else content)

    def get_file_info(self, selector):
        found = pyarrow.fs.LocalFileSystem().get_file_info(pyarrow.fs.FileSelector(str(self.root), recursive=True))
        return [pyarrow.fs.FileInfo(i.path.replace(str(self.root), "bucket/data"), i.type, size=i.size) for i in found]


def folder_store(monkeypatch, root, cache):
    """s3://bucket/data is `root` from now on, in this process; copies are kept in `cache`."""
    store = FolderStore(root)
    monkeypatch.setattr(remote, "file_system", lambda url: (store, url.removeprefix("s3://")))
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(remote, "_ahead", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return store


@contextlib.contextmanager
def s3_server():
    """An S3 server on loopback; yields the environment in which it is found."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }
    finally:
        server.stop()
