"""A folder served in S3's language on loopback, read-only, each answer late by as much as a far store's.

    python -m shardline.benchmarks.store_server FOLDER SECONDS     # prints its port; ends with its stdin

Standard library only. s3://data/… is the folder; whoever asks is answered.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "data"


@contextlib.contextmanager
def served(folder: Path, seconds: float) -> Iterator[dict[str, str]]:
    """Within it, a process of its own serves the folder; the environment in which it is found."""
    command = [sys.executable, "-m", "shardline.benchmarks.store_server", str(folder), str(seconds)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout and process.stdin
        try:
            port = int(process.stdout.readline())
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
            }
        finally:
            process.stdin.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else answers wait up to 40 ms for the client's acknowledgement; no store does that
    folder: Path
    seconds: float

    def do_GET(self) -> None:
        time.sleep(self.seconds)
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if "list-type" in query:
            self._list(query.get("prefix", [""])[0])
        else:
            self._file(self.folder / unquote(parts.path).removeprefix(f"/{BUCKET}/"))

    def _list(self, prefix: str) -> None:
        top = self.folder / prefix.rpartition("/")[0]  # beside which much else may lie
        found = [(str(path.relative_to(self.folder)), path.stat()) for path in top.rglob("*") if path.is_file()]
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{facts.st_mtime_ns:x}&quot;</ETag><Size>{facts.st_size}</Size></Contents>"
            for name, facts in sorted(found)
            if name.startswith(prefix)
        )
        content = (
            f"<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )
        self._head(200, len(content.encode()))
        self.wfile.write(content.encode())

    def _file(self, path: Path) -> None:
        try:
            file = open(path, "rb")  # noqa: SIM115 (closed below)
        except OSError:
            content = b"<Error><Code>NoSuchKey</Code></Error>"
            self._head(404, len(content))
            self.wfile.write(content)
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            start, stop = 0, size
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(size, int(last) + 1 if last else size)
            self._head(206 if wanted else 200, stop - start, f"bytes {start}-{stop - 1}/{size}" if wanted else "")
            self.wfile.flush()
            while start < stop:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)

    def _head(self, status: int, size: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.send_header("ETag", '"1"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # one that finds no room among 5 is tried again after a second


def main() -> None:
    """Serve until stdin ends."""
    _Handler.folder, _Handler.seconds = Path(sys.argv[1]), float(sys.argv[2])
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
