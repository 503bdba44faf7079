"""The corpus (tokens stored once) and what is known of every feature."""

from catalog.schema.base import (
    ACT,
    BOOL,
    CHARS,
    COSINE,
    COUNT,
    DATASET_ID,
    F32,
    F32S,
    F64,
    FEATURE,
    FINGERPRINT,
    I8,
    I32,
    I32S,
    I64,
    I64S,
    ID,
    JSON,
    LOGIT,
    NATS,
    NONE,
    POSITION,
    SAE_ID,
    SHA,
    SHARE,
    STR,
    STRS,
    TEXT,
    TOKENS,
    YES,
    Column,
    Table,
    word,
)

BUCKETS = ("top", "q5", "q4", "q3", "q2", "q1", "random", "near_miss", "negative")
STATUSES = ("dead", "rare", "dense", "alive")
SEQUENCE_ID = Column("sequence_id", I64, "index", "the sequence", nullable=False)
RANK = Column("rank", I32, "from 0", "place in its list, best first", nullable=False)

#: Measured of a feature on one data set: in `feature` for the catalog corpus, in `feature_stat` for every one.
MEASURED = (
    Column("n_tokens", I64, TOKENS, "unmasked tokens of the data set"),
    Column("n_fires", I64, TOKENS, "tokens with f > 0"),
    Column("density", F64, SHARE, "n_fires / n_tokens"),
    Column("n_sequences", I64, COUNT, "sequences of the data set"),
    Column("n_sequences_fired", I64, COUNT, "sequences with f > 0 somewhere"),
    Column("sequence_density", F64, SHARE, "n_sequences_fired / n_sequences"),
)
QUANTILES = Column("act_quantiles", F32S, ACT, "11 quantiles (0, .1, …, 1) of the non-zero activations")

DOCUMENT = Table(
    "document", "corpus", "A document of a data set.", "replaced", ("dataset_id", "document_id"),
    partition="dataset_id", sort=("document_id",), row_group_rows=20_480, columns=(
        DATASET_ID,
        Column("document_id", I64, "index", "the document, in the order of the corpus", nullable=False),
        FINGERPRINT,
        Column("uri", STR, ID, "where it came from"),
        Column("sha256", STR, SHA, "hash of its text"),
        Column("n_tokens", I32, TOKENS, "its length, all tokens"),
        Column("meta", STR, JSON, "whatever the source said of it"),
    ),
)  # fmt: skip

SEQUENCE = Table(
    "sequence", "corpus", "A stretch of text, as the model read it; examples point into it.", "replaced",
    ("dataset_id", "sequence_id"), partition="dataset_id", sort=("sequence_id",), row_group_rows=2_048, columns=(
        DATASET_ID,
        SEQUENCE_ID,
        FINGERPRINT,
        Column("document_id", I64, "index", "its document; of a packed sequence, the first", nullable=False),
        Column("start_token", I32, POSITION, "its first token, counted in the document"),
        Column("n_tokens", I32, TOKENS, "its length"),
        Column("token_ids", I32S, ID, "token ids, special tokens included"),
        Column("tokens", STRS, TEXT, "the same tokens as text"),
        Column("token_chars", I32S, CHARS, "from each token to the next in its document's text; 0 for BOS and "
               "separators; null where the tokenizer tells no offsets"),
        Column("document_ids", I64S, "index", "documents in it, in order: one, or several where they are packed"),
        Column("document_starts", I32S, POSITION, "where the tokens of each of these begin, BOS included"),
        Column("document_chars", I32S, CHARS, "where these tokens begin in each one's text; null as token_chars"),
    ),
)  # fmt: skip

