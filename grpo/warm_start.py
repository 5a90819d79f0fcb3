"""Builds a small model and teaches it, from partly wrong demonstrations, to write in the form that GRPO rewards.

`python -m grpo.warm_start experiment=quickstart` does it ahead of time; `grpo.train` does it when it has to. The result
is kept in `model.warm_start.cache_dir` under a hash of everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.config import (
    AdvantageName,
    AggregationName,
    HardwareConfig,
    LossConfig,
    LrSchedule,
    ObjectiveName,
    Packing,
    RunConfig,
    TrainConfig,
    compose_run_config,
    to_dict,
)
from grpo.data.arithmetic import demonstration, exercises
from grpo.data.prompts import PromptTemplate, load_template
from grpo.errors import user_errors
from grpo.policy.forward import ForwardSettings
from grpo.policy.load import build_model, load_tokenizer, quiet_transformers, torch_dtype
from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.policy.update import Policy
from grpo.rl.log_probs import TokenDistribution
from grpo.run.files import hold_folder, replace_folder, sweep_leftovers
from grpo.types import TrainBatch

_VERSION = 2  # of this recipe: a change of it makes new folders


def built_model_folder(cfg: RunConfig, say: Callable[[str], None]) -> Path:
    """The folder of the model that `model.build` and `model.warm_start` describe, made now if it is not there yet.

    Args:
        cfg: a run config without `model.path`.
        say: told what is done, and how long it will take.

    Returns:
        A folder in Hugging Face layout, weights in `model.master_dtype`.
    """
    template = load_template(cfg.data.prompt, cfg.data.stop)
    name = hashlib.sha256(json.dumps(_ingredients(cfg, template), sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cfg.model.warm_start.cache_dir) / name
    with hold_folder(folder.parent, wait=True):  # a second run that wants the same model then finds it
        if (folder / "config.json").is_file():
            say(f"model: {folder}, made earlier")
        else:
            sweep_leftovers(folder.parent)
            _build(folder, template, cfg, say)
    return folder


def _build(folder: Path, template: PromptTemplate, cfg: RunConfig, say: Callable[[str], None]) -> None:
    """Builds the model, teaches it if the config says so, and writes the folder."""
    tokenizer = load_tokenizer(cfg.model) if cfg.model.tokenizer else build_small_tokenizer(_pieces(template))
    model = build_model(cfg.model.build, tokenizer, seed=cfg.seed, dtype=torch_dtype(cfg.model.master_dtype))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"model: built a Qwen2 of {num_parameters / 1e6:.2f} million parameters with random weights")
    if cfg.model.warm_start.steps:
        _train(model, tokenizer, template, cfg, say)
    with replace_folder(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def _ingredients(cfg: RunConfig, template: PromptTemplate) -> dict[str, Any]:
    """Everything the weights depend on."""
    warm_start = {key: value for key, value in to_dict(cfg.model.warm_start).items() if key != "cache_dir"}
    return {
        "version": _VERSION,
        "build": to_dict(cfg.model.build),
        "tokenizer": cfg.model.tokenizer,
        "dtype": cfg.model.master_dtype.name,
        "warm_start": warm_start if cfg.model.warm_start.steps else None,
        "level": cfg.data.level if cfg.model.warm_start.steps else None,
        "prompt": template.text,
        "seed": cfg.seed,
        "torch": torch.__version__,
    }


def _pieces(template: PromptTemplate) -> list[str]:
    """What a prompt always holds, before and after its question: a token each."""
    return template.text.split("{question}")


def _train(model: Any, tokenizer: Any, template: PromptTemplate, cfg: RunConfig, say: Callable[[str], None]) -> None:
    """Next-token prediction of the demonstrations' responses: REINFORCE where each has an advantage of 1."""
    warm = cfg.model.warm_start
    policy = _policy(model, cfg, say)
    start = last = time.perf_counter()
    for step, batch in enumerate(islice(_batches(tokenizer, template, cfg), warm.steps), start=1):
        metrics = policy.update(batch, step)
        now = time.perf_counter()
        if now - last > 10 or step == warm.steps:
            last = now
            left = (now - start) / step * (warm.steps - step)
            say(f"warm start: step {step}/{warm.steps}, loss {metrics['policy/loss']:.3f}, {left:.0f} s left")
    say(f"warm start: done in {time.perf_counter() - start:.1f} s")


def _policy(model: Any, cfg: RunConfig, warn: Callable[[str], None]) -> Policy:
    """Takes one step a batch, on the mean over its tokens, on the CPU. The rate's schedule would go on to 0."""
    warm = cfg.model.warm_start
    return Policy(
        model,
        train=TrainConfig(
            n_grpo_steps=warm.steps * 10 // 9,
            learning_rate=warm.learning_rate,
            lr_schedule=LrSchedule.linear,
            warmup_steps=warm.steps // 10,
            rollout_batch_size=warm.batch_size,
            group_size=1,
            train_batch_size=warm.batch_size,
        ),
        loss=LossConfig(
            advantage=AdvantageName.none, objective=ObjectiveName.reinforce, aggregation=AggregationName.token_mean
        ),
        hardware=HardwareConfig(
            policy_device="cpu", packing=Packing.packed, compiled_kernels=cfg.hardware.compiled_kernels
        ),
        forward=ForwardSettings(
            TokenDistribution(),
            min_tokens=0,
            compute_dtype=model.dtype,
            head_chunk_tokens=cfg.hardware.head_chunk_tokens,
        ),
        max_tokens=cfg.sampling.max_tokens,
        seed=cfg.seed,
        warn=warn,
    )


def _batches(tokenizer: Any, template: PromptTemplate, cfg: RunConfig) -> Iterator[TrainBatch]:
    """Demonstrations of exercises that are not held out."""
    warm = cfg.model.warm_start
    rng = np.random.default_rng([cfg.seed, 1])
    stream = exercises(cfg.data.level, cfg.seed, held_out=False)
    rates = {"format_error_rate": warm.format_error_rate, "arithmetic_error_rate": warm.arithmetic_error_rate}
    while True:
        drawn = list(islice(stream, warm.batch_size))
        prompts = tokenizer([template.render(exercise.question) for exercise in drawn]).input_ids
        texts = tokenizer([demonstration(exercise, rng, **rates) for exercise in drawn]).input_ids
        responses = [[*text, tokenizer.eos_token_id] for text in texts]
        yield TrainBatch(
            token_ids=tuple(torch.tensor([*prompt, *text]) for prompt, text in zip(prompts, responses, strict=True)),
            prompt_lengths=tuple(map(len, prompts)),
            sampler_log_probs=tuple(torch.zeros(len(response)) for response in responses),
            advantages=torch.ones(len(drawn)),
        )


def main() -> None:
    """Makes, or finds, the warm start of the config that the command line composes."""
    with user_errors():
        quiet_transformers()
        cfg = compose_run_config(sys.argv[1:])
        if cfg.model.path is not None:
            raise ValueError(f"model.path={cfg.model.path} is not built but loaded; use model=tiny or model.path=null")
        print(built_model_folder(cfg, lambda text: print(text, flush=True)))


if __name__ == "__main__":
    main()
