"""Evaluates models on problems: `python -m grpo.evaluate model.path=outputs/mine data=math`.

A model is a folder, a checkpoint, a run's folder (its last checkpoint) or a Hub id. `compare=[A,B]` evaluates several
and compares each with the first. Every completion of every problem goes through the engine in one call. Results are
kept as they come, so that the same command goes on where it was interrupted.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from grpo.config import EngineName, LoggingConfig, config_path, register
from grpo.errors import late_interrupts, user_errors
from grpo.evaluation_plan import Evaluation, compute_dtype, plan
from grpo.evaluation_report import analyse, compare
from grpo.run.evals.answering import Graders, answer, sigterm_interrupts
from grpo.run.evals.progress import Progress, build_progress
from grpo.run.evals.results import Place, ResultFolder, Row
from grpo.run.files import hold_folder
from grpo.run.text import duration

register()


@hydra.main(version_base="1.3", config_path=config_path(), config_name="evaluate")
def _hydra_main(cfg: DictConfig) -> None:
    with user_errors(command="evaluate"):  # here too: Hydra adds a line of its own to what leaves a job
        raise SystemExit(run(cfg, HydraConfig.get().overrides.task))


def main() -> None:
    """What `python -m grpo.evaluate` does."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to `user_errors` as they are
    with user_errors(command="evaluate"):
        if {"-m", "--multirun"} & set(sys.argv[1:]):
            raise ValueError("--multirun is for training; evaluate several models with compare=[A,B]")
        _hydra_main()


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Evaluates what the composed config names.

    Returns:
        The exit status: 0, or 128 + the signal that came.

    Raises:
        ValueError: something a user can mend; one sentence.
    """
    if (num_ranks := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(f"WORLD_SIZE={num_ranks}, but an evaluation is one process; start it without torchrun")
    progress = build_progress(cast(LoggingConfig, OmegaConf.to_object(cfg.logging)).console)
    evaluations = plan(cfg, overrides, progress)
    results: dict[str, list[Row]] = {}
    for evaluation in evaluations:
        with hold_folder(evaluation.folder):
            folder = ResultFolder(evaluation.folder, evaluation.settings)
            if folder.is_finished:
                progress.say(f"{evaluation.name}: all results are there, in {evaluation.folder}")
            elif status := sample(evaluation, folder, progress, overrides):
                return status
            _free_memory()
            results[evaluation.name] = folder.rows()
            analyse(evaluation, results[evaluation.name], is_shown=len(evaluations) == 1)
    if len(evaluations) > 1:
        compare(evaluations, results)
    return 0


def _free_memory() -> None:
    """The next model needs what the last one had."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def sample(evaluation: Evaluation, folder: ResultFolder, progress: Progress, overrides: Sequence[str]) -> int:
    """Samples and grades what is missing.

    Returns:
        0, or 128 + the signal that came; what had ended by then is kept.
    """
    items, n = evaluation.items, evaluation.cfg.samples_per_problem
    done, total = folder.partial(), len(items) * n
    wanted = {
        number: [one for one in range(n) if Place(item.dataset, item.place, one) not in done]
        for number, item in enumerate(items)
    }
    if len(done) < total:
        with _sampler(evaluation, progress) as ask, sigterm_interrupts() as last_signal:
            progress.say(_what_is_done(evaluation, len(done), total))
            progress.start(total, len(done), sum(int(row["answer_reward"]) for row in done.values()))
            keeper = _Keeper(folder, progress)
            try:
                ask(wanted, keeper.keep)
            except KeyboardInterrupt:
                progress.finish()
                progress.say(_how_to_go_on(len(folder.partial()), total, evaluation, overrides))
                return 128 + last_signal()
            finally:
                progress.finish()
        progress.say(keeper.what_was_done)
    folder.finish(items, n)
    return 0


