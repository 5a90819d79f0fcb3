"""`python -m grpo.download dataset`: problems as `data=` reads them, each gold answer graded against itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.config import RewardConfig
from grpo.data.hub import Hub, Repository
from grpo.data.remote_file import RemoteFile
from grpo.data.splits import is_held_out, read_rows, row_failure, split_files, to_record
from grpo.downloads.manifest import Manifest, read_manifest, refuse_changed, refuse_other
from grpo.downloads.stage import STAGE, fetch_all
from grpo.reward.gold_check import check_golds
from grpo.reward.pool import WorkerPool
from grpo.run.files import hold_folder, sweep_leftovers, write_atomic
from grpo.run.progress import Progress

Record = Mapping[str, str | int]


@dataclass(frozen=True)
class DatasetRequest:
    """What to load, and where to.

    Attributes:
        id: <owner>/<name> on the Hub.
        folder: for one `<split>.jsonl` a split.
        splits: to load.
        subset: of a data set that has several; None for one that has not.
        revision: a branch, a tag or a commit; None is the default branch.
        force: load again what is there, and replace what was changed.
    """

    id: str
    folder: Path
    splits: tuple[str, ...]
    subset: str | None
    revision: str | None
    force: bool


@dataclass(frozen=True)
class Split:
    """The problems of a split.

    Attributes:
        records: those to use, in the order of the data set.
        failures: rows whose gold cannot be graded, or that are no problems, each with its reason.
    """

    name: str
    records: Sequence[Record]
    failures: Sequence[Mapping[str, Any]]

    def files(self) -> dict[str, tuple[bytes, int]]:
        """What is written: by name, the content and the number of its lines."""
        tables = {f"{self.name}.jsonl": self.records, f"{self.name}.failed_golds.jsonl": self.failures}
        lines = {
            name: [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows] for name, rows in tables.items()
        }
        return {name: ("".join(of_one).encode("utf-8"), len(of_one)) for name, of_one in lines.items()}


def download_dataset(hub: Hub, request: DatasetRequest) -> None:
    """Loads the splits that are not there, and says what came and what failed.

    Raises:
        ValueError: something a user can mend; one sentence.
    """
    folder = request.folder
    with hold_folder(folder):
        sweep_leftovers(folder)
        manifest = read_manifest(folder)
        missing = _missing_splits(manifest, request)
        if not missing:
            assert manifest is not None
            print(f"{folder} holds {request.id} at commit {manifest.commit[:7]}, whole and unchanged; nothing to load")
            return
        # Splits that are loaded later belong to the commit of those that are there.
        revision = request.revision if manifest is None or request.force else manifest.commit
        repository = hub.look_up("dataset", request.id, revision)
        of_split = {split: split_files(repository.files, split, request.subset, request.id) for split in missing}
        sources = list({file.path: file for files in of_split.values() for file in files}.values())
        staged = fetch_all(hub, repository, sources, folder / STAGE)
        splits = [_check_split(split, _records(files, staged), request.id) for split, files in of_split.items()]
        _write(request, manifest, repository, sources, splits)
        shutil.rmtree(folder / STAGE)
    _summarise(request, repository, splits)


def _missing_splits(manifest: Manifest | None, request: DatasetRequest) -> tuple[str, ...]:
    """The splits to load: all of them, unless some are there as they were loaded.

    Raises:
        ValueError: the folder holds something else, or something was changed.
    """
    if manifest is None or request.force:
        return request.splits
    folder = request.folder
    refuse_other(manifest, request.id, folder)
    if not manifest.answers(request.id, request.revision, {"subset": request.subset}):
        raise ValueError(
            f"{folder} holds {request.id} at revision {manifest.revision or 'main'} (commit {manifest.commit[:7]}), "
            f"subset {manifest.request.get('subset')}; name another folder with --output-dir DIR, or replace what is "
            "there with --force"
        )
    intact = manifest.intact(folder)
    refuse_changed([name for name in manifest.files if (folder / name).exists() and name not in intact], folder)
    return tuple(split for split in request.splits if f"{split}.jsonl" not in intact)


def _records(files: Sequence[RemoteFile], staged: Mapping[str, Path]) -> list[dict[str, str | int]]:
    return [to_record(row) for file in files for row in read_rows(staged[file.path], file.path)]


def _check_split(name: str, records: Sequence[dict[str, str | int]], repo_id: str) -> Split:
    """Sorts out what cannot be graded; held-out problems with such a gold stay, and are listed like the others.

    Raises:
        ValueError: nothing is left.
    """
    reasons = [row_failure(record) for record in records]
    places = [place for place, reason in enumerate(reasons) if not reason]
    pool = WorkerPool(RewardConfig.num_workers, RewardConfig.deadline_s)
    progress = Progress(f"grading the golds of {name}", len(places))
    try:
        found = check_golds([str(records[place]["answer"]) for place in places], pool, progress.add)
    finally:
        progress.finish()
        pool.close()
    gold_reasons = dict(zip(places, found, strict=True))
    failures: list[dict[str, Any]] = []
    kept: list[Record] = []
    for place, record in enumerate(records):
        reason = reasons[place] or gold_reasons[place]
        is_kept = not reason or (not reasons[place] and is_held_out(name))
        kept += [record] * is_kept
        if reason:
            failures.append({"row": place + 1, "reason": reason, "left_out": not is_kept, **record})
    if not kept:
        why = ", ".join(f"{reason} {count}" for reason, count in Counter(f["reason"] for f in failures).most_common(3))
        raise ValueError(
            f"no row of the split {name!r} of {repo_id} is a problem with a gold that can be graded "
            f"({why or 'no rows'}); name a data set with the fields 'problem' and 'answer': --id <owner>/<name>"
        )
    return Split(name, kept, failures)


def _write(
    request: DatasetRequest,
    manifest: Manifest | None,
    repository: Repository,
    sources: Sequence[RemoteFile],
    splits: Sequence[Split],
) -> None:
    """Puts the files into the folder, then what they are.

    Killed in between, the next call finds files that are as they would be loaded, and takes them over.

    Raises:
        ValueError: other files of these names are there.
    """
    folder = request.folder
    contents = {name: content for split in splits for name, content in split.files().items()}
    if not request.force:
        there = [name for name in contents if (folder / name).exists()]
        refuse_changed([name for name in there if (folder / name).read_bytes() != contents[name][0]], folder)
    for name, (content, _) in contents.items():
        write_atomic(folder / name, content)
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "num_rows": num_rows}
        for name, (content, num_rows) in contents.items()
    }
    former = manifest if manifest is not None and not request.force else None
    Manifest(
        id=request.id,
        revision=request.revision if former is None else former.revision,
        commit=repository.commit,
        request={"subset": request.subset},
        files={**(former.files if former else {}), **files},
        sources={**(former.sources if former else {}), **{file.path: file.oid for file in sources}},
    ).write(folder)


def _summarise(request: DatasetRequest, repository: Repository, splits: Sequence[Split]) -> None:
    folder = request.folder
    print(f"{folder}: {request.id} at commit {repository.commit[:7]}")
    for split in splits:
        left_out = sum(failure["left_out"] for failure in split.failures)
        failed = f"{len(split.failures):,} golds failed, {left_out:,} left out" if split.failures else "no gold failed"
        where = f": {folder / f'{split.name}.failed_golds.jsonl'}" if split.failures else ""
        print(f"{split.name}.jsonl: {len(split.records):,} problems; {failed}{where}")
    name = folder.name if folder.parent == Path("data") and folder.name in ("math", "gsm8k") else "jsonl"
    paths = f" data.train_path={folder}/train.jsonl data.test_path={folder}/test.jsonl" if name == "jsonl" else ""
    print(f"to use it: data={name}{paths}")
