"""Where people's work is kept: what the rest of the program sees of it.

Events are append-only, each recorded once, none ever lost or changed. `catalog.sqlite_labels` keeps them in SQLite;
any other store must pass the same test (tests/catalog/test_label_store.py).
"""

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from catalog.events import Event

__all__ = ["LabelStore"]


class LabelStore(Protocol):
    """Append-only events of people."""

    def append(self, events: Sequence[Event]) -> int:
        """Record the events, all or none; those recorded before (same event_id) are passed over. Returns how many
        are new. Raises LabelError; when it returns, they survive a crash."""

    def rehearse(self, events: Sequence[Event]) -> list[str]:
        """What `append` would say to each event, recording nothing: "new", "known", or why it is refused."""

    def events(self, table: str, after: int = 0, until: int | None = None) -> pa.Table:
        """The rows of an event table recorded after one moment (`last`) and until another, in order."""

    def of_feature(self, sae_id: str, feature: int) -> pa.Table:
        """Every label_event of one feature, in order."""

    def find(self, event_id: str) -> Event | None:
        """The event of that id."""

    def last(self) -> int:
        """The moment now: grows with every event, cheap to ask."""
