"""The entry point: `python -m grpo.train experiment=quickstart`.

@hydra.main composes the config, `to_run_config` freezes it, `build_run` makes policy, engine and grader from it, and
`grpo.loop.train` does the rest.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from grpo.config import ModelConfig, RunConfig, WarmStartConfig, config_path, register, to_dict, to_run_config
from grpo.distributed import ONE_RANK, Ranks, check_start, end_of_rank, join_ranks, one_voice, own_hardware
from grpo.errors import late_interrupts, user_errors
from grpo.run.files import remove_empty

register()


@hydra.main(version_base="1.3", config_path=config_path(), config_name="config")
def _hydra_main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with user_errors(), one_voice():  # here too: Hydra adds a line of its own to what leaves a job
            raise SystemExit(run_training(to_run_config(cfg), folder))
    finally:
        if cfg.output_dir is None and cfg.resume in ("auto", "never"):  # Hydra made it, by the time
            remove_empty(folder)


def main() -> None:
    """What `python -m grpo.train` does."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to `user_errors` as they are
    with end_of_rank(), user_errors(), one_voice():
        _hydra_main()


def run_training(cfg: RunConfig, folder: Path) -> int:
    """Trains as the config says, in that folder: on this process, or on its part of what torchrun or Slurm started.

    Returns:
        The exit status: 0, or 128 + the signal that ended the run.

    Raises:
        ValueError: something a user can mend; one sentence.
        grpo.types.RunError: the run had to stop; one sentence.
    """
    with late_interrupts():
        from grpo.policy.load import quiet_transformers
        from grpo.rollout.build import check_hardware
    from grpo.run.console import build_console
    from grpo.run.interrupt import Interrupt
    from grpo.run.silence import SilentConsole

    quiet_transformers()
    check_start(cfg.hardware)
    check_hardware(cfg.hardware)
    with join_ranks(cfg.hardware) as ranks, ExitStack() as stack:
        total_steps = cfg.train.n_grpo_steps
        console = build_console(cfg.logging.console, total_steps) if ranks.is_first else SilentConsole()
        stack.callback(console.finish)
        folder, checkpoint = _open_folder(cfg, folder, ranks, stack, console)
        console.say(f"run folder: {folder}")
        for note in cfg.notes(_named_settings()):
            console.warn(note)
        cfg = replace(cfg, hardware=own_hardware(cfg.hardware, ranks))
        return _train(cfg, folder, checkpoint, console, Interrupt(console.warn), ranks)


def _named_settings() -> set[str]:
    """The settings of the command line; of the point of a sweep, those of its own."""
    words = shlex.split(os.environ.get("GRPO_TYPED_COMMAND", ""))
    if not words and HydraConfig.initialized():
        words = list(HydraConfig.get().overrides.task)
    return {word.split("=")[0] for word in words}


def _open_folder(
    cfg: RunConfig, folder: Path, ranks: Ranks, stack: ExitStack, console: Any
) -> tuple[Path, Path | None]:
    """Rank 0's folder, which it holds until the stack is left, and the checkpoint to go on from."""
    from grpo.run.files import hold_folder
    from grpo.run.folder import open_run_folder

    def take() -> tuple[Path, Path | None]:
        stack.enter_context(hold_folder(folder))
        return folder.resolve() if ranks.size > 1 else folder, open_run_folder(cfg, folder, console.warn)

    shared, checkpoint = ranks.from_first(take)
    ranks.together(lambda: _check_shared(shared))
    if folder.resolve() != shared:  # Hydra made it for this rank, a second later than rank 0's
        remove_empty(folder)
    return shared, checkpoint


def _check_shared(shared: Path) -> None:
    """Raises ValueError where rank 0's folder is not to be seen from here."""
    if not (shared / "config.yaml").exists():
        raise ValueError(
            f"{shared} is not to be seen from {socket.gethostname()}, but all ranks write checkpoints there; use an "
            "output_dir on a file system that all machines share"
        )


def _train(cfg: RunConfig, folder: Path, checkpoint: Path | None, console: Any, interrupt: Any, ranks: Ranks) -> int:
    from grpo.loop import train
    from grpo.run.checkpoints import TrainState, load_checkpoint

    run = build_run(cfg, folder, console, interrupt, ranks)
    state = TrainState()
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, run.policy.model, run.policy.optimizer)
        console.say(f"resumed from {checkpoint}: step {state.step} of {cfg.train.n_grpo_steps}")
    try:
        console.start()
        with interrupt:  # not before: until there is something to save, Ctrl-C ends the program at once
            state = train(run, state)
    finally:
        console.finish()
        run.recorder.close()
        run.grader.close()
        run.engine.close()
    if interrupt.signal and state.step < cfg.train.n_grpo_steps:
        to_go_on = resume_command(folder, ranks)
        console.say(f"stopped by {interrupt.signal.name} after step {state.step}; to go on: {to_go_on}")
        return interrupt.exit_status
    if cfg.train.n_grpo_steps == 0:
        console.say(f"nothing was trained (train.n_grpo_steps=0); the completions are in {folder / 'evaluations'}")
    elif ranks.is_first:
        _summarise(cfg, run, folder)
    return 0


