"""The cases of `bench.step`: models, prompts, lengths, and the jobs made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from bench.peers.step_job import StepJob
from grpo.config import BuildConfig, DataConfig, DataSource
from grpo.data.arithmetic import test_problems, train_problems
from grpo.data.dataset import step_problems
from grpo.data.prompts import load_template
from grpo.policy.load import build_model
from grpo.policy.small_tokenizer import build_small_tokenizer

SEED = 1
TEMPLATE = "r1_zero"
_WARM_UP_STEPS = 1
SMALL = BuildConfig(hidden_size=128, intermediate_size=416, num_hidden_layers=3)
LARGE = BuildConfig(
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=1984,
    num_hidden_layers=10,
    num_attention_heads=8,
    num_key_value_heads=2,
)
_QUICK = BuildConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
_SMALL_MEMORY = ("model.master_dtype=bfloat16", "train.optimizer=adamw_8bit", "hardware.micro_batch_tokens=512")


@dataclass(frozen=True)
class Case:
    """A comparison.

    Attributes:
        name: for --only.
        build: the model.
        num_problems, group_size, max_tokens: of a step.
        num_timed: steps after the warm-up.
        varying: whether lengths vary, exponentially with a mean of a third of max_tokens; else all are max_tokens.
        bf16: bfloat16 compute.
        settings: of ours beside these, which TRL does not have.
        goal: what the ratio should be.
        guess_s: of a step of ours and of TRL's, for the time that is left.
    """

    name: str
    build: BuildConfig
    num_problems: int
    group_size: int
    max_tokens: int
    num_timed: int
    goal: str
    guess_s: tuple[float, float]
    varying: bool = False
    bf16: bool = False
    settings: tuple[str, ...] = ()

    @property
    def work(self) -> str:
        """What a step does, in words."""
        lengths = f"1 to {self.max_tokens}" if self.varying else f"{self.max_tokens}"
        dtype = "bf16 compute" if self.bf16 else "float32"
        return ", ".join((f"{self.num_problems} x {self.group_size} x {lengths} tokens, {dtype}", *self.settings))

    def quick(self) -> Case:
        """The same at a size that proves nothing."""
        return replace(self, build=_QUICK, num_problems=2, group_size=8, max_tokens=6, num_timed=1, guess_s=(0.1, 0.5))


CASES = (
    Case("small", SMALL, 16, 8, 64, num_timed=5, goal="2.5", guess_s=(1, 2.2)),
    Case("varying", SMALL, 16, 8, 64, num_timed=5, goal="4", guess_s=(0.6, 2.2), varying=True),
    Case("large", LARGE, 8, 8, 32, num_timed=2, goal="1.5", guess_s=(12, 18)),
    Case("bf16", LARGE, 8, 8, 32, num_timed=2, goal="2.5", guess_s=(12, 30), bf16=True),
    Case("8bit", LARGE, 8, 8, 32, num_timed=2, goal="2.5", guess_s=(12, 30), bf16=True, settings=_SMALL_MEMORY),
)


@cache
def model_folder(build: BuildConfig, scratch: Path) -> Path:
    """A folder with random weights and the small tokenizer, made once."""
    folder = scratch / f"model_{build.hidden_size}_{build.num_hidden_layers}"
    tokenizer = build_small_tokenizer(load_template(TEMPLATE).text.split("{question}"))
    tokenizer.save_pretrained(folder)
    build_model(build, tokenizer, seed=SEED).save_pretrained(folder)
    _fill_vocabulary(folder / "tokenizer.json", len(tokenizer), build.vocab_size or 0)
    return folder


def _fill_vocabulary(file: Path, num_tokens: int, vocab_size: int) -> None:
    """Gives every row of the embedding a text that no prompt holds, as a real vocabulary does, so that all decode."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {f"Ġ{index}": index for index in range(num_tokens, vocab_size)}
    file.write_text(json.dumps(content), encoding="utf-8")


def forced_lengths(case: Case, num_steps: int) -> list[list[int]] | None:
    """[S, B] tokens, or None where all are max_tokens."""
    if not case.varying:
        return None
    size = (num_steps, case.num_problems * case.group_size)
    drawn = np.random.default_rng(SEED).exponential(case.max_tokens / 3, size)
    return drawn.round().clip(1, case.max_tokens).astype(int).tolist()


def build_job(
    case: Case, scratch: Path, *, threads: int, num_timed: int | None = None, micro_batch: int = 0, graded: bool = False
) -> StepJob:
    """The job of one process; its files are below `scratch`."""
    num_steps = _WARM_UP_STEPS + (case.num_timed if num_timed is None else num_timed)
    folder = scratch / f"{case.name}_{num_steps}"
    if not folder.exists():
        folder.mkdir(parents=True)
        _write_problems(folder, case, num_steps)
    return StepJob(
        model=str(model_folder(case.build, scratch)),
        problems=str(folder / "problems.jsonl"),
        held_out=str(folder / "held_out.jsonl"),
        prompts=str(folder / "prompts.jsonl"),
        template=TEMPLATE,
        folder="",
        num_steps=num_steps,
        num_problems=case.num_problems,
        group_size=case.group_size,
        max_tokens=case.max_tokens,
        lengths=forced_lengths(case, num_steps),
        bf16=case.bf16,
        settings=case.settings,
        threads=threads,
        seed=SEED,
        micro_batch=micro_batch,
        graded=graded,
    )


def _write_problems(folder: Path, case: Case, num_steps: int) -> None:
    """Arithmetic for ours, and the prompts of it in the order in which ours draws them."""
    number = num_steps * case.num_problems
    cfg = DataConfig(name="bench", source=DataSource.arithmetic, level=3, num_train=number, num_test=1, seed=SEED)
    template, problems = load_template(TEMPLATE), train_problems(cfg)
    for name, chosen in (("problems", problems), ("held_out", test_problems(cfg))):
        _write_lines(folder / f"{name}.jsonl", [{"problem": one.question, "answer": one.answer} for one in chosen])
    drawn = [
        problem
        for step in range(1, num_steps + 1)
        for problem in step_problems(problems, num_problems=case.num_problems, seed=SEED, step=step, sampling_round=0)
    ]
    _write_lines(folder / "prompts.jsonl", [{"prompt": template.render(problem.question)} for problem in drawn])


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
