"""Statistics and examples of features against plain loops, and the laws of merging."""

from collections import defaultdict
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_summaries import N_FEATURES, N_VOCAB, Case, context_of, plain_core, plain_tokens

from saelib.summaries.candidates import N_PER_RANGE, N_SAMPLED, N_TOP, RANGE_BINS, lowest_hashes
from saelib.summaries.examples import BUCKETS, Examples, Silences, choose_examples
from saelib.summaries.moments import BINS, bin_centre, bin_edge, bin_of, quantiles
from saelib.summaries.rows import WINDOW
from saelib.summaries.sample import Sample
from saelib.summaries.summary import Summary, merged_candidates

MOMENTS = {"mean", "m2", "m3", "m4", "gain_sum", "y_sum", "y_square_sum"}


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.random(0)


@pytest.fixture(scope="module")
def summary(case: Case) -> Summary:
    return Summary.of(case.firings(), N_VOCAB)


def test_core_equals_plain_loops(case: Case, summary: Summary) -> None:
    for name, wanted in plain_core(case).items():
        assert np.allclose(getattr(summary.core, name), wanted, rtol=1e-5, atol=1e-5), name
    rows = np.concatenate([x.double().numpy()[1:] for x in case.x])
    assert summary.core.n_tokens[0] == rows.shape[0] and summary.core.n_sequences[0] == len(case.documents)
    assert summary.core.total_variance == pytest.approx(((rows - rows.mean(axis=0)) ** 2).sum(), rel=1e-9)


def test_histogram_counts_every_firing_in_its_bin(case: Case, summary: Summary) -> None:
    f = np.concatenate(case.f())
    for feature in range(N_FEATURES):
        values = f[f[:, feature] > 0, feature]
        counts = np.histogram(values, bins=bin_edge(np.arange(BINS + 1)))[0]
        assert np.array_equal(summary.core.histogram[feature], counts)


@given(st.floats(2.0**-20, 2.0**20, width=32, exclude_max=True))
def test_a_bin_centre_is_within_two_per_cent_of_what_lies_in_the_bin(value: float) -> None:
    assert abs(bin_centre(bin_of(np.array([value])))[0] / value - 1) <= 0.02


def test_values_out_of_range_go_to_the_end_bins() -> None:
    assert bin_of(np.array([1e-30, 1e30])).tolist() == [0, BINS - 1]


