"""The schema of conf/: values live in conf/, types and rules live here.

Every YAML option starts from one of these dataclasses (registered as `schema/...`), so a misspelt key or a wrong type
fails while the config is composed. Rules that join fields stand in `__post_init__` and say value, rule and remedy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from grpo.types import Sampling

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def config_dataclass(cls: type[T]) -> type[T]:
    """A frozen dataclass that OmegaConf can still merge a YAML into (it makes configs of frozen classes read-only)."""
    frozen = dataclass(frozen=True)(cls)
    cast(Any, frozen).__dataclass_params__.frozen = False
    return frozen


class DType(Enum):
    """Floating-point formats for weights and arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class EngineName(Enum):
    """Who samples."""

    torch = "torch"
    vllm = "vllm"


class EngineProcess(Enum):
    """Where vLLM runs: in the trainer's own process, or in a child of it (`grpo.rollout.vllm_child_backend`)."""

    same = "same"
    child = "child"


class Packing(Enum):
    """`grpo.policy.packing`: how the sequences of a micro-batch go through the policy."""

    padded = "padded"
    packed = "packed"
    shared_prompts = "shared_prompts"


class AdvantageName(Enum):
    """`grpo.rl.advantages`: how rewards [P, G] become advantages [P, G]."""

    none = "none"
    group_mean = "group_mean"
    group_mean_std = "group_mean_std"
    leave_one_out = "leave_one_out"


class ObjectiveName(Enum):
    """`grpo.rl.objectives`: what one token costs."""

    reinforce = "reinforce"
    clipped_token = "clipped_token"
    clipped_sequence = "clipped_sequence"
    cispo = "cispo"


class AggregationName(Enum):
    """`grpo.rl.aggregation`: how tokens become one number."""

    sequence_mean = "sequence_mean"
    token_mean = "token_mean"
    constant_length = "constant_length"


class KlEstimator(Enum):
    """`grpo.rl.objectives`: estimators of the KL divergence to the reference model."""

    none = "none"
    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class OptimizerName(Enum):
    """`grpo.policy.optimizer`: how gradients move the weights."""

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"


class LrSchedule(Enum):
    """How the learning rate goes after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class DataSource(Enum):
    """Where problems come from."""

    jsonl = "jsonl"
    arithmetic = "arithmetic"


class RewardName(Enum):
    """`grpo.reward.functions`."""

    r1_zero = "r1_zero"
    boxed = "boxed"
    random = "random"
    format_only = "format_only"


class RewardMode(Enum):
    """`grpo.reward.extraction`: how the tags of an r1_zero response are read."""

    strict = "strict"
    reference = "reference"


class WandbMode(Enum):
    """Where Weights & Biases keeps the run."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


class ConsoleMode(Enum):
    """auto is rich on a terminal, plain elsewhere."""

    auto = "auto"
    rich = "rich"
    plain = "plain"


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _require_positive(prefix: str, **values: float | None) -> None:
    for name, value in values.items():
        _require(value is None or value > 0, f"{prefix}.{name}={value} is not positive; use a number above 0")
    _require_finite(prefix, **values)


def _require_finite(prefix: str, **values: float | None) -> None:
    for name, value in values.items():
        _require(value is None or math.isfinite(value), f"{prefix}.{name}={value} is not finite; use a number")


def _near_multiples(value: int, of: int) -> str:
    below, above = value // of * of, (value // of + 1) * of
    return f"{below} or {above}" if below else f"{above}"


@config_dataclass
class BuildConfig:
    """Shape of a Qwen2 model that is built with random weights instead of loaded.

    Attributes:
        vocab_size: rows of the embedding; null is the tokenizer's size, more leaves rows that no text uses.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP inside a layer.
        num_hidden_layers: transformer layers.
        num_attention_heads: query heads of a layer, each `hidden_size / num_attention_heads` wide.
        num_key_value_heads: key-value heads, each shared by as many query heads (grouped-query attention).
        max_position_embeddings: context length in tokens.
        tie_word_embeddings: the head's weights are the embedding's.
        rope_theta: base of the rotary position embedding.
    """

    vocab_size: int | None = None
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        _require_positive(
            "model.build",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=self.max_position_embeddings,
            rope_theta=self.rope_theta,
        )
        pairs = 2 * self.num_attention_heads
        _require(
            self.hidden_size % pairs == 0,
            f"model.build.hidden_size={self.hidden_size} is not a multiple of twice model.build.num_attention_heads="
            f"{self.num_attention_heads} (rotary positions pair the numbers of a head); "
            f"use {_near_multiples(self.hidden_size, pairs)}",
        )
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"model.build.num_attention_heads={self.num_attention_heads} is not a multiple of "
            f"model.build.num_key_value_heads={self.num_key_value_heads}; use a divisor of it",
        )


@config_dataclass
class WarmStartConfig:
    """Supervised training of a built model on generated demonstrations, before GRPO (`python -m grpo.warm_start`).

    Attributes:
        steps: optimiser steps; 0 keeps the random weights.
        batch_size: demonstrations in a step.
        learning_rate: peak, reached after a tenth of the steps, then falling linearly to a tenth of it.
        format_error_rate: share of demonstrations whose tags are wrong.
        arithmetic_error_rate: share of demonstrations whose arithmetic is wrong.
        cache_dir: finished warm starts, by a hash of everything they depend on.
    """

    steps: int = 0
    batch_size: int = 256
    learning_rate: float = 2e-3
    format_error_rate: float = 0.3
    arithmetic_error_rate: float = 0.5
    cache_dir: str = "outputs/.cache/warm_start"

    def __post_init__(self) -> None:
        for name in ("format_error_rate", "arithmetic_error_rate"):
            rate = getattr(self, name)
            _require(0 <= rate <= 1, f"model.warm_start.{name}={rate} is not a share; use a number from 0 to 1")
        _require(self.steps >= 0, f"model.warm_start.steps={self.steps} is negative; use 0 for no warm start")
        _require_positive("model.warm_start", batch_size=self.batch_size, learning_rate=self.learning_rate)