def build_run(cfg: RunConfig, folder: Path, console: Any, interrupt: Any, ranks: Ranks = ONE_RANK) -> Any:
    """Policy, rollout engine, grader and data of a config, as a `grpo.loop.Run`.

    Raises:
        ValueError: something a user can mend; one sentence.
    """
    import torch

    from grpo.data.dataset import load_data
    from grpo.data.encode import encode_prompts
    from grpo.data.prompts import load_template
    from grpo.loop import Run
    from grpo.policy.build import build_policy, load_policy_model
    from grpo.policy.load import end_token_ids, load_tokenizer
    from grpo.reward.functions import build_grader
    from grpo.rollout.build import build_engine, check_engine
    from grpo.run.recorder import Recorder
    from grpo.run.silence import SilentRecorder

    if cfg.hardware.num_threads is not None:
        torch.set_num_threads(cfg.hardware.num_threads)
    template = load_template(cfg.data.prompt, cfg.data.stop)
    data = load_data(cfg.data)
    for note in data.notes:
        console.warn(note)
    test = data.test[: cfg.evaluation.num_problems]
    cfg = replace(cfg, model=ranks.from_first(lambda: _built(cfg, console)))
    check_engine(cfg)
    tokenizer = load_tokenizer(cfg.model)
    model = load_policy_model(cfg, ranks)
    longest = max(cfg.sampling.max_tokens, cfg.evaluation.max_tokens or 0)
    context = model.config.max_position_embeddings
    prompt_ids = encode_prompts([*data.train, *test], template, tokenizer, context=context, max_tokens=longest)
    end_ids = end_token_ids(model, tokenizer)
    policy, compute_dtype = build_policy(cfg, model, end_ids, ranks, console.warn)
    console.say(
        f"{cfg.model.name} on {cfg.hardware.name}: {len(data.train)} training and {len(test)} held-out problems, "
        f"prompts of {min(map(len, prompt_ids.values()))} to {max(map(len, prompt_ids.values()))} tokens"
    )
    return Run(
        cfg=cfg,
        policy=policy,
        engine=build_engine(
            cfg.hardware,
            policy.whole_model,
            tokenizer,
            end_ids=end_ids,
            compute_dtype=compute_dtype,
            log=folder / f"vllm_{ranks.rank}.log",
            warn=console.warn if ranks.is_first else ranks.warn,
        ),
        grader=build_grader(cfg.reward),
        tokenizer=tokenizer,
        prompt_ids=prompt_ids,
        train=data.train,
        test=test,
        stop=template.stop,
        compute_dtype=compute_dtype,
        recorder=Recorder(folder, console, cfg.logging, to_dict(cfg)) if ranks.is_first else SilentRecorder(folder),
        interrupt=interrupt,
        ranks=ranks,
    )


def _built(cfg: RunConfig, console: Any) -> ModelConfig:
    """The model's config with its `path` set: a model that is to be built is built, and warm-started, first."""
    if cfg.model.path is not None:
        return cfg.model
    from grpo.warm_start import built_model_folder

    folder = built_model_folder(cfg, console.say)
    return replace(cfg.model, path=str(folder), tokenizer=None, warm_start=WarmStartConfig())


def resume_command(folder: Path, ranks: Ranks) -> str:
    """The command line that continues the run of a folder."""
    if typed := os.environ.get("GRPO_TYPED_COMMAND"):  # the point of a sweep: its own overrides were not typed
        return typed
    from hydra_plugins.grpo_launchers.subprocess_launcher import quoted

    overrides: Sequence[str] = HydraConfig.get().overrides.task
    kept = [item for item in overrides if item.split("=")[0] not in ("resume", "output_dir")]
    return shlex.join([*ranks.launcher(), "-m", "grpo.train", *kept, f"resume={quoted(str(folder))}"])


def _summarise(cfg: RunConfig, run: Any, folder: Path) -> None:
    """Prints accuracy before and after, two completions side by side, and where the files are."""
    from grpo.run.checkpoints import checkpoints_in
    from grpo.run.summary import Comparison, RunSummary, print_summary

    last = cfg.train.n_grpo_steps
    by_step = {row["step"]: row for row in run.recorder.read_metrics() if "eval/accuracy" in row}
    before, after = run.recorder.read_evaluation(0), run.recorder.read_evaluation(last)
    pairs = list(zip(before, after, strict=False))
    improved = [pair for pair in pairs if pair[1]["answer_reward"] > pair[0]["answer_reward"]]
    shown = next(iter(improved or pairs), None)
    comparison = shown and Comparison(
        question=shown[0]["question"],
        answer=shown[0]["gold"],
        before=shown[0]["completion"],
        before_right=bool(shown[0]["answer_reward"]),
        after=shown[1]["completion"],
        after_right=bool(shown[1]["answer_reward"]),
    )
    files = [("run folder", folder), ("curves", folder / "curves.png"), ("metrics", folder / "metrics.jsonl")]
    files += [("weights", checkpoint) for checkpoint in checkpoints_in(folder)[-1:]]
    print_summary(RunSummary(by_step.get(0, {}), by_step.get(last, {}), comparison, files), cfg.logging.console)


if __name__ == "__main__":
    main()
