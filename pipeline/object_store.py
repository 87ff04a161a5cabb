"""Folders of object stores: files read, written whole, listed and claimed. No TensorFlow.

obstore talks to the stores. Credentials, region and endpoint come from the usual environment: AWS_ACCESS_KEY_ID,
AWS_REGION, AWS_ENDPOINT_URL, …, the machine's or the container's role; AWS_PROFILE and ~/.aws (which need boto3);
GOOGLE_APPLICATION_CREDENTIALS.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import LOCK, atomic_writer, owner
from shardline.pipeline.stored import LIMIT_BYTES
from shardline.pipeline.text import display

_log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 4  # for each file, beside those that obstore makes for each request
PARALLEL = 16  # files that travel at once
_PAUSE_SECONDS = 0.5  # before the second attempt; doubled for each further one
_PIECE_BYTES = 1 << 20  # that a file is read by: hashed and written without the interpreter lock
_PART_BYTES = 16 << 20  # of a larger file, which appears when its last part has come
_REQUEST = {"timeout": "1day", "read_timeout": "30s", "connect_timeout": "10s"}  # slow is no fault, silence is
_WRITING = {"read_timeout": "10min"}  # which begins when a part is sent, and many may share a slow line
_RETRY = {"max_retries": 2, "retry_timeout": timedelta(seconds=30)}
_PATIENCE_SECONDS = 10.0  # with a store that has not answered this process yet, before that is said
_ERROR_LENGTH = 300  # of the store's own words
# Variables that name the endpoint, by scheme, and what obstore calls it.
_ENDPOINTS = {
    "s3": (("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "endpoint"),
    "gs": (("GOOGLE_BASE_URL",), "base_url"),
}
_ENDPOINT = re.compile("https?://[^/?#]+(/[^?#]*)?")
# Variables that become parts of a request, which obstore does not check.
_PLAIN = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    "gs": ("GOOGLE_BEARER_TOKEN",),
}


class StoredFile(NamedTuple):
    """What a store says of a file."""

    size: int  # bytes
    etag: str  # another one when the file was written again


class Store:
    """A folder of an object store.

    Its methods raise FileNotFoundError for a file that is not there, and Failure once the store has failed often.

    Args:
      url: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def read(self, name: str, limit_bytes: int = LIMIT_BYTES) -> bytes:
        """The content of a file of a sane size."""
        return self._tried(name, lambda: b"".join(self._pieces(name, limit_bytes)))

    def read_range(self, name: str, offset: int, size: int) -> memoryview:
        """Some bytes of a file, at least one; fewer at its end."""
        return self._tried(name, lambda: memoryview(client(self.url).get_range(name, start=offset, length=size)))

    def fetch(self, name: str, target: Path, sha256: str = "", *, durable: bool = True) -> None:
        """Copy a file, whole or not at all. What has another SHA-256 is fetched again."""

        def copy() -> None:
            found = hashlib.sha256()
            with atomic_writer(target, durable=durable) as file:
                for piece in self._pieces(name):
                    found.update(piece)
                    file.write(piece)
                if sha256 and found.hexdigest() != sha256:
                    raise _StoreError("its SHA-256 is not the one in the manifest")

        self._tried(name, copy)

    def sha256(self, name: str) -> str:
        """SHA-256 (hex) of a file, read piece by piece."""

        def hashed() -> str:
            found = hashlib.sha256()
            for piece in self._pieces(name):
                found.update(piece)
            return found.hexdigest()

        return self._tried(name, hashed)

    def files(self) -> dict[str, StoredFile]:
        """Every file below the folder, by its path from here on; {} where there is no such folder.

        What consoles make a folder of, an empty file with a slash at its end, is none; unless nothing lies below it.
        """

        def listed() -> dict[str, StoredFile]:
            return {name: file for name, file in self._list(client(self.url).list()) if name}

        try:
            found = self._tried("", listed)
            folders = {name[:end] for name in found for end, letter in enumerate(name) if letter == "/"}
            return {name: file for name, file in found.items() if file.size or name not in folders}
        except FileNotFoundError:  # no such bucket
            return {}

    def entries(self, folder: str) -> tuple[list[str], dict[str, StoredFile]]:
        """Names of the folders and files that stand in a folder, "" for this one."""

        def listed() -> tuple[list[str], dict[str, StoredFile]]:
            found = client(self.url).list_with_delimiter(f"{folder}/" if folder else None)
            strip = len(folder) + 1 if folder else 0
            files = {name[strip:]: file for name, file in self._list([found["objects"]]) if name[strip:]}
            return [name[strip:].rstrip("/") for name in found["common_prefixes"]], files

        try:
            return self._tried(folder, listed)
        except FileNotFoundError:  # no such bucket
            return [], {}

    def put(self, name: str, content: bytes | Path) -> str:
        """Write a file, or a copy of a local one, in place of what has this name: nobody sees half of it.

        Returns:
          The ETag that `files` and `entries` tell as long as nobody writes it again; "" where the store has none.
        """
        parts = {"chunk_size": _PART_BYTES, "max_concurrency": 4}
        return self._written(name, lambda: _bare(client(self.url, writing=True).put(name, content, **parts)["e_tag"]))

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one; False where there is."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                client(self.url).put(name, content, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return self.read(name) == content  # an attempt whose answer was lost has made it
            return True

        return self._written(name, put)

    def copy(self, name: str, target: str) -> None:
        """Give a file a second name, in place of what has it; the bytes stay in the store."""
        self._tried(name, lambda: client(self.url, writing=True).copy(name, target))

    def delete(self, names: Sequence[str]) -> None:
        """Delete files, where they are there."""

        def delete(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                client(self.url).delete(name)

        for name in names:
            self._tried(name, lambda name=name: delete(name))  # type: ignore[misc]

    @contextlib.contextmanager
    def own(self, what: str) -> Iterator[None]:
        """This process alone writes here while the context lasts; a file LOCK says which process that is.

        The lock of a process of this host that has ended is taken over; call within a lock of this host's own.

        Raises:
          Failure: another process writes here; the message names its host, process and start.
        """
        mine = f"{owner()}\n{uuid.uuid4().hex}\n".encode()
        while not self.create(LOCK, mine):
            with contextlib.suppress(FileNotFoundError):
                theirs = display(self.read(LOCK).split(b"\n")[0])
                if not _has_ended(theirs):
                    raise Failure(
                        f"{what} is in use by {theirs or 'another process'}; wait for it, or end it; if it was killed, "
                        f"delete {self.url}/{LOCK} and run the same command again, it continues"
                    )
                self.delete([LOCK])
        try:
            yield
        except BaseException:  # the first failure is the one to tell
            with contextlib.suppress(Failure):
                self.delete([LOCK])
            raise
        self.delete([LOCK])

    def _list(self, pages: Any) -> Iterator[tuple[str, StoredFile]]:
        for page in pages:
            for found in page:
                yield found["path"], StoredFile(found["size"], _bare(found["e_tag"]))

    def _pieces(self, name: str, limit_bytes: float = float("inf")) -> Iterator[bytes]:
        with _errors_of_the_store():
            stream = iter(client(self.url).get(name).stream(min_chunk_size=_PIECE_BYTES))
        read = 0
        while True:
            with _errors_of_the_store():
                piece = next(stream, None)
            if piece is None:
                return
            read += len(piece)
            if read > limit_bytes:
                raise Failure(f"{self.url}/{name} has more than {limit_bytes:,} bytes; shardline writes none so large")
            if exiting.is_set():
                raise Failure("the program ends")
            yield bytes(piece)

    def _written(self, name: str, work: Callable[[], T]) -> T:
        try:
            return self._tried(name, work)
        except FileNotFoundError:
            raise UsageError(f"{self.url}: there is no such bucket; make it, or check the address") from None

    def _tried(self, name: str, work: Callable[[], T]) -> T:
        """What `work` returns, tried again after each error of the store."""
        what = f"{self.url}/{name}" if name else self.url
        for attempt in range(1, ATTEMPTS + 1):
            began = time.monotonic()
            try:
                with _errors_of_the_store(), self._impatience(what):
                    return work()
            except FileNotFoundError as error:
                if error.errno is None:  # the store's, in many lines
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), what) from None
                raise
            except _StoreError as error:
                if remedy := _remedy(error):
                    raise Failure(f"{what}: {error}; {remedy}") from None
                if attempt == ATTEMPTS:
                    raise Failure(f"{what}: {error}, {ATTEMPTS} times; {self._last_remedy(error)}") from None
                silence = time.monotonic() - began > _PATIENCE_SECONDS and "error sending request" in error.words
                if silence and self.url not in _heard:
                    raise Failure(f"{what}: {error}; nothing answers: {self._last_remedy(error)}") from None
                _log.warning("%s: %s; trying again", what, error)
                exiting.wait(_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError

    @contextlib.contextmanager
    def _impatience(self, what: str) -> Iterator[None]:
        """Says so when a store that has not answered yet keeps silent."""
        if self.url in _heard:
            yield
            return
        timer = threading.Timer(_PATIENCE_SECONDS, _log.warning, ("%s: no answer yet; waiting for one", what))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        _heard.add(self.url)

    def _last_remedy(self, error: _StoreError) -> str:
        if "SHA-256" in error.words:
            return "upload the dataset again"
        if self.url.startswith("gs:"):
            return "check the network and the endpoint (GOOGLE_BASE_URL)"
        return "check the network, the region and the endpoint (AWS_REGION, AWS_ENDPOINT_URL)"


_heard: set[str] = set()  # addresses that have answered this process


@lru_cache(maxsize=64)
def client(url: str, *, writing: bool = False) -> Any:
    """What talks to the folder at an address."""
    from obstore.store import GCSStore, S3Store

    scheme, _, place = url.partition("://")
    bucket, _, folder = place.partition("/")
    config: dict[str, Any] = {}
    request: dict[str, Any] = _REQUEST | (_WRITING if writing else {})
    for name in _PLAIN[scheme]:
        if not re.fullmatch("[!-~]*", os.environ.get(name, "")):
            raise UsageError(f"{name} holds a space, an end of line or another letter that cannot be; set it again")
    names, key = _ENDPOINTS[scheme]
    if name := next(filter(os.environ.get, names), ""):
        config[key] = endpoint = os.environ[name]
        if not _ENDPOINT.fullmatch(endpoint) or not re.fullmatch("[!-~]+", endpoint):
            raise UsageError(
                f"{name}={display(endpoint)} is no server's address; write http://HOST:PORT or https://HOST"
            )
        request["allow_http"] = endpoint.startswith("http://")
    if scheme == "s3" and (provider := _profile()):
        config["credential_provider"] = provider
    kind: Any = S3Store if scheme == "s3" else GCSStore
    # Not by the address as a URL, of which % + ? and # mean something.
    return kind(bucket, prefix=folder, client_options=request, retry_config=_RETRY, **config)


def _profile() -> Any:
    """What takes credentials from AWS_PROFILE or ~/.aws; None where the environment has them, or there are none."""
    stored = os.path.expanduser(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
    if os.environ.get("AWS_ACCESS_KEY_ID") or not (os.environ.get("AWS_PROFILE") or os.path.exists(stored)):
        return None
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise UsageError(
            "credentials of AWS_PROFILE and ~/.aws are read by boto3, which is not installed; pip install "
            "'shardline[cloud]', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    try:
        return Boto3CredentialProvider(boto3.session.Session())
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            f"{display(str(error))}; check AWS_PROFILE and ~/.aws, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None


def _has_ended(process: str) -> bool:
    """Whether this is a process of this host that does not run any more, in the words of `owner`."""
    words = process.split()
    if len(words) < 4 or words[0] != "process" or not words[1].isdigit():
        return False
    return words[3].rstrip(",") == socket.gethostname() and owner(int(words[1])) != process


def _bare(etag: str | None) -> str:
    return (etag or "").strip('"')


class _StoreError(Exception):
    """The store, or the way to it, failed.

    Attributes:
      refused: by the store, for want of credentials or permission.
    """

    def __init__(self, words: str, *, refused: bool = False) -> None:
        super().__init__(display(words[:_ERROR_LENGTH]))
        self.words, self.refused = words, refused


@contextlib.contextmanager
def _errors_of_the_store() -> Iterator[None]:
    """Tells its errors from those of this host's disk, which are OSErrors, and keeps the line that says what it was."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except BaseError as error:
        words = " ".join(str(error).partition("\n\n")[0].split())
        if "NoSuchBucket" in words:
            raise FileNotFoundError(words) from None
        refused = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
        raise _StoreError(words, refused=refused) from None


_EXPIRED = re.compile("ExpiredToken|TokenRefreshRequired|RequestExpired|token has expired", re.IGNORECASE)
_ELSEWHERE = re.compile(
    "PermanentRedirect|AuthorizationHeaderMalformed|IncorrectEndpoint|without LOCATION|region.*wrong"
)
_UNREADABLE = re.compile("object with invalid path")
_NONE = re.compile("latest/(api/token|meta-data)|computeMetadata")  # where a machine of the cloud tells its own
_KEY_FILE = re.compile("service account|application.credentials", re.IGNORECASE)
_SKEWED = re.compile("RequestTimeTooSkewed")
_REFUSED = re.compile("InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|InvalidToken|credential", re.IGNORECASE)


def _remedy(error: _StoreError) -> str:
    """What to do about an error that the next attempt would meet again; "" for others."""
    if _EXPIRED.search(error.words):
        return "the credentials have expired: renew them (AWS_SESSION_TOKEN, `aws sso login`) and run the command again"
    if _ELSEWHERE.search(error.words):
        return "the bucket lies in another region: name it by AWS_REGION"
    if _UNREADABLE.search(error.words):
        return "rename that file: no part of a path may be empty, . or .., or hold a control character"
    if _SKEWED.search(error.words):
        return "the clock of this host is wrong: set it"
    if _KEY_FILE.search(error.words):
        return "name a file of credentials by GOOGLE_APPLICATION_CREDENTIALS"
    if _NONE.search(error.words):
        return "there are no credentials: give them by AWS_ACCESS_KEY_ID, AWS_PROFILE or GOOGLE_APPLICATION_CREDENTIALS"
    if error.refused or _REFUSED.search(error.words):
        return "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS)"
    return ""


exiting = threading.Event()  # the program ends: nothing is begun any more