def test_quantiles_are_within_two_per_cent() -> None:
    many = Case.random(1, n_documents=150)
    core, f = Summary.of(many.firings(), N_VOCAB).core, np.concatenate(many.f())
    shares = np.array([0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
    found = quantiles(core, shares)
    for feature in range(N_FEATURES):
        values = f[f[:, feature] > 0, feature]
        if values.size:
            wanted = np.quantile(values, shares, method="inverted_cdf")
            assert np.allclose(found[feature], wanted, rtol=0.02)
            assert found[feature, -1] == values.max()
        else:
            assert not found[feature].any()


@pytest.mark.parametrize(("role", "offset"), [("at", 0), ("previous", -1), ("next", 1)])
def test_token_counts_equal_plain_loops(case: Case, summary: Summary, role: str, offset: int) -> None:
    counts, acts, totals = plain_tokens(case, offset)
    assert np.array_equal(summary.tokens.counts[role].toarray(), counts)
    assert np.allclose(summary.tokens.acts[role].toarray(), acts, rtol=1e-6)
    assert np.array_equal(summary.tokens.totals[role], totals)
    top = summary.tokens.top(role, 3)
    for feature in range(N_FEATURES):
        order = [int(token) for token in np.lexsort((np.arange(N_VOCAB), -counts[feature])) if counts[feature, token]]
        assert top.token_id[top.feature == feature].tolist() == order[:3]
        assert top.n_fires[top.feature == feature].tolist() == counts[feature][order[:3]].tolist()
        assert np.allclose(top.act_sum[top.feature == feature], acts[feature][order[:3]])


def test_token_entropy_is_that_of_the_token_distribution(case: Case, summary: Summary) -> None:
    counts, _, _ = plain_tokens(case, 0)
    for feature, row in enumerate(counts):
        share = row[row > 0] / max(1, row.sum())
        assert summary.tokens.entropy()[feature] == pytest.approx(-(share * np.log(share)).sum(), abs=1e-9)
        assert summary.tokens.n_distinct()[feature] == share.size


def plain_top(case: Case, feature: int) -> list[float]:
    """The strongest firing of every sequence; of equal contexts the strongest; the N_TOP strongest of these."""
    best: dict[tuple[int, ...], float] = defaultdict(float)
    for ids, f in zip(case.documents, case.f(), strict=True):
        position = int(f[:, feature].argmax())
        context = context_of(ids, position, WINDOW)
        if f[position, feature] > 0:
            best[context] = max(best[context], f[position, feature])
    return sorted(best.values(), reverse=True)[:N_TOP]


@pytest.mark.parametrize("n_documents", [9, 60])
def test_top_candidates_are_the_strongest_of_each_sequence_and_context(n_documents: int) -> None:
    many = Case.random(2, n_documents=n_documents)
    found = Summary.of(many.firings(), N_VOCAB).candidates
    for feature in range(N_FEATURES):
        mine = found.take(found.is_top & (found.feature == feature))
        assert mine.value.tolist() == pytest.approx(plain_top(many, feature))


def test_top_candidates_are_complete_though_one_text_repeats_many_times() -> None:
    """More repeats of one strong context than are let through at once: the cut must not lose the others."""
    some = Case.random(3, n_documents=12, longest=6)
    repeated = Case(some.documents[:1] * 200 + some.documents[1:], some.x[:1] * 200 + some.x[1:], some.sae)
    found = Summary.of(repeated.firings(), N_VOCAB).candidates
    for feature in range(N_FEATURES):
        mine = found.take(found.is_top & (found.feature == feature))
        assert mine.value.tolist() == pytest.approx(plain_top(repeated, feature))


def test_candidate_windows_hold_the_feature_around_its_token(case: Case, summary: Summary) -> None:
    f, found = case.f(), summary.candidates
    assert found.feature.size > 50
    for index in range(found.feature.size):
        document, position = int(found.document_id[index]), int(found.position[index])
        column = f[document][:, found.feature[index]]
        wanted = [column[i] if 0 <= i < column.size else 0.0 for i in range(position - WINDOW, position + WINDOW + 1)]
        assert found.window[index].tolist() == pytest.approx(wanted)
        assert found.value[index] == pytest.approx(column[position]) and found.value[index] > 0


def test_sampled_candidates_are_the_smallest_hashes_of_every_range_and_of_all() -> None:
    many = Case.random(4, n_documents=80)
    firings = many.firings()
    found, feature = Summary.of(firings, N_VOCAB).candidates, firings.feature()
    band = bin_of(firings.value) // RANGE_BINS
    sampled, n_wanted = found.take(~found.is_top), list[int]()
    for one in range(N_FEATURES):
        wanted = []
        for strength in np.unique(band[feature == one]):
            mine = np.flatnonzero((feature == one) & (band == strength))
            wanted += sorted(firings.rows.hash[firings.row[mine]].tolist())[:N_PER_RANGE]
        assert sampled.hash[sampled.feature == one].tolist() == sorted(wanted)[:N_SAMPLED]
        n_wanted.append(len(wanted))
    assert min(n_wanted) < N_SAMPLED < max(n_wanted), "both limits are met"


@given(st.lists(st.integers(0, 4), max_size=200), st.integers(1, 5), st.integers(0, 100))
def test_lowest_hashes_are_those_of_a_full_sort(groups: list[int], n: int, seed: int) -> None:
    group = np.array(groups, dtype=np.int64)
    hashes = np.random.default_rng(seed).integers(0, 2**64, group.size, dtype=np.uint64)
    wanted = []
    for value in sorted(set(groups)):
        wanted += sorted(np.flatnonzero(group == value).tolist(), key=lambda index: hashes[index])[:n]
    assert lowest_hashes(group, hashes, n).tolist() == wanted


def assert_same(found: Summary, wanted: Summary) -> None:
    """Counts, examples and histograms exactly, moments to 1e-6."""
    for name, column in wanted.core._asdict().items():
        if name in MOMENTS:
            assert np.allclose(getattr(found.core, name), column, rtol=1e-6, atol=1e-6), name
        else:
            assert np.array_equal(getattr(found.core, name), column), name
    for role, matrix in wanted.tokens.counts.items():
        assert np.array_equal(found.tokens.counts[role].toarray(), matrix.toarray())
        assert np.array_equal(found.tokens.totals[role], wanted.tokens.totals[role])
        assert np.allclose(found.tokens.acts[role].toarray(), wanted.tokens.acts[role].toarray(), rtol=1e-6)
    for name, column in wanted.candidates._asdict().items():
        assert np.array_equal(getattr(found.candidates, name), column), name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 3), data=st.data())