@config_dataclass
class ModelConfig:
    """Names weights, tokenizer and the dtype of the master weights.

    Attributes:
        name: short, for tables and folders.
        path: a folder or a Hub id; null builds the model from `build`. Only safetensors are read, and code that
            comes with a model is never run.
        revision: branch, tag or commit on the Hub; null is the default branch.
        tokenizer: a folder or a Hub id; null is `path`, or the project's own small tokenizer for a built model.
        master_dtype: of the weights the optimiser steps on. bfloat16 halves memory and loses small updates, except with
            train.optimizer=adamw_8bit.
        build: the shape of a model that is built, where `path` is null.
        warm_start: what a model that is built is taught before GRPO.
    """

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    master_dtype: DType = DType.float32
    build: BuildConfig = field(default_factory=BuildConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)

    def __post_init__(self) -> None:
        _require(
            self.path is None or self.warm_start.steps == 0,
            f"model.warm_start.steps={self.warm_start.steps} only applies to a built model, but model.path={self.path} "
            "names weights; use model.path=null or model.warm_start.steps=0",
        )


@config_dataclass
class HardwareConfig:
    """Names the engine, devices, compute dtype and memory knobs, and never what is computed, but for `overlap`.

    Attributes:
        name: of the option, for messages and tables.
        engine: who samples: torch, from the policy's own weights, or vLLM.
        policy_device, engine_device: torch devices.
        compute_dtype: of matrix products; the master weights keep `model.master_dtype`.
        packing: padded fills sequences up to the longest; packed puts them one after another, without padding;
            shared_prompts packs the prompt of a group once.
        micro_batch_tokens: tokens that go through the policy at once, or on each core at once where a small model is
            trained on several. Padded ones count; packed, attention alone pads, and four of its positions count as a
            token where there are more than four to one.
        head_chunk_tokens: tokens whose logits exist at once.
        activation_checkpointing: recompute activations in the backward pass.
        compiled_kernels: on an x86 CPU with AVX2 or AVX512 and a C compiler, compiled code samples (the torch engine),
            computes the layers of Qwen2 and Llama where an update runs packed micro-batches on one core each, and
            multiplies float32 matrices on AMD processors with AVX512. Else, and where this is false, torch's operations
            do the same.
        engine_cache_tokens: tokens that the key-value cache holds at once: the torch engine's, and vLLM's on a CPU.
        engine_memory_fraction: share of the engine's GPU that vLLM may take.
        engine_process: where vLLM runs; a child of the trainer's process can use a GPU of its own.
        engine_sleep: vLLM on the policy's GPU gives its memory back during the update, where vLLM can.
        engine_batch_invariant: vLLM's slower kernels whose results do not depend on the batch.
        overlap: draw the next step's rollouts while the update runs, from weights that are one update behind. The ratio
            of the loss is then that to the sampler's log-probs.
        max_staleness: updates that the weights behind a completion may be behind, at most.
        optimizer_offload: keep the optimiser's state in CPU memory but while the optimiser steps.
        num_threads: of torch on a CPU; null keeps torch's choice.
        sharded: torchrun or Slurm starts several processes, and the policy is sharded over them (FSDP2); the device
            `cuda` is then each one's own GPU.
        rank_timeout_s: how long a process waits for the others before the run ends, in seconds: longer than rollouts
            differ by, and than a checkpoint takes to save.
    """

    name: str = MISSING
    engine: EngineName = EngineName.torch
    policy_device: str = MISSING
    engine_device: str = MISSING
    compute_dtype: DType = DType.float32
    packing: Packing = Packing.shared_prompts
    micro_batch_tokens: int = 8192
    head_chunk_tokens: int = 1024
    activation_checkpointing: bool = False
    compiled_kernels: bool = True
    engine_cache_tokens: int = 131072
    engine_memory_fraction: float = 0.85
    engine_process: EngineProcess = EngineProcess.same
    engine_sleep: bool = True
    engine_batch_invariant: bool = False
    overlap: bool = False
    max_staleness: int = 1
    optimizer_offload: bool = False
    num_threads: int | None = None
    sharded: bool = False
    rank_timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        _require(
            not self.sharded or self.policy_device.startswith(("cuda", "cpu")),
            f"hardware.policy_device={self.policy_device} cannot be sharded; use cuda, or hardware.sharded=false",
        )
        _require(
            not (self.overlap and self.sharded),
            "hardware.overlap=true is for one process, and hardware.sharded=true for several; use one of them",
        )
        _require(
            not (self.optimizer_offload and self.sharded),
            "hardware.optimizer_offload=true is for one process, and hardware.sharded=true for several, each of which "
            "holds a part of the optimiser's state anyway; use one of them",
        )
        in_process = self.engine is EngineName.vllm and self.engine_process is EngineProcess.same
        _require(
            not (self.overlap and in_process and self.engine_sleep),
            "hardware.overlap=true samples during the update, and hardware.engine_sleep=true gives vLLM's memory back "
            "then; use hardware.engine_sleep=false, or hardware.overlap=false",
        )
        _require_positive(
            "hardware",
            max_staleness=self.max_staleness,
            rank_timeout_s=self.rank_timeout_s,
            micro_batch_tokens=self.micro_batch_tokens,
            head_chunk_tokens=self.head_chunk_tokens,
            engine_cache_tokens=self.engine_cache_tokens,
            num_threads=self.num_threads,
        )
        _require(
            0 < self.engine_memory_fraction <= 1,
            f"hardware.engine_memory_fraction={self.engine_memory_fraction} is not a share; use a number in (0, 1]",
        )