FEATURE_TABLE = Table(
    "feature", "features", "One feature of an SAE with its statistics on the catalog corpus.", "replaced",
    ("sae_id", "feature"), partition="sae_id", sort=("feature",), row_group_rows=8_192, columns=(
        SAE_ID,
        FEATURE,
        FINGERPRINT,
        Column("dataset_id", STR, ID, "the catalog corpus", nullable=False),
        word("status", "dead: density 0; rare: below rare_density; dense: above 0.1; else alive (run.config)",
             STATUSES, nullable=False),
        *MEASURED,
        Column("act_max", F32, ACT, "largest activation"),
        Column("act_mean", F32, ACT, "mean of the non-zero activations"),
        Column("act_std", F32, ACT, "standard deviation of the non-zero activations"),
        Column("act_skew", F32, NONE, "skewness of the non-zero activations"),
        Column("act_kurtosis", F32, NONE, "excess kurtosis of the non-zero activations"),
        QUANTILES,
        Column("top_token", STR, TEXT, "the token it fires on most often"),
        Column("top_token_share", F32, SHARE, "share of its firings that are on that token"),
        Column("token_entropy", F32, "nats", "entropy of the tokens it fires on"),
        Column("n_distinct_tokens", I32, COUNT, "different tokens it fires on"),
        Column("position_mean", F32, POSITION, "mean position of its firings in the sequence"),
        Column("first_position_share", F32, SHARE, "share of its firings on the first unmasked token"),
        Column("run_length_mean", F32, TOKENS, "mean length of an unbroken run of firings"),
        Column("encoder_norm", F32, "norm", "length of its column of W_enc"),
        Column("decoder_norm", F32, "norm", "length of its row of W_dec"),
        Column("encoder_decoder_cosine", F32, COSINE, "between those two"),
        Column("threshold", F32, "pre-activation", "below it the feature does not fire"),
        Column("logit_skew", F32, NONE, "skewness of its direct effect on the logits"),
        Column("logit_kurtosis", F32, NONE, "excess kurtosis of that effect; high = an output feature"),
        Column("top_tokens", STRS, TEXT, "most promoted tokens, best first"),
        Column("top_logits", F32S, LOGIT, "their logit effects per unit of decoder direction"),
        Column("bottom_tokens", STRS, TEXT, "most suppressed tokens, lowest first"),
        Column("bottom_logits", F32S, LOGIT, "their logit effects"),
        Column("nearest_feature", I32, "index", "the feature whose decoder direction is nearest"),
        Column("nearest_cosine", F32, COSINE, "cosine with it"),
        Column("reconstructive", F32, "share of variance",
               "sum(|e + f d|^2 - |e|^2) / sum |y - mean|^2: what the reconstruction loses without it"),
        Column("delta_ce_linear", F32, NATS, "change of cross-entropy when it is ablated, first order"),
        Column("delta_ce_linear_tokens", I64, TOKENS, "tokens behind delta_ce_linear"),
        Column("delta_ce", F32, NATS, "true change of cross-entropy by ablation; null outside the seeded sample"),
        Column("delta_ce_tokens", I64, TOKENS, "tokens behind delta_ce"),
        Column("example_spread", F32, "cosine distance", "mean distance between its embedded examples"),
    ),
)  # fmt: skip

FEATURE_STAT = Table(
    "feature_stat", "features", "The same core numbers per data set and run: drift is computed from it.", "appended",
    ("sae_id", "feature", "dataset_id", "fingerprint"), partition="sae_id",
    sort=("feature", "dataset_id", "fingerprint"), row_group_rows=20_480, columns=(
        SAE_ID,
        FEATURE,
        DATASET_ID,
        FINGERPRINT,
        *MEASURED,
        Column("act_mean", F32, ACT, "mean of the non-zero activations"),
        Column("act_max", F32, ACT, "largest activation"),
        QUANTILES,
    ),
)  # fmt: skip

HISTOGRAM = Table(
    "histogram", "features", "A histogram of one feature.", "replaced", ("sae_id", "feature", "kind"),
    partition="sae_id", sort=("feature", "kind"), row_group_rows=8_192, columns=(
        SAE_ID,
        FEATURE,
        FINGERPRINT,
        DATASET_ID,
        word("kind", "of what: non-zero activations, the same on log-spaced bins, logit effects",
             ("act", "log_act", "logit"), nullable=False),
        Column("edges", F32S, "of the kind", "bin edges, one more than counts"),
        Column("counts", I64S, COUNT, "values in [edges[i], edges[i+1]); the last bin includes its end"),
    ),
)  # fmt: skip

FEATURE_TOKEN = Table(
    "feature_token", "features", "A token that goes with a feature.", "replaced", ("sae_id", "feature", "role", "rank"),
    partition="sae_id", sort=("feature", "role", "rank"), row_group_rows=61_440, columns=(
        SAE_ID,
        FEATURE,
        FINGERPRINT,
        word("role", "where the token stands: where the feature fires, before it, after it",
             ("at", "previous", "next"), nullable=False),
        RANK,
        Column("token_id", I32, ID, "token id"),
        Column("token", STR, TEXT, "the token as text"),
        Column("n_fires", I64, COUNT, "firings with the token in that role"),
        Column("n_token", I64, COUNT, "the token in the whole data set"),
        Column("p_token_given_fire", F32, SHARE, "n_fires / firings of the feature"),
        Column("p_fire_given_token", F32, SHARE, "n_fires / n_token"),
        Column("lift", F32, "ratio", "p_token_given_fire / share of the token in the data set"),
        Column("act_mean", F32, ACT, "mean activation of those firings"),
    ),
)  # fmt: skip

