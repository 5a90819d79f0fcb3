"""Folders of runs and sweeps as a run leaves them, made in milliseconds."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo.config import compose_run_config, to_dict
from grpo.run.files import write_atomic
from grpo.run.metrics import JsonlLog
from grpo.run.provenance import collect

OVERRIDES = ("experiment=quickstart", "train.learning_rate=1e-3")


@cache
def _provenance() -> dict[str, Any]:
    return collect()


def metrics_row(step: int, *, gain: float = 0.05, evaluated: bool = False) -> dict[str, Any]:
    """A step's line; reward and accuracy grow by `gain` a step."""
    share = min(0.9, 0.2 + gain * step)
    evaluation = {
        "eval/num_problems": 40,
        "eval/accuracy": share,
        "eval/accuracy_low": share - 0.1,
        "eval/accuracy_high": share + 0.1,
        "eval/format_rate": 0.9,
        "eval/length_mean": 9.0,
        "eval/truncated_share": 0.05,
        "time/evaluate_s": 0.5,
    }
    if step == 0:
        return {"step": 0, **evaluation, "memory/peak_gib": 0.5}
    row = {
        "step": step,
        **{f"reward/{name}": share + extra for name, extra in (("mean", 0), ("format", 0.1), ("answer", 0))},
        **{"completion/length_mean": 20.0, "completion/length_max": 30, "completion/truncated_share": 0.25},
        **{"signal/share": 0.75, "grade/errors": 0, "policy/skipped_updates": 0},
        **{"policy/entropy": 1 / step, "policy/grad_norm": 0.5, "policy/clip_fraction": 0.01, "policy/kl": 0.0},
        **{"policy/ratio_mean": 1.0, "policy/ratio_max": 1.2, "mismatch/mean": 1e-7, "mismatch/max": 1e-5},
        **{"time/rollout_s": 2.0, "time/grade_s": 0.1, "time/update_s": 1.0, "time/step_s": 3.1},
        **{"rollout/tokens_per_s": 1000.0, "update/tokens_per_s": 2000.0, "memory/peak_gib": 0.5},
    }
    return row | (evaluation if evaluated else {})


def entry(text: str, advantage: float, *, tokens: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    """A completion as completions.jsonl has it."""
    right = advantage > 0
    row = {
        "text": text,
        "num_tokens": len(tokens or text.split()),
        "finish_reason": "stop",
        "log_prob": -1.5,
        "reward": float(right),
        "format_reward": 1.0,
        "answer_reward": float(right),
        "outcome": "graded",
        "reason": "exact" if right else "different",
        "extracted": "7",
        "advantage": advantage,
        "version": 0,
    }
    if tokens is not None:
        row |= {"tokens": list(tokens), "token_log_probs": [-0.5 * i for i in range(len(tokens))]}
    return row | more


def group(step: int, name: str, completions: Sequence[Mapping[str, Any]], question: str = "") -> dict[str, Any]:
    """A line of completions.jsonl."""
    question = question or f"What is {name}?"
    return {"step": step, "problem": name, "question": question, "gold": "7", "completions": list(completions)}


def groups(num_steps: int, per_step: int = 2) -> list[dict[str, Any]]:
    """Lines of completions.jsonl; the first group of a step has tokens."""
    rows = []
    for step in range(1, num_steps + 1):
        for place in range(per_step):
            words = [" three", " plus", " four", f" step{step}"] if place == 0 else None
            name = f"p{step}-{place}"
            rows.append(
                group(
                    step,
                    name,
                    [
                        entry(f" three plus four step{step}", 1.0 + step / 100, tokens=words),
                        entry(f"{name} wrong", -1.0 - step / 100),
                        entry(f"{name} cut", -0.5, finish_reason="length", outcome="format_failure", reason="no_tag"),
                    ],
                )
            )
    return rows


def answers(num_right: int, num_problems: int = 40) -> list[dict[str, Any]]:
    """Lines of an evaluation's file; the first `num_right` problems are right."""
    return [
        {
            "problem": f"q{place}",
            "question": "?",
            "gold": "1",
            "completion": "",
            "answer_reward": float(place < num_right),
        }
        for place in range(num_problems)
    ]


def make_run(
    folder: Path,
    *,
    num_steps: int = 6,
    total_steps: int = 6,
    overrides: Sequence[str] = (),
    gain: float = 0.05,
    completions: Sequence[Mapping[str, Any]] | None = None,
    command: str | None = None,
) -> Path:
    """A run of `num_steps` steps out of `total_steps`, evaluated at step 0, and every third and last step."""
    folder.mkdir(parents=True, exist_ok=True)
    told = [*OVERRIDES, f"train.n_grpo_steps={total_steps}", *overrides]
    config = to_dict(compose_run_config(told)) | {"output_dir": str(folder)}
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    started = command or shlex.join(["python", "-m", "grpo.train", *told, f"output_dir={folder}"])
    write_atomic(
        folder / "provenance.json", json.dumps(_provenance() | {"command": started, "folder": str(folder.parent)})
    )
    due = [step for step in range(num_steps + 1) if step % 3 == 0 or step == total_steps]
    rows = [metrics_row(step, gain=gain, evaluated=step in due) for step in range(num_steps + 1)]
    JsonlLog(folder / "metrics.jsonl").extend(rows)
    JsonlLog(folder / "completions.jsonl").extend(groups(num_steps) if completions is None else completions)
    (folder / "evaluations").mkdir(exist_ok=True)
    for step in due:
        right = math.floor(40 * min(0.9, 0.2 + gain * step) + 1e-9)
        lines = "".join(json.dumps(row) + "\n" for row in answers(right))
        write_atomic(folder / "evaluations" / f"step_{step:06d}.jsonl", lines)
    return folder


def make_sweep(folder: Path) -> Path:
    """Four points over two settings, one that stopped by a signal, and one that failed before its first step."""
    values = [(loss, size) for loss in ("grpo_clip", "dr_grpo") for size in (4, 8)]
    for number, (loss, size) in enumerate(values):
        told = [f"loss={loss}", f"train.group_size={size}"]
        make_run(folder / str(number), overrides=told, gain=0.02 + 0.03 * number, completions=[])
        write_atomic(folder / str(number) / "log.txt", "$ python -m grpo.train\nfine\n")
    make_run(folder / "4", num_steps=2, overrides=["loss=rloo", "train.group_size=8"], completions=[])
    write_atomic(folder / "4" / "log.txt", "$ python\nstopped by SIGTERM after step 2; to go on: python ...\n")
    (folder / "10").mkdir()
    lines = [f"line {number}" for number in range(30)]
    header = f"$ python -m grpo.train {' '.join(OVERRIDES)} loss=rloo train.group_size=4 output_dir=x hydra.mode=RUN"
    write_atomic(folder / "10" / "log.txt", "\n".join([header, *lines, "\x1b[31mOut of memory</pre><b>\x1b[0m", ""]))
    return folder
