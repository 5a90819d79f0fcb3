"""Models and tokenizers: from a folder, from the Hub, or built with random weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError

from grpo.config import BuildConfig, DType, ModelConfig, check_hub_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "What is 47 + 85?\nAssistant: <think> 7+5=12, so \\boxed{132} </think> <answer>132</answer>"


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of a config's."""
    return {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}[dtype]


def quiet_transformers() -> None:
    """Leaves the terminal to the run: no progress bars of transformers, of its notes only errors, no word of retries.

    Downloads keep their bars, which are huggingface_hub's.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)


def _check_place(setting: str, given: str, revision: str | None) -> None:
    """Says what is wrong with a name before transformers says it in its own words, or twice.

    Raises:
        ValueError: nothing is there, or no model.
    """
    if not Path(given).exists():
        check_hub_id(setting, given, "name a folder in Hugging Face layout, or a Hub id")
        if setting == "model.path":
            _check_hub(given, revision)
    elif setting == "model.path":
        _check_model_folder(Path(given))


def _check_hub(given: str, revision: str | None) -> None:
    """Asks for the smallest file: where the Hub does not answer, transformers would wait for it several times.

    Raises:
        ValueError: it is not to be had.
    """
    from transformers.utils.hub import cached_file

    try:
        cached_file(given, "config.json", revision=revision)
    except OSError as error:
        raise _hub_error("model", given, error) from error


def _check_model_folder(folder: Path) -> None:
    """Says what a folder lacks.

    Raises:
        ValueError: no config.json, or no safetensors.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"model.path={folder} has no config.json; name a model folder in Hugging Face layout")
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {others[0]} is a pickle and is not read, convert it to safetensors" if others else ""
        raise ValueError(f"model.path={folder} has no weights: no *.safetensors file is in it{hint or '; add them'}")


def _hub_error(what: str, path: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0]
    return ValueError(
        f"{what} {path!r} cannot be loaded ({reason}); check the name, load it beforehand with `python -m "
        "grpo.download model --id <owner>/<name>`, name a folder with model.path=<folder>, or use "
        "experiment=quickstart, which needs none"
    )


def load_model(cfg: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The causal language model of a folder or a Hub id: safetensors only, no code that comes with a model.

    Args:
        cfg: `path` must be set.
        dtype: of the weights in memory.
        device: where they go.

    Raises:
        ValueError: nothing to load there; one sentence.
    """
    from transformers import AutoModelForCausalLM

    path = str(cfg.path)
    _check_place("model.path", path, cfg.revision)
    try:
        model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
            path,
            revision=cfg.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _hub_error("model", path, error) from error
    _check_weights(model, loading["missing_keys"], path)
    model.config.attention_dropout = 0.0
    for module in model.modules():
        if hasattr(module, "attention_dropout"):  # taken from the config
            module.attention_dropout = 0.0
    return cast(Any, model).to(device)


def empty_model(config: Any, generation_config: Any, *, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose weights and buffers are whatever stood in memory, which takes none until it is written to.

    Args:
        config: of a model from `load_model`.
        generation_config: of the same.
        dtype: of the weights.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.to_empty(device="cpu")
    model.tie_weights()
    model.generation_config = generation_config
    return model.eval()


def _check_weights(model: PreTrainedModel, missing: Collection[str], path: str) -> None:
    """Every weight was there, which transformers would otherwise fill with random numbers, and is a number.

    Raises:
        ValueError: names one that is not.
    """
    if missing:
        raise ValueError(
            f"the weights of {path} lack {min(missing)} and {len(missing) - 1} others that its config.json asks for; "
            "name a folder where both belong together"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f"the weights of {path} hold NaN or infinity in {name}, and so would every answer; name other weights, "
                "of an earlier checkpoint perhaps"
            )


def load_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub id, as its tokenizer.json says it.

    Raises:
        ValueError: nothing to load there, no end-of-sequence token, or a class that ignores tokenizer.json.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = str(cfg.tokenizer or cfg.path)
    _check_place("model.tokenizer" if cfg.tokenizer else "model.path", path, cfg.revision)
    generic = _tokenizer_class(Path(path)) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    loader: Any = PreTrainedTokenizerFast if generic else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(path, revision=cfg.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _hub_error("tokenizer", path, error) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {path} has no end-of-sequence token, so no completion could end; set eos_token in its "
            "tokenizer_config.json"
        )
    if not tokenizer(_PROBE, add_special_tokens=False).input_ids:  # what transformers makes where there are no files
        raise ValueError(
            f"the tokenizer of {path} has no vocabulary; name a folder with a tokenizer: model.tokenizer=..."
        )
    _check_faithful(tokenizer, Path(path))
    return tokenizer


def _tokenizer_class(folder: Path) -> str | None:
    file = folder / "tokenizer_config.json"
    return json.loads(file.read_text()).get("tokenizer_class") if file.is_file() else None


def _check_faithful(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Compares with tokenizer.json itself: a model type's own class may split text differently and say nothing."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    from tokenizers import Tokenizer

    expected = Tokenizer.from_file(str(file)).encode(_PROBE, add_special_tokens=False).ids
    if tokenizer(_PROBE, add_special_tokens=False).input_ids != expected:
        raise ValueError(
            f"{type(tokenizer).__name__} splits text differently from {file}; set "
            '"tokenizer_class": "PreTrainedTokenizerFast" in its tokenizer_config.json'
        )


def build_model(
    cfg: BuildConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A Qwen2 model with random weights that depend on the seed alone."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=max(cfg.vocab_size or 0, len(tokenizer)),
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size,
        num_hidden_layers=cfg.num_hidden_layers,
        num_attention_heads=cfg.num_attention_heads,
        num_key_value_heads=cfg.num_key_value_heads,
        max_position_embeddings=cfg.max_position_embeddings,
        tie_word_embeddings=cfg.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        bos_token_id=None,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return Qwen2ForCausalLM(config)
        finally:
            torch.set_default_dtype(previous)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a completion: the tokenizer's, and those of the model's generation config."""
    generation = getattr(model, "generation_config", None)
    listed = getattr(generation, "eos_token_id", None)
    ids = {cast(int, tokenizer.eos_token_id), *(listed if isinstance(listed, list) else [listed])}
    return tuple(sorted(token for token in ids if token is not None))
