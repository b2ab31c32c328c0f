"""
A Hub on loopback that speaks what huggingface_hub sends for a model repository, in memory. The client reads where the
Hub is when it is imported, so it runs in processes of its own, with the environment of [`LocalHub.environment`].
"""

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

OWNER = "someone"

# Publish without the question in a process of its own, which takes long: what another test has asked already.
UNASKED = "import llama_vid.hub; llama_vid.hub.ask_as_a_stranger = lambda files, token=None: ''\n"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


@dataclass
class Repo:
    """Files of every commit, and the commit of every branch."""

    type: str = "model"
    private: bool = False
    commits: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)  # oid: (message, files)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = (message, files), oid
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files at a branch or commit. Raises KeyError."""
        return self.commits[self.branches.get(revision, revision)][1]


class LocalHub:
    """
    Repositories, stored objects and the faults to make; a context manager that serves them.

    `uploads_before_cut`: so many objects arrive; of the next ones, half does, and the connection ends.
    """

    # Made at run time, so that no text of the repository looks like a token. One may write, the other may read.
    WRITER, READER = "hf_" + 34 * "w", "hf_" + 34 * "r"

    def __init__(self, home: Path):
        self.home = home
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []  # digests of the objects that arrived, in order
        self.uploads_before_cut = math.inf
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def create(self, repo_id: str, **options) -> Repo:
        repo = self.repos[repo_id] = Repo(**options)
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repo

    def environment(self, token: str | None = WRITER, **changes: str) -> dict[str, str]:
        """Of a process whose Hub this is. It has a home of its own, and so neither caches nor a token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        names = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        silent = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {**kept, **names, **silent, **({} if token is None else {"HF_TOKEN": token}), **changes}

    def run(
        self, *arguments: str | Path, token: str | None = WRITER, cwd: Path | None = None, **changes: str
    ) -> subprocess.CompletedProcess:
        """Run Python in such a process; no output of any may hold a token."""
        command = [sys.executable, *map(str, arguments)]
        options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
        result = subprocess.run(command, env=self.environment(token, **changes), cwd=cwd, **options)
        assert not re.search(r"hf_(\w)\1{9}", result.stdout + result.stderr)
        return result

    def llama_vid(self, *arguments: str | Path, before: str = "", **options) -> subprocess.CompletedProcess:
        """The command line, `before` which a program may run."""
        return self.run("-c", f"{before}import sys; from llama_vid.cli import main; main()", *arguments, **options)


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body=b"", status: int = 200, **headers: str):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, message: str, code: str = ""):
        self.answer({"error": message}, status, X_Error_Message=message, **({"X_Error_Code": code} if code else {}))

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return {self.hub.WRITER: "writer", self.hub.READER: "reader", "": None}.get(token, "unknown")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        if self.user() in (None, "unknown"):
            return self.refuse(401, "Invalid credentials in Authorization header")
        if url.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if url.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.user() == "reader":
            return self.refuse(403, "Forbidden: you must use a write token")
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", url.path):
            return self.answer(
                {"transfer": "basic", "objects": [*map(self.upload_action, json.loads(body)["objects"])]}
            )
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", url.path)
        repo_id, action, revision = match[1], match[2], unquote(match[3])
        repo = self.hub.repos[repo_id]
        if action == "branch":
            if revision in repo.branches:
                return self.refuse(409, f"Reference refs/heads/{revision} exists already")
            repo.branches[revision] = repo.branches["main"]
            return self.answer({})
        if revision not in repo.branches:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if action == "preupload":
            files = repo.files(revision)
            return self.answer({"files": [self.mode(file["path"], files) for file in json.loads(body)["files"]]})
        return self.commit(repo_id, revision, body, pull_request="create_pr" in parse_qs(url.query))

    def create(self, wanted: dict):
        repo_id = f"{wanted['organization'] or OWNER}/{wanted['name']}"
        if repo_id in self.hub.repos:
            prefix = {"model": "", "dataset": "datasets/"}[self.hub.repos[repo_id].type]
            return self.answer({"error": "You already created this", "url": f"{self.hub.url}/{prefix}{repo_id}"}, 409)
        if self.user() == "reader" or not repo_id.startswith(f"{OWNER}/"):
            return self.refuse(403, f"You don't have the rights to create a model under {repo_id.partition('/')[0]}")
        # 1.x says `private`, 2.x `visibility`.
        self.hub.create(repo_id, private=wanted.get("private") or wanted.get("visibility") == "private")
        return self.answer({"url": f"{self.hub.url}/{repo_id}"})

    def mode(self, path: str, files: dict[str, bytes]) -> dict:
        digest = (lambda content: hashlib.sha256(content).hexdigest()) if is_lfs(path) else git_oid
        known = {"oid": digest(files[path])} if path in files else {}
        return {"path": path, "uploadMode": "lfs" if is_lfs(path) else "regular", "shouldIgnore": False, **known}

    def upload_action(self, wanted: dict) -> dict:
        href = {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}
        return wanted if wanted["oid"] in self.hub.objects else {**wanted, "actions": {"upload": href}}

    def do_PUT(self):
        length, digest = int(self.headers["Content-Length"]), self.path.rpartition("/")[2]
        with self.hub.lock:
            self.hub.uploads_before_cut -= 1
            cut = self.hub.uploads_before_cut < 0
        if cut:
            self.rfile.read(length // 2)
            self.connection.close()
            return
        content = self.rfile.read(length)
        assert hashlib.sha256(content).hexdigest() == digest
        self.hub.objects[digest] = content
        self.hub.uploads.append(digest)
        self.answer()

    def commit(self, repo_id: str, revision: str, body: bytes, pull_request: bool):
        repo = self.hub.repos[repo_id]
        files, message = dict(repo.files(revision)), ""
        for key, value in ((line["key"], line["value"]) for line in map(json.loads, body.splitlines())):
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        number = 1 + sum(branch.startswith("refs/pr/") for branch in repo.branches)
        oid = repo.commit(f"refs/pr/{number}" if pull_request else revision, message, files)
        url = f"{self.hub.url}/{repo_id}"
        requested = f"{url}/discussions/{number}" if pull_request else None
        self.answer({"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "pullRequestUrl": requested})

    def do_GET(self):
        path = urlsplit(self.path).path
        match = re.fullmatch(r"(/api/models)?/([^/]+/[^/]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        repo = self.hub.repos.get(match[2]) if match else None
        if repo is None or repo.type != "model" or (repo.private and self.user() != "writer"):
            return self.refuse(404, "Repository not found", "RepoNotFound")
        action, revision, rest = match[3], unquote(match[4] or "main"), unquote(match[5] or "")
        try:
            files, commit = repo.files(revision), repo.branches.get(revision, revision)
        except KeyError:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if action == "resolve":
            return self.send_file(rest, files, commit)
        if action == "tree":
            inside = {name: files[name] for name in files if name.startswith(f"{rest}/" if rest else "")}
            if not inside:
                return self.refuse(404, f"{rest} does not exist", "EntryNotFound")
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
                    for name, content in inside.items()
                ]
            )
        siblings = [{"rfilename": name} for name in files]
        return self.answer({"id": match[2], "sha": commit, "private": repo.private, "tags": [], "siblings": siblings})

    do_HEAD = do_GET  # noqa: N815

    def send_file(self, name: str, files: dict[str, bytes], commit: str):
        if name not in files:
            message = f"Entry not found: {name}"
            return self.answer({"error": message}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = files[name]
        headers = {"ETag": f'"{git_oid(content)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if is_lfs(name):
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(content))}
        if match := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(content[start:], 206, **headers)
        return self.answer(content, **headers)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub-home")) as hub:
        yield hub