@config_dataclass
class LossConfig:
    """An advantage, an objective and an aggregation, and what is added to them.

    Attributes:
        name: of the option, for messages and tables.
        advantage: what a reward is worth within its group (`grpo.rl.advantages`).
        advantage_eps: added to the standard deviation that advantages are divided by.
        objective: what one token costs (`grpo.rl.objectives`).
        aggregation: how tokens become one number (`grpo.rl.aggregation`).
        cliprange: how far the ratio may fall below 1, and rise above it unless `cliprange_high` says otherwise;
            null for objectives that do not clip.
        cliprange_high: how far the ratio may rise above 1; null is `cliprange`.
        kl_estimator, kl_coef: penalty on the divergence from the reference model (the run's initial weights).
        importance_cap: truncated importance sampling against the sampler's log-probs; null is off.
        dynamic_sampling: draw further problems until every group has signal.
        max_sampling_rounds: of dynamic sampling in a step, at most.
        overlong_buffer: soft overlong penalty, falling from 0 to -1 over this last share of `sampling.max_tokens`;
            null is off.
    """

    name: str = MISSING
    advantage: AdvantageName = AdvantageName.group_mean_std
    advantage_eps: float = 1e-6
    objective: ObjectiveName = ObjectiveName.reinforce
    aggregation: AggregationName = AggregationName.sequence_mean
    cliprange: float | None = None
    cliprange_high: float | None = None
    kl_estimator: KlEstimator = KlEstimator.none
    kl_coef: float = 0.0
    importance_cap: float | None = None
    dynamic_sampling: bool = False
    max_sampling_rounds: int = 4
    overlong_buffer: float | None = None

    @property
    def clips(self) -> bool:
        """Whether the objective has a clip range."""
        return self.objective is not ObjectiveName.reinforce

    @property
    def clip_low(self) -> float:
        """How far the ratio may fall below 1."""
        return 0.0 if self.cliprange is None else self.cliprange

    @property
    def clip_high(self) -> float:
        """How far the ratio may rise above 1."""
        return self.clip_low if self.cliprange_high is None else self.cliprange_high

    def __post_init__(self) -> None:
        _require(
            not self.clips or self.cliprange is not None,
            f"loss.cliprange is null but loss.objective={self.objective.name} clips; use loss.cliprange=0.2",
        )
        for name in ("cliprange", "cliprange_high"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"loss.{name}={value} is not positive; use 0.2, say")
        _require(self.clip_low < 1, f"loss.cliprange={self.cliprange} would allow a ratio of 0; use a number below 1")
        _require(
            (self.kl_estimator is KlEstimator.none) == (self.kl_coef == 0),
            f"loss.kl_estimator={self.kl_estimator.name} and loss.kl_coef={self.kl_coef} do not go together; "
            "set both (k3 and 0.001, say) or neither",
        )
        _require(self.kl_coef >= 0, f"loss.kl_coef={self.kl_coef} is negative; use 0 or more")
        _require_finite("loss", kl_coef=self.kl_coef, advantage_eps=self.advantage_eps)
        _require_positive(
            "loss",
            importance_cap=self.importance_cap,
            max_sampling_rounds=self.max_sampling_rounds,
        )
        _require(
            self.overlong_buffer is None or 0 < self.overlong_buffer <= 1,
            f"loss.overlong_buffer={self.overlong_buffer} is not a share of sampling.max_tokens; use 0.2, or null",
        )
        _require(self.advantage_eps >= 0, f"loss.advantage_eps={self.advantage_eps} is negative; use 1e-6")

    def notes(self) -> list[str]:
        """Settings that have no effect, a sentence each."""
        named = {"cliprange": self.cliprange, "cliprange_high": self.cliprange_high}
        return [
            f"loss.{name}={value} has no effect: loss.objective={self.objective.name} does not clip"
            for name, value in named.items()
            if value is not None and not self.clips
        ]


@config_dataclass
class DataConfig:
    """Names problems and the prompt template.

    Attributes:
        name: of the option, for messages and tables.
        source: where problems come from: JSON Lines files, or arithmetic that is generated.
        train_path, test_path: JSON Lines files (source jsonl).
        problem_field, answer_field, level_field, subject_field: names of fields in them; the last two may be absent.
        prompt: a template of grpo/data/prompts, or the path of a file that holds `{question}`.
        stop: strings that end a completion; null is the template's own.
        level: of difficulty, 1 to 5 (source arithmetic).
        num_train, num_test: how many problems to use; null is all there are.
        seed: of generated problems.
    """

    name: str = MISSING
    source: DataSource = DataSource.jsonl
    train_path: str | None = None
    test_path: str | None = None
    problem_field: str = "problem"
    answer_field: str = "answer"
    level_field: str = "level"
    subject_field: str = "subject"
    prompt: str = "r1_zero"
    stop: list[str] | None = None
    level: int = 2
    num_train: int | None = None
    num_test: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.source is DataSource.jsonl:
            for name in ("train_path", "test_path"):
                _require(
                    getattr(self, name) is not None,
                    f"data.{name} is null; name a JSON Lines file: data.{name}=problems.jsonl",
                )
        _require(1 <= self.level <= 5, f"data.level={self.level} is not a level; use 1 to 5")
        _require_positive("data", num_train=self.num_train, num_test=self.num_test)


