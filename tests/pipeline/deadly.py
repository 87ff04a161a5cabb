"""An image whose decoder ends its process, or never ends: in the processes that are started, not in this one."""

import hashlib
import inspect
import os

WAYS = {
    "crash": "ctypes.string_at(0)",  # a real segfault
    "hang": "time.sleep(600)",
    "memory": "raise MemoryError",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",  # as the kernel does when memory runs out
}
CODE = """
import ctypes, hashlib, os, signal, time
import simplejpeg
decode_jpeg = simplejpeg.decode_jpeg
{digest_of}
def deadly(data, *args, **kwargs):
    if digest_of(data) == {digest!r}:
        {way}
    return decode_jpeg(data, *args, **kwargs)
simplejpeg.decode_jpeg = deadly
"""


def digest_of(data):
    """Of a JPEG but for its number of rows: who wants the upper ones alone tells the decoder that there are no more."""
    data = bytes(data)
    rows = data.find(b"\xff\xc0") + 5
    return hashlib.sha256(data[:rows] + data[rows + 2 :]).hexdigest()


def make_deadly(monkeypatch, folder, data, way="crash"):
    """Have every Python that starts from now on crash, or hang, when it decodes this JPEG."""
    folder.mkdir()
    code = CODE.format(digest_of=inspect.getsource(digest_of), digest=digest_of(data), way=WAYS[way])
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(folder)
