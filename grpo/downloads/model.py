"""`python -m grpo.download model`: a model's files, into a folder or into the Hub's own cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from grpo.data.hub import Hub, Repository, matching
from grpo.data.remote_file import RemoteFile
from grpo.downloads.manifest import Manifest, intact_files, read_manifest, refuse_changed, refuse_other
from grpo.downloads.stage import STAGE, fetch_all
from grpo.run.files import hold_folder
from grpo.run.progress import bytes_text

# What other programs read: weights that are no safetensors, and copies of them in folders of their own.
_NOT_READ = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.ot", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.tflite"),
    *("*.mlmodel", "onnx/*", "openvino/*", "coreml/*", "original/*"),
)


@dataclass(frozen=True)
class ModelRequest:
    """What to load, and where to.

    Attributes:
        id: <owner>/<name> on the Hub.
        folder: None is the Hub's cache, where `model.path=<id>` finds it.
        revision: a branch, a tag or a commit; None is the default branch.
        include, exclude: patterns of paths. None includes everything but weights that the project does not read.
        force: load again what is there, and replace what differs.
    """

    id: str
    folder: Path | None
    revision: str | None
    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    force: bool


def download_model(hub: Hub, request: ModelRequest) -> None:
    """Loads the files of a model and says where they are.

    Raises:
        ValueError: something a user can mend; one sentence.
    """
    if request.folder is None:
        _into_cache(hub, request)
        at_revision = f" model.revision={request.revision}" if request.revision else ""
        print(f"to use it: model.path={request.id}{at_revision}")
        return
    with hold_folder(request.folder):
        _into_folder(hub, request, request.folder)
    print(f"to use it: model.path={request.folder}")


def _into_folder(hub: Hub, request: ModelRequest, folder: Path) -> None:
    """Files come into the folder when all of them are whole: it never holds half a model."""
    manifest = read_manifest(folder)
    patterns = {"include": request.include and list(request.include), "exclude": list(request.exclude)}
    if manifest is not None and not request.force:
        refuse_other(manifest, request.id, folder)
        if manifest.answers(request.id, request.revision, patterns) and _is_complete(manifest, folder):
            print(f"{folder} holds {request.id} at commit {manifest.commit[:7]}, whole and unchanged; nothing to load")
            return
    repository = hub.look_up("model", request.id, request.revision)
    files = _wanted(repository, request)
    there = [] if request.force else intact_files(files, folder)
    if not request.force:
        refuse_changed([file.path for file in files if (folder / file.path).exists() and file not in there], folder)
    fetched = fetch_all(hub, repository, [file for file in files if file not in there], folder / STAGE)
    entries = {file.path: _entry(file, fetched.get(file.path, folder / file.path)) for file in files}
    if manifest is not None:
        for name in manifest.intact(folder, set(manifest.files) - set(entries)):  # former weights beside the new ones
            (folder / name).unlink()
    _place(fetched, folder)
    sources = {file.path: file.oid for file in files}
    Manifest(request.id, request.revision, repository.commit, patterns, entries, sources).write(folder)
    shutil.rmtree(folder / STAGE)
    print(f"{folder}: {_summary(repository, files)}")


def _is_complete(manifest: Manifest, folder: Path) -> bool:
    """Whether everything is there.

    Raises:
        ValueError: something was changed.
    """
    intact = manifest.intact(folder)
    missing = {name for name in manifest.files if not (folder / name).exists()}
    refuse_changed(sorted(set(manifest.files) - intact - missing), folder)
    return not missing


def _place(fetched: Mapping[str, Path], folder: Path) -> None:
    """Moves staged files to where they belong; one that several paths share is copied to all but the last."""
    num_left = Counter(fetched.values())
    for path, source in fetched.items():
        num_left[source] -= 1
        if num_left[source]:
            source = Path(shutil.copyfile(source, source.with_name(f"{source.name}.copy")))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, folder / path)


def _into_cache(hub: Hub, request: ModelRequest) -> None:
    """Fills the cache's store of contents, where names are checksums; huggingface_hub then links them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import disable_progress_bars

    repository = hub.look_up("model", request.id, request.revision)
    files = _wanted(repository, request)
    blobs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=request.id, repo_type="model") / "blobs"
    fetch_all(hub, repository, files, blobs, again=request.force)
    disable_progress_bars()
    with hub.errors("model", request.id, request.revision):
        folder = snapshot_download(
            request.id,
            revision=request.revision,
            allow_patterns=[file.path for file in files],
            token=hub.token,
            endpoint=hub.endpoint,
        )
    if Path(folder).name != repository.commit:
        raise ValueError(f"{request.id} was changed on the Hub while it was loaded; run the same command again")
    print(f"{folder}: {_summary(repository, files)}")


def _wanted(repository: Repository, request: ModelRequest) -> list[RemoteFile]:
    """The files to load.

    Raises:
        ValueError: none; says what there is.
    """
    exclude = request.exclude
    if request.include is None and matching(repository.files, ["*.safetensors"], exclude):
        exclude = (*exclude, *_NOT_READ)
    files = matching(repository.files, request.include, exclude)
    if not files:
        has = ", ".join(file.path for file in repository.files[:8])
        raise ValueError(f"--include and --exclude leave no file of {request.id}; it has {has}")
    return files


def _summary(repository: Repository, files: list[RemoteFile]) -> str:
    left_out = [file for file in repository.files if file not in files]
    rest = f"; left out: {len(left_out)}, {_size(left_out)} (--include '*' loads all)" if left_out else ""
    return f"{len(files)} files of {repository.id}, {_size(files)}, at commit {repository.commit[:7]}{rest}"


def _size(files: list[RemoteFile]) -> str:
    return bytes_text(sum(file.size for file in files))


def _entry(file: RemoteFile, path: Path) -> dict[str, str | int]:
    """What the manifest says of a file; large ones are listed with their SHA-256."""
    sha256 = file.oid if len(file.oid) == 64 else hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": sha256, "size": file.size}