@config_dataclass
class RewardConfig:
    """Names the reward function and bounds what grading may cost.

    Attributes:
        name: of the reward function (`grpo.reward.functions`), and of the option.
        mode: strict wants one answer in its tags and nothing after it; reference reads as the Dr. GRPO grader does, for
            numbers that compare.
        num_workers: processes that grade what needs more than a comparison of plain numbers.
        deadline_s: seconds of processor time that an answer may take, or ten times as many on the clock; then it is a
            grader error and its worker is replaced. The slowest honest answer of 738 took 0.45 s.
        max_error_share: of a step's completions that may be grader errors before the run stops.
    """

    name: RewardName = MISSING
    mode: RewardMode = RewardMode.strict
    num_workers: int = 2
    deadline_s: float = 1.0
    max_error_share: float = 0.2

    def __post_init__(self) -> None:
        _require_positive("reward", num_workers=self.num_workers, deadline_s=self.deadline_s)
        _require(
            self.mode is RewardMode.strict or self.name is not RewardName.boxed,
            f"reward.mode={self.mode.name} is another way to read <answer> tags, and reward={RewardName.boxed.name} "
            "reads none; use reward.mode=strict, or reward=r1_zero",
        )
        _require(
            0 <= self.max_error_share <= 1,
            f"reward.max_error_share={self.max_error_share} is not a share; use a number from 0 to 1",
        )


@config_dataclass
class TrainConfig:
    """The GRPO loop and its optimiser.

    Attributes:
        n_grpo_steps: rollout batches to train on; 0 evaluates only.
        optimizer: adamw keeps two moments in the weights' dtype; adamw_8bit keeps them in 2 bytes a weight and rounds
            bfloat16 weights at random, so that small updates are not lost (`grpo.policy.low_memory`). It saves memory
            and changes what is computed, hence not in `hardware`.
        learning_rate: of the optimiser, at its peak.
        lr_schedule: after warm-up the rate is constant, or falls to 0 after the last step: linear, or as a half cosine.
        warmup_steps: GRPO steps in which the learning rate rises linearly to its peak.
        rollout_batch_size: completions in a step, B = P * group_size.
        group_size: completions of a problem, G.
        train_batch_size: completions in an optimiser step.
        epochs_per_rollout_batch: how often a rollout batch is trained on.
        gradient_accumulation_steps: micro-batches in an optimiser step; null follows from
            `hardware.micro_batch_tokens`. It never changes the gradient.
        max_grad_norm: norm that a larger gradient is scaled down to; inf clips nothing.
        adam_beta1, adam_beta2: decay of the running means of the gradient and of its square.
        adam_eps: added to the root of the second mean before it divides.
        weight_decay: decoupled, as AdamW's.
        canary_steps: how often engine and policy are compared on the same tokens; 0 compares at the start only. vLLM,
            which has a copy of the weights, is compared after every sync unless it is 0.
        max_skipped_steps: updates in a row that may be skipped for a loss or gradient that is not finite.
    """

    n_grpo_steps: int = 200
    optimizer: OptimizerName = OptimizerName.adamw
    learning_rate: float = 1e-5
    lr_schedule: LrSchedule = LrSchedule.constant
    warmup_steps: int = 0
    rollout_batch_size: int = 256
    group_size: int = 8
    train_batch_size: int = 256
    epochs_per_rollout_batch: int = 1
    gradient_accumulation_steps: int | None = None
    max_grad_norm: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    canary_steps: int = 50
    max_skipped_steps: int = 5

    @property
    def num_problems(self) -> int:
        """P, the problems in a step."""
        return self.rollout_batch_size // self.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps in a GRPO step; 1 is on-policy."""
        return self.rollout_batch_size // self.train_batch_size * self.epochs_per_rollout_batch

    def __post_init__(self) -> None:
        _require_positive(
            "train",
            learning_rate=self.learning_rate,
            rollout_batch_size=self.rollout_batch_size,
            group_size=self.group_size,
            train_batch_size=self.train_batch_size,
            epochs_per_rollout_batch=self.epochs_per_rollout_batch,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            adam_eps=self.adam_eps,
            max_skipped_steps=self.max_skipped_steps,
        )
        norm = self.max_grad_norm
        _require(norm > 0, f"train.max_grad_norm={norm} is not positive; use a number above 0, or inf to clip nothing")
        for name in ("n_grpo_steps", "warmup_steps", "canary_steps", "weight_decay"):
            _require(getattr(self, name) >= 0, f"train.{name}={getattr(self, name)} is negative; use 0 or more")
        _require_finite("train", weight_decay=self.weight_decay)
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"train.{name}={value} is outside [0, 1); use 0.9, say")
        _require(
            self.rollout_batch_size % self.group_size == 0,
            f"train.rollout_batch_size={self.rollout_batch_size} is not a multiple of train.group_size="
            f"{self.group_size}; use {_near_multiples(self.rollout_batch_size, self.group_size)}",
        )
        _require(
            self.rollout_batch_size % self.train_batch_size == 0,
            f"train.train_batch_size={self.train_batch_size} does not divide train.rollout_batch_size="
            f"{self.rollout_batch_size}; use {math.gcd(self.train_batch_size, self.rollout_batch_size)} or "
            f"{self.rollout_batch_size}",
        )
        parts = self.gradient_accumulation_steps
        _require(
            parts is None or self.train_batch_size % parts == 0,
            f"train.gradient_accumulation_steps={parts} does not divide train.train_batch_size="
            f"{self.train_batch_size}; use {math.gcd(parts or 1, self.train_batch_size)}, or null to let the token "
            "budget decide",
        )

    def notes(self) -> list[str]:
        """Settings that the run cannot follow, a sentence each."""
        if self.warmup_steps <= self.n_grpo_steps or self.n_grpo_steps == 0:
            return []
        return [
            f"train.warmup_steps={self.warmup_steps} is more than train.n_grpo_steps={self.n_grpo_steps}: the learning "
            f"rate never reaches train.learning_rate; use train.warmup_steps={self.n_grpo_steps} or fewer"
        ]


