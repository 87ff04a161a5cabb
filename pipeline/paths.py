"""Where a flag may point: the one place that takes a file or folder's name apart. No TensorFlow.

Names are local but for those that may lie in an object store (`pipeline.object_store`). Any other address is refused
before any work, so that no command ever makes a local folder called `s3:`.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

# What a field's name may be of. any: either, or a word or pattern of its own; dataset: a folder, here or in a store;
# source: what any may be, or a file or folder in a store, also after SPLIT=.
KINDS = ("folder", "file", "any", "dataset", "source")

_REMOTE = "s3|s3a|s3n|gs|gcs|https?|hdfs|abfss?|az|wasbs?|adl|memory|ftp|sftp|ssh|scp|hf|oss|dbfs|webhdfs|arn"
# With or without slashes (pathlib merges them), also after a folder or SPLIT=, between quotation marks or with a space;
# and SCHEME:/ or HOST:/ of any kind. A store's without its colon is no folder called s3.
_ADDRESS = re.compile(
    rf"""^[\s"']*({_REMOTE})\s*:|^(s3|gs|https?)//|[/=]\s*({_REMOTE}):(?:/|$)|^([a-z][a-z0-9+.@-]+):/""", re.IGNORECASE
)
_STORE = re.compile("(s3|gs)://", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_BUCKET = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
_COPY = {
    "s3": "`aws s3 sync`, or mount it with mountpoint-s3",
    "gs": "`gcloud storage rsync`, or mount it with gcsfuse",
    "http": "`curl` or `wget`",
    "https": "`curl` or `wget`",
}


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Whether a name that `local_path` let pass is one in an object store."""
    return bool(_STORE.match(os.fspath(name)))


def absolute(name: str) -> str:
    """The same place for whoever stands in another folder."""
    return name if is_remote(name) else os.path.abspath(name)


def local_path(name: str, kind: str) -> str:
    """The path that a name given by a user means on this machine: `~` and `file://` are resolved.

    An address of an object store stays one where `kind` is dataset or source.

    Raises:
      ValueError: what to do instead, for an empty name, an address, a NUL, an unknown user's home, a file where `kind`
        says folder, or the other way round.
    """
    if not name:
        raise ValueError(f"is empty; name a {'file or folder' if kind in ('any', 'source') else kind}")
    if "\0" in name:
        raise ValueError("holds a NUL character, which no file's name can; leave it out")
    if name.lower().startswith("file://"):
        name = _of_url(name)
    if kind in ("dataset", "source") and is_remote(name):
        return _address(name)
    split, mark, rest = name.partition("=")
    if kind == "source" and mark and is_remote(rest):
        return f"{split}={_address(rest)}"
    if found := _ADDRESS.search(name):
        scheme = found[found.lastindex or 0].lower()
        copy = _COPY.get(scheme, "a program that knows the place")
        if kind in ("dataset", "source"):
            fault = "an address is not written so" if scheme in ("s3", "gs") else f"{scheme}: is not known"
            raise ValueError(f"{fault}; name s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or a local place")
        raise ValueError(f"{scheme}: cannot be read or written yet; name a local place, and copy with {copy}")
    if name.startswith("~") and not os.path.lexists(name):
        home = os.path.expanduser(name)
        if home.startswith("~"):
            raise ValueError(f"no user is called {name[1:].partition('/')[0]!r}; give the path in full, or ./{name}")
        name = home
    if kind in ("folder", "dataset") and os.path.exists(name) and not os.path.isdir(name):
        raise ValueError("is a file; name a folder")
    if kind == "file" and os.path.isdir(name):
        raise ValueError("is a folder; name a file")
    return name


def _address(url: str) -> str:
    scheme, _, place = url.rstrip("/").partition("://")
    bucket, _, folder = place.partition("/")
    if "@" in bucket:
        raise ValueError("holds credentials, which would be stored with the run; give them by the environment")
    if not bucket or not folder:
        raise ValueError("names no folder of a bucket; name s3://BUCKET/FOLDER")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"{bucket!r} is no name of a bucket; name s3://BUCKET/FOLDER, and a server by AWS_ENDPOINT_URL"
        )
    if any(part in ("", ".", "..") for part in folder.split("/")) or _CONTROL.search(folder):
        raise ValueError("has a part that is empty, . or .., or holds a control character; leave it out")
    return f"{scheme.lower()}://{place}"


def _of_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"is a file of another host, {parts.netloc!r}; copy or mount it")
    return unquote(parts.path)
