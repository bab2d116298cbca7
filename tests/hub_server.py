"""A hub of one's own on this machine: as much of the Hugging Face hub's HTTP as `huggingface_hub` needs to make a
repository, write a commit, list and download files; with owners, private repositories and outages."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class Hub:
    """`files[repository][path] = bytes`; `alice` may write to alice/..., with the token hf_alice."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.broken = False
        self.asked: list[str] = []
        hub = self

        class Handler(Answers):
            at = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repr(sorted(self.files[repository].items())).encode()).hexdigest()


class Answers(BaseHTTPRequestHandler):
    at: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def owner(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer hf_")

    def answer(self, code: int, body: bytes | dict | list = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def seen(self, repository: str) -> bool:
        """Whether the asker may know of the repository; otherwise the answer is given."""
        hidden = self.at.private.get(repository) and self.owner() != repository.split("/")[0]
        if repository in self.at.files and not hidden:
            return True
        self.answer(404 if self.owner() else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.at.asked.append(path)
        words = path.strip("/").split("/")
        if self.at.broken:
            return self.answer(503, {"error": "down"})
        if words[:2] == ["api", "models"]:
            repository = "/".join(words[2:4])
            if not self.seen(repository):
                return None
            files, sha = self.at.files[repository], self.at.commit(repository)
            if words[4:5] == ["tree"]:
                oid = lambda data: hashlib.sha1(data).hexdigest()
                rows = [{"type": "file", "path": p, "size": len(d), "oid": oid(d)} for p, d in files.items()]
                return self.answer(200, rows)
            siblings = [{"rfilename": name} for name in files]
            about = {"id": repository, "sha": sha, "private": self.at.private[repository], "siblings": siblings}
            return self.answer(200, about)
        repository, name = "/".join(words[:2]), "/".join(words[4:])
        if not self.seen(repository):
            return None
        sha = self.at.commit(repository)
        if words[3] not in ("main", sha):
            return self.answer(404, {"error": "Invalid rev"}, X_Error_Code="RevisionNotFound")
        if name not in self.at.files[repository]:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        data = self.at.files[repository][name]
        return self.answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=sha)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body, path = self.rfile.read(length), unquote(urlsplit(self.path).path)
        self.at.asked.append(path)
        words = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            if not self.owner():
                return self.answer(401, {"error": "Invalid username or password."})
            if self.owner() != asked["organization"]:
                return self.answer(403, {"error": "You don't have the rights"})
            there = repository in self.at.files
            if not there:
                self.at.files[repository] = {}
                self.at.private[repository] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self.answer(409 if there else 200, {"url": f"{self.at.url}/{repository}"})
        repository = "/".join(words[2:4])
        if self.owner() != words[2]:
            return self.answer(403, {"error": "You don't have the rights"})
        if words[4] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.at.files[repository][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "deletedFile":
                del self.at.files[repository][entry["value"]["path"]]
        sha = self.at.commit(repository)
        return self.answer(200, {"commitUrl": f"{self.at.url}/{repository}/commit/{sha}", "commitOid": sha})
