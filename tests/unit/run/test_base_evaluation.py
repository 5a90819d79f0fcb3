"""The evaluation before training: one for all that would be the same, and one for each that would not."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grpo.config import RunConfig, compose_run_config
from grpo.distributed import ONE_RANK
from grpo.run.base_evaluation import BaseEvaluation, cache_folder, keep, take
from grpo.types import Problem

PROBLEMS = (Problem("a", "1 + 1", "2"), Problem("b", "2 + 2", "4"))
PROMPTS = {PROBLEMS[0]: (1, 2), PROBLEMS[1]: (3,)}
STOP = ("</answer>",)
EVALUATION = BaseEvaluation([{"problem": "a", "completion": "ü\u2028"}], {"eval/accuracy": 1 / 3})


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    base = ("hardware=cpu", "data=arithmetic", "model=tiny", f"evaluation.base_cache_dir={tmp_path}")
    return compose_run_config([*base, *overrides])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_no_place_no_cache(tmp_path: Path) -> None:
    assert cache_folder(config(tmp_path, "evaluation.base_cache_dir=null"), PROBLEMS, PROMPTS, STOP) is None


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (("loss=grpo_clip", "train.group_size=4", "train.learning_rate=1", "sampling.temperature=0.5"), True),
        (("logging.console=plain", "checkpoint.save_steps=3", "reward.num_workers=4", "hardware.num_threads=1"), True),
        (("seed=7",), True),  # greedy
        (("sampling.max_tokens=99",), False),
        (("evaluation.temperature=1",), False),
        (("reward=random",), False),
        (("reward.deadline_s=2",), False),
        (("model.revision=other",), False),
        (("model.master_dtype=bfloat16",), False),
        (("hardware.compute_dtype=bfloat16",), False),
        (("hardware.engine_device=cuda:0",), False),
    ],
)
def test_what_it_depends_on(tmp_path: Path, model: Path, overrides: tuple[str, ...], same: bool) -> None:
    path = f"model.path={model}"
    first = cache_folder(config(tmp_path, path), PROBLEMS, PROMPTS, STOP)
    second = cache_folder(config(tmp_path, path, *overrides), PROBLEMS, PROMPTS, STOP)
    assert (first == second) is same
    assert first is not None
    assert first.parent == tmp_path


def test_problems_prompts_stops_seeds_and_weights_count(tmp_path: Path, model: Path) -> None:
    drawn = config(tmp_path, f"model.path={model}", "evaluation.temperature=1")
    other = {PROBLEMS[0]: (1, 2), PROBLEMS[1]: (4,)}
    found = [
        cache_folder(drawn, PROBLEMS, PROMPTS, STOP),
        cache_folder(drawn, PROBLEMS[:1], PROMPTS, STOP),
        cache_folder(drawn, PROBLEMS, other, STOP),
        cache_folder(drawn, PROBLEMS, PROMPTS, ()),
        cache_folder(replace(drawn, seed=1), PROBLEMS, PROMPTS, STOP),
    ]
    os.utime(model / "model.safetensors", (1, 1))  # somebody has put other weights there
    found.append(cache_folder(drawn, PROBLEMS, PROMPTS, STOP))
    assert len(set(found)) == len(found)


def test_what_is_kept_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "0123"
    with take(folder, ONE_RANK) as kept:
        assert kept is None
        keep(folder, EVALUATION)
    with take(folder, ONE_RANK) as kept:
        assert kept == EVALUATION


def test_the_others_wait_for_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "0123"
    seen: list[BaseEvaluation | None] = []

    def second() -> None:
        with take(folder, ONE_RANK) as kept:
            seen.append(kept)

    with take(folder, ONE_RANK):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert seen == []
        keep(folder, EVALUATION)
    thread.join(10)
    assert seen == [EVALUATION]


def test_where_nothing_can_be_written_everybody_makes_their_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with take(tmp_path / "file" / "0123", ONE_RANK) as kept:
        assert kept is None
    keep(tmp_path / "file" / "0123", EVALUATION)
