"""A model of the catalog in plain Python: after any sequence of publications both hold the same."""

from typing import Any

import pytest
from catalog_samples import features, fingerprint, publication
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import Store, append, connect, current, publish, verify
from catalog.snapshot import Part, PublishedSAE, Snapshot, commit

N = 4
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(["a", "b"]), st.integers(1, 3), st.integers(0, 1)),
        st.tuples(st.just("append"), st.integers(1, 3), st.integers(0, 1), st.none()),
    ),
    max_size=5,
)


@given(ACTS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_catalog_holds_what_was_published_last(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[Any, ...]]
) -> None:
    store = Store.create(tmp_path_factory.mktemp("model") / "store")
    versions: dict[tuple[str, int], int] = {}  # (family, train) -> version
    content: dict[str, int] = {}  # sae_id -> content of its features
    appended: dict[int, int] = {}  # fingerprint -> content of its rows
    for kind, first, second, third in acts:
        if kind == "publish":
            known = max((version for (family, _), version in versions.items() if family == first), default=0)
            version = versions.setdefault((first, second), known + 1)
            content[f"{first}@{version}"] = third
            assert publish(store, publication(N, train=second, content=third, family=first)).version == version
        else:
            appended.setdefault(first, second)
            row = {"contrast_id": [f"c{first}"], "sae_id": ["a@1"], "n_positive": [second]}
            append(store, "contrast", row, fingerprint(first))
    assert state_of(store) == (content, appended)
    assert not verify(store)


def state_of(store: Store) -> tuple[dict[str, int], dict[int, int]]:
    connection = connect(store)
    rows = connection.execute("select sae_id, list(density order by feature) from feature group by all").fetchall()
    known = {tuple(features(N, content)["density"].tolist()): content for content in (0, 1)}
    appended = connection.execute("select contrast_id, n_positive from contrast").fetchall()
    return {sae: known[tuple(densities)] for sae, densities in rows}, {int(c[1:]): n for c, n in appended}


def test_a_snapshot_is_read_as_it_was_committed(tmp_path: Any) -> None:
    store = Store.create(tmp_path / "store")
    part = Part("feature", "feature/sae_id=ä%20/x/part-0.parquet", "ä ", "f", 1, 2, "3")
    snapshot = Snapshot(1, (part,), (PublishedSAE("a@1", "a", 1, "f", 8),))
    commit(store, snapshot)
    assert current(store) == snapshot


def test_a_first_snapshot_without_its_pointer_was_never_published(tmp_path: Any) -> None:
    store = Store.create(tmp_path / "store")
    commit(store, Snapshot(1))
    (store.catalog / "current").unlink()
    assert current(store) == Snapshot()
    assert publish(store, publication(N)).snapshot == 1
