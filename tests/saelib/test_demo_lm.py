"""The model in `saelib/demo_lm` is a small, safe, complete transformers folder, and it knows Python."""

import hashlib
import json
import lzma
import math
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import saelib

FOLDER = Path(saelib.__file__).parent / "demo_lm"
CONTEXT_TOKENS = 256
# Held-out modules of the standard library; those that this interpreter has are scored.
HELD_OUT = ("copy.py", "email/_encoded_words.py")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads on a busy machine are many times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        FOLDER, local_files_only=True, use_safetensors=True, dtype=torch.float32
    ).eval()


def test_demo_lm_is_at_most_10_mb_of_float16_safetensors() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 10_000_000
    with safe_open(FOLDER / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F16"}


def test_demo_lm_folder_holds_no_pickle() -> None:
    assert {path.suffix for path in FOLDER.iterdir() if path.is_file()} <= {".safetensors", ".json", ".md"}


def test_demo_lm_reads_256_tokens_of_a_4096_token_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert model.config.max_position_embeddings == tokenizer.model_max_length == CONTEXT_TOKENS
    assert model.config.vocab_size == len(tokenizer) == 4096
    assert json.loads((FOLDER / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn  x  # tab, two spaces \n\n\n        y = 1   ",
        " leading, trailing ",
        "naïve — “quotes” 漢字 🎉👩‍💻 \u0301\u200b\x00\x7f\r\n",
        "don ' t , clean . up ! n't",
        "",
    ],
)
def test_demo_lm_tokenizer_gives_every_text_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_demo_lm_tokenizer_puts_bos_first_and_pads_on_request(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    rows = tokenizer(["x", "def f(): pass"], padding=True)
    assert [row[0] for row in rows["input_ids"]] == [tokenizer.bos_token_id] * 2
    n_padded = len(rows["input_ids"][1]) - 2
    assert rows["input_ids"][0][2:] == [tokenizer.pad_token_id] * n_padded
    assert rows["attention_mask"][0] == [1, 1] + [0] * n_padded


def test_demo_lm_tokenizer_offsets_cover_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "class A:\n    x = 'héé'\n"
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert sorted({place for first, last in offsets for place in range(first, last)}) == list(range(len(text)))


def bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Bits that the model spends on `text`, in windows of BOS + 255 tokens that do not overlap."""
    ids, total = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], 0.0
    for first in range(0, len(ids), CONTEXT_TOKENS - 1):
        row = torch.tensor([[tokenizer.bos_token_id, *ids[first : first + CONTEXT_TOKENS - 1]]])
        with torch.no_grad():
            total += cross_entropy(model(input_ids=row).logits[0, :-1], row[0, 1:], reduction="sum").item()
    return total / math.log(2)


@pytest.mark.usefixtures("one_thread")
def test_demo_lm_spends_fewer_bits_on_held_out_modules_than_xz(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    contents = [(library / name).read_bytes() for name in HELD_OUT if (library / name).is_file()]
    if not contents:
        pytest.skip(f"none of {HELD_OUT} is in this interpreter's standard library at {str(library)!r}")
    assert all(int(hashlib.sha1(name.encode()).hexdigest(), 16) % 20 == 0 for name in HELD_OUT)
    xz_bits = 8 * len(lzma.compress(b"".join(contents), preset=9))
    assert sum(bits(model, tokenizer, content.decode()) for content in contents) <= 0.80 * xz_bits
