"""Uploads to a hub and downloads from it, tested on a small server with the hub's HTTP API that checks hashes."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants

from pathprune.cli import main
from pathprune.models.checkpoint import load_pruned, save_pruned
from pathprune.models.hub import HubError, push_to_hub
from pathprune.models.loading import load_model
from pathprune.models.weights import CheckpointError

# the hub's client passes bytes to its HTTP library by a deprecated argument
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPOSITORY = "someone/pruned-vit"
ARGS = {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 12, "num_heads": 2, "num_classes": 3}


@dataclass
class Hub:
    """State of the server, and the errors that it makes on request."""

    url: str = ""
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool | None = None
    refuses: bool = False
    lost_file: str | None = None  # a file that never arrives


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, content: Any, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def do_POST(self) -> None:
            path, body = self.path.partition("?")[0], self.body()
            if hub.refuses or self.headers.get("Authorization") != "Bearer token-of-the-test":
                self.reply({"error": "Invalid credentials"}, 401)
            elif path == "/api/repos/create":
                request = json.loads(body)
                hub.private = (
                    request.get("private") or request.get("visibility") == "private"
                )  # older and newer clients
                self.reply({"url": f"{hub.url}/{REPOSITORY}"})
            elif path == "/api/validate-yaml":
                self.reply({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                modes = {"model.safetensors": "lfs"}
                files = [file["path"] for file in json.loads(body)["files"]]
                self.reply(
                    {
                        "files": [
                            {"path": name, "uploadMode": modes.get(name, "regular"), "shouldIgnore": False}
                            for name in files
                        ]
                    }
                )
            elif path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                uploads = [
                    {**each, "actions": {"upload": {"href": f"{hub.url}/upload/{each['oid']}", "header": {}}}}
                    for each in objects
                ]
                self.reply({"transfer": "basic", "objects": uploads})
            elif "/commit/" in path:
                self.commit([json.loads(line) for line in body.splitlines()])
            elif "/paths-info/" in path:
                self.reply([self.info(name) for name in sorted(hub.files)])
            else:
                self.reply({"error": f"unknown {path}"}, 404)

        def do_PUT(self) -> None:
            oid, content = self.path.rpartition("/")[2], self.body()
            assert hashlib.sha256(content).hexdigest() == oid
            hub.stored[oid] = content
            self.reply(b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{REPOSITORY}/tree"):
                self.reply([self.info(name) for name in sorted(hub.files)])
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                siblings = [{"rfilename": name} for name in hub.files]
                self.reply({"id": REPOSITORY, "sha": "c" * 40, "siblings": siblings, "private": False, "tags": []})
            elif path.startswith(f"/{REPOSITORY}/resolve/") and (name := path.rpartition("/")[2]) in hub.files:
                etag = f'"{hashlib.sha256(hub.files[name]).hexdigest()}"'
                self.reply(hub.files[name], X_Repo_Commit="c" * 40, ETag=etag)
            else:
                self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

        def commit(self, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.stored[value["oid"]]
            if hub.lost_file:
                hub.files.pop(hub.lost_file)
            self.reply({"commitUrl": f"{hub.url}/{REPOSITORY}/commit/{'c' * 40}", "commitOid": "c" * 40})

        def info(self, name: str) -> dict[str, Any]:
            content = hub.files[name]
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            about = {"type": "file", "path": name, "size": len(content), "oid": blob}
            if name.endswith(".safetensors"):
                about["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            return about

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(state))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", state.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "token-of-the-test")
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_pruned(timm.create_model("vit_tiny_patch16_224", mlp_ratio=2, **ARGS), tmp_path / "pruned-vit")


def test_an_uploaded_checkpoint_loads_by_its_name(hub: Hub, checkpoint: Path) -> None:
    pushed = push_to_hub(checkpoint, REPOSITORY, private=True)
    assert hub.files == {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    assert hub.private is True
    assert pushed.url == f"{hub.url}/{REPOSITORY}/commit/{'c' * 40}"
    images = torch.randn(2, 3, 32, 32)
    for name in (REPOSITORY, f"hf-hub:{REPOSITORY}"):
        again = load_pruned(name)
        with torch.inference_mode():
            assert torch.equal(again(images), load_pruned(checkpoint)(images))
    assert load_model(f"hf-hub:{REPOSITORY}").architecture == load_model(str(checkpoint)).architecture


def test_a_file_that_does_not_arrive_is_an_error(hub: Hub, checkpoint: Path) -> None:
    hub.lost_file = "model.safetensors"
    with pytest.raises(HubError, match=r"model\.safetensors did not arrive at someone/pruned-vit"):
        push_to_hub(checkpoint, REPOSITORY)


def test_a_refused_upload_gives_one_line_and_exit_code_2(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = True
    monkeypatch.setattr(sys, "argv", ["pathprune", "push", str(checkpoint), REPOSITORY])
    with pytest.raises(SystemExit, match="2"):
        main()
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "could not be pushed to someone/pruned-vit" in error
    assert "401" in error


def test_a_dry_run_does_not_contact_the_hub(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pathprune", "push", str(checkpoint), REPOSITORY, "--dry-run"])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = capsys.readouterr().out
    assert f"model.safetensors: {(checkpoint / 'model.safetensors').stat().st_size:,} bytes" in printed
    assert "Dry run: nothing was sent to someone/pruned-vit" in printed


def test_only_complete_checkpoints_are_pushed(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no pruned checkpoint in"):
        push_to_hub(tmp_path, REPOSITORY, dry_run=True)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        push_to_hub(checkpoint, REPOSITORY, dry_run=True)


def test_an_unknown_name_gives_one_line(hub: Hub) -> None:
    with pytest.raises(HubError, match=r"no folder no/such, and no checkpoint of this name could be downloaded .*404"):
        load_pruned("no/such")


def test_the_error_without_a_connection_says_offline(checkpoint: Path) -> None:
    with pytest.raises(HubError, match=r"could not be pushed to someone/pruned-vit: .*offline"):
        push_to_hub(checkpoint, REPOSITORY)
