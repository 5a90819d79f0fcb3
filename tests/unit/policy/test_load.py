"""Models from folders."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grpo.config import ModelConfig
from grpo.policy.load import load_model


def test_a_model_with_dropout_of_attention_has_none_in_training_mode(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    cfg = ModelConfig(name="x", path=str(tmp_path))
    model = load_model(cfg, dtype=torch.float32, device=torch.device("cpu")).train()
    tokens = torch.arange(30).unsqueeze(0)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
