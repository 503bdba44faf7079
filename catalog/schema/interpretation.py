"""What machines say of features, and which features are the same across SAEs."""

from catalog.schema.base import (
    BOOL,
    COSINE,
    COUNT,
    F32,
    F32S,
    F64,
    FEATURE,
    FINGERPRINT,
    I32,
    ID,
    JSON,
    SAE_ID,
    SHA,
    SHARE,
    STR,
    TEXT,
    TOKENS,
    YES,
    Column,
    Table,
    identifier,
    word,
)

MATCH = Table(
    "match", "identity", "A feature of one SAE beside its best candidate in another.", "replaced",
    (), partition="sae_b", sort=("sae_a", "feature_a", "feature_b"),
    row_group_rows=61_440, columns=(
        identifier("sae_a", "the first SAE, e.g. the old version"),
        Column("feature_a", I32, "index", "feature of the first; null = new in the second"),
        identifier("sae_b", "the second SAE, e.g. the new version"),
        Column("feature_b", I32, "index", "feature of the second; null = gone"),
        Column("decoder_cosine", F32, COSINE, "between decoder directions"),
        Column("encoder_cosine", F32, COSINE, "between encoder directions"),
        Column("act_correlation", F32, "correlation, -1 to 1", "of activations on a shared token sample"),
        Column("top_jaccard", F32, SHARE, "overlap of their top examples"),
        Column("runner_up_cosine", F32, COSINE, "decoder cosine of the second-best candidate"),
        Column("margin", F32, "of the similarity", "similarity of this pair minus that of the best rival of either"),
        word("similarity", "what they were matched by; activations where the widths differ",
             ("decoder_cosine", "act_correlation")),
        Column("mutual_best", BOOL, YES, "each is the other's best"),
        Column("assigned", BOOL, YES, "paired by the linear assignment"),
        word("verdict", "what became of the feature", ("same", "split", "merged", "gone", "new")),
        FINGERPRINT,
    ),
)  # fmt: skip

CONCEPT = Table(
    "concept", "identity", "A feature as a member of what is one concept across SAEs.", "replaced",
    ("concept_id", "sae_id", "feature"), partition="sae_id", sort=("concept_id", "feature"), columns=(
        identifier("concept_id", "the concept"),
        SAE_ID,
        FEATURE,
        Column("how", STR, TEXT, "match, label, or hand"),
        Column("confidence", F32, SHARE, "how sure"),
        FINGERPRINT,
    ),
)  # fmt: skip

EXPLANATION = Table(
    "explanation", "interpretation", "What a machine says of a feature.", "appended", ("explanation_id",),
    partition="sae_id", sort=("feature", "explanation_id"), row_group_rows=8_192, columns=(
        identifier("explanation_id", "unique per explanation"),
        SAE_ID,
        FEATURE,
        Column("text", STR, TEXT, "the explanation", nullable=False),
        word("source", "who wrote it; human = a label entered for scoring",
             ("heuristic", "model", "import", "carried", "human")),
        Column("method", STR, TEXT, "how it was made"),
        Column("model", STR, ID, "the model that wrote it"),
        Column("prompt_sha256", STR, SHA, "hash of the prompt"),
        Column("examples_sha256", STR, SHA, "hash of the examples it was shown"),
        Column("tokens_in", I32, TOKENS, "tokens sent"),
        Column("tokens_out", I32, TOKENS, "tokens received"),
        Column("cost_usd", F64, "US dollars", "what it cost"),
        Column("evidence", STR, JSON, "what speaks for it; of a heuristic a pattern that can be run, and its rates"),
        FINGERPRINT,
    ),
)  # fmt: skip

EXPLANATION_SCORE = Table(
    "explanation_score", "interpretation", "How well an explanation predicts held-out examples.", "appended",
    ("explanation_id", "scorer", "scorer_model", "fingerprint"), sort=("explanation_id", "scorer", "scorer_model"),
    row_group_rows=20_480, columns=(
        identifier("explanation_id", "the explanation"),
        word("scorer", "the test",
             ("detection", "fuzz", "embedding", "simulation", "surprisal", "intruder", "intervention"), nullable=False),
        Column("scorer_model", STR, ID, "the model that judged; empty if none", nullable=False),
        Column("score", F64, SHARE, "the test's own number"),
        Column("precision", F64, SHARE, "of those called positive, truly so"),
        Column("recall", F64, SHARE, "of the positives, those called so"),
        Column("f1", F64, SHARE, "harmonic mean of the two"),
        Column("balanced_accuracy", F64, SHARE, "mean of the recalls of both classes"),
        Column("auc", F64, SHARE, "area under the ROC curve"),
        Column("n_positive", I32, COUNT, "positive examples judged"),
        Column("n_negative", I32, COUNT, "negative examples judged"),
        Column("n_failed", I32, COUNT, "answers that could not be read"),
        Column("by_bucket", STR, JSON, 'bucket -> score, e.g. {"top": 0.98, "q1": 0.71}'),
        FINGERPRINT,
    ),
)  # fmt: skip

EMBEDDING = Table(
    "embedding", "interpretation", "A vector for a text, a feature or an example.", "appended",
    ("object_kind", "object_id", "model", "fingerprint"), partition="sae_id",
    sort=("object_kind", "feature", "object_id"), row_group_rows=2_048, columns=(
        Column("object_kind", STR, TEXT, "explanation, label, example …", nullable=False),
        identifier("object_id", "which one"),
        SAE_ID,
        Column("feature", I32, "index", "the feature it belongs to, if one"),
        Column("model", STR, ID, "the embedding model", nullable=False),
        Column("dim", I32, COUNT, "length of the vector"),
        Column("vector", F32S, "none", "the vector"),
        FINGERPRINT,
    ),
)  # fmt: skip

TABLES = (MATCH, CONCEPT, EXPLANATION, EXPLANATION_SCORE, EMBEDDING)
