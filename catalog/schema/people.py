"""What people did: append-only events, kept by the label store. Undo and removal are events too."""

from catalog.schema.base import (
    BOOL,
    F32,
    F64,
    I8,
    I32,
    ID,
    JSON,
    SECONDS,
    STR,
    STRS,
    TEXT,
    TIME,
    UTC,
    YES,
    Column,
    Table,
    identifier,
    word,
)

LABEL_ACTIONS = (
    "accept", "edit", "write", "reject", "skip", "flag", "unflag", "tag", "untag", "claim", "undo",
    "carry", "confirm_carry", "reject_carry",
)  # fmt: skip
PUT_ACTIONS = ("put", "remove", "undo")
SAFETY = Column("safety", I8, "0 to 3", "0 none, 1 watch, 2 dual use, 3 harmful: ordered, so max() has a meaning")
OWN_SAE = Column("sae_id", STR, ID, "the SAE: family@version")
OWN_FEATURE = Column("feature", I32, "index", "the feature")

HEAD = (
    identifier("event_id", "unique, minted by the client: sending an event twice records it once"),
    Column("created_at", TIME, UTC, "when it was recorded", nullable=False),
    Column("author", STR, TEXT, "who did it", nullable=False),
)
UNDOES = Column("undoes", STR, ID, "event_id that this event undoes")


def event_table(name: str, meaning: str, *columns: Column) -> Table:
    """A table of put / remove / undo events; the state of an entry is its last event that was not undone."""
    action = word("action", "what was done", PUT_ACTIONS, nullable=False)
    return Table(name, "people", meaning, "event", ("event_id",), (*HEAD, action, UNDOES, *columns), ("created_at",))


LABEL_EVENT = Table(
    "label_event", "people", "One act of labelling a feature.", "event", ("event_id",), sort=("created_at",), columns=(
        *HEAD,
        Column("visit_id", STR, ID, "the sitting it belongs to"),
        Column("queue_id", STR, ID, "the queue it came from"),
        Column("sae_id", STR, ID, "the SAE: family@version", nullable=False),
        Column("feature", I32, "index", "the feature", nullable=False),
        word("action", "what was done; carry = written by a refresh, keeps author and time of the label it is based on",
             LABEL_ACTIONS, nullable=False),
        Column("text", STR, TEXT, "the label"),
        Column("tags", STRS, TEXT, "tags"),
        Column("confidence", I8, "1 to 3", "how sure the person is"),
        word("kind", "what the feature is about",
             ("input", "output", "both", "unclear", "polysemantic", "junk")),
        SAFETY,
        Column("note", STR, TEXT, "anything else"),
        Column("based_on", STR, ID, "explanation_id or event_id it started from"),
        UNDOES,
        Column("seconds", F32, SECONDS, "time from the page to the decision"),
        Column("keys", I32, "count", "key presses"),
        Column("clicks", I32, "count", "mouse clicks"),
        Column("examples_seen", I32, "count", "examples on the screen"),
        Column("app_version", STR, ID, "version of the program"),
    ),
)  # fmt: skip

TAG = event_table(
    "tag", "A word of the shared tag list.",
    Column("tag", STR, TEXT, "the tag", nullable=False),
    Column("parent", STR, TEXT, "the tag above it"),
    Column("description", STR, TEXT, "what it means"),
    Column("is_safety", BOOL, YES, "belongs to the safety list"),
)  # fmt: skip

QUEUE = event_table(
    "queue", "A list of features to label.",
    Column("queue_id", STR, ID, "the queue", nullable=False),
    Column("name", STR, TEXT, "its name"),
    Column("sql", STR, "SQL", "the question that fills it"),
    Column("strategy", STR, TEXT, "the order of work"),
    Column("overlap", I32, "people", "how many people see each feature"),
)  # fmt: skip

COLLECTION = event_table(
    "collection", "A feature put into a named set.",
    Column("collection_id", STR, ID, "the set", nullable=False),
    Column("name", STR, TEXT, "its name"),
    OWN_SAE,
    OWN_FEATURE,
    Column("note", STR, TEXT, "why it is in there"),
)  # fmt: skip

SAVED_QUERY = event_table(
    "saved_query", "A question somebody kept.",
    Column("query_id", STR, ID, "the question", nullable=False),
    Column("name", STR, TEXT, "its name"),
    Column("sql", STR, "SQL", "the question itself"),
    Column("parameters", STR, JSON, "parameter -> default"),
    Column("note", STR, TEXT, "anything else"),
)  # fmt: skip

WATCH = event_table(
    "watch", "An entry of the watchlist, as a person set it.",
    Column("monitor_id", STR, ID, "the entry", nullable=False),
    Column("name", STR, TEXT, "its name"),
    OWN_SAE,
    OWN_FEATURE,
    Column("statistic", STR, TEXT, "the number that is watched"),
    Column("op", STR, TEXT, "comparison that raises the alarm"),
    Column("threshold", F64, "of the statistic", "bound of that comparison"),
    SAFETY,
    Column("dataset_id", STR, ID, "the data set it is watched on"),
    Column("based_on", STR, ID, "the entry of the previous version"),
)  # fmt: skip

ACKNOWLEDGEMENT = event_table(
    "acknowledgement", "An alarm that somebody has seen.",
    Column("monitor_id", STR, ID, "the watchlist entry", nullable=False),
    Column("fingerprint", STR, ID, "the run that raised the alarm", nullable=False),
    Column("note", STR, TEXT, "what was found"),
)  # fmt: skip

TABLES = (LABEL_EVENT, TAG, QUEUE, COLLECTION, SAVED_QUERY, WATCH, ACKNOWLEDGEMENT)
