"""What the tests of saelib share: tiny models, a tokenizer of whole words, random SAEs, activations without a model."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from saelib.activations import ActivationShard
from saelib.base import Ends, Site
from saelib.nonlinearity import JumpReLU, Nonlinearity
from saelib.sae import SAE
from saelib.text import TokenShard

D_MODEL, CONTEXT = 16, 12
WORDS = [f"w{index}" for index in range(40)]
SPECIAL = ("<bos>", "<eos>", "<pad>")
SITE = Site(path="model.layers.0")
ENDS = Ends.at(SITE)
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "neox": "gpt_neox.layers"}


def tiny_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a word; BOS first where the model is a Llama."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<eos>"
    )


def tiny_model(kind: str) -> PreTrainedModel:
    """Two layers, random weights large enough that a change at a site is seen in the logits."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": len(WORDS) + len(SPECIAL)}
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(n_embd=D_MODEL, n_layer=2, n_head=2, n_positions=CONTEXT, initializer_range=0.3, **ids)
        )
    shared = {"hidden_size": D_MODEL, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    shared |= {"intermediate_size": 32, "max_position_embeddings": CONTEXT}
    if kind == "neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shared, **ids))
    return LlamaForCausalLM(LlamaConfig(**shared, **ids))


def save_tiny_lm(folder: Path, kind: str) -> Path:
    """A transformers folder with weights and tokenizer."""
    tiny_model(kind).save_pretrained(folder)
    tiny_tokenizer(bos=kind == "llama").save_pretrained(folder)
    return folder


def sentence(seed: int, n_words: int) -> str:
    """Some words."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, n_words))


def random_sae(d: int = D_MODEL, n_features: int = 24, nonlinearity: Nonlinearity | None = None, seed: int = 0) -> SAE:
    """An SAE that nobody trained; about a quarter of its features fire on a random input."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(n_features, d, generator=generator), dim=1)
    weights = {
        "W_enc": W_dec.t().contiguous() + 0.1 * torch.randn(d, n_features, generator=generator),
        "b_enc": 0.1 * torch.randn(n_features, generator=generator),
        "W_dec": W_dec,
        "b_dec": 0.1 * torch.randn(d, generator=generator),
    }
    made = nonlinearity or JumpReLU(threshold=0.5 + 0.5 * torch.rand(n_features, generator=generator))
    return SAE(weights, made, ENDS, "batchtopk")


def identity_sae(d: int = D_MODEL) -> SAE:
    """Two features for each coordinate, one for either sign: it reconstructs everything."""
    eye = torch.eye(d)
    weights = {"W_enc": torch.cat([eye, -eye], dim=1), "b_enc": torch.zeros(2 * d)}
    weights |= {"W_dec": torch.cat([eye, -eye]), "b_dec": torch.zeros(d)}
    return SAE(weights, JumpReLU(threshold=torch.zeros(2 * d)), ENDS, "standard")


def silent_sae(b_dec: Tensor) -> SAE:
    """No feature ever fires: the reconstruction is b_dec."""
    d = b_dec.numel()
    weights = {"W_enc": torch.zeros(d, 4), "b_enc": torch.zeros(4), "W_dec": torch.eye(4, d), "b_dec": b_dec}
    return SAE(weights, JumpReLU(threshold=torch.ones(4)), ENDS, "standard")


def token_shard(documents: list[list[int]], first_sequence: int = 0, first_document: int = 0) -> TokenShard:
    """One sequence a document."""
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in documents])]).astype(np.int64)
    n = len(documents)
    return TokenShard(
        np.concatenate([np.array(ids, dtype=np.int32) for ids in documents]),
        starts,
        np.arange(first_sequence, first_sequence + n, dtype=np.int64),
        np.arange(first_document, first_document + n, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )


def activation_shard(tokens: TokenShard, x: Tensor, bos: bool = True, seed: int = 0) -> ActivationShard:
    """`x` [all tokens, d] as if it had been harvested: BOS left out, rows shuffled."""
    sequence = np.repeat(np.arange(tokens.n_sequences), tokens.lengths).astype(np.int32)
    position = (np.arange(tokens.token_ids.size) - tokens.sequence_starts[sequence]).astype(np.int32)
    kept = np.flatnonzero(position > 0) if bos else np.arange(position.size)
    kept = np.random.default_rng(seed).permutation(kept)
    return ActivationShard(
        [x[torch.from_numpy(kept)]],
        token_id=tokens.token_ids[kept],
        document_id=tokens.document_id[sequence[kept]],
        sequence=sequence[kept],
        position=position[kept],
        n_masked={"special": 0, "sink": 0},
    )
