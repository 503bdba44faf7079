"""Features are found by what is said of them, by tokens, logits, directions and conditions."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from catalog_samples import FAMILY, changed, corpus, explanation_rows, features, fingerprint, lists_of_features

from catalog import (
    DamagedError,
    Event,
    Labels,
    NotFound,
    Publication,
    QueryError,
    Store,
    append,
    connect,
    publish,
    search,
)
from catalog.keeping import collect, collected, drop, forget_query, save_query, saved_sql

N, WIDTH = 40, 16
SAE, OTHER = f"{FAMILY}@1", "tiny/L1.resid_post/topk@1"


def directions(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, WIDTH)).astype(np.float32)


def write_weights(store: Store, name: str, w_dec: np.ndarray) -> str:
    path = store.artifacts / name / "sae.safetensors"
    path.parent.mkdir()
    head = json.dumps(
        {"W_dec": {"dtype": "F32", "shape": w_dec.shape, "data_offsets": [0, w_dec.nbytes]}, "__metadata__": {"a": "b"}}
    ).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + w_dec.tobytes())
    return str(path.relative_to(store.root))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two SAEs with weights, names by a machine and by people."""
    store = Store.create(tmp_path_factory.mktemp("search") / "store")
    for seed, sae_id in enumerate((SAE, OTHER)):
        row = {
            "n_features": [N],
            "model_id": ["tiny"],
            "weights_uri": [write_weights(store, f"s{seed}", directions(seed))],
        }
        tables = {"sae": row, "feature": features(N), **lists_of_features(N)}
        publish(store, Publication(sae_id.split("@")[0], fingerprint(seed), tables, corpus()))
    texts = ["import statements", "imports of modules", "digits in tables", 'token "("', "indentation", "the end"]
    named = changed(explanation_rows(SAE, list(range(len(texts)))), text=texts)
    append(store, "explanation", named, fingerprint(0))
    with Labels(store) as labels:
        own = {"sae_id": SAE, "feature": 9, "text": "closing brackets"}
        labels.append([Event("label_event", "ada", "write", own)])
    return store


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("import statements", [0, 1]),
        ("IMPORT", [0, 1]),
        ("improt statments", [0, 1]),
        ("digitz", [2]),
        ("(", [3]),
        ("bracket", [9]),
        ("indent", [4]),
        ("nothing like it", []),
        ("", []),
        ("%", []),
    ],
)
def test_text_is_found_though_misspelt_the_best_first(searched: Store, asked: str, expected: list[int]) -> None:
    found = search.by_text(connect(searched), asked).to_pylist()
    assert [row["feature"] for row in found] == expected
    assert all(row["name"] for row in found)
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)


def test_text_search_says_who_said_it_and_keeps_to_an_sae(searched: Store) -> None:
    connection = connect(searched)
    (row,) = search.by_text(connection, "closing brackets", SAE).to_pylist()
    assert (row["source"], row["name_source"], row["sae_id"]) == ("ada", "human", SAE)
    assert search.by_text(connection, "closing brackets", OTHER).num_rows == 0


def test_tokens_are_found_with_or_without_a_space_and_in_small_letters(searched: Store) -> None:
    connection = connect(searched)
    expected = [f for f in range(N) for t in (2 * f, 2 * f + 1) if t % 10 == 1]  # " os" in the sample
    for asked in ("os", " os", "OS"):
        found = search.by_token(connection, asked, SAE)
        assert sorted(found["feature"].to_pylist()) == expected and set(found["token"].to_pylist()) == {" os"}
    assert search.by_token(connection, "os", SAE, role="next").num_rows == 0
    assert set(search.by_token(connection, "os")["sae_id"].to_pylist()) == {SAE, OTHER}


def test_logits_are_found_by_sign(searched: Store) -> None:
    connection = connect(searched)
    for token, is_promoted, sign in (("import", True, 1), ("os", False, -1)):  # as the sample has them
        found = search.by_logit(connection, token, SAE, is_promoted)
        assert found.num_rows and all(np.sign(logit) == sign for logit in found["logit"].to_pylist())
        assert search.by_logit(connection, token, SAE, not is_promoted).num_rows == 0


@pytest.mark.parametrize(("among", "seed"), [(None, 0), (OTHER, 1)])
def test_directions_are_the_nearest_of_all(searched: Store, among: str | None, seed: int) -> None:
    own, other = directions(0), directions(seed)
    cosines = (other @ own[7]) / np.linalg.norm(other, axis=1) / np.linalg.norm(own[7])
    order = [f for f in np.argsort(-cosines) if among or f != 7][:5]
    found = search.by_direction(connect(searched), searched, SAE, 7, among, n=5)
    assert found["feature"].to_pylist() == order
    np.testing.assert_allclose(found["cosine"].to_numpy(), cosines[order], rtol=1e-5)


def _gone(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(("harm", "error"), [(_gone, NotFound), (_cut, DamagedError)])
def test_weights_that_are_gone_or_damaged_are_named(
    tmp_path: Path, harm: Callable[[Path], None], error: type[Exception]
) -> None:
    store = Store.create(tmp_path / "store")
    uri = write_weights(store, "s", directions(0))
    row = {"n_features": [N], "weights_uri": [uri]}
    publish(store, Publication(FAMILY, fingerprint(1), {"sae": row, "feature": features(N)}, corpus()))
    harm(store.root / uri)
    with pytest.raises(error, match="sae.safetensors"):
        search.by_direction(connect(store), store, SAE, 1)


def test_a_condition_is_any_sql_and_only_a_condition(searched: Store) -> None:
    connection = connect(searched)
    assert search.by_condition(connection, "act_max > 37 or feature = 0 -- all", SAE)["feature"].to_pylist() == [
        0,
        38,
        39,
    ]
    for wrong in ("densty > 1", "true) or (true", "true; select 1", ""):
        with pytest.raises(QueryError):
            search.by_condition(connection, wrong, SAE)


def test_collections_and_saved_queries_are_events_that_come_and_go(searched: Store) -> None:
    with Labels(searched) as labels:
        assert collect(labels, "ada", "syntax", [(SAE, 3), (SAE, 1)], "brackets") == 2
        drop(labels, "bob", "syntax", [(SAE, 3)])
        save_query(connect(searched), labels, "ada", "wide", "select feature from feature")
        with pytest.raises(QueryError, match="LINE 1"):
            save_query(connect(searched), labels, "ada", "wrong", "selec 1")
    assert collected(connect(searched), "syntax") == [(SAE, 1)]
    assert saved_sql(connect(searched), "wide") == "select feature from feature"
    with Labels(searched) as labels:
        forget_query(connect(searched), labels, "ada", "wide")
    with pytest.raises(NotFound, match="no query 'wide'"):
        saved_sql(connect(searched), "wide")
    with pytest.raises(NotFound, match="did you mean 'syntax'"):
        collected(connect(searched), "sintax")
