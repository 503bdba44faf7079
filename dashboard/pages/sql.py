"""Questions in SQL: read-only, capped, stopped when they take too long, answered by a process of their own."""

import contextlib
import threading
import time
from itertools import groupby

import pyarrow as pa
import streamlit as st

from catalog import CatalogError, Store
from catalog.console import Console
from dashboard import data
from dashboard.errors import visible_lines
from dashboard.parts.text import md_escape

__all__ = ["page"]

MOST_ROWS = 1_000
SECONDS = 10.0
LOCAL = ("127.0.0.1", "localhost", "::1")
EXAMPLES = {
    "features that fire most": "select feature, name, density, top_token\nfrom feature_card\norder by density desc",
    "labels, the newest first": "select created_at, author, sae_id, feature, text, tags, confidence, safety\n"
    "from label\norder by created_at desc",
    "quality of the SAEs": "select sae_id, metric, value, lower, upper\nfrom sae_metric\norder by sae_id, metric",
    "features that promote a token": "select sae_id, feature, token, logit\nfrom feature_logit\n"
    "where sign = 1 and token = ' the'\norder by logit desc",
    "every table and column": "select table_name, column_name, data_type\nfrom information_schema.columns\n"
    "order by table_name, ordinal_position",
}


def page() -> None:
    """A question, its answer as a table, and what can be asked."""
    if st.get_option("server.address") not in LOCAL:
        st.header("SQL is off", anchor=False)
        st.text("The page answers only where the server listens on 127.0.0.1. Use `almanac sql` on the machine itself.")
        return
    _console(str(data.store().root))
    ask, tables = st.columns([3, 1], gap="large")
    with tables:
        _schema()
    with ask:
        _question()


def _question() -> None:
    st.session_state.setdefault("sql", st.query_params.get("sql", EXAMPLES["features that fire most"])[:10_000])
    st.pills("Examples", list(EXAMPLES), key="example", on_change=_take_example)
    sql = st.text_area(
        "One SELECT, read-only", key="sql", height=170, help=f"the first {MOST_ROWS:,} rows, {SECONDS:g} s at most"
    )
    if not st.button("Run", type="primary"):
        return
    st.query_params["sql"] = sql
    started = time.monotonic()
    try:
        with st.spinner("asking …"):
            answer = _run(sql)
    except CatalogError as error:
        st.code(visible_lines(str(error)), language=None)
        return
    _show(answer, time.monotonic() - started)


def _take_example() -> None:
    if st.session_state["example"]:
        st.session_state["sql"] = EXAMPLES[st.session_state["example"]]


def _show(answer: pa.Table, seconds: float) -> None:
    is_cut = answer.num_rows > MOST_ROWS
    answer = answer.slice(0, MOST_ROWS)
    cut = f"the first {MOST_ROWS:,} rows; there are more" if is_cut else f"{answer.num_rows:,} rows"
    st.caption(md_escape(f"{cut}, {seconds * 1000:.0f} ms"))
    st.dataframe(_unique_names(answer), hide_index=True)


def _unique_names(answer: pa.Table) -> pa.Table:
    """The same with every column name once: SQL allows two of a name, a data frame does not."""
    names: list[str] = []
    for name in answer.column_names:
        candidate, n = name, 2
        while candidate in names:
            candidate, n = f"{name} ({n})", n + 1
        names.append(candidate)
    return answer.rename_columns(names)


def _schema() -> None:
    st.caption("What there is")
    with st.container(height=560, border=True):
        for table, columns in groupby(data.rows("table_columns"), key=lambda row: row["table_name"]):
            with st.expander(md_escape(table)):
                st.code("\n".join(f"{column['column_name']}  {column['type']}" for column in columns), language=None)


class _SharedConsole:
    """One warm child for all who ask, one at a time."""

    def __init__(self, store: Store) -> None:
        self._console, self._lock = Console(store), threading.Lock()
        threading.Thread(target=self._warm, daemon=True).start()  # ready by the time a question is typed

    def _warm(self) -> None:
        with self._lock, contextlib.suppress(CatalogError):  # whoever asks is told
            self._console.warm()

    def run(self, sql: str) -> pa.Table:
        with self._lock:
            return self._console.run(sql, MOST_ROWS + 1, SECONDS)

    def close(self) -> None:
        with self._lock:
            self._console.close()


@st.cache_resource(show_spinner=False, max_entries=2, on_release=_SharedConsole.close)
def _console(root: str) -> _SharedConsole:
    return _SharedConsole(Store.open(root))


def _run(sql: str) -> pa.Table:
    return _console(str(data.store().root)).run(sql)
