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
from torch.nn.functional import cross_entropy

from grpo.config import RunConfig, WarmStartConfig, compose_run_config, to_dict
from grpo.data.arithmetic import demonstration, exercises
from grpo.data.prompts import PromptTemplate, load_template
from grpo.errors import user_errors
from grpo.policy.load import build_model, load_tokenizer, quiet_transformers, torch_dtype
from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.run.files import hold_folder, replace_folder, sweep_leftovers

_VERSION = 1  # of this recipe: a change of it makes new folders
_IGNORED = -100


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
    """Next-token prediction of the demonstrations' responses."""
    warm = cfg.model.warm_start
    optimizer = torch.optim.AdamW(model.parameters(), lr=warm.learning_rate, betas=(0.9, 0.95), fused=True)
    batches = _batches(tokenizer, template, cfg)
    start = last = time.perf_counter()
    for step, (input_ids, labels) in enumerate(islice(batches, warm.steps), start=1):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(warm, step)
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        wanted = labels != _IGNORED
        loss = cross_entropy(model.lm_head(hidden[wanted]), labels[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        if now - last > 10 or step == warm.steps:
            last = now
            left = (now - start) / step * (warm.steps - step)
            say(f"warm start: step {step}/{warm.steps}, loss {loss.item():.3f}, {left:.0f} s left")
    say(f"warm start: done in {time.perf_counter() - start:.1f} s")


def _learning_rate(warm: WarmStartConfig, step: int) -> float:
    """Up over the first tenth of the steps, then linearly down to a tenth of the peak."""
    rise = step / max(1.0, 0.1 * warm.steps)
    fall = 1 - 0.9 * (step - 1) / warm.steps
    return warm.learning_rate * min(1.0, rise) * fall


def _batches(tokenizer: Any, template: PromptTemplate, cfg: RunConfig) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids [N, S], and for each position the token that follows it, if the response holds that.

    Only exercises that are not held out are demonstrated.
    """
    warm = cfg.model.warm_start
    rng = np.random.default_rng([cfg.seed, 1])
    stream = exercises(cfg.data.level, cfg.seed, held_out=False)
    while True:
        sequences, labels = [], []
        for exercise in islice(stream, warm.batch_size):
            text = demonstration(
                exercise,
                rng,
                format_error_rate=warm.format_error_rate,
                arithmetic_error_rate=warm.arithmetic_error_rate,
            )
            prompt = tokenizer(template.render(exercise.question)).input_ids
            response = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
            sequences.append(torch.tensor([*prompt, *response[:-1]]))
            labels.append(torch.tensor([_IGNORED] * (len(prompt) - 1) + response))
        yield (
            torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True),
            torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
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
