"""A server on this machine with as much of the Hugging Face hub's protocol as downloads and uploads of files need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_ours"
"""The one that it knows."""


class Hub:
    """Repositories in memory, and whom it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        """`files`: by the path of their address, `/OWNER/NAME/resolve/main/FILE`."""
        self.asked: list[str] = []
        self.files = files
        self.made: list[dict[str, Any]] = []
        """Repositories, as they were asked for."""
        self.large: dict[str, bytes] = {}
        """What was uploaded beside the commits, by SHA-256."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.asked.append(self.path)
                body = files.get(self.path)
                self.send_response(200 if body is not None else 404)
                if body is None:
                    self.send_header("X-Error-Code", "EntryNotFound" if "/lab/small" in self.path else "RepoNotFound")
                else:
                    self.send_header("X-Repo-Commit", "0" * 40)
                    self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()

            def do_GET(self) -> None:
                if self.path == "/api/whoami-v2":
                    self.answer({"type": "user", "name": "lab"})
                    return
                self.do_HEAD()
                self.wfile.write(files.get(self.path, b""))

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                lines = [json.loads(line) for line in raw.splitlines()]
                self.answer(hub.posted(self.path, lines))

            def do_PUT(self) -> None:
                hub.large[self.path.removeprefix("/large/")] = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer({})

            def answer(self, body: dict[str, Any]) -> None:
                hub.asked.append(self.path)
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}" or self.path.startswith("/large/")
                raw = json.dumps(body if known else {"error": "Invalid token"}).encode()
                self.send_response(200 if known else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.template = self.address + "/{repo_id}/resolve/{revision}/{filename}"

    def posted(self, path: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        """What is answered to a question, and done about it."""
        if path == "/api/repos/create":
            self.made += lines
            return {"url": f"{self.address}/{lines[0]['organization']}/{lines[0]['name']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            named = [file["path"] for file in lines[0]["files"]]
            mode = {True: "lfs", False: "regular"}
            return {
                "files": [
                    {"path": n, "uploadMode": mode[n.endswith(".safetensors")], "shouldIgnore": False} for n in named
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            asked = lines[0]["objects"]
            links = [{"upload": {"href": f"{self.address}/large/{each['oid']}"}} for each in asked]
            return {"objects": [{**each, "actions": link} for each, link in zip(asked, links, strict=True)]}
        found = re.fullmatch(r"/api/models/(.+)/commit/main", path)
        assert found is not None, path
        for line in lines:
            value = line["value"]
            if line["key"] != "header":
                body = base64.b64decode(value["content"]) if line["key"] == "file" else self.large[value["oid"]]
                self.files[f"/{found[1]}/resolve/main/{value['path']}"] = body
        return {"commitUrl": f"{self.address}/{found[1]}/commit/{'0' * 40}", "commitOid": "0" * 40}

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
        self.server.server_close()