def test_any_shards_and_any_grouping_of_merges_give_the_same_summary(seed: int, data: st.DataObject) -> None:
    case = Case.random(seed, n_documents=12)
    cuts = sorted({0, 12, *data.draw(st.lists(st.integers(1, 11), max_size=4))})
    parts = [Summary.of(case.firings(*span), N_VOCAB) for span in zip(cuts[:-1], cuts[1:], strict=True)]
    while len(parts) > 1:
        index = data.draw(st.integers(0, len(parts) - 2))
        parts[index : index + 2] = [parts[index].merge(parts[index + 1])]
    assert_same(parts[0], Summary.of(case.firings(), N_VOCAB))


def test_merging_commutes() -> None:
    case = Case.random(5)
    first, second = (Summary.of(case.firings(*span), N_VOCAB) for span in ((0, 4), (4, 9)))
    assert_same(first.merge(second), second.merge(first))


def test_a_shard_without_a_firing_changes_nothing_but_the_token_counts(case: Case, summary: Summary) -> None:
    silent = case._replace(x=[0 * x for x in case.x])
    silent.sae.b_enc.clamp_(max=0.0)
    nothing = Summary.of(silent.firings(), N_VOCAB)
    assert nothing.core.n_fires.sum() == 0 and nothing.candidates.feature.size == 0
    both = summary.merge(nothing)
    assert np.array_equal(both.core.n_fires, summary.core.n_fires)
    assert both.core.n_tokens[0] == 2 * summary.core.n_tokens[0]
    assert np.allclose(both.core.m4, summary.core.m4)


def test_a_shard_without_a_firing_is_merged_from_its_file(case: Case, summary: Summary, tmp_path: Path) -> None:
    silent = case._replace(x=[0 * x for x in case.x])
    silent.sae.b_enc.clamp_(max=0.0)
    parts = [summary, Summary.of(silent.firings(), N_VOCAB)]
    paths = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part.save())
    assert_same(Summary.merged(paths), reduce(Summary.merge, parts))
    last = range(summary.core.n_fires.size - 1, summary.core.n_fires.size)
    assert merged_candidates(paths[1:], last).feature.size == 0


def test_load_of_save_is_the_same_summary(tmp_path: Path) -> None:
    parts = [Summary.of(Case.random(6).firings(*span), N_VOCAB) for span in ((0, 3), (3, 7), (7, 9))]
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part.save())
        assert_same(Summary.load(path), part)
    assert_same(Summary.merged(paths), reduce(Summary.merge, parts))


def whole_sample(case: Case, folder: Path, cuts: tuple[int, ...], share: float = 1.0) -> Sample:
    paths = []
    for first, stop in zip(cuts[:-1], cuts[1:], strict=True):
        paths.append(folder / f"sample-{first:03d}.safetensors")
        paths[-1].write_bytes(Sample.of(case.firings(first, stop), share, seed=3).save())
    return Sample.merged(paths)


def dense(sample: Sample) -> np.ndarray:
    return sample.f.toarray()


def test_a_sample_is_the_same_whatever_the_shards(tmp_path: Path) -> None:
    case = Case.random(7, n_documents=30)
    one, many = whole_sample(case, tmp_path, (0, 30), 0.5), whole_sample(case, tmp_path, (0, 4, 5, 19, 30), 0.5)
    for name in ("token_id", "sequence_id", "document_id", "position", "hash", "context"):
        assert np.array_equal(getattr(one, name), getattr(many, name)), name
    assert np.array_equal(dense(one), dense(many))
    assert 5 < np.unique(one.sequence_id).size < 25


