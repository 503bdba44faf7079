"""Features at work: contrast, trace, steer, monitor. One immutable part per run."""

from catalog.schema.base import (
    ACT,
    BOOL,
    COUNT,
    DATASET_ID,
    F32,
    F64,
    FEATURE,
    FINGERPRINT,
    I32,
    I64S,
    ID,
    JSON,
    LOGIT,
    NATS,
    NONE,
    NUMBERS,
    POSITION,
    SAE_ID,
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
from catalog.schema.people import SAFETY

GROUP = "applications"
CONTRAST_ID = identifier("contrast_id", "the comparison")
TRACE_ID = identifier("trace_id", "the prompt as it was run")
STEER_ID = identifier("steer_id", "the steered generation")
MONITOR_ID = identifier("monitor_id", "the watchlist entry")

CONTRAST = Table(
    "contrast", GROUP, "A comparison of two data sets, feature by feature.", "appended", ("contrast_id",),
    sort=("contrast_id",), columns=(
        CONTRAST_ID,
        Column("name", STR, TEXT, "its name"),
        SAE_ID,
        Column("positive_dataset_id", STR, ID, "the data set that is asked about"),
        Column("negative_dataset_id", STR, ID, "the data set it is compared with"),
        word("pooling", "activations of a sequence -> one number", ("max", "mean", "last", "count")),
        Column("n_positive", I32, COUNT, "sequences of the positive data set"),
        Column("n_negative", I32, COUNT, "sequences of the negative data set"),
        FINGERPRINT,
    ),
)  # fmt: skip

CONTRAST_FEATURE = Table(
    "contrast_feature", GROUP, "How well one feature tells the two data sets apart.", "appended",
    ("contrast_id", "sae_id", "feature"), sort=("contrast_id", "feature"), columns=(
        CONTRAST_ID,
        FINGERPRINT,
        SAE_ID,
        FEATURE,
        Column("rate_positive", F64, SHARE, "positive sequences in which it fires"),
        Column("rate_negative", F64, SHARE, "negative sequences in which it fires"),
        Column("mean_positive", F64, ACT, "mean pooled activation, positive"),
        Column("mean_negative", F64, ACT, "mean pooled activation, negative"),
        Column("auc", F64, SHARE, "area under the ROC curve, ties counted half"),
        Column("auc_lower", F64, SHARE, "lower end of its 95 % interval"),
        Column("auc_upper", F64, SHARE, "upper end of that interval"),
        Column("log_odds", F64, "nats", "log odds ratio of firing, Jeffreys prior"),
        Column("cohens_d", F64, "standard deviations", "difference of means"),
        Column("p_value", F64, SHARE, "of no difference"),
        Column("q_value", F64, SHARE, "p_value after Benjamini-Hochberg"),
        Column("rank", I32, "from 0", "place by AUC"),
    ),
)  # fmt: skip

TRACE = Table(
    "trace", GROUP, "A prompt that was run and judged.", "appended", ("trace_id",), sort=("trace_id",), columns=(
        TRACE_ID,
        Column("model_id", STR, ID, "the language model"),
        Column("suite", STR, TEXT, "the set of prompts it belongs to"),
        Column("prompt", STR, TEXT, "the prompt"),
        Column("completion", STR, TEXT, "what the model wrote"),
        Column("expected", STR, TEXT, "what it should have written"),
        word("outcome", "the verdict", ("pass", "fail", "flagged")),
        Column("meta", STR, JSON, "anything else"),
        FINGERPRINT,
    ),
)  # fmt: skip

TRACE_FEATURE = Table(
    "trace_feature", GROUP, "The part of one feature, at one token, in an outcome.", "appended",
    ("trace_id", "sae_id", "position", "feature"), sort=("trace_id", "position", "feature"), columns=(
        TRACE_ID,
        FINGERPRINT,
        SAE_ID,
        Column("position", I32, POSITION, "the token", nullable=False),
        Column("token", STR, TEXT, "the token as text"),
        FEATURE,
        Column("act", F32, ACT, "its activation there"),
        Column("attribution", F32, "of the target", "f times gradient along its decoder direction"),
        Column("ablation_delta", F32, "of the target", "true change of the target when it is ablated there"),
    ),
)  # fmt: skip

STEER = Table(
    "steer", GROUP, "A generation with edited features beside the same without.", "appended", ("steer_id",),
    sort=("steer_id",), columns=(
        STEER_ID,
        Column("model_id", STR, ID, "the language model"),
        Column("sweep_id", STR, ID, "the sweep it belongs to"),
        Column("prompt", STR, TEXT, "the prompt"),
        Column("is_chat", BOOL, YES, "sent through the chat template"),
        Column("seed", I32, NONE, "random seed, the same for both"),
        Column("temperature", F32, "temperature", "sampling temperature"),
        Column("max_new_tokens", I32, TOKENS, "tokens asked for"),
        Column("frequency_penalty", F32, LOGIT, "penalty on repeated tokens"),
        Column("base_text", STR, TEXT, "what it wrote unsteered"),
        Column("steered_text", STR, TEXT, "what it wrote steered"),
        Column("kl_mean", F32, NATS, "mean KL(unsteered || steered)"),
        Column("base_nll", F32, NATS, "negative log-likelihood of base_text under the unsteered model"),
        Column("steered_nll", F32, NATS, "the same of steered_text"),
        Column("repetition", F32, SHARE, "repeated 4-grams of steered_text"),
        Column("effect", NUMBERS, "of the metric", "metric -> value"),
        Column("judge", STR, ID, "what measured the effect"),
        FINGERPRINT,
    ),
)  # fmt: skip

STEER_EDIT = Table(
    "steer_edit", GROUP, "One feature edited in a steered generation.", "appended",
    ("steer_id", "sae_id", "feature", "op"), sort=("steer_id", "sae_id", "feature", "op"), columns=(
        STEER_ID,
        FINGERPRINT,
        SAE_ID,
        FEATURE,
        word("op", "the edit", ("add", "clamp", "scale", "ablate", "orthogonal", "cap"), nullable=False),
        Column("strength", F32, "multiples of feature.act_max", "how strong"),
        word("positions", "where it applies", ("prompt", "generated", "all")),
    ),
)  # fmt: skip

MONITOR = Table(
    "monitor", GROUP, "A watchlist entry as one run scored it.", "appended", ("monitor_id", "fingerprint"),
    sort=("monitor_id", "fingerprint"), columns=(
        MONITOR_ID,
        FINGERPRINT,
        Column("name", STR, TEXT, "its name"),
        SAE_ID,
        FEATURE,
        Column("statistic", STR, TEXT, "the number that is watched"),
        Column("op", STR, TEXT, "comparison that raises the alarm"),
        Column("threshold", F64, "of the statistic", "bound of that comparison"),
        Column("false_alarm_rate", F64, SHARE, "share of reference data that would raise it"),
        SAFETY,
        DATASET_ID,
    ),
)  # fmt: skip

MONITOR_EVENT = Table(
    "monitor_event", GROUP, "What a watchlist entry measured in one run.", "appended", ("monitor_id", "fingerprint"),
    sort=("monitor_id", "fingerprint"), columns=(
        MONITOR_ID,
        FINGERPRINT,
        Column("value", F64, "of the statistic", "measured"),
        Column("baseline", F64, "of the statistic", "expected"),
        Column("z", F64, "standard deviations", "distance between the two"),
        Column("q_value", F64, SHARE, "chance of it, after Benjamini-Hochberg"),
        Column("fired", BOOL, YES, "raised the alarm"),
        Column("example_ids", I64S, ID, "examples that set it off"),
    ),
)  # fmt: skip

TABLES = (CONTRAST, CONTRAST_FEATURE, TRACE, TRACE_FEATURE, STEER, STEER_EDIT, MONITOR, MONITOR_EVENT)