@config_dataclass
class SamplingConfig:
    """The distribution that rollouts are drawn from, and where they end.

    Attributes:
        temperature: logits are divided by it; 1 samples from the model as it is.
        top_p: nucleus sampling: the fewest tokens whose probabilities add up to this; 1 keeps every token.
        top_k: the most probable tokens; 0 keeps every token.
        min_tokens: before which no completion ends.
        max_tokens: where a completion is cut.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 4
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        _require(
            self.temperature > 0,
            f"sampling.temperature={self.temperature} leaves nothing to learn from: every completion of a group "
            "would be the same; use a number above 0",
        )
        _require_finite("sampling", temperature=self.temperature)
        _require(0 < self.top_p <= 1, f"sampling.top_p={self.top_p} is outside (0, 1]; use 1.0 to keep every token")
        _require(self.top_k >= 0, f"sampling.top_k={self.top_k} is negative; use 0 to keep every token")
        _require_positive("sampling", max_tokens=self.max_tokens)
        _require(
            0 <= self.min_tokens <= self.max_tokens,
            f"sampling.min_tokens={self.min_tokens} is not between 0 and sampling.max_tokens={self.max_tokens}; "
            f"use {min(4, self.max_tokens)}",
        )


@config_dataclass
class EvaluationConfig:
    """Held-out problems, sampled one completion each, before, during and after training.

    Attributes:
        eval_steps: how often; 0 evaluates before and after training only.
        num_problems: how many held-out problems; null is all.
        temperature: 0 is greedy.
        max_tokens: null is `sampling.max_tokens`.
        base_cache_dir: where evaluations before training are kept, by a hash of everything they depend on; null keeps
            none. A sweep sets it to a folder of its own, so that its points share one.
    """

    eval_steps: int = 20
    num_problems: int | None = None
    temperature: float = 0.0
    max_tokens: int | None = None
    base_cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("eval_steps", "temperature"):
            _require(getattr(self, name) >= 0, f"evaluation.{name}={getattr(self, name)} is negative; use 0 or more")
        _require_finite("evaluation", temperature=self.temperature)
        _require_positive("evaluation", num_problems=self.num_problems, max_tokens=self.max_tokens)


@config_dataclass
class CheckpointConfig:
    """What is kept for resuming.

    Attributes:
        save_steps: how often; 0 saves at the end and when the run is interrupted only.
        keep_last: how many checkpoints stay.
    """

    save_steps: int = 50
    keep_last: int = 2

    def __post_init__(self) -> None:
        _require(self.save_steps >= 0, f"checkpoint.save_steps={self.save_steps} is negative; use 0 or more")
        _require(self.keep_last >= 1, f"checkpoint.keep_last={self.keep_last} would keep none; use 1 or more")


@config_dataclass
class LoggingConfig:
    """Where the numbers of a run are shown, besides its own files.

    Attributes:
        wandb: where Weights & Biases keeps the run, if anywhere.
        wandb_project: the project there.
        console: rich is a live display, plain a line a step; auto is rich on a terminal.
        completions: whether completions.jsonl is written.
        plot_steps: how often curves.png is drawn again, where that takes less than a fiftieth of the time; 0 draws it
            at the end only.
    """

    wandb: WandbMode = WandbMode.disabled
    wandb_project: str = "grpo"
    console: ConsoleMode = ConsoleMode.auto
    completions: bool = True
    plot_steps: int = 10

    def __post_init__(self) -> None:
        steps = self.plot_steps
        _require(steps >= 0, f"logging.plot_steps={steps} is negative; use 0 to draw at the end only")


@config_dataclass
class SweepConfig:
    """How the points of a sweep are run and summed up; nothing that a point computes depends on it.

    Attributes:
        parallel: points at a time on this machine, each on GPUs of its own where there are several. Slurm's is
            `launch.array_parallelism`.
        summary: metrics that the table at the end and sweep.csv have a column of.
        objective: metric whose last value a sweeper that searches, such as Optuna, is told.
    """

    parallel: int = 1
    summary: list[str] = field(default_factory=lambda: ["eval/accuracy"])
    objective: str = "eval/accuracy"

    def __post_init__(self) -> None:
        _require_positive("sweep", parallel=self.parallel)


@config_dataclass
class LaunchConfig:
    """Where the points of a sweep run; all but `name` is for launch=slurm, under the names that sbatch has for it.

    Attributes:
        name: local or slurm.
        partition, account, qos, constraint, exclude: null is the cluster's default.
        time: limit of a point: minutes, hours:minutes:seconds or days-hours; null is the partition's.
        nodes, ntasks_per_node: a point has nodes * ntasks_per_node processes.
        gpus_per_node, cpus_per_task: null asks for none, and for the cluster's default.
        mem: of a node, such as 64G; null is the cluster's default.
        array_parallelism: points at a time; null is as many as Slurm starts.
        setup: lines of shell that run before a point, such as `module load cuda`.
        signal_lead_s: how long before the time limit a point is told to finish its step, save and be requeued, in
            seconds: longer than a step and a save take.
        max_requeues: how often a point may be requeued.
        additional_parameters: further options of sbatch, without their dashes.
        detach: submit and return; the same command collects later.
    """

    name: str = "local"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    nodes: int = 1
    ntasks_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    array_parallelism: int | None = None
    constraint: str | None = None
    exclude: str | None = None
    setup: list[str] = field(default_factory=list[str])
    signal_lead_s: int = 120
    max_requeues: int = 20
    additional_parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    detach: bool = False

    @property
    def num_ranks(self) -> int:
        """Processes of a point."""
        return self.nodes * self.ntasks_per_node

    def __post_init__(self) -> None:
        _require(self.name in ("local", "slurm"), f"launch.name={self.name} is not a place; use launch=local or slurm")
        _require_positive(
            "launch",
            nodes=self.nodes,
            ntasks_per_node=self.ntasks_per_node,
            gpus_per_node=self.gpus_per_node,
            cpus_per_task=self.cpus_per_task,
            array_parallelism=self.array_parallelism,
            signal_lead_s=self.signal_lead_s,
        )
        _require(self.max_requeues >= 0, f"launch.max_requeues={self.max_requeues} is negative; use 0 or more")


@config_dataclass
class RunConfig:
    """Everything a run depends on.

    Attributes:
        model, hardware, loss, data, reward: an option of each group.
        train, sampling, evaluation, checkpoint, logging: settings that belong to no group.
        sweep, launch: how and where the points of a sweep run.
        seed: of initial weights, the order of problems, rollouts and rounding; generated problems have `data.seed`.
        resume: `auto` continues from the newest checkpoint in the run's own folder, if there is one; `never` starts
            afresh, and refuses a folder that holds a run; a path continues the run in that folder.
        output_dir: the run's folder; null is outputs/<date>/<time>.
    """

    model: ModelConfig = MISSING
    hardware: HardwareConfig = MISSING
    loss: LossConfig = MISSING
    data: DataConfig = MISSING
    reward: RewardConfig = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    seed: int = 42
    resume: str = "auto"
    output_dir: str | None = None

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, f"seed={self.seed} is outside [0, 2**32); use 42, say")
        _require(
            self.train.group_size > 1 or self.loss.advantage is AdvantageName.none,
            f"train.group_size={self.train.group_size} leaves loss.advantage={self.loss.advantage.name} nothing to "
            "compare with; use train.group_size=2 or more, or loss=no_baseline",
        )
        _require(
            not self.hardware.overlap
            or self.loss.objective is not ObjectiveName.reinforce
            or self.loss.importance_cap is not None,
            f"hardware.overlap=true trains on completions of the weights before, which loss={self.loss.name} has no "
            "ratio to correct for; use loss.importance_cap=2, or loss=grpo_clip",
        )
        tags, box = RewardName.r1_zero, RewardName.boxed
        asked = {"r1_zero": tags, "question_only": box, "qwen_boxed": box}.get(self.data.prompt)
        read = {RewardName.r1_zero: tags, RewardName.format_only: tags, RewardName.boxed: box}.get(self.reward.name)
        _require(
            asked is None or read is None or asked is read,
            f"reward={self.reward.name.name} never finds {'an answer' if self.reward.name is read else 'its tags'} "
            f"after data.prompt={self.data.prompt}; use reward={(asked or tags).name}, or "
            f"data.prompt={'r1_zero' if read is tags else 'qwen_boxed'}",
        )

    def notes(self, named: Collection[str] = ()) -> list[str]:
        """Settings that have no effect or cannot be followed, a sentence each.

        Args:
            named: settings of the command line, of which more is said than of an option's own.
        """
        ratio_is_1 = self.loss.clips and self.train.updates_per_step == 1 and not self.hardware.overlap
        idle = [
            f"loss.{name}={getattr(self.loss, name)} has no effect on the only update of a rollout batch, whose ratio "
            "is 1; use train.epochs_per_rollout_batch=2"
            for name in ("cliprange", "cliprange_high")
            if ratio_is_1 and f"loss.{name}" in named
        ]
        return [*self.loss.notes(), *self.train.notes(), *idle]

    def training_sampling(self, stop: Sequence[str]) -> Sampling:
        """The distribution of rollouts."""
        s = self.sampling
        return Sampling(s.temperature, s.top_p, s.top_k, s.min_tokens, s.max_tokens, tuple(stop))

    def evaluation_sampling(self, stop: Sequence[str]) -> Sampling:
        """The distribution of evaluations."""
        max_tokens = self.evaluation.max_tokens or self.sampling.max_tokens
        min_tokens = min(self.sampling.min_tokens, max_tokens)
        return Sampling(self.evaluation.temperature, 1.0, 0, min_tokens, max_tokens, tuple(stop))


_GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "hardware": HardwareConfig,
    "loss": LossConfig,
    "data": DataConfig,
    "reward": RewardConfig,
}


def register() -> None:
    """Puts the schemas and the resolver of the run folder where Hydra finds them. May be called again."""
    store = ConfigStore.instance()
    store.store(name="run", node=RunConfig, group="schema")
    store.store(name="evaluate", node=EvaluateConfig, group="schema")
    for group, cls in _GROUPS.items():
        store.store(name="base", node=cls, group=f"schema/{group}")
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    # Cached: Hydra asks for a sweep's folder several times.
    OmegaConf.register_new_resolver("sweep_dir", _sweep_dir, replace=True, use_cache=True)


def _sweep_dir(output_dir: str | None, resume: str, default: str, place: str = "", launcher: str = "") -> str:
    """The folder a sweep writes to: where it is told, else the one it resumes, else a new one that it makes at once.

    Two sweeps that start in the same second thus do not share one.

    Args:
        output_dir: the setting.
        resume: the setting.
        default: a folder named by the time.
        place: `launch.name`.
        launcher: what Hydra starts the points with.

    Raises:
        ValueError: a sweep was to go to Slurm, and would have run here.
    """
    _require(
        place != "slurm" or launcher.endswith("SlurmLauncher"),
        f"launch=slurm runs nothing on this machine, but the hydra/launcher that was chosen ({launcher}) would; leave "
        "hydra/launcher out, or use launch=local",
    )
    if named := output_dir or (resume if resume not in ("auto", "never") else None):
        return named
    for folder in (Path(default if number == 1 else f"{default}-{number}") for number in count(1)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir()
            return str(folder)
    raise AssertionError("count() does not end")


def _run_dir(output_dir: str | None, resume: str, default: str, place: str = "", launcher: str = "") -> str:
    """The folder a run writes to: where it is told, else the one it resumes, else a new one.

    Args:
        output_dir: the setting.
        resume: the setting.
        default: a folder named by the time.
        place: `launch.name`, and
        launcher: what Hydra would start a sweep's points with; asked for here, this is no sweep.

    Raises:
        ValueError: a single run was to go to Slurm, and would have run here.
    """
    _require(
        place != "slurm" and not launcher.endswith("SlurmLauncher"),
        "launch=slurm sends sweeps to Slurm, and this is a single run, which would run here; add --multirun (a sweep "
        "may have one point), or use launch=local",
    )
    if output_dir:
        return output_dir
    if resume not in ("auto", "never"):
        path = Path(resume)
        return str(path.parent.parent if path.parent.name == "checkpoints" else path)
    return default


def config_path() -> str:
    """conf/ of the checkout where there is one, else the copy that the wheel carries; as @hydra.main takes it."""
    checkout = Path(__file__).resolve().parent.parent / "conf"
    return str(checkout) if (checkout / "config.yaml").is_file() else "pkg://grpo.conf"


def to_run_config(cfg: DictConfig) -> RunConfig:
    """The composed config as a frozen RunConfig.

    Raises:
        ValueError: a key of no field, a value that is missing, or a broken rule; one sentence.
    """
    return cast(RunConfig, _to_object(cfg, "train"))


def _to_object(cfg: DictConfig, command: str) -> object:
    """The composed config as the frozen dataclass that it has the type of.

    Raises:
        ValueError: see `to_run_config`.
    """
    settings = cast("dict[str, Any]", OmegaConf.to_container(cfg))
    unknown = sorted(_unknown_keys(settings, known_keys(command)))
    hint = f"`python -m grpo.{command} --cfg job` prints them all"
    _require(not unknown, f"+{', +'.join(unknown)}: no such setting; {hint}")
    missing = sorted(OmegaConf.missing_keys(cfg))
    _require(not missing, f"{', '.join(missing)}: no value; set {missing[0] if missing else ''}=...")
    return OmegaConf.to_object(cfg)


def _unknown_keys(settings: Mapping[str, Any], known: Collection[str], prefix: str = "") -> Iterator[str]:
    """Full names that are not known; a setting whose value is itself a mapping is not entered."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name not in known:
            yield name
        elif isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in known):
            yield from _unknown_keys(cast("Mapping[str, Any]", value), known, f"{name}.")


