"""C files as libraries: compiled once, by several processes at once, wherever something can be written."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from grpo import native
from grpo.native import KernelUnavailable, lanes_for, load_library, vector_lanes

pytestmark = pytest.mark.skipif(not vector_lanes(), reason="the code is for x86 CPUs with AVX2")

SOURCE = Path(__file__).parents[2] / "grpo" / "policy" / "compiled_layer.c"
LOAD = (
    f"from pathlib import Path; from grpo.native import load_library; load_library(Path({str(SOURCE)!r}), 8).grpo_norm"
)


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one, and libraries that this process has not loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_library.cache_clear()
    yield tmp_path / "cache" / "grpo"
    load_library.cache_clear()


def test_it_is_compiled_once(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library(SOURCE, 8)
    (made,) = cache_folder.iterdir()
    stamp = made.stat().st_mtime_ns
    load_library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    load_library(SOURCE, 8)
    assert made.stat().st_mtime_ns == stamp
    assert list(cache_folder.iterdir()) == [made]


def test_another_source_is_another_library(cache_folder: Path, tmp_path: Path) -> None:
    include = f'#include "{SOURCE.parents[1] / "vectors.h"}"\n'
    for number in (1, 2):
        source = tmp_path / "given.c"
        source.write_text(f"{include}int grpo_number(void) {{ return {number}; }}\n")
        load_library.cache_clear()
        assert load_library(source, 8).grpo_number() == number
    assert len(list(cache_folder.iterdir())) == 2


def test_another_header_is_another_library(cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library(SOURCE, 8)
    header = tmp_path / "vectors.h"
    header.write_text(native._HEADER.read_text() + "/* changed */\n")
    monkeypatch.setattr(native, "_HEADER", header)
    load_library.cache_clear()
    load_library(SOURCE, 8)
    assert len(list(cache_folder.iterdir())) == 2


def test_several_processes_may_compile_it_at_once(cache_folder: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(list(cache_folder.iterdir())) == 1


@pytest.mark.usefixtures("cache_folder")
def test_a_read_only_cache_folder_is_gone_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    library = load_library(SOURCE, 8)
    assert library.grpo_norm
    assert Path(library._name).is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("cache_folder")
def test_where_nothing_can_be_written_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with pytest.raises(KernelUnavailable, match=r"a compiled compiled_layer\.c can be kept nowhere: "):
        load_library(SOURCE, 8)


def test_a_damaged_library_is_named(cache_folder: Path) -> None:
    subprocess.run([sys.executable, "-c", LOAD], check=True)  # not here: what is loaded, by its name, stays loaded
    (made,) = cache_folder.iterdir()
    made.write_bytes(b"no library")
    with pytest.raises(KernelUnavailable, match=f"{made} cannot be loaded: .*; remove it"):
        load_library(SOURCE, 8)


def test_a_source_that_does_not_compile_is_told_in_one_sentence(cache_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "given.c"
    (tmp_path / "included.h").write_text('#include "nowhere.h"\n')
    source.write_text('#include "included.h"\n')
    with pytest.raises(KernelUnavailable, match=r"does not compile it: [^\n]*error: [^\n]*nowhere\.h[^\n]*$"):
        load_library(source, 8)
    assert not list(cache_folder.iterdir())


def test_every_kind_of_vector_is_a_library(cache_folder: Path) -> None:
    for lanes in vector_lanes():
        assert load_library(SOURCE, lanes).grpo_norm
    assert len(list(cache_folder.iterdir())) == len(vector_lanes())


@pytest.mark.parametrize(
    ("machine", "capability", "lanes"),
    [
        ("x86_64", "AVX512", (16, 8)),
        ("AMD64", "AVX2", (8,)),
        ("x86_64", "DEFAULT", ()),
        ("arm64", "DEFAULT", ()),
        ("s390x", "AVX2", ()),
    ],
)
def test_which_vectors_a_machine_has(
    monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, lanes: tuple[int, ...]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert vector_lanes() == lanes
    assert lanes_for((64, 96)) == max(lanes, default=None)
    assert lanes_for((64, 72)) == (8 if lanes else None)
    assert lanes_for((64, 70)) is None