class _Keeper:
    """Keeps completions, and counts them since its own start."""

    def __init__(self, folder: ResultFolder, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._num_ended = self._num_tokens = 0
        self._start = time.monotonic()

    def keep(self, rows: Sequence[tuple[Place, Row]]) -> None:
        """Writes them down, and then shows them."""
        self._folder.append(rows)
        self._num_ended += len(rows)
        self._num_tokens += sum(row["num_tokens"] for _, row in rows)
        self._progress.advance(len(rows), sum(int(row["answer_reward"]) for _, row in rows))

    @property
    def what_was_done(self) -> str:
        """Number, tokens, time, speed."""
        elapsed_s = time.monotonic() - self._start
        spent = f"{elapsed_s:.1f}s" if elapsed_s < 10 else duration(elapsed_s)
        return (
            f"{self._num_ended} completions with {self._num_tokens} tokens in {spent}, "
            f"{self._num_tokens / max(elapsed_s, 1e-9):.0f} tokens/s"
        )


def _what_is_done(evaluation: Evaluation, num_done: int, total: int) -> str:
    names = ", ".join(dict.fromkeys(item.dataset for item in evaluation.items))
    before = f"; {num_done} of {total} completions are there from before" if num_done else ""
    return f"{evaluation.headline}\n{len(evaluation.items)} problems ({names}), results in {evaluation.folder}{before}"


def _how_to_go_on(num_done: int, total: int, evaluation: Evaluation, overrides: Sequence[str]) -> str:
    command = shlex.join(["python", "-m", "grpo.evaluate", *overrides])
    return f"interrupted: {num_done} of {total} completions are kept in {evaluation.folder}; to go on: {command}"


@contextmanager
def _sampler(evaluation: Evaluation, progress: Progress) -> Iterator[Any]:
    """Loads the model; yields what samples completions of it, graded, and frees all of it in the end."""
    with late_interrupts():
        import torch

        from grpo.policy.load import end_token_ids, load_model, load_tokenizer, quiet_transformers, torch_dtype
        from grpo.rollout.build import build_engine, check_engine, check_hardware
    from grpo.reward.functions import TextGrader, answer_reward, build_grader
    from grpo.reward.lenient import read_anywhere

    cfg = evaluation.cfg
    hardware = replace(cfg.hardware, engine=cfg.backend)
    check_hardware(hardware)
    quiet_transformers()
    check_engine(cfg.as_run())
    if hardware.num_threads is not None:
        torch.set_num_threads(hardware.num_threads)
    tokenizer, dtype = load_tokenizer(cfg.model), torch_dtype(compute_dtype(cfg))
    on_policy = cfg.backend is EngineName.vllm  # which is handed the weights from there, as in training
    device = torch.device(hardware.policy_device if on_policy else hardware.engine_device)
    model = load_model(cfg.model, dtype=dtype, device=device)
    prompt_ids = _prompt_ids(evaluation, tokenizer, model.config.max_position_embeddings)
    grader = build_grader(cfg.reward)
    assert isinstance(grader, TextGrader)
    graders = Graders(grader, TextGrader(read_anywhere, answer_reward, grader.pool))
    engine = build_engine(
        hardware,
        model,
        tokenizer,
        end_ids=end_token_ids(model, tokenizer),
        compute_dtype=dtype,
        log=evaluation.folder / "vllm.log",
        warn=progress.warn,
    )
    del model  # vLLM has a copy of its own

    def ask(wanted: Mapping[int, Sequence[int]], keep: Any) -> None:
        sampling = cfg.sampling_of(evaluation.template.stop)
        answer(engine, graders, evaluation.items, prompt_ids, sampling, wanted=wanted, seed=cfg.seed, keep=keep)

    try:
        yield ask
    finally:
        engine.close()
        grader.close()


def _prompt_ids(evaluation: Evaluation, tokenizer: Any, context: int) -> list[tuple[int, ...]]:
    """The prompt of every item, checked to leave room for a completion.

    Raises:
        ValueError: the longest prompt does not; says what max_tokens does.
    """
    from grpo.data.encode import encode_prompts

    problems = [item.problem for item in evaluation.items]
    ids = encode_prompts(problems, evaluation.template, tokenizer, context=context, max_tokens=1)
    longest, max_tokens = max(problems, key=lambda problem: len(ids[problem])), evaluation.cfg.max_tokens
    room = context - len(ids[longest])
    if max_tokens > room:
        raise ValueError(
            f"max_tokens={max_tokens} and the {len(ids[longest])} tokens of the longest prompt (problem {longest.id}) "
            f"are more than the {context} of the model's context; use max_tokens={room} or less"
        )
    return [ids[problem] for problem in problems]


if __name__ == "__main__":
    main()
