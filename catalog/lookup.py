"""From what a person types to the SAE and the feature they mean."""

import duckdb

from catalog.errors import NotFound, nearest

__all__ = ["check_feature", "find_sae", "find_table"]


def find_sae(connection: duckdb.DuckDBPyConnection, name: str | None) -> str:
    """The sae_id that is meant: an sae_id, a family (its current version), or a part that only one family has.

    None means the only family there is. Raises NotFound with the nearest names.
    """
    versions = dict(connection.execute("select sae_id, family from sae order by family, version").fetchall())
    current = dict(connection.execute("select family, sae_id from current_sae").fetchall())
    if not versions:
        raise NotFound("there is no SAE in this store yet; make one with `almanac build RUN.toml`")
    if name is None:
        if len(current) == 1:
            return str(next(iter(current.values())))
        raise NotFound(f"there are {len(current)} SAEs; name one of {', '.join(sorted(current))}")
    if name in versions:
        return name
    if name in current:
        return str(current[name])
    matching = [family for family in current if name.lower() in family.lower()]
    if len(matching) == 1:
        return str(current[matching[0]])
    if matching:
        raise NotFound(f"{name!r} is part of {len(matching)} SAEs: {', '.join(sorted(matching))}; say more of it")
    raise NotFound(f"no SAE {name!r} in this store; {nearest(name, [*versions, *current])}")


def check_feature(connection: duckdb.DuckDBPyConnection, sae_id: str, feature: int) -> None:
    """Raises NotFound where the SAE has no such feature."""
    found = connection.execute("select n_features from sae where sae_id = $sae_id", {"sae_id": sae_id}).fetchall()
    if not found:
        raise NotFound(f"no SAE {sae_id!r} in this store; list them with `almanac query saes`")
    n_features = found[0][0]
    if not 0 <= feature < n_features:
        raise NotFound(f"no feature {feature} in {sae_id!r}; it has the features 0 to {n_features - 1}")


def find_table(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    """The table or view of that name. Raises NotFound with the nearest names."""
    known = {row[0] for row in connection.execute("select table_name from information_schema.tables").fetchall()}
    if name not in known:
        raise NotFound(f"no table {name!r} in the catalog; {nearest(name, known)}")
    return name
