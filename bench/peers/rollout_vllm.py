"""vLLM on a job: `python -m bench.peers.rollout_vllm JOB RESULT`, with the interpreter of its own environment.

The options: `compiled` (vLLM's default; without it no graph is compiled), `seeded` (a generator a request, so that a
completion does not depend on its batch, as ours) and `cache_bytes`.
"""

from __future__ import annotations

import os

# The engine in this process, whose threads the environment then decides.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
import vllm  # pyright: ignore[reportMissingImports]
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

from bench.peers.rollout_job import Job, Measured, answer, peak_bytes, timed


def measure(job: Job) -> Measured:
    """One call with all prompts, with the log-prob of every sampled token, as ours returns it."""
    threads = torch.get_num_threads()  # vLLM makes set_num_threads a no-op: the environment has to have said it
    if threads != job.threads:
        raise RuntimeError(f"torch has {threads} threads instead of {job.threads}; OMP_NUM_THREADS did not reach it")
    engine = LLM(
        model=job.model,
        dtype=job.dtype,
        enforce_eager=not job.options["compiled"],
        kv_cache_memory_bytes=job.options["cache_bytes"],
        max_model_len=max(map(len, job.prompts)) + job.cap,
        max_num_seqs=len(job.prompts),
        logprobs_mode="processed_logprobs",
        seed=job.seed,
        disable_log_stats=True,
    )

    def sample(job: Job) -> list[int]:
        params = [
            SamplingParams(
                max_tokens=length,
                ignore_eos=True,
                temperature=1.0,
                seed=job.seed + row if job.options["seeded"] else None,
                logprobs=0,
            )
            for row, length in enumerate(job.lengths)
        ]
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in job.prompts], params, use_tqdm=False)
        if any(len(one.outputs[0].logprobs) != len(one.outputs[0].token_ids) for one in outputs):
            raise RuntimeError("vLLM returned log-probs for some tokens only")
        return [len(one.outputs[0].token_ids) for one in outputs]

    seconds = timed(sample, job)
    return Measured(seconds, peak_bytes(), f"vLLM {vllm.__version__}")


if __name__ == "__main__":
    answer(measure)
