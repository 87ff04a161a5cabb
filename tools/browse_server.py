"""A web server for one person on this machine: loopback only, and every address holds a secret. No TensorFlow.

What other users and the pages of other sites could try, and what stands against it:

- other users of the machine: the first part of every path is a random token, compared in constant time;
- names that lead to 127.0.0.1 (DNS rebinding): a Host header that is not this server's own is refused;
- pages that embed or read ours: no CORS, no frames, nothing for other origins; links tell nobody the address;
- names of files and classes with markup in them: all text is escaped, and the policy allows no script but ours.
"""

from __future__ import annotations

import hmac
import secrets
import sys
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.progress import log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HOST = "127.0.0.1"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Answer:
    """What is sent: bytes, their type, and whether they stay what they are."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    lasting: bool = False


class Content(Protocol):
    """What a server serves."""

    def answer(self, path: Sequence[str], query: Mapping[str, str]) -> Answer:
        """What stands at a path.

        Raises:
          LookupError: nothing does.
          UsageError: a query that cannot be answered.
          ValueError: what stands there is damaged.
        """


class Server(ThreadingHTTPServer):
    """Serves `content` to whoever knows the URL.

    Attributes:
      url: of the first page.
    """

    daemon_threads = True

    def __init__(self, content: Content, port: int = 0) -> None:
        self.content = content
        self.token = secrets.token_urlsafe(24)
        self._single_use = ""
        super().__init__((HOST, port), _Handler)
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        self.url = f"http://{HOST}:{self.server_port}/{self.token}/"

    def single_use_url(self) -> str:
        """An address that leads to `url` once: command lines, which all users see, may hold it."""
        self._single_use = secrets.token_urlsafe(24)
        return f"http://{HOST}:{self.server_port}/{self._single_use}/"

    def admits(self, secret: str) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(secret.encode(errors="replace"), self.token.encode())

    def spend(self, secret: str) -> bool:
        """Whether this is the single-use secret, which it then is no more."""
        spent = bool(self._single_use) and hmac.compare_digest(
            secret.encode(errors="replace"), self._single_use.encode()
        )
        if spent:
            self._single_use = ""
        return spent

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is nothing to tell of; anything else is one line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log(f"a request failed: {type(error).__name__}: {error}")


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that an idle connection is kept

    def do_GET(self) -> None:
        """Answer a request, or refuse it in a line of text."""
        # A body, which no GET of ours has, would be taken for the next request.
        self.close_connection |= "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            return self._refuse(403, "this server answers to its own name and port only")
        parts = urlsplit(self.path)
        secret, *path = [unquote(part) for part in parts.path.removeprefix("/").split("/")]
        if self.server.spend(secret) or (self.server.admits(secret) and not path):
            return self._send(303, b"", "text/plain", Location=f"/{self.server.token}/")
        if not self.server.admits(secret):
            return self._refuse(403, "open the address that shardline-browse printed")
        try:
            query = dict(parse_qsl(parts.query, max_num_fields=50))
            answer = self.server.content.answer(path, query)
        except LookupError:
            return self._refuse(404, "nothing is here")
        except UsageError as error:
            return self._refuse(400, str(error))
        except (ValueError, OSError, Failure) as error:
            return self._refuse(422, f"it cannot be shown: {error}")
        cache = "private, max-age=3600" if answer.lasting else "no-store"
        return self._send(200, answer.body, answer.kind, **{"Cache-Control": cache})

    do_HEAD = do_GET

    def _refuse(self, status: int, text: str) -> None:
        self._send(status, f"{text}\n".encode(errors="replace"), "text/plain; charset=utf-8")

    def _send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses itself, such as other methods, without a word of the request in the answer."""
        self.close_connection = True
        self.command = getattr(self, "command", None) or "GET"
        self._refuse(code, "this request is not understood")

    def version_string(self) -> str:
        """The `Server` header: no versions."""
        return "shardline"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: addresses hold the token."""
