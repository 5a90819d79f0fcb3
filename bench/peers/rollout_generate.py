"""transformers' `generate` on a job: `python -m bench.peers.rollout_generate JOB RESULT`. Knows nothing of grpo."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from bench.peers.rollout_job import Job, Measured, answer, peak_bytes, timed


class RowLengths(StoppingCriteria):
    """Ends every row at a length of its own, and notes when it did."""

    def __init__(self, lengths: list[int], width: int) -> None:
        """`width` is the prompts', padding included."""
        self._lengths, self._width = torch.tensor(lengths), width
        self.ended = torch.zeros_like(self._lengths)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """[R] bool, whether the row has ended."""
        tokens = input_ids.shape[1] - self._width
        done = tokens >= self._lengths
        self.ended = torch.where(done & (self.ended == 0), tokens, self.ended)
        return done


def measure(job: Job) -> Measured:
    """One batch of all rows, padded on the left, without log-probs, which the other engines return."""
    torch.set_num_threads(job.threads)
    transformers.utils.logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).eval()
    model.generation_config.eos_token_id = None
    torch.manual_seed(job.seed)

    def sample(job: Job) -> list[int]:
        width = max(map(len, job.prompts))
        input_ids = torch.zeros(len(job.prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(job.prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        criterion = RowLengths(job.lengths, width)
        output = model.generate(
            input_ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=job.cap,
            stopping_criteria=StoppingCriteriaList([criterion]),
            use_cache=True,
            pad_token_id=0,
        )
        if output.shape[1] - width != max(job.lengths):
            raise RuntimeError(f"generate went on for {output.shape[1] - width} tokens, not {max(job.lengths)}")
        return criterion.ended.tolist()

    seconds = timed(sample, job)
    return Measured(seconds, peak_bytes(), f"transformers {transformers.__version__}")


if __name__ == "__main__":
    answer(measure)
