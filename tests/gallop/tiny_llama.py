"""A Llama of a few thousand weights, and the words it knows."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = [
    *("the", "a", "film", "was", "is", "good", "bad", "dull", "moving", "long", "short"),
    *("I", "loved", "hated", "it", "positive", "negative"),
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", ":"]


def tiny_llama(*, tied: bool = True, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Random weights: for the plumbing of transformers, where no real ones are needed."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return model.to(dtype).eval()