FEATURE_LOGIT = Table(
    "feature_logit", "features", "A token that a feature promotes or suppresses directly.", "replaced",
    ("sae_id", "feature", "sign", "rank"), partition="sae_id", sort=("feature", "sign", "rank"), row_group_rows=61_440,
    columns=(
        SAE_ID,
        FEATURE,
        FINGERPRINT,
        Column("sign", I8, "1 or -1", "1 promoted, -1 suppressed", nullable=False),
        RANK,
        Column("token_id", I32, ID, "token id"),
        Column("token", STR, TEXT, "the token as text"),
        Column("logit", F32, LOGIT, "effect on its logit of one unit of decoder direction, final norm included"),
    ),
)  # fmt: skip

EXAMPLE = Table(
    "example", "features", "A token window in which a feature fires (or nearly does).", "replaced",
    ("sae_id", "feature", "bucket", "rank"), partition="sae_id", sort=("feature", "bucket", "rank"),
    row_group_rows=40_960, columns=(
        SAE_ID,
        FEATURE,
        FINGERPRINT,
        Column("example_id", I64, ID, "unique within the SAE"),
        DATASET_ID,
        SEQUENCE_ID,
        word("bucket", "part of the range it was drawn from; q1 to q5: quantile ranges of the non-zero, low to high",
             BUCKETS, nullable=False),
        Column("bucket_low", F32, ACT, "lower end of that range"),
        Column("bucket_high", F32, ACT, "upper end of that range"),
        RANK,
        Column("position", I32, POSITION, "the token it is about, counted in the sequence"),
        Column("act", F32, ACT, "activation on that token"),
        Column("window_start", I32, POSITION, "first token shown"),
        Column("window_end", I32, POSITION, "one past the last token shown"),
        Column("fire_positions", I32S, POSITION, "tokens of the window with f > 0, counted in the sequence"),
        Column("fire_acts", F32S, ACT, "activations on those"),
        Column("left_text", STR, TEXT, "the window before the token"),
        Column("token", STR, TEXT, "the token"),
        Column("right_text", STR, TEXT, "the window after the token"),
        Column("held_out", BOOL, YES, "kept from explainers, for scoring; by hash of the document"),
    ),
)  # fmt: skip

NEIGHBOR = Table(
    "neighbor", "features", "A feature that is near another.", "replaced", ("sae_id", "feature", "kind", "rank"),
    partition="sae_id", sort=("feature", "kind", "rank"), row_group_rows=61_440, columns=(
        SAE_ID,
        FEATURE,
        FINGERPRINT,
        word("kind", "near in what", ("decoder_cosine", "coactivation", "correlation"), nullable=False),
        RANK,
        Column("other_sae_id", STR, ID, "the SAE of the other feature; its own unless said otherwise", nullable=False),
        Column("other_feature", I32, "index", "the other feature", nullable=False),
        Column("score", F32, "of the kind", "cosine, Jaccard index, or correlation"),
    ),
)  # fmt: skip

ACTIVATION = Table(
    "activation", "features", "One firing, for a hash sample of sequences: any later statistic is a query.", "replaced",
    ("sae_id", "feature", "dataset_id", "sequence_id", "position"), partition="sae_id",
    sort=("feature", "dataset_id", "sequence_id", "position"), columns=(
        SAE_ID,
        FEATURE,
        FINGERPRINT,
        DATASET_ID,
        SEQUENCE_ID,
        Column("position", I32, POSITION, "the token, counted in the sequence", nullable=False),
        Column("act", F32, ACT, "how strongly it fired"),
    ),
)  # fmt: skip

TABLES = (
    DOCUMENT, SEQUENCE, FEATURE_TABLE, FEATURE_STAT, HISTOGRAM, FEATURE_TOKEN, FEATURE_LOGIT, EXAMPLE, NEIGHBOR,
    ACTIVATION,
)  # fmt: skip
