"""Evaluate and describe out of the ordinary: encoders, packed sequences, an SAE of another width than the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_builds import Record, tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from catalog import QUERIES, Store, connect, query, verify
from dashboard.cards import cards
from flows.artifact import verify_artifacts
from flows.cli import app
from flows.config import RunConfig
from flows.errors import RecipeError
from flows.path import path
from flows.place import Place
from flows.steps.loading import language_model, token_shards
from flows.steps.tokenize import tokenize
from flows.steps.widths import check_widths
from saelib.base import Ends, Site
from saelib.lm import LanguageModel, load_lm, read_sites
from saelib.sae import SAE

Built = tuple[RunConfig, Place]
SITE = "bert.encoder.layer.1"
OF_THE_LOSS = {"ce_clean", "ce_spliced", "ce_mean", "ce_zero", "delta_ce", "kl", "loss_recovered_mean"}


def rows(place: Place, sql: str) -> list[tuple[Any, ...]]:
    return connect(place.store).execute(sql).fetchall()


def save_bert(folder: Path, corpus: Path) -> Path:
    """Two layers of width 32, random weights; word pieces learned from the corpus, [CLS] and [SEP] around a text."""
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **names).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=400, max_position_embeddings=64, initializer_range=0.3, **shape)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The whole path on an encoder. Treat the store as read-only."""
    folder = tmp_path_factory.mktemp("encoder")
    config = tiny(
        corpus,
        lm={"model": str(save_bert(folder / "tiny-bert", corpus))},
        harvest={"sites": [{"path": SITE}]},
        evaluation={"max_tokens": 100_000},
    )
    place = Place(Store.create(folder / "store"), Record())
    path(config, place)
    return config, place


def sae_of(place: Place) -> SAE:
    (uri,) = rows(place, "select weights_uri from sae")[0]
    return SAE.load((place.store.root / str(uri)).parent)


def text_rows(lm: LanguageModel, config: RunConfig, ids: list[int]) -> torch.Tensor:
    """Activations of one sequence's unmasked tokens."""
    tokens, site = torch.tensor([ids]), config.harvest.sites[0]
    x = read_sites(lm, tokens, torch.ones_like(tokens), [site])[site][0]
    return x[[token not in lm.special_ids for token in ids]]


def test_an_encoder_is_evaluated_without_the_metrics_of_a_next_token(encoder: Built) -> None:
    config, place = encoder
    metrics = dict(rows(place, "select metric, value from sae_metric"))
    assert metrics.keys() == {"fvu", "explained_variance", "l0", "dead_share"}
    held_out = """select token_ids from sequence join document using (dataset_id, document_id)
                  where json_extract(meta, '$.held_out')::bool"""
    lm, sae = load_lm(config.lm), sae_of(place)
    x = torch.cat([text_rows(lm, config, ids) for (ids,) in rows(place, held_out)]).double()
    f = sae.encode(x.float())
    error = (x - sae.decode(f)).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert metrics["fvu"] == pytest.approx(error.item(), rel=1e-3)
    assert metrics["l0"] == pytest.approx((f > 0).sum().item() / x.shape[0], rel=1e-2)


def test_features_of_an_encoder_have_no_effect_on_logits_or_loss(encoder: Built) -> None:
    _, place = encoder
    nulls = ("delta_ce", "delta_ce_tokens", "delta_ce_linear", "delta_ce_linear_tokens", "logit_skew", "top_tokens")
    counted = ", ".join(f"count({name})" for name in nulls)
    assert rows(place, f"select {counted} from feature") == [(0,) * len(nulls)]
    assert rows(place, "select count(*) from feature_logit") == [(0,)]
    assert rows(place, "select distinct kind from histogram order by 1") == [("act",), ("log_act",)]
    alive = "select count(*) from feature where n_fires > 50 and reconstructive > 0 and top_token is not null"
    assert rows(place, alive)[0][0] > 20
    assert {name for (name,) in rows(place, "select distinct bucket from example")} >= {"top", "q1", "q5", "negative"}


