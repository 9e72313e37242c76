"""A stand-in for the Hugging Face hub on loopback: what its own client asks of it to make, fill and read repositories.

Small files come with the commit, others by git LFS (uploaded by their sha256), as on the hub; files are read with the
headers that the client's cache needs. Repositories live in memory, and every request is kept.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand-in-for-a-secret"
LFS = (".safetensors", ".png")
"""Endings of files that the hub keeps by LFS."""


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    """The message of the last commit of each file, where it was another than the first."""

    @property
    def sha(self) -> str:
        """Of the latest commit."""
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class Hub:
    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded by LFS, by its sha256."""
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def served() -> Iterator[Hub]:
    """A hub, until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, code: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _repository(self, name: str) -> Repository | None:
        """The repository, where this client may see it; else the hub's answer is sent."""
        repository = self.hub.repositories.get(name)
        if repository and (not repository.private or self._known()):
            return repository
        self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return None

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _start(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self._start():
            case ["api", "models", user, name, *rest] if not rest or rest[0] in ("revision", "tree"):
                repository = self._repository(f"{user}/{name}")
                if repository and rest[:1] == ["tree"]:
                    self._answer(200, [_entry(path, content) for path, content in repository.files.items()])
                elif repository:
                    info = {"id": f"{user}/{name}", "private": repository.private, "sha": repository.sha}
                    files = [{"rfilename": path} for path in repository.files]
                    self._answer(200, {**info, "siblings": files, "tags": [], "downloads": 0, "likes": 0})
            case ["api", "whoami-v2"] if self._known():
                self._answer(200, {"type": "user", "name": "me", "orgs": [], "auth": {"type": "access_token"}})
            case ["api", "whoami-v2"]:
                self._answer(401, {"error": "Invalid username or password."})
            case [user, name, "resolve", _, *parts]:
                repository = self._repository(f"{user}/{name}")
                content = repository.files.get("/".join(parts)) if repository else None
                if repository and content is None:
                    self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
                elif repository and content is not None:
                    etag = f'"{hashlib.sha256(content).hexdigest()}"'
                    self._answer(200, content, ETag=etag, X_Repo_Commit=repository.sha)
            case _:
                self._answer(404, {"error": f"the stand-in knows no {self.path}"})

    def do_POST(self) -> None:
        parts, body = self._start(), self._body()
        if not self._known():
            self._answer(401, {"error": "Invalid username or password."})
            return
        match parts:
            case ["api", "validate-yaml"]:
                content = json.loads(body)["content"]
                self._answer(200 if content.startswith("---\n") else 400, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "models", user, name, "preupload", _]:
                if self._repository(f"{user}/{name}"):
                    files = [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                    self._answer(200, {"files": files})
            case [_, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self._answer(200, {"transfer": "basic", "objects": objects})
            case ["api", "models", user, name, "commit", _]:
                repository = self._repository(f"{user}/{name}")
                if repository:
                    self._commit(repository, [json.loads(line) for line in body.splitlines()])
                    where = f"{self.hub.address}/{user}/{name}/commit/{repository.sha}"
                    self._answer(200, {"commitUrl": where, "commitOid": repository.sha})
            case ["api", "models", user, name, "paths-info", _]:
                repository = self._repository(f"{user}/{name}")
                if repository:
                    wanted = parse_qs(body.decode())["paths"]
                    self._answer(200, [_with_commit(path, repository) for path in wanted if path in repository.files])
            case _:
                self._answer(404, {"error": f"the stand-in knows no {self.path}"})

    def do_PUT(self) -> None:
        parts, body = self._start(), self._body()
        assert parts == ["lfs", hashlib.sha256(body).hexdigest()]
        self.hub.blobs[parts[1]] = body
        self._answer(200)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"})
            return
        private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        self.hub.repositories[name] = Repository(private)
        self._answer(200, {"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def _commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        summary = lines[0]["value"]["summary"]
        for line in lines[1:]:
            value = line["value"]
            repository.changes[value["path"]] = summary
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file of a repository, as the hub lists it."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
    if path.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _with_commit(path: str, repository: Repository) -> dict[str, Any]:
    """A file of a repository with its last commit, as the hub tells it to who asks for it."""
    title = repository.changes.get(path, "initial commit")
    commit = {"id": repository.sha, "title": title, "date": "2026-01-01T00:00:00.000Z"}
    return {**_entry(path, repository.files[path]), "lastCommit": commit}
