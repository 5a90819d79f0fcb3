"""What one training process of `bench.step` is told, and what it tells.

Standard library only: TRL's interpreter, which has no `grpo`, imports it too.

Axes: S steps, P problems in a step, G completions per problem, B = P * G.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepJob:
    """One process's work.

    Attributes:
        model: a model folder, float32 weights.
        problems: a JSON Lines file of S * P problems, for ours.
        held_out: a JSON Lines file of one problem that is none of them, for ours.
        prompts: a JSON Lines file of the rendered prompts in the order in which ours takes them, for TRL.
        template: the prompt template's name.
        folder: scratch of this process.
        num_problems, group_size: P and G.
        max_tokens: of a completion.
        lengths: [S, B] tokens that each completion has; None is `max_tokens` for all.
        bf16: bfloat16 compute on float32 masters.
        threads: of torch.
        seed: of the run.
        micro_batch: completions that go through TRL's policy at once; ours has a budget of tokens and ignores it.
        graded: r1_zero grading of answers that `our_step` writes, instead of `text_reward`; ours only.
        settings: overrides of ours beside these.
    """

    model: str
    problems: str
    held_out: str
    prompts: str
    template: str
    folder: str
    num_steps: int
    num_problems: int
    group_size: int
    max_tokens: int
    lengths: list[list[int]] | None
    bf16: bool
    threads: int
    seed: int
    micro_batch: int = 0
    graded: bool = False
    settings: Sequence[str] = ()

    @property
    def batch_size(self) -> int:
        """B."""
        return self.num_problems * self.group_size

    def expected_lengths(self, step: int) -> list[int]:
        """[B] tokens of the completions of a step, which counts from 0."""
        return [self.max_tokens] * self.batch_size if self.lengths is None else self.lengths[step]


@dataclass
class StepResult:
    """What was measured; lists have one entry a step, the first of which is the warm-up.

    Attributes:
        parts: seconds of the parts of each step by name; "step" is the whole, on the clock.
        prompt_tokens: [S, P] tokens of each problem's prompt.
        completion_tokens: [S, B] tokens of each completion.
        start_gib: resident memory right before the first step; None where the system does not say.
        end_gib: the peak until the last step ended.
        peak_gib: of the whole process.
        num_parameters: of the model.
    """

    parts: dict[str, list[float]] = field(default_factory=dict)
    prompt_tokens: list[list[int]] = field(default_factory=list)
    completion_tokens: list[list[int]] = field(default_factory=list)
    start_gib: float | None = None
    end_gib: float = 0.0
    peak_gib: float = 0.0
    num_parameters: int = 0

    def add(self, step: int, name: str, seconds: float) -> None:
        """Adds seconds to a part of a step, which counts from 0."""
        values = self.parts.setdefault(name, [])
        values.extend([0.0] * (step + 1 - len(values)))
        values[step] += seconds

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read_job(path: str) -> StepJob:
    """The job of a JSON file."""
    return StepJob(**json.loads(Path(path).read_text(encoding="utf-8")))


def read_lines(path: str) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def text_reward(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: hardly any two completions of a group get the same."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def resident_gib() -> float | None:
    """Memory that this process has now, where Linux says it."""
    return _status("VmRSS")


def peak_gib() -> float:
    """The most memory that this process has had.

    Linux's ru_maxrss would count what the parent had when it started this process; VmHWM does not.
    """
    own = _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30 if own is None else own


def _status(name: str) -> float | None:
    if not os.path.exists("/proc/self/status"):
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) / 2**20 if found else None