def test_an_encoders_store_verifies_clean_and_the_log_says_what_is_left_out(encoder: Built) -> None:
    store, damages = encoder[1].store, []
    verify_artifacts(store, lambda where, problem: damages.append((where, problem)))
    assert [*damages, *verify(store)] == []
    lines = [line for line in encoder[1].watch.lines if "predicts no next token" in line]  # type: ignore[attr-defined]
    assert [line.split(":")[0] for line in lines] == ["evaluate", "describe"]


def test_every_question_about_an_encoder_has_an_answer(encoder: Built) -> None:
    _, place = encoder
    ((sae_id, dataset_id),) = rows(place, "select distinct sae_id, dataset_id from feature")
    given: dict[str, Any] = {"sae_id": sae_id, "old_sae_id": sae_id, "new_sae_id": sae_id, "dataset_id": dataset_id}
    given |= {"feature": 3, "features": "3,5", "token": "self", "contrast_id": "c", "suite": "s", "since": "2026-01-01"}
    connection = connect(place.store)
    asked = {name: [p.name for p in one.parameters if p.is_required] for name, one in QUERIES.items()}
    answered = {name: names for name, names in asked.items() if given.keys() >= set(names)}
    assert len(answered) > 30
    for name, names in answered.items():
        query(connection, name, **{key: given[key] for key in names})
    for arguments in (["show", sae_id, "3"], ["features", sae_id]):
        answer = CliRunner().invoke(app, [*arguments, "--store", str(place.store.root)])
        assert answer.exit_code == 0, answer.output