def test_a_sample_holds_whole_sequences_with_every_firing(tmp_path: Path) -> None:
    case = Case.random(8)
    sample, f = whole_sample(case, tmp_path, (0, 9)), case.f()
    assert sample.n_rows == sum(len(ids) - 1 for ids in case.documents)
    for row in range(sample.n_rows):
        document, position = sample.document_id[row], sample.position[row]
        assert np.allclose(dense(sample)[row], f[document][position])
        assert sample.token_id[row] == case.documents[document][position]
    every = np.indices((N_FEATURES, sample.n_rows)).reshape(2, -1)
    assert np.array_equal(sample.value(*every), dense(sample).T.ravel())


def test_together_equals_dense_jaccard_and_correlation(tmp_path: Path) -> None:
    sample = whole_sample(Case.random(9, n_documents=40), tmp_path, (0, 40))
    f = dense(sample).astype(np.float64)
    fires = f > 0
    jaccard, correlation = sample.together(n=4)
    for one in range(N_FEATURES):
        scores = []
        for other in range(N_FEATURES):
            union = (fires[:, one] | fires[:, other]).sum()
            both = (fires[:, one] & fires[:, other]).sum()
            steady = f[:, one].std() == 0 or f[:, other].std() == 0
            r = 0.0 if steady or not both else np.corrcoef(f[:, one], f[:, other])[0, 1]
            scores.append((0, 0) if one == other else (both / max(1, union), r))
        for found, column in ((jaccard, 0), (correlation, 1)):
            wanted = sorted((max(0.0, score[column]) for score in scores), reverse=True)[:4]
            assert np.maximum(found.score[one], 0).tolist() == pytest.approx(wanted, abs=1e-6)
            for other, score in zip(found.other[one], found.score[one], strict=True):
                assert other == -1 or scores[other][column] == pytest.approx(score, abs=1e-6)
                assert (other == -1) == (score <= 0)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Sample, Examples, np.ndarray, np.ndarray]:
    """Case, sample, examples, top tokens, nearest features."""
    case = Case.random(10, n_documents=120)
    summary = Summary.of(case.firings(), N_VOCAB)
    sample = whole_sample(case, tmp_path_factory.mktemp("sample"), (0, 120))
    top = summary.tokens.top("at", 3)
    tokens = np.full((N_FEATURES, 3), -1, dtype=np.int64)
    tokens[top.feature, top.rank] = top.token_id
    nearest = np.roll(np.arange(N_FEATURES), 1)
    silences = Silences.of(sample, tokens, nearest)
    chosen = choose_examples(summary.candidates, summary.core, sample, silences, range(N_FEATURES))
    return case, sample, chosen, tokens, nearest


Described = tuple[Case, Sample, Examples, np.ndarray, np.ndarray]


def bucket(examples: Examples, feature: int, name: str) -> Examples:
    mine = np.flatnonzero((examples.feature == feature) & (examples.bucket == BUCKETS.index(name)))
    return Examples(*(column[mine] for column in examples))


def test_examples_fill_every_bucket_of_a_feature_that_fires_often(described: Described) -> None:
    case, _, examples, _, _ = described
    fires = (np.concatenate(case.f()) > 0).sum(axis=0)
    for feature in np.flatnonzero(fires > 300):
        sizes = {name: bucket(examples, feature, name).feature.size for name in BUCKETS}
        assert sizes["top"] == 20 and sizes["random"] == 5 and sizes["negative"] == 5, sizes
        assert [sizes[f"q{index}"] for index in range(1, 6)] == [5] * 5, sizes
        assert sizes["near_miss"] <= 5
    for feature in np.flatnonzero(fires == 0):
        assert set(examples.bucket[examples.feature == feature]) <= {7, 8}


def test_examples_are_ranked_by_feature_bucket_and_strength(described: Described) -> None:
    examples = described[2]
    order = np.lexsort((-examples.act, examples.bucket, examples.feature))
    assert np.array_equal(examples.act[order], examples.act)
    for feature in range(N_FEATURES):
        for name in BUCKETS:
            mine = bucket(examples, feature, name)
            assert mine.rank.tolist() == list(range(mine.rank.size))


