"""One run of TRL's GRPOTrainer, in TRL's interpreter: `python -m bench.peers.trl_step JOB RESULT`."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench.peers.step_job import StepJob, StepResult, peak_gib, read_job, read_lines, resident_gib, text_reward


class ForcedLengths(LogitsProcessor):
    """Lets row i end at its length, and nowhere else."""

    def __init__(self, lengths: list[int], prompt_width: int, end_id: int) -> None:
        """Takes [B] lengths and how many columns the prompts have."""
        self._lengths = torch.tensor(lengths)
        self._prompt_width, self._end_id = prompt_width, end_id

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """[B, V] scores with the end at -inf, or everything else for rows whose next token is their last."""
        scores[:, self._end_id] = -torch.inf
        last = input_ids.shape[1] - self._prompt_width + 1 >= self._lengths
        scores[last] = -torch.inf
        scores[last, self._end_id] = 0.0
        return scores


class MeasuredTrainer(GRPOTrainer):
    """Notes what a step does: its rollout, and everything before its update."""

    job: StepJob
    result: StepResult

    def _generate(self, prompts: list[Any]) -> Any:
        start = time.perf_counter()
        output = super()._generate(prompts)
        step = self.state.global_step
        self.result.add(step, "rollout", time.perf_counter() - start)
        prompt_ids, completion_ids = output[0], output[1]
        self.result.prompt_tokens.append([len(ids) for ids in prompt_ids[:: self.job.group_size]])
        self.result.completion_tokens.append([len(ids) for ids in completion_ids])
        return output

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        start = time.perf_counter()
        output = super()._generate_and_score_completions(inputs)
        self.result.add(self.state.global_step, "before update", time.perf_counter() - start)
        return output


class Stopwatch(TrainerCallback):
    """A step lasts from its beginning until its line is logged."""

    def __init__(self, result: StepResult) -> None:
        """Writes to `result`."""
        self._result = result
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step is where memory is looked at."""
        if state.global_step == 0:
            self._result.start_gib = resident_gib()
        self._start = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Every step logs once; the summary of the whole run is no step."""
        if "train_runtime" not in (logs or {}):
            self._result.add(state.global_step - 1, "step", time.perf_counter() - self._start)
            self._result.end_gib = peak_gib()


def rewards(completions: list[str], **kwargs: Any) -> list[float]:
    """[B] of their texts."""
    return [text_reward(text) for text in completions]


def build_config(job: StepJob) -> GRPOConfig:
    """One optimiser step of B completions from one generation batch, and nothing that is not asked for."""
    return GRPOConfig(
        output_dir=job.folder,
        max_steps=job.num_steps,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.batch_size // job.micro_batch,
        num_generations=job.group_size,
        max_completion_length=job.max_tokens,
        generation_kwargs={"min_new_tokens": job.max_tokens} if job.lengths is None else None,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=job.bf16,
        use_cpu=True,
        use_vllm=False,
        shuffle_dataset=False,
        model_init_kwargs={"dtype": "float32"},
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job.seed,
    )


def force_lengths(model: Any, job: StepJob, end_id: int) -> None:
    """Puts `ForcedLengths` into the model's `generate`; its calls are the steps."""
    generate, steps = model.generate, iter(job.lengths or [])

    def forced(*args: Any, **kwargs: Any) -> Any:
        processor = ForcedLengths(next(steps), kwargs["input_ids"].shape[1], end_id)
        return generate(*args, **kwargs, logits_processor=LogitsProcessorList([processor]))

    model.generate = forced


def main() -> None:
    """Trains and writes what was measured."""
    job = read_job(sys.argv[1])
    torch.set_num_threads(job.threads)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job.model, padding_side="left", truncation_side="left")
    result = StepResult()
    trainer = MeasuredTrainer(
        model=job.model,
        reward_funcs=rewards,
        args=build_config(job),
        train_dataset=Dataset.from_list(read_lines(job.prompts)),
        processing_class=tokenizer,
        callbacks=[Stopwatch(result)],
    )
    trainer.job, trainer.result = job, result
    if job.lengths is not None:
        force_lengths(trainer.model, job, int(tokenizer.eos_token_id))
    result.num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    trainer.train()
    before = result.parts.pop("before update")
    for step, (whole, seconds) in enumerate(zip(result.parts["step"], before, strict=True)):
        result.add(step, "update", whole - seconds)
    result.peak_gib = peak_gib()
    result.write(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
