"""Pruned checkpoints on the Hugging Face hub: fetched by name, and pushed in a way that checks what arrived."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.hf_api import RepoFile

from pathprune.models.pruned_config import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, is_pruned_folder, read_pruned_config
from pathprune.models.weights import CheckpointError

_PREFIX = "hf-hub:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class HubError(CheckpointError):
    """The hub refused, could not be reached, or does not hold what was sent to it."""


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do: `commit` and `url` are None after a dry run."""

    repository: str
    sizes: dict[str, int]  # file -> bytes
    commit: str | None = None
    url: str | None = None


def local_folder(name: str | Path) -> Path:
    """The folder that `name` is, or that a repository of this name on the hub was fetched to."""
    path = Path(name).expanduser()
    text = str(name)
    if not text.startswith(_PREFIX) and (path.exists() or not _NAME.fullmatch(text)):
        return path
    repository, _, revision = text.removeprefix(_PREFIX).partition("@")
    with _one_line(f"no folder {text}, and no checkpoint could be fetched from the hub under this name"):
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE])
        )


def hub_config(name: str) -> Path | None:
    """The folder that the `config.json` of `hf-hub:owner/name` was fetched to; None where it cannot be had."""
    repository, _, revision = name.removeprefix(_PREFIX).partition("@")
    try:
        return Path(hf_hub_download(repository, CONFIG_FILE, revision=revision or None)).parent
    except Exception:  # whatever keeps it from being read will be said by who reads the model
        return None


def pruned_on_hub(name: str) -> Path | None:
    """The folder that the pruned checkpoint `hf-hub:owner/name` was fetched to; None where no such one is there."""
    folder = hub_config(name)
    return local_folder(name) if folder is not None and is_pruned_folder(folder) else None


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload a pruned checkpoint, card included, as one commit to the model repository `owner/name`.

    The repository is made where there is none; `private` says how. `token` is by default the one of `hf auth login`.
    Raises `HubError` unless the hub afterwards holds every file with the content that it has here. A dry run checks the
    checkpoint and contacts nobody.
    """
    folder = Path(folder)
    read_pruned_config(folder)
    files = [name for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE) if (folder / name).is_file()]
    if WEIGHTS_FILE not in files:
        raise CheckpointError(f"{folder} holds no {WEIGHTS_FILE}; save the model again")
    sizes = {name: (folder / name).stat().st_size for name in files}
    if dry_run:
        return Pushed(repository, sizes)
    api = HfApi(token=token, library_name="pathprune")
    with _one_line(f"{folder} could not be pushed to {repository}"):
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=files,
            commit_message=f"Upload {folder.name}",
            revision=revision,
            create_pr=create_pr,
        )
        there = {
            info.path: info
            for info in api.get_paths_info(name, files, revision=commit.oid)
            if isinstance(info, RepoFile)
        }
    wrong = [file for file in files if file not in there or not _same(folder / file, there[file])]
    if wrong:
        raise HubError(f"{', '.join(wrong)} did not arrive at {name} as they are in {folder}; push again")
    return Pushed(name, sizes, commit.oid, commit.pr_url or commit.commit_url)


def _same(file: Path, remote: RepoFile) -> bool:
    """Compare by the hash that the hub keeps: SHA-256 of large files, git's own of others."""
    content = file.read_bytes()
    if remote.lfs is not None:
        return remote.lfs.sha256 == hashlib.sha256(content).hexdigest()
    header = f"blob {len(content)}\0".encode()
    return remote.blob_id == hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise HubError(f"{what}: no token; run `hf auth login`, or set HF_TOKEN") from error
    except Exception as error:  # the client raises its HTTP library's errors as they are, and has changed that library
        line = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"{what}: {line}") from error
