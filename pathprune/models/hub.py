"""Pruned checkpoints on the Hugging Face hub: download by name, and upload with a check of the uploaded files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.hf_api import RepoFile

from pathprune.models.pruned_config import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, is_pruned_folder, read_pruned_config
from pathprune.models.weights import CheckpointError, one_line

_PREFIX = "hf-hub:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class HubError(CheckpointError):
    """A request that the hub refused or did not answer, or an upload that it does not hold."""


@dataclass(frozen=True)
class Upload:
    """The result of an upload; `commit` and `url` are None after a dry run."""

    repository: str
    sizes: dict[str, int]  # file -> bytes
    commit: str | None = None
    url: str | None = None


def fetch_folder(name: str | Path) -> Path:
    """Return the folder at the path `name`, or download the repository of this name on the hub.

    An existing path comes before a repository; the prefix `hf-hub:` always means a repository.
    """
    path = Path(name).expanduser()
    text = str(name)
    if not text.startswith(_PREFIX) and (path.exists() or not _NAME.fullmatch(text)):
        return path
    repository, _, revision = text.removeprefix(_PREFIX).partition("@")
    with _one_line_errors(f"no folder {text}, and no checkpoint of this name could be downloaded from the hub"):
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE])
        )


def fetch_config(name: str) -> Path | None:
    """Download the `config.json` of `hf-hub:owner/name` and return its folder; None if that fails."""
    repository, _, revision = name.removeprefix(_PREFIX).partition("@")
    try:
        return Path(hf_hub_download(repository, CONFIG_FILE, revision=revision or None)).parent
    except Exception:  # loading the model, which comes next, reports the reason
        return None


def fetch_if_pruned(name: str) -> Path | None:
    """Download the pruned checkpoint `hf-hub:owner/name` and return its folder; None if it is no pruned checkpoint."""
    folder = fetch_config(name)
    return fetch_folder(name) if folder is not None and is_pruned_folder(folder) else None


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Upload:
    """Upload a pruned checkpoint with its card as one commit to the model repository `owner/name`.

    The repository is created if needed, private or public as `private` says. `token` defaults to that of
    `hf auth login`. A dry run checks the checkpoint without contacting the hub.

    Raises `HubError` unless the hub then holds every file with identical content.
    """
    folder = Path(folder)
    read_pruned_config(folder)
    files = [name for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE) if (folder / name).is_file()]
    if WEIGHTS_FILE not in files:
        raise CheckpointError(f"{folder} holds no {WEIGHTS_FILE}; save the model again")
    sizes = {name: (folder / name).stat().st_size for name in files}
    if dry_run:
        return Upload(repository, sizes)
    api = HfApi(token=token, library_name="pathprune")
    with _one_line_errors(f"{folder} could not be pushed to {repository}"):
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=files,
            commit_message=f"Upload {folder.name}",
            revision=revision,
            create_pr=create_pr,
        )
        _check_upload(api, name, commit.oid, folder, files)
    return Upload(name, sizes, commit.oid, commit.pr_url or commit.commit_url)


def _check_upload(api: HfApi, name: str, commit: str, folder: Path, files: Sequence[str]) -> None:
    remote = {
        info.path: info for info in api.get_paths_info(name, list(files), revision=commit) if isinstance(info, RepoFile)
    }
    wrong = [file for file in files if file not in remote or not _is_same(folder / file, remote[file])]
    if wrong:
        raise HubError(f"{', '.join(wrong)} did not arrive at {name} as they are in {folder}; push again")


def _is_same(file: Path, remote: RepoFile) -> bool:
    """Compare the hash that the hub keeps: SHA-256 for large files, git's blob hash for others."""
    content = file.read_bytes()
    if remote.lfs is not None:
        return remote.lfs.sha256 == hashlib.sha256(content).hexdigest()
    header = f"blob {len(content)}\0".encode()
    return remote.blob_id == hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@contextmanager
def _one_line_errors(message: str) -> Iterator[None]:
    """Turn errors of the hub's client into a `HubError` of one line, which starts with `message`."""
    try:
        yield
    except HubError:
        raise
    except LocalTokenNotFoundError as error:
        raise HubError(f"{message}: no token; run `hf auth login`, or set HF_TOKEN") from error
    except Exception as error:  # errors of the client's HTTP library, which differs between versions
        raise HubError(f"{message}: {one_line(error)}") from error
