"""The whole path on real input, without an orchestrator: what is published, what is reused, what adds up."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from catalog import Store, connect, verify
from flows.artifact import verify_artifacts
from flows.config import RunConfig
from flows.place import Place
from saelib.lm import LMConfig, load_lm, read_sites
from saelib.sae import SAE

Built = tuple[RunConfig, Place]
TABLES = [
    "feature",
    "feature_stat",
    "histogram",
    "feature_token",
    "feature_logit",
    "example",
    "neighbor",
    "activation",
    "document",
    "sequence",
]


def rows(place: Place, sql: str) -> list[tuple[object, ...]]:
    return connect(place.store).execute(sql).fetchall()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "table", [*TABLES, "model", "dataset", "sae", "sae_metric", "run", "lineage", "train_progress"]
)
def test_path_fills_every_table(built: Built, table: str) -> None:
    (count,) = rows(built[1], f"select count(*) from {table}")[0]
    assert count


def test_published_store_verifies_clean(built: Built) -> None:
    store, damages = built[1].store, []
    verify_artifacts(store, lambda where, problem: damages.append((where, problem)))
    assert [*damages, *verify(store)] == []


def test_feature_statistics_equal_a_plain_computation_over_the_tokens(built: Built) -> None:
    """Oracle: encode every sequence by itself, one at a time, and count."""
    config, place = built
    lm = load_lm(config.lm)
    (uri,) = rows(place, "select weights_uri from sae")[0]
    sae = SAE.load((place.store.root / str(uri)).parent)
    special = set(lm.special_ids)
    f = []
    for (ids,) in rows(place, "select token_ids from sequence order by sequence_id"):
        tokens = torch.tensor([ids])
        x = read_sites(lm, tokens, torch.ones_like(tokens), config.harvest.sites)[config.harvest.sites[0]][0]
        f.append(sae.encode(x[[token not in special for token in tokens[0].tolist()]]))
    every = torch.cat(f).double().numpy()
    found = rows(place, "select n_fires, act_max, act_mean, density from feature order by feature")
    n_fires, act_max, act_mean, density = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    assert np.abs(n_fires - (every > 0).sum(axis=0)).max() <= 2  # a token at the very threshold may fall either way
    np.testing.assert_allclose(density, (every > 0).mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(act_max, every.max(axis=0), rtol=1e-3, atol=1e-4)
    fired = n_fires > 20
    mean = every.sum(axis=0) / np.maximum((every > 0).sum(axis=0), 1)
    np.testing.assert_allclose(act_mean[fired], mean[fired], rtol=2e-2)


def test_histograms_and_feature_agree_on_the_number_of_firings(built: Built) -> None:
    wrong = """select feature from feature join histogram using (sae_id, feature)
               where kind in ('act', 'log_act') and list_sum(counts) <> n_fires"""
    assert rows(built[1], wrong) == []


def test_examples_stand_where_the_text_and_the_activations_say(built: Built) -> None:
    wrong = """select e.example_id from example e join sequence s using (dataset_id, sequence_id)
               where s.tokens[e.position + 1] <> e.token
                  or list_aggregate(s.tokens[e.window_start + 1 : e.position], 'string_agg', '') <> e.left_text"""
    assert rows(built[1], wrong) == []
    silent = "select count(*) from example where bucket in ('near_miss', 'negative') and act <> 0"
    assert rows(built[1], silent) == [(0,)]
    firing = """select count(*) from example where bucket not in ('near_miss', 'negative')
                and (act <= 0 or not list_contains(fire_positions, position) or act > bucket_high * 1.0001)"""
    assert rows(built[1], firing) == [(0,)]


def test_buckets_hold_no_more_than_they_should(built: Built) -> None:
    counts = dict(
        rows(
            built[1],
            "select bucket, max(n) from (select bucket, feature, count(*) n from example group by all) group by 1",
        )
    )
    assert counts["top"] <= 20
    assert all(count <= 5 for bucket, count in counts.items() if bucket != "top")
    assert {"top", "random", "near_miss", "negative", "q1", "q5"} <= counts.keys()


def test_metrics_are_in_their_ranges_and_have_intervals(built: Built) -> None:
    metrics = {
        name: (value, lower, upper)
        for name, value, lower, upper in rows(built[1], "select metric, value, lower, upper from sae_metric")
    }
    assert 0 < metrics["fvu"][0] < 1
    assert metrics["fvu"][1] <= metrics["fvu"][0] <= metrics["fvu"][2]
    assert abs(metrics["fvu"][0] + metrics["explained_variance"][0] - 1) < 1e-9
    assert 0 < metrics["l0"][0] < 20
    assert metrics["ce_clean"][0] < metrics["ce_spliced"][0] < metrics["ce_mean"][0]
    assert 0 < metrics["loss_recovered_mean"][0] < 1
    assert metrics["kl"][0] > 0


def test_second_run_does_nothing_and_says_so(built: Built, rebuild: Callable[..., Built]) -> None:
    store = built[1].store
    before = sorted(path for path in store.artifacts.rglob("*"))
    _, again = rebuild(store)
    assert [report.state for report in again.reports] == ["reused"] * 6
    assert all("done already" in line for line in again.watch.lines)  # type: ignore[attr-defined]
    assert sorted(path for path in store.artifacts.rglob("*")) == before


def test_a_changed_setting_runs_only_what_depends_on_it(
    corpus: Path, tmp_path: Path, rebuild: Callable[..., Built]
) -> None:
    store = Store.create(tmp_path / "store")
    rebuild(store)
    _, changed = rebuild(store, evaluation={"max_tokens": 1_500})
    states = {report.step: report.state for report in changed.reports}
    assert states == {
        "tokenize": "reused", "harvest": "reused", "train": "reused",
        "evaluate": "finished", "describe": "reused", "publish": "finished",
    }  # fmt: skip
    _, retrained = rebuild(store, training={"seed": 1})
    assert [report.state for report in retrained.reports] == ["reused"] * 2 + ["finished"] * 4
    assert rows(retrained, "select version from sae order by 1") == [(1,), (2,)]


def test_going_back_to_an_earlier_setting_publishes_its_tables_again(
    tmp_path: Path, rebuild: Callable[..., Built]
) -> None:
    store = Store.create(tmp_path / "store")
    _, place = rebuild(store)
    first = rows(place, "select count(*), min(fingerprint) from feature_logit")
    _, place = rebuild(store, describe={"n_tokens_listed": 5})
    assert rows(place, "select count(*), min(fingerprint) from feature_logit") != first
    _, back = rebuild(store)
    assert [report.state for report in back.reports] == ["reused"] * 5 + ["finished"]
    assert rows(back, "select count(*), min(fingerprint) from feature_logit") == first
    assert rows(back, "select version from sae") == [(1,)]


def test_run_rows_say_what_was_read_and_made(built: Built) -> None:
    path_rows = rows(
        built[1], "select step, state, tokens_per_second > 0 from run where state = 'finished' order by started_at"
    )
    assert [row[0] for row in path_rows] == ["tokenize", "harvest", "train", "evaluate", "describe", "publish"]
    made = dict(
        rows(
            built[1],
            "select step, any_value(kind) from run join lineage using (run_id) where direction = 'out' group by 1",
        )
    )
    assert made["train"] == "sae"
    assert json.loads(str(rows(built[1], "select config from run where step = 'train' limit 1")[0][0]))["threads"] == 1


def test_the_demo_model_is_the_default() -> None:
    assert LMConfig().model_id == "demo_lm"