def compose_config(overrides: Sequence[str], name: str = "config") -> DictConfig:
    """A config of conf/ with these overrides; rules that join fields are not looked at.

    Raises:
        hydra.errors.HydraException: an override that does not compose.
    """
    from hydra import compose, initialize_config_dir, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    register()
    GlobalHydra.instance().clear()
    path = config_path()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = (
            initialize_config_module(path.removeprefix("pkg://"), version_base="1.3")
            if path.startswith("pkg://")
            else initialize_config_dir(path, version_base="1.3")
        )
        with context:
            return compose(name, overrides=list(overrides))


def compose_run_config(overrides: Sequence[str]) -> RunConfig:
    """What `python -m grpo.train <overrides>` would run, for commands other than that one.

    Raises:
        ValueError: see `to_run_config`.
        hydra.errors.HydraException: an override that does not compose.
    """
    return to_run_config(compose_config(overrides))


def to_dict(config: object) -> dict[str, Any]:
    """A config as plain values, enums by name, as YAML and JSON hold it."""
    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return cast("dict[str, Any]", container)


def known_keys(command: str = "train") -> list[str]:
    """Every setting of a command by its full name, and the groups, as an override names them."""
    groups = ["experiment"] if command == "evaluate" else ["experiment", "sweep"]
    return [*_keys_of(EvaluateConfig if command == "evaluate" else RunConfig, ""), *groups]