def test_a_card_of_an_encoders_feature_is_drawn(encoder: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALMANAC_STORE", str(encoder[1].store.root))
    ((sae_id, feature),) = rows(encoder[1], "select sae_id, feature from feature order by n_fires desc limit 1")
    (card,) = cards(sae_id, [feature])
    lists = {each["title"]: each["rows"] for each in card["lists"]}
    assert lists["Promotes"] == lists["Suppresses"] == [] and lists["Fires on"] and card["buckets"]


@pytest.fixture(scope="module")
def packed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The whole path on packed sequences of short documents. Treat the store as read-only."""
    folder = tmp_path_factory.mktemp("packed")
    text = "\n".join(json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines())
    parts = [part for part in text.split("\n\n") if 10 < len(part) < 120]
    (folder / "parts.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in parts), encoding="utf-8")
    config = tiny(folder / "parts.jsonl", training={"n_tokens": 20_480})
    config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"packing": "separator"})})
    place = Place(Store.create(folder / "store"), Record())
    path(config, place)
    return config, place


def test_a_poisoned_held_out_document_is_in_quarantine_and_in_no_metric(corpus: Path, tmp_path: Path) -> None:
    config = tiny(corpus, corpus={"held_out_share": 0.6}, harvest={"max_quarantine_share": 0.5})
    place = Place(Store.create(tmp_path / "store"), Record())
    tokens = tokenize(config, place)
    found: dict[int, set[int]] = {}
    for shard in token_shards(tokens):
        for document, token in zip(shard.token_document.tolist(), shard.token_ids.tolist(), strict=True):
            found.setdefault(document, set()).add(token)
    held_out = {int(each) for shard in token_shards(tokens, held_out=True) for each in shard.document_id}
    poisoned = min(held_out)
    token = min(found[poisoned] - set().union(*(found[other] for other in found if other != poisoned)))
    embedding = language_model(config.lm).model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, ids, x: x.masked_fill((ids[0] == token)[..., None], torch.nan))
    try:
        path(config, place)
    finally:
        hook.remove()
    refused = rows(place, "select document_id, step, reason, uri from quarantine")
    assert (poisoned, "harvest", "not_finite", f"{corpus.name}#{poisoned}") in refused
    metrics = dict(rows(place, "select metric, value from sae_metric"))
    assert len(held_out) > 1 and all(metrics[name] is not None for name in ("fvu", "ce_clean", "ce_spliced", "kl"))


def test_packed_sequences_hold_several_documents_and_are_published(packed: Built) -> None:
    _, place = packed
    n_documents, n_sequences = rows(place, "select n_documents, n_sequences from dataset")[0]
    assert n_documents > 2 * n_sequences
    assert verify(place.store) == []


def test_an_example_of_packed_text_shows_tokens_of_one_document_only(packed: Built) -> None:
    """The separator ends a document: it may be the last token that is shown, and none before."""
    config, place = packed
    separator = load_lm(config.lm).tokenizer.eos_token_id
    window = """select s.token_ids[e.window_start + 1 : e.window_end], e.position - e.window_start, e.fire_positions,
                e.window_start, e.window_end from example e join sequence s using (dataset_id, sequence_id)"""
    found = rows(place, window)
    assert all(separator not in ids[:-1] for ids, *_ in found)
    assert sum(ids[-1] == separator for ids, *_ in found) > 100, "documents are short: many windows reach their end"
    assert sum(at < 12 and start > 0 for _, at, _, start, _ in found) > 100, "and many their beginning"
    assert all(start <= min(fires, default=start) for _, _, fires, start, _ in found)
    assert all(max(fires, default=start) < end for _, _, fires, start, end in found)


def test_an_example_of_packed_text_names_the_document_that_it_stands_in(packed: Built) -> None:
    connection = connect(packed[1].store)
    sql = """select sae_id, feature, bucket, rank, document_id from example_place where document_id not in
             (select document_id from sequence) limit 1"""  # not the first of its sequence
    sae_id, feature, bucket, rank, document = connection.execute(sql).fetchall()[0]
    for name, asked in (("examples", {"feature": feature}), ("examples_of_features", {"features": str(feature)})):
        (found,) = (
            row
            for row in query(connection, name, sae_id=sae_id, **asked).to_pylist()
            if (row["bucket"], row["rank"]) == (bucket, rank)
        )
        (uri,) = connection.execute("select uri from document where document_id = ?", [document]).fetchall()[0]
        assert found["uri"] == uri


def test_tokens_around_a_firing_of_packed_text_are_counted_inside_its_document(packed: Built) -> None:
    config, place = packed
    separator = load_lm(config.lm).tokenizer.eos_token_id
    by_role = dict(rows(place, f"select role, sum(n_fires) from feature_token where token_id = {separator} group by 1"))
    assert by_role.keys() == {"next"}


def test_a_model_of_another_width_than_the_sae_is_refused_with_both(
    encoder: Built, corpus: Path, tmp_path: Path
) -> None:
    _, place = encoder
    (uri,) = rows(place, "select weights_uri from sae")[0]
    given = {"path": str((place.store.root / str(uri)).parent), "read": "model.layers.1"}
    config = tiny(corpus, recipes=[], imports=[given])
    with pytest.raises(RecipeError, match="reads vectors of 32 numbers, but 'demo_lm' has 256 at model.layers.1; give"):
        path(config, Place(Store.create(tmp_path / "store"), Record()))


@pytest.mark.parametrize(("read", "written", "verb"), [(16, 32, "reads"), (32, 16, "writes")])
def test_widths_are_checked_of_what_is_read_and_of_what_is_written(
    encoder: Built, read: int, written: int, verb: str
) -> None:
    sae = sae_of(encoder[1])
    ends = Ends(read=(Site(path="a"),), write=(Site(path="b"),))
    moved = SAE(dict(sae.named_buffers()), sae.nonlinearity, ends, sae.architecture)
    check_widths(moved, {"a": 32, "b": 32}, "some model")
    with pytest.raises(RecipeError, match=f"{verb} vectors of 32 numbers, but 'some model' has 16"):
        check_widths(moved, {"a": read, "b": written}, "some model")
