"""A stand-in for the Hugging Face Hub: what huggingface_hub calls to make a repository, push to it and fetch from it."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_of_the_tests"
STORED = (".safetensors", ".onnx", ".npz", ".bin")  # by LFS, as the Hub's .gitattributes has it
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub(ThreadingHTTPServer):
    """Repositories in memory, each a list of commits; what it was asked for stands in ``log``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}  # the newest last
        self.private, self.gated = set[str](), set[str]()
        self.uploads: dict[str, bytes] = {}
        self.log: list[str] = []
        self.cut = ""  # a file that breaks off half-way
        self.status = 0  # of every answer, if it is not 0

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """Commit these files and no others; return the commit."""
        commits = self.commits.setdefault(repo, [])
        commits.append((hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest(), files))
        return commits[-1][0]

    def read(self, repo: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits[repo]
        return commits[-1] if revision == "main" else next((commit for commit in commits if commit[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def answer(self, value: Any = b"", status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "") -> None:
        self.answer({"error": code or "refused"}, status, **({"X_Error_Code": code} if code else {}))

    def begin(self) -> tuple[str, bytes]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        self.server.log.append(f"{self.command} {path}")
        return path, body

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _ = self.begin()
        hub = self.server
        if hub.status:
            return self.refuse(hub.status)
        match = FILE.fullmatch(path) or re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(?:revision|tree)/(.+))?", path)
        if match is None:
            return self.refuse(404)
        repo, revision = match[1], match[2] or "main"
        if repo not in hub.commits or (repo in hub.private and not self.is_known):
            return self.refuse(404 if self.is_known else 401, "RepoNotFound")
        if repo in hub.gated and FILE.fullmatch(path):
            return self.refuse(403, "GatedRepo")
        if (commit := hub.read(repo, revision)) is None:
            return self.refuse(404, "RevisionNotFound")
        if FILE.fullmatch(path):
            return self.send_file(commit[0], match[3], commit[1])
        if "/tree/" in path:
            return self.answer([_describe(name, data) for name, data in commit[1].items()])
        return self.answer({"id": repo, "sha": commit[0], "siblings": [{"rfilename": name} for name in commit[1]]})

    def send_file(self, commit: str, name: str, files: dict[str, bytes]) -> None:
        if name not in files:
            return self.refuse(404, "EntryNotFound")
        data = files[name]
        headers = {"X_Repo_Commit": commit, "ETag": f'"{_describe(name, data)["oid"]}"', "Accept_Ranges": "bytes"}
        if self.command == "GET" and self.server.cut == name:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first = int(span[1])
            return self.answer(data[first:], 206, Content_Range=f"bytes {first}-{len(data) - 1}/{len(data)}", **headers)
        return self.answer(data, **headers)

    def do_PUT(self) -> None:
        path, body = self.begin()
        self.server.uploads[path.rpartition("/")[2]] = body
        self.answer()

    def do_POST(self) -> None:
        path, body = self.begin()
        hub = self.server
        if hub.status:
            return self.refuse(hub.status)
        if not self.is_known:
            return self.refuse(401)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in hub.commits:
                return self.answer({"url": f"{hub.endpoint}/{repo}", "id": repo}, 409)
            hub.put(repo, {".gitattributes": b""})
            hub.private |= {repo} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self.answer({"url": f"{hub.endpoint}/{repo}", "id": repo})
        if path.endswith("/info/lfs/objects/batch"):
            missing = [part for part in json.loads(body)["objects"] if part["oid"] not in hub.uploads]
            uploads = [{**p, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{p['oid']}"}}} for p in missing]
            return self.answer({"objects": uploads, "transfer": "basic"})
        repo, verb, revision = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)", path).groups()
        if (before := hub.read(repo, revision)) is None:
            return self.refuse(404, "RevisionNotFound")
        if verb == "preupload":
            named = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(STORED) else "regular" for name in named}
            return self.answer({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
        files = dict(before[1])
        for line in map(json.loads, body.splitlines()):
            name = line["value"].get("path", "")
            if line["key"] == "deletedFile":
                del files[name]
            elif line["key"] == "lfsFile":
                files[name] = hub.uploads[line["value"]["oid"]]
            elif line["key"] == "file":
                files[name] = base64.b64decode(line["value"]["content"])
        commit = hub.put(repo, files)
        return self.answer({"success": True, "commitOid": commit, "commitUrl": f"{hub.endpoint}/{repo}/commit/{commit}"})


def _describe(name: str, data: bytes) -> dict[str, Any]:
    """An entry of a tree, as the Hub describes it."""
    if name.endswith(STORED):
        oid = hashlib.sha256(data).hexdigest()
        return {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": oid,
            "lfs": {"oid": oid, "size": len(data), "pointerSize": 1},
        }
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": oid}


@contextmanager
def open_hub(cache: Path) -> Iterator[Hub]:
    """Let huggingface_hub speak to a stand-in, with a cache and a token of its own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    hub = Hub()
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)  # what HF_ENDPOINT sets when it is imported
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr("time.sleep", lambda seconds: None)  # as between attempts
        disable_progress_bars()
        try:
            yield hub
        finally:
            enable_progress_bars()
            hub.shutdown()
            hub.server_close()
