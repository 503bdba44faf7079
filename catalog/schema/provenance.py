"""Where everything came from: models, data sets, SAEs, runs, and what went wrong."""

from catalog.schema.base import (
    BOOL,
    BYTES,
    COUNT,
    DATASET_ID,
    F64,
    F64S,
    FINGERPRINT,
    I32,
    I64,
    ID,
    JSON,
    NONE,
    NUMBERS,
    SAE_ID,
    SECONDS,
    SHA,
    SHARE,
    STR,
    STRS,
    TEXT,
    TIME,
    TOKENS,
    UTC,
    YES,
    Column,
    Table,
    identifier,
    word,
)

GROUP = "provenance"
TOKENS_PER_SECOND = "tokens per second"

MODEL = Table(
    "model", GROUP, "A language model that SAEs were trained on.", "replaced", ("model_id",), partition="model_id",
    sort=("model_id",), columns=(
        identifier("model_id", "short name of the model, used in sae_id"),
        FINGERPRINT,
        Column("repo", STR, ID, "hub name or folder it was loaded from"),
        Column("revision", STR, ID, "commit or content hash of those files"),
        Column("dtype", STR, TEXT, "number format it ran in, e.g. float32"),
        Column("n_layers", I32, COUNT, "transformer blocks"),
        Column("d_model", I32, COUNT, "width of the residual stream"),
        Column("n_vocab", I32, COUNT, "token ids of its tokenizer"),
        Column("tokenizer_sha256", STR, SHA, "hash of the tokenizer's files"),
        Column("is_chat", BOOL, YES, "has a chat template"),
    ),
)  # fmt: skip

DATASET = Table(
    "dataset", GROUP, "A corpus as it was tokenized for one model.", "replaced", ("dataset_id",),
    partition="dataset_id", sort=("dataset_id",), columns=(
        DATASET_ID,
        FINGERPRINT,
        Column("uri", STR, ID, "where the text came from"),
        Column("split", STR, TEXT, "train, held_out, or the source's own split name"),
        Column("revision", STR, ID, "version of the source"),
        Column("content_sha256", STR, SHA, "hash over its documents in order"),
        word("role", "what the corpus is for",
             ("general", "harmful", "harmless", "failing", "passing", "monitor", "evaluation")),
        Column("n_documents", I64, COUNT, "documents"),
        Column("n_sequences", I64, COUNT, "sequences"),
        Column("n_tokens", I64, TOKENS, "unmasked tokens"),
        Column("context_tokens", I32, TOKENS, "longest sequence"),
        Column("masks", STR, JSON, "reason -> tokens masked out for it"),
        Column("licence", STR, TEXT, "licence of the text"),
    ),
)  # fmt: skip

SAE = Table(
    "sae", GROUP, "One version of a sparse autoencoder.", "replaced", ("sae_id",), partition="sae_id",
    sort=("sae_id",), columns=(
        SAE_ID,
        FINGERPRINT,
        Column("family", STR, ID, "what its versions share; current = the highest version", nullable=False),
        Column("version", I32, COUNT, "1 for the first of the family", nullable=False),
        Column("parent_sae_id", STR, ID, "the version it was retrained from"),
        Column("model_id", STR, ID, "the language model"),
        Column("sites_read", STRS, ID, "module path and side of each site it reads"),
        Column("sites_written", STRS, ID, "module path and side of each site it reconstructs"),
        Column("architecture", STR, TEXT, "its recipe: batchtopk, topk, standard, jumprelu, gated, matryoshka …"),
        Column("nonlinearity", STR, TEXT, "pre-activation -> feature activation, at inference"),
        Column("d_in", I32, COUNT, "width read, all sites together"),
        Column("d_out", I32, COUNT, "width written, all sites together"),
        Column("n_features", I32, COUNT, "features", nullable=False),
        Column("k", I32, COUNT, "features kept per token (topk family)"),
        Column("sparsity_weight", F64, "loss weight", "weight of the sparsity term (standard, gated, jumprelu)"),
        Column("activation_scale", F64S, "factor", "per site; already folded into the weights, kept for the record"),
        word("input_norm", "per-token normalisation of its input; with _in it is not undone on the output",
             ("none", "layer_norm", "constant_norm", "layer_norm_in", "constant_norm_in")),
        Column("has_skip", BOOL, YES, "has a linear skip from input to output"),
        Column("seed", I32, NONE, "random seed of the training"),
        Column("train_dataset_id", STR, ID, "the data set it was trained on"),
        Column("train_tokens", I64, TOKENS, "tokens it saw in training"),
        Column("weights_uri", STR, ID, "its weights, relative to the store"),
        Column("weights_sha256", STR, SHA, "hash of the weights"),
        Column("config", STR, JSON, "resolved plan of the training"),
        Column("origin", STR, TEXT, "trained, or the tool it was imported from"),
        Column("neuronpedia_source", STR, ID, "its name on Neuronpedia, if it has one"),
    ),
)  # fmt: skip

