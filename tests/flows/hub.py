"""A hub on this machine: as much of its protocol as fetching and pushing a folder of small files needs."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Repositories = dict[str, dict[str, bytes]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Answers(BaseHTTPRequestHandler):
    repositories: Repositories

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def _answer(self, content: bytes, kind: str = "application/json", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status=status)

    def _here(self, path: str) -> str:
        return f"http://{self.headers['Host']}/{path}"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            files = self.repositories.get(repo)
            if files is None:
                self._answer(b"{}", status=404, X_Error_Code="RepoNotFound")
            elif "/tree/" in path:
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self._json(entries)
            else:
                self._json({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif "/resolve/" in path:
            self._file(path)
        else:
            self._json({})

    do_HEAD = do_GET

    def _file(self, path: str) -> None:
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        content = self.repositories.get(repo, {}).get(rest.split("/", 1)[1])
        if content is None:
            self._answer(b"", status=404, X_Error_Code="EntryNotFound")
        else:
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(content, "application/octet-stream", ETag=etag, X_Repo_Commit=COMMIT)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        if self.headers.get("Authorization") != "Bearer hf_token":
            self._answer(json.dumps({"error": "no token"}).encode(), status=401)
        elif path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            self.repositories.setdefault(name, {})
            self._json({"url": self._here(name)})
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            self._json(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]}
            )
        elif "/commit/" in path:
            self._commit("/".join(path.split("/")[3:5]), body)
        else:
            self._json({})

    def _commit(self, repo: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.repositories[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self._json({"commitUrl": self._here(f"{repo}/commit/{COMMIT}"), "commitOid": COMMIT, "pullRequestUrl": None})


@contextmanager
def local_hub(repositories: Repositories) -> Iterator[str]:
    """Serve `repositories` (name → path → content) at the address that is yielded; what is pushed is added to them."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"repositories": repositories}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