def test_no_context_is_shown_twice_among_the_firings_of_a_feature(described: Described) -> None:
    case, _, examples, _, _ = described
    for feature in range(N_FEATURES):
        shown = np.flatnonzero((examples.feature == feature) & (examples.bucket < 7))
        contexts = [
            context_of(case.documents[examples.document_id[i]], int(examples.position[i]), WINDOW) for i in shown
        ]
        assert len(set(contexts)) == len(contexts)


def test_example_activations_are_those_of_the_text(described: Described) -> None:
    case, _, examples, _, _ = described
    f = case.f()
    for i in range(examples.feature.size):
        column = f[examples.document_id[i]][:, examples.feature[i]]
        assert examples.act[i] == pytest.approx(column[examples.position[i]])
        places = range(int(examples.position[i]) - WINDOW, int(examples.position[i]) + WINDOW + 1)
        assert examples.window[i].tolist() == pytest.approx([column[p] if 0 <= p < column.size else 0 for p in places])


def test_top_examples_are_the_strongest_and_quantile_examples_lie_in_their_bucket(described: Described) -> None:
    case, _, examples, _, _ = described
    for feature in range(N_FEATURES):
        assert bucket(examples, feature, "top").act.tolist() == pytest.approx(plain_top(case, feature)[:20])
        for name in BUCKETS[1:6]:
            mine = bucket(examples, feature, name)
            assert (mine.act <= mine.bucket_high + 1e-9).all() and (mine.act >= mine.bucket_low).all()


def test_random_examples_are_the_first_firings_by_hash_that_the_top_leaves(described: Described) -> None:
    case, _, examples, _, _ = described
    firings, rng_order = case.firings(), {}
    for feature in range(N_FEATURES):
        top = bucket(examples, feature, "top")
        used = {
            context_of(case.documents[d], int(p), WINDOW) for d, p in zip(top.document_id, top.position, strict=True)
        }
        mine = np.flatnonzero(firings.feature() == feature)
        for index in mine[np.argsort(firings.rows.hash[firings.row[mine]])]:
            row = firings.row[index]
            place = int(firings.rows.document_id[row]), int(firings.rows.position[row])
            context = context_of(case.documents[place[0]], place[1], WINDOW)
            if context not in used:
                used.add(context)
                rng_order.setdefault(feature, []).append(place)
        found = bucket(examples, feature, "random")
        places = set(zip(found.document_id.tolist(), found.position.tolist(), strict=True))
        assert places == set(rng_order.get(feature, [])[:5])


def test_near_misses_are_silent_where_one_would_expect_a_firing(described: Described) -> None:
    case, _, examples, tokens, nearest = described
    f, seen = case.f(), 0
    for i in np.flatnonzero(examples.bucket == BUCKETS.index("near_miss")):
        feature, document, position = examples.feature[i], examples.document_id[i], examples.position[i]
        assert examples.act[i] == 0 and f[document][position, feature] == 0
        assert case.documents[document][position] in tokens[feature] or f[document][position, nearest[feature]] > 0
        seen += 1
    assert seen > N_FEATURES


def test_negatives_are_silent_and_of_different_contexts(described: Described) -> None:
    case, _, examples, _, _ = described
    f = case.f()
    for feature in range(N_FEATURES):
        mine = bucket(examples, feature, "negative")
        contexts = set()
        for document, position in zip(mine.document_id, mine.position, strict=True):
            assert f[document][position, feature] == 0
            contexts.add(context_of(case.documents[document], int(position), WINDOW))
        assert len(contexts) == mine.feature.size


def test_an_empty_sample_gives_neither_negatives_nor_near_misses(tmp_path: Path) -> None:
    case = Case.random(11)
    sample = whole_sample(case, tmp_path, (0, 9), share=0.0)
    assert sample.n_rows == 0
    assert sample.negatives(5, seed=1)[0].size == 0
    assert sample.near_misses(np.full((N_FEATURES, 3), 4), np.zeros(N_FEATURES, dtype=np.int64), 5)[0].size == 0
    assert not sample.together(3)[0].score.any()
