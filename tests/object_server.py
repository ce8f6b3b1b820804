"""A real S3 server (moto, a process of its own) and a proxy in front of it that can misbehave on command.

Fixtures (`tests/conftest.py`):

- `s3_server` (session): `http://127.0.0.1:PORT` of moto's server.
- `s3` (function): a fresh bucket behind a fresh proxy; see `Bucket`. AWS_… variables of the process are set to it.
- `remote` (function): the digits' working folder, its samples and features in that bucket.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""
GS_SERVER = """
import socket, sys
from gcp_storage_emulator.server import create_server
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = create_server("127.0.0.1", port, in_memory=True)
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop()
"""
ERRORS = {
    403: "AccessDenied",
    409: "ConditionalRequestConflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}
LOST, SLOW, RESET = "lost response", "slow", "reset"
"""Forward the request and drop the answer; answer after the client's timeout; drop the connection unread."""
SLOW_S = 3.0


@dataclass
class Fault:
    """What to do with the next `times` requests whose "METHOD /bucket/key?query" the pattern finds."""

    pattern: str
    what: int | str
    times: int = 1
    met: int = 0


@dataclass
class Proxy:
    """Forwards HTTP requests to `target`, each at a time among those that write, and misbehaves as told."""

    target: str
    faults: list[Fault] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    ignore_conditions: bool = False
    """Behave as a store that knows no conditional writes."""
    on_request: Callable[[str], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writes: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, pattern: str, what: int | str, times: int = 1) -> Fault:
        """Do this to the next matching requests: a status (403, 409, 429, 500, 503), LOST, SLOW or RESET."""
        fault = Fault(pattern, what, times)
        with self._lock:
            self.faults.append(fault)
        return fault

    def count(self, pattern: str) -> int:
        """Requests so far that the pattern finds."""
        return sum(re.search(pattern, line) is not None for line in list(self.log))

    def kinds(self) -> Counter[str]:
        """Requests so far by method."""
        return Counter(line.split()[0] for line in list(self.log))

    def take(self, line: str) -> int | str | None:
        """Log a request, and what to do to it."""
        with self._lock:
            self.log.append(line)
            for fault in self.faults:
                if fault.met < fault.times and re.search(fault.pattern, line):
                    fault.met += 1
                    return fault.what
        return None

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, list[Any], bytes]:
        """Send on, and the answer."""
        # The servers check a condition and write in two steps: a real store does it in one.
        with self._writes if method in ("PUT", "DELETE", "POST") else threading.Lock():
            wanted = re.search(r"[?&]ifGenerationMatch=(\d+)", path)
            if wanted is not None and not self.ignore_conditions and self._generation(path, body) != wanted[1]:
                return 412, [("Content-Type", "application/json")], b'{"error": {"code": 412, "message": "condition"}}'
            return self._forward(method, path, headers, body)

    def _generation(self, path: str, body: bytes) -> str:
        """Generation of the object that a conditional request to Google's API is about: the emulator knows no conditions."""
        bucket = path.split("/b/")[1].split("/")[0]
        named = re.search(r"/o/([^?]+)", path)
        found = re.search(rb'\{"name": .*?\}', body)
        key = named[1] if named else quote(json.loads(found[0])["name"], safe="") if found else ""
        host = {"Host": self.target.removeprefix("http://")}
        status, _, content = self._forward("GET", f"/storage/v1/b/{bucket}/o/{key}", host, b"")
        return str(json.loads(content)["generation"]) if status == 200 else "0"

    def _forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, list[Any], bytes]:
        host, port = self.target.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    @property
    def url(self) -> str:
        """Address of the proxy."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Listen in threads of this process."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is not news."""


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *details: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        body = self._body()
        line = f"{self.command} {self.path}"
        what = self.owner.take(line)
        if self.owner.on_request is not None:
            self.owner.on_request(line)
        if what == RESET:
            return self._drop()
        if isinstance(what, int):
            return self._answer(what, [("Content-Type", "application/xml")], self._error(what))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        if self.owner.ignore_conditions:
            headers = {n: v for n, v in headers.items() if n.lower() not in ("if-match", "if-none-match")}
        if "chunked" in headers.get("Transfer-Encoding", ""):
            headers.pop("Transfer-Encoding")
            headers["Content-Length"] = str(len(body))
        status, answered, content = self.owner.forward(self.command, self.path, headers, body)
        if what == LOST:
            return self._drop()
        if what == SLOW:
            time.sleep(SLOW_S)
        self._answer(status, answered, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # answered by the base class already
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _error(self, status: int) -> bytes:
        return f"<?xml version='1.0'?><Error><Code>{ERRORS[status]}</Code><Message>injected</Message></Error>".encode()

    def _answer(self, status: int, headers: list[Any], content: bytes) -> None:
        self.send_response_only(status)
        length = len(content)
        for name, value in headers:
            if self.command == "HEAD" and name.lower() == "content-length":
                length = int(value)
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class Bucket:
    """An empty bucket behind a proxy."""

    name: str
    proxy: Proxy

    @property
    def url(self) -> str:
        """`s3://NAME`."""
        return f"s3://{self.name}"

    @property
    def options(self) -> dict[str, Any]:
        """For `open_store`, or `storage.options` of a configuration: short timeouts, so that SLOW is one."""
        return {"endpoint_url": self.proxy.url, "config_kwargs": {"read_timeout": SLOW_S / 3, "connect_timeout": 5}}

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which any AWS client, in this or another process, finds the bucket."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.proxy.url}

    def store(self) -> Any:
        """What a configuration with `storage.url: s3://NAME/unic` writes to."""
        from unic_pipe.pipeline.storage import open_store

        return open_store(f"{self.url}/unic", self.options)

    def content(self) -> dict[str, bytes]:
        """Everything in it, pointers as the tests show a working folder's links."""
        store = self.store()
        found = store.get_many(key for key in store.keys() if ".conditions" not in key)  # noqa: SIM118
        links = {k.removesuffix(".pointer"): b"-> " + v.strip() for k, v in found.items() if k.endswith(".pointer")}
        return {key: raw for key, raw in found.items() if not key.endswith(".pointer")} | links

    def client(self) -> Any:
        """fsspec's view of it, past the proxy."""
        import s3fs

        return s3fs.S3FileSystem(endpoint_url=self.proxy.target, skip_instance_cache=True, use_listings_cache=False)


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def serve(script: str = SERVER) -> Iterator[str]:
    """Run a server, moto's or the emulator of Google's; its address."""
    folder = Path(__file__).parent
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def fresh_bucket(server: str) -> Bucket:
    """A new bucket on the server, behind a new proxy that listens."""
    proxy = Proxy(server)
    proxy.start()
    bucket = Bucket(f"bucket-{secrets.token_hex(6)}", proxy)
    status, _, content = proxy.forward("PUT", f"/{bucket.name}", {"Host": server.removeprefix("http://")}, b"")
    assert status == 200, content
    return bucket
