"""Finding features: by what is said of them, by tokens, by logits, by direction, by any condition in SQL.

Every search answers with sae_id, feature, what it searched by, and then the feature's name and who gave it.
"""

from typing import Literal

import duckdb
import pyarrow as pa

from catalog.directions import decoder, direction, nearest_to
from catalog.errors import QueryError
from catalog.guard import guarded
from catalog.lookup import check_feature
from catalog.query import query
from catalog.store import Store

__all__ = ["Role", "by_condition", "by_direction", "by_logit", "by_text", "by_token"]

Role = Literal["at", "previous", "next"]
Connection = duckdb.DuckDBPyConnection


def by_text(connection: Connection, text: str, sae_id: str | None = None, n: int = 50) -> pa.Table:
    """Features whose label or explanation has these words in it, spelled more or less so, the best first."""
    return _named(connection, query(connection, "search_text", text=text, sae_id=sae_id, n=n))


def by_token(connection: Connection, token: str, sae_id: str | None = None, role: Role = "at", n: int = 50) -> pa.Table:
    """Features that fire on a token, or right after (`previous`) or before it (`next`), the most selective first."""
    return _named(connection, query(connection, "search_token", token=token, role=role, sae_id=sae_id, n=n))


def by_logit(
    connection: Connection, token: str, sae_id: str | None = None, is_promoted: bool = True, n: int = 50
) -> pa.Table:
    """Features that promote a token most, or suppress it."""
    sign = 1 if is_promoted else -1
    return _named(connection, query(connection, "search_logit", token=token, sign=sign, sae_id=sae_id, n=n))


def by_direction(  # noqa: PLR0913 (where, whose, and among whom)
    connection: Connection, store: Store, sae_id: str, feature: int, among: str | None = None, n: int = 50
) -> pa.Table:
    """Features whose decoder direction is nearest to one feature's, in its own SAE or `among` those of another.

    Cosines of all pairs are computed here, from the weights. Raises NotFound, QueryError where the widths differ.
    """
    check_feature(connection, sae_id, feature)
    own = decoder(connection, store, sae_id)
    other_id = among or sae_id
    other = own if other_id == sae_id else decoder(connection, store, other_id)
    if own.shape[1] != other.shape[1]:
        raise QueryError(
            f"{sae_id!r} writes {own.shape[1]} numbers and {other_id!r} {other.shape[1]}; "
            "directions are comparable only between SAEs that write the same sites"
        )
    found, cosines = nearest_to(direction(own, feature), other, n + 1)
    is_kept = found != feature if other_id == sae_id else found >= 0
    found, cosines = found[is_kept][:n], cosines[is_kept][:n]
    columns = {"sae_id": [other_id] * len(found), "feature": found.astype("int32"), "cosine": cosines}
    return _named(connection, pa.table(columns))


def by_condition(connection: Connection, condition: str, sae_id: str | None = None, n: int = 50) -> pa.Table:
    """Features of which a condition in SQL over the columns of `feature_card` is true. Raises QueryError."""
    own = "" if sae_id is None else "sae_id = '" + sae_id.replace("'", "''") + "' and "
    columns = "sae_id, feature, status, density, act_max, top_token, name, name_source"
    # checked by itself first: in brackets within a question of ours, a bracket too many would break out of it
    guarded(connection, f"select * from feature_card where {condition}", 0)
    return guarded(connection, f"select {columns} from feature_card where {own}(\n{condition}\n)", n)


def _named(connection: Connection, found: pa.Table) -> pa.Table:
    """The features found, with their names: looked up for these few, not for all."""
    if not found.num_rows:
        empty = [pa.array([], pa.string())] * 2
        return found.append_column("name", empty[0]).append_column("name_source", empty[1])
    features = ", ".join(str(int(feature)) for feature in set(found["feature"].to_pylist()))
    saes = ", ".join("'" + sae_id.replace("'", "''") + "'" for sae_id in set(found["sae_id"].to_pylist()))
    cards = connection.sql(
        "select sae_id, feature, name, name_source from feature_card "
        f"where sae_id in ({saes}) and feature in ({features})"
    ).to_arrow_table()
    names = {(row["sae_id"], row["feature"]): (row["name"], row["name_source"]) for row in cards.to_pylist()}
    keys = zip(found["sae_id"].to_pylist(), found["feature"].to_pylist(), strict=True)
    named = [names.get(key, (None, None)) for key in keys]
    for at, column in enumerate(("name", "name_source")):
        found = found.append_column(column, pa.array([pair[at] for pair in named], pa.string()))
    return found