RUN = Table(
    "run", GROUP, "One execution of a step.", "appended", ("run_id",), volatile=True, sort=("run_id",),
    columns=(
        identifier("run_id", "unique per execution of a step"),
        Column("step", STR, TEXT, "tokenize, harvest, train, evaluate, describe, interpret, publish …", nullable=False),
        Column("flow", STR, TEXT, "the flow it belonged to"),
        Column("deployment", STR, TEXT, "the deployment that started the flow"),
        word("trigger", "what started it", ("schedule", "manual", "event")),
        Column("prefect_run_id", STR, ID, "the orchestrator's own id"),
        Column("author", STR, TEXT, "who started it"),
        Column("fingerprint", STR, SHA, "the artifact it made or found; null if it failed before"),
        Column("code_version", STR, ID, "version of the code that ran"),
        Column("config", STR, JSON, "its configuration"),
        Column("config_sha256", STR, SHA, "hash of that configuration"),
        Column("host", STR, TEXT, "machine"),
        Column("device", STR, TEXT, "cpu, or the GPU's name"),
        word("state", "how it ended", ("running", "finished", "reused", "failed"), nullable=False),
        Column("started_at", TIME, UTC, "start"),
        Column("ended_at", TIME, UTC, "end"),
        Column("n_tokens", I64, TOKENS, "tokens it worked through"),
        Column("tokens_per_second", F64, TOKENS_PER_SECOND, "rate over the whole run"),
        Column("gpu_seconds", F64, SECONDS, "time a GPU was held"),
        Column("peak_memory_bytes", I64, BYTES, "largest resident memory"),
        Column("error", STR, TEXT, "why it failed"),
    ),
)  # fmt: skip

LINEAGE = Table(
    "lineage", GROUP, "One artifact that a run read or made.", "appended",
    ("run_id", "direction", "kind", "fingerprint"), volatile=True, sort=("run_id", "direction", "kind", "fingerprint"),
    columns=(
        identifier("run_id", "the run"),
        word("direction", "read or made", ("in", "out"), nullable=False),
        Column("kind", STR, TEXT, "kind of artifact: tokens, activations, sae, features …", nullable=False),
        FINGERPRINT,
        Column("uri", STR, ID, "where it lies, relative to the store"),
        Column("sha256", STR, SHA, "hash of its manifest"),
        Column("n_rows", I64, COUNT, "rows in its tables"),
        Column("n_bytes", I64, BYTES, "size of its files"),
    ),
)  # fmt: skip

SAE_METRIC = Table(
    "sae_metric", GROUP, "One measured number of an SAE: fvu, l0, loss_recovered_mean, dead_share …", "appended",
    ("sae_id", "dataset_id", "metric", "fingerprint"), partition="sae_id", sort=("dataset_id", "metric"), columns=(
        SAE_ID,
        DATASET_ID,
        FINGERPRINT,
        Column("metric", STR, TEXT, "name of the number", nullable=False),
        Column("value", F64, "of the metric", "the number"),
        Column("lower", F64, "of the metric", "lower end of its 95 % bootstrap interval over documents"),
        Column("upper", F64, "of the metric", "upper end of that interval"),
        Column("n", I64, COUNT, "tokens (or features) behind the value"),
    ),
)  # fmt: skip

TRAIN_PROGRESS = Table(
    "train_progress", GROUP, "One point of a training curve.", "appended", ("fingerprint", "run_id", "step"),
    volatile=True, sort=("fingerprint", "step"), columns=(
        FINGERPRINT,
        identifier("run_id", "the run that was training"),
        Column("step", I64, COUNT, "optimizer steps done", nullable=False),
        Column("n_tokens", I64, TOKENS, "training tokens seen"),
        Column("loss", F64, "normalised error", "whole loss of the batch"),
        Column("loss_terms", NUMBERS, "normalised error", "term -> its share of the loss"),
        Column("l0", F64, "features per token", "features with f > 0 per token of the batch"),
        Column("fvu", F64, "share", "fraction of variance unexplained on the batch"),
        Column("dead_share", F64, SHARE, "features with no f > 0 in the dead window"),
        Column("dead_share_tokens", I64, TOKENS, "length of that window"),
        Column("learning_rate", F64, "per step", "step size"),
        Column("tokens_per_second", F64, TOKENS_PER_SECOND, "rate since the last point"),
        Column("created_at", TIME, UTC, "when it was measured"),
    ),
)  # fmt: skip

QUARANTINE = Table(
    "quarantine", GROUP, "A document that a step could not use, and why.", "appended",
    ("fingerprint", "dataset_id", "document_id", "step"), partition="dataset_id",
    sort=("dataset_id", "document_id", "step"), columns=(
        FINGERPRINT,
        DATASET_ID,
        Column("document_id", I64, "index", "the document; -1, -2 … where it never became one", nullable=False),
        Column("uri", STR, ID, "where it came from"),
        Column("sha256", STR, SHA, "hash of its text"),
        Column("step", STR, TEXT, "the step that refused it", nullable=False),
        Column("reason", STR, TEXT, "short and countable, e.g. empty, not_utf8"),
        Column("detail", STR, TEXT, "the whole story"),
    ),
)  # fmt: skip

TABLES = (MODEL, DATASET, SAE, RUN, LINEAGE, SAE_METRIC, TRAIN_PROGRESS, QUARANTINE)
