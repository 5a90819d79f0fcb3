"""Contract 8: a file or folder is whole or absent, whatever happens to who writes it."""

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.run.files import append_lines, hold_folder, replace_folder, sweep_leftovers, write_atomic
from grpo.run.report.reading import is_held

# os.fsync is where half of the work is done: the process dies there, as by the kernel's hand.
KILLED_AT_FSYNC = """
import os, signal, sys
from pathlib import Path
from grpo.run.files import replace_folder, write_atomic
count, calls, real = int(sys.argv[2]), 0, os.fsync
def dying(descriptor):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = dying
"""
FOLDER = (
    KILLED_AT_FSYNC
    + """
with replace_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("new")
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_text("new")
"""
)
FILE = KILLED_AT_FSYNC + "write_atomic(Path(sys.argv[1]), 'new' * 1000)"
KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from grpo.run.files import replace_folder
real = os.rename
def dying(source, target):
    if target == Path(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.rename = dying
with replace_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("new")
"""
DISK_FULL = """
import resource, signal, sys
from pathlib import Path
from grpo.run.files import append_lines, write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    {call}
except OSError as error:
    print("OSError", error)
"""


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_write_atomic_writes_text_as_utf8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_atomic(tmp_path / "text", "π\n")
    write_atomic(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == b"\xcf\x80\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert hidden(tmp_path) == []


def test_write_atomic_replaces_the_file_and_never_writes_into_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with open(tmp_path / "file") as reader:
        write_atomic(tmp_path / "file", "new")
        assert reader.read() == "old"
    assert (tmp_path / "file").read_text() == "new"


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_killed_while_writing_a_file_leaves_the_old_one(tmp_path: Path, run_python) -> None:
    (tmp_path / "file").write_text("old")
    assert run_python(FILE, tmp_path / "file", 1).returncode == -9
    assert (tmp_path / "file").read_text() == "old"
    assert len(hidden(tmp_path)) == 1
    sweep_leftovers(tmp_path)
    assert hidden(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path: Path, run_python) -> None:
    (tmp_path / "file").write_text("old")
    done = run_python(DISK_FULL.format(call="write_atomic(Path(sys.argv[1]), 'n' * 5000)"), tmp_path / "file")
    assert done.stdout.startswith("OSError"), done.stderr
    assert (tmp_path / "file").read_text() == "old"
    assert hidden(tmp_path) == []


def test_lines_that_do_not_fit_are_not_half_written(tmp_path: Path, run_python) -> None:
    append_lines(tmp_path / "log", ["a" * 500])
    done = run_python(
        DISK_FULL.format(call="append_lines(Path(sys.argv[1]), ['b' * 300, 'c' * 600])"), tmp_path / "log"
    )
    assert "make room" in done.stdout, done.stderr
    assert (tmp_path / "log").read_text() == "a" * 500 + "\n"


def test_append_lines_keeps_what_is_there(tmp_path: Path) -> None:
    append_lines(tmp_path / "log", ["one"])
    append_lines(tmp_path / "log", [])
    append_lines(tmp_path / "log", ["zwölf", ""])
    assert (tmp_path / "log").read_text(encoding="utf-8") == "one\nzwölf\n\n"


def test_lines_and_files_are_on_the_disk_before_the_call_returns(tmp_path: Path, monkeypatch) -> None:
    synced: list[tuple[int, int]] = []  # inode, size
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(inode_and_size(os.fstat(descriptor))))
    append_lines(tmp_path / "log", ["line"])
    write_atomic(tmp_path / "file", "data")
    assert synced[:2] == [inode_and_size((tmp_path / name).stat()) for name in ("log", "file")]
    assert synced[2][0] == tmp_path.stat().st_ino


def inode_and_size(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, found.st_size


@pytest.mark.parametrize("existing", [False, True])
def test_replace_folder_becomes_the_target(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "step_10"
    if existing:
        target.mkdir()
        (target / "gone").write_text("old")
    with replace_folder(target) as folder:
        assert folder.parent == tmp_path
        assert folder.name == f".tmp-step_10-{os.getpid()}"
        (folder / "a").write_text("new")
        assert (target / "gone").exists() == existing
    assert contents(target) == {"a": "new"}
    assert hidden(tmp_path) == []


def test_replace_folder_keeps_the_old_one_when_the_block_raises(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").write_text("old")

    def fill() -> None:
        with replace_folder(tmp_path / "target") as folder:
            (folder / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert contents(tmp_path / "target") == {"a": "old"}
    assert hidden(tmp_path) == []


def test_replace_folder_keeps_the_old_one_when_the_last_rename_fails(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_text("old")
    real = os.rename

    def failing(source: Path, destination: Path) -> None:
        if Path(source).name.startswith(".tmp-"):
            raise OSError("no")
        real(source, destination)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no"), replace_folder(target) as folder:
        (folder / "a").write_text("new")
    assert contents(target) == {"a": "old"}
    assert hidden(tmp_path) == []


# Five fsyncs: two files, two folders, and their parent after the rename.
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("existing", [False, True])
def test_killed_at_any_fsync_leaves_a_whole_folder_or_none(
    tmp_path: Path, run_python, count: int, existing: bool
) -> None:
    target = tmp_path / "target"
    old = {"a": "old", "c": "old"} if existing else None
    if old is not None:
        target.mkdir()
        for name, text in old.items():
            (target / name).write_text(text)
    killed = run_python(FOLDER, target, count).returncode == -9
    assert killed == (count <= 5)
    sweep_leftovers(tmp_path)
    found = contents(target) if target.exists() else None
    assert found == (old if count <= 4 else {"a": "new", "sub/b": "new"})
    assert hidden(tmp_path) == []


def test_sweep_restores_a_folder_killed_between_the_renames(tmp_path: Path, run_python) -> None:
    target = tmp_path / "step-10"
    target.mkdir()
    (target / "a").write_text("old")
    assert run_python(KILLED_BETWEEN_RENAMES, target).returncode == -9
    assert not target.exists()
    sweep_leftovers(tmp_path)
    assert contents(target) == {"a": "old"}
    assert hidden(tmp_path) == []


def test_sweep_leaves_everything_else_alone(tmp_path: Path) -> None:
    for name in ("kept", ".hydra"):
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-x-1").mkdir()
    (tmp_path / ".tmp-y-1-2").write_text("half")
    (tmp_path / ".old-kept-1").mkdir()
    sweep_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hydra", "kept"]
    sweep_leftovers(tmp_path / "absent")


def test_a_report_that_looks_whether_a_folder_is_held_keeps_nobody_out(tmp_path, monkeypatch):
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)
    monkeypatch.setattr("grpo.run.files.time.sleep", lambda seconds: os.close(folder))
    with hold_folder(tmp_path):
        assert is_held(tmp_path)


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path):
    """Another process holds it: refused; killed: free again."""
    holder = "import sys, time\nfrom pathlib import Path\nfrom grpo.run.files import hold_folder\n"
    holder += "with hold_folder(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="is in use by another run; wait for it"), hold_folder(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with hold_folder(tmp_path):
        pass
