"""An image whose decoder ends its process, or never ends: in the processes that are started, not in this one."""

import hashlib
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
def deadly(data, *args, **kwargs):
    if hashlib.sha256(data).hexdigest() == {digest!r}:
        {way}
    return decode_jpeg(data, *args, **kwargs)
simplejpeg.decode_jpeg = deadly
"""


def make_deadly(monkeypatch, folder, data, way="crash"):
    """Have every Python that starts from now on crash, or hang, when it decodes this JPEG."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CODE.format(digest=hashlib.sha256(data).hexdigest(), way=WAYS[way]))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(folder)