def _keys_of(cls: type, prefix: str) -> list[str]:
    keys: list[str] = []
    types = get_type_hints(cls)
    for item in fields(cls):
        keys.append(prefix + item.name)
        if is_dataclass(types[item.name]):
            keys += _keys_of(types[item.name], f"{prefix}{item.name}.")
    return keys


def check_hub_id(setting: str, given: str, remedy: str) -> None:
    """A model's or tokenizer's name that is no place here has the form of a Hub id.

    Args:
        setting: that it was the value of.
        given: the value.
        remedy: what to do else.

    Raises:
        ValueError: it is the path of nothing.
    """
    _require(
        not Path(given).is_absolute() and not given.startswith(("~", ".")) and given.count("/") == 1,
        f"{setting}={given} does not exist under {Path.cwd()}, and is no Hub id, which is owner/name; {remedy}",
    )


def check_compared(models: Sequence[str]) -> None:
    """The rule of `EvaluateConfig.compare`.

    Raises:
        ValueError: fewer than two models, or one twice.
    """
    _require(
        len(set(models)) == len(models) > 1,
        f"compare={list(models)} does not name two models or more, each once; use compare=[A,B]",
    )


@config_dataclass
class EvaluateConfig:
    """What `python -m grpo.evaluate` does: models on problems, with nothing trained.

    Groups and sections are those of training, so that an experiment composes here too. The sections `loss`, `train`,
    `sampling`, `evaluation` and `checkpoint` have no effect, and setting one on the command line is an error.

    Attributes:
        model, hardware, data, reward: an option of each group, as in training.
        loss, train, sampling, evaluation, checkpoint: without effect.
        logging: its `console` only.
        problems: null is the held-out side of `data`; else options of `data` and JSON Lines files, one or a list.
        compare: models in place of `model.path`, two or more; the first is what the others are compared with.
        num_samples: problems of each file, from its top; null is all.
        samples_per_problem: completions of each problem, for avg@k and pass@k.
        pass_at: the k of pass@k; null is 1, 2, 4, ... up to samples_per_problem.
        temperature: 0 is greedy.
        top_p, top_k, min_tokens, max_tokens: see `SamplingConfig`.
        backend: what samples; the hardware's engine unless set.
        seed: of the sampling.
        output_dir: where the results go; null is a folder of outputs/evaluations, named by model and settings, so that
            the same command goes on where it was. With `compare`, the folder of the models' folders.
    """

    model: ModelConfig = MISSING
    hardware: HardwareConfig = MISSING
    loss: LossConfig = MISSING
    data: DataConfig = MISSING
    reward: RewardConfig = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    problems: Any = None
    compare: list[str] | None = None
    num_samples: int | None = None
    samples_per_problem: int = 1
    pass_at: list[int] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 4
    max_tokens: int = 2048
    backend: EngineName = MISSING
    seed: int = 42
    output_dir: str | None = None

    def __post_init__(self) -> None:
        n, sampling = self.samples_per_problem, (self.top_p, self.top_k)
        for name in ("num_samples", "samples_per_problem", "max_tokens"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name}={value} is not positive; use a number above 0")
        _require(self.temperature >= 0, f"temperature={self.temperature} is negative; use 0 for greedy decoding")
        _require(math.isfinite(self.temperature), f"temperature={self.temperature} is not finite; use a number")
        _require(
            n == 1 or self.temperature > 0,
            f"samples_per_problem={n} with temperature={self.temperature} would give the same completion {n} times; "
            "use temperature=1.0, say, or samples_per_problem=1",
        )
        _require(0 < self.top_p <= 1, f"top_p={self.top_p} is outside (0, 1]; use 1.0 to keep every token")
        _require(self.top_k >= 0, f"top_k={self.top_k} is negative; use 0 to keep every token")
        _require(
            self.temperature > 0 or sampling == (1.0, 0),
            f"top_p={self.top_p} and top_k={self.top_k} have no effect on greedy decoding; use temperature=1.0, say, "
            "or leave them out",
        )
        _require(
            0 <= self.min_tokens <= self.max_tokens,
            f"min_tokens={self.min_tokens} is not between 0 and max_tokens={self.max_tokens}; "
            f"use {min(4, self.max_tokens)}",
        )
        for k in self.pass_at or ():
            _require(
                1 <= k <= n,
                f"pass_at={self.pass_at} holds {k}, but samples_per_problem={n}; use k from 1 to {n}, or more samples",
            )
        if self.compare is not None:
            check_compared(self.compare)
        problems = self.problems
        listed = cast("list[Any]", problems if isinstance(problems, list) else [problems])
        _require(
            problems is None or (bool(listed) and all(isinstance(name, str) for name in listed)),
            f"problems={problems} names no problems; use problems=math, problems=mine.jsonl or a list of these",
        )
        self.as_run()  # its rules hold here too

    @property
    def num_pass_at(self) -> list[int]:
        """The k of pass@k."""
        if self.pass_at is not None:
            return sorted(set(self.pass_at))
        return [2**power for power in range(self.samples_per_problem.bit_length())]

    @property
    def problem_names(self) -> list[str]:
        """`problems` as a list; empty for the held-out side of `data`."""
        problems = cast("str | list[str] | None", self.problems)
        return [problems] if isinstance(problems, str) else problems or []

    def as_run(self) -> RunConfig:
        """A run that asks its model as this evaluation does, for what the two share."""
        return RunConfig(
            model=self.model,
            hardware=replace(self.hardware, engine=self.backend),
            loss=self.loss,
            data=self.data,
            reward=self.reward,
            sampling=SamplingConfig(self.temperature or 1.0, self.top_p, self.top_k, self.min_tokens, self.max_tokens),
            evaluation=EvaluationConfig(temperature=self.temperature),
            seed=self.seed,
        )

    def sampling_of(self, stop: Sequence[str]) -> Sampling:
        """The distribution of completions."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.min_tokens, self.max_tokens, tuple(stop))


def to_evaluate_config(cfg: DictConfig) -> EvaluateConfig:
    """The composed config as a frozen EvaluateConfig.

    Raises:
        ValueError: a key of no field, a value that is missing, or a broken rule; one sentence.
    """
    return cast(EvaluateConfig, _to_object(cfg, "evaluate"))
