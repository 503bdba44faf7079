"""Whatever goes wrong, the page says what to do. `shown` is the one place where errors become pages."""

import logging
from collections.abc import Callable

import streamlit as st

from catalog import CatalogError, DamagedError, LockedError, NotFound, QueryError, StoreError
from dashboard.parts.text import visible

__all__ = ["guarded", "shown", "visible_lines"]

log = logging.getLogger(__name__)
TITLES: tuple[tuple[type[Exception], str], ...] = (
    (LockedError, "The store is busy"),
    (StoreError, "There is no store to show"),
    (DamagedError, "A file of the store is damaged"),
    (NotFound, "Not in this store"),
    (QueryError, "The question could not be answered"),
    (CatalogError, "The catalog refused"),
)
HINT = "Reload the page to look again; the dashboard itself need not be restarted."


def guarded(page: Callable[[], None]) -> None:
    """Draw a page; what the catalog refuses becomes a page too."""
    try:
        page()
    except CatalogError as error:
        shown(error)


def shown(error: Exception) -> bool:
    """Show what happened and what to do about it. True: nothing else needs to be shown (st.App asks)."""
    if isinstance(error, CatalogError):
        title = next(title for kind, title in TITLES if isinstance(error, kind))
        st.header(title, anchor=False)
        st.text(visible_lines(str(error)))
        st.caption(HINT)
    else:
        log.error("the dashboard failed", exc_info=error)
        st.header("Something went wrong in the dashboard itself", anchor=False)
        st.text(
            f"{type(error).__name__}; the terminal that runs the dashboard shows where.\n"
            "Reload the page. If it comes back, report it with that text; labels that were saved are safe."
        )
    return True


def visible_lines(text: str) -> str:
    """The text with its line ends kept and everything else made visible."""
    return "\n".join(visible(line) for line in text.split("\n"))
