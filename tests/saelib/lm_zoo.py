"""Tiny language models of many architectures, built from their configurations with random weights."""

from pathlib import Path
from typing import NamedTuple

import torch
from tiny import SPECIAL, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

N_LAYERS, WIDTH, N_CONTEXT = 3, 16, 12
SHARED = {
    "vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": WIDTH, "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": N_CONTEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip


class Kind(NamedTuple):
    """Where an architecture keeps its blocks, and in a block what `attn_out` and `mlp_out` read."""

    blocks: str
    attention: str | None
    mlp: str | None
    adds: bool = True
    """resid_post = resid_pre + attn_out + mlp_out; not where a norm stands between."""
    is_encoder: bool = False
    settings: dict[str, object] = {}


LLAMA = Kind("model.layers", "self_attn", "mlp")
GEMMA = LLAMA._replace(settings={"head_dim": 8})
BERT = Kind("bert.encoder.layer", "attention.output.dense", "output.dense", adds=False, is_encoder=True)

ZOO = {
    "bert": BERT,
    "bloom": Kind("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    "distilbert": Kind(
        "distilbert.transformer.layer", "attention", "ffn", False, True, {"dim": WIDTH, "n_heads": 2, "hidden_dim": 32}
    ),
    "falcon": Kind("transformer.h", "self_attention", "mlp"),
    "gemma": GEMMA,
    "gemma2": GEMMA._replace(adds=False),
    "gemma3_text": GEMMA._replace(adds=False),
    "gpt2": Kind("transformer.h", "attn", "mlp"),
    "gpt_neox": Kind("gpt_neox.layers", "attention", "mlp"),
    "gptj": Kind("transformer.h", "attn", "mlp", settings={"rotary_dim": 4}),
    "llama": LLAMA,
    "mamba": Kind("backbone.layers", None, None),
    "mistral": LLAMA,
    "mixtral": LLAMA._replace(settings={"num_local_experts": 2}),
    "modernbert": Kind("model.layers", "attn", "mlp", True, True, {"cls_token_id": 0, "sep_token_id": 1}),
    "mpt": Kind("transformer.blocks", "attn", "ffn.down_proj", settings={"max_seq_len": N_CONTEXT}),
    "olmo2": LLAMA._replace(adds=False),
    "opt": Kind("model.decoder.layers", "self_attn", "fc2", settings={"ffn_dim": 32, "word_embed_proj_dim": WIDTH}),
    "phi": LLAMA,
    "phi3": LLAMA,
    "qwen2": LLAMA,
    "qwen3": GEMMA,
    "roberta": BERT._replace(blocks="roberta.encoder.layer"),
}


def zoo_model(name: str) -> PreTrainedModel:
    """Three layers of width 16; weights large enough that a change at a site is seen in the logits."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SHARED, **ZOO[name].settings})
    head = AutoModelForMaskedLM if ZOO[name].is_encoder else AutoModelForCausalLM
    model = head.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train(False)


def zoo_tokenizer(is_encoder: bool) -> PreTrainedTokenizerFast:
    """One token a word; CLS and SEP around the text where the model is an encoder."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "unk_token": "<eos>"}
    if not is_encoder:
        return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", **names)
    ends = [("<bos>", 0), ("<eos>", 1)]
    words.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=words, cls_token="<bos>", sep_token="<eos>", **names)


def save_zoo_lm(folder: Path, name: str) -> Path:
    """A transformers folder with weights and tokenizer."""
    zoo_model(name).save_pretrained(folder)
    zoo_tokenizer(ZOO[name].is_encoder).save_pretrained(folder)
    return folder
