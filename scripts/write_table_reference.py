"""Write docs/reference/tables.md from catalog/schema: every table and column with type, unit and meaning.

python scripts/write_table_reference.py            # write the page
python scripts/write_table_reference.py --check    # fail if it is out of date
"""

import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from catalog.query import QUERIES  # noqa: E402
from catalog.schema import SCHEMA_VERSION, TABLES, Column, Table  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "tables.md"
VIEWS = Path(__file__).parents[1] / "catalog" / "views"
WRITING = {
    "replaced": "Replaced a whole SAE (model, data set) at a time",
    "appended": "Appended, one immutable part per run",
    "event": "Events of people, append-only, in the label store",
}


def main() -> int:
    content = page()
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == content:
            return 0
        print(f"{PAGE} is out of date; run python scripts/write_table_reference.py")
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(content, encoding="utf-8")
    print(f"wrote {PAGE}: {len(TABLES)} tables")
    return 0


def page() -> str:
    lines = [
        "# Tables of the catalog",
        "",
        f"Schema version {SCHEMA_VERSION}. Made by `scripts/write_table_reference.py` from `catalog/schema`.",
        "",
        "Query them with `almanac sql`, `catalog.connect(store)`, or any DuckDB that opens `catalog.duckdb` read-only.",
        "Times are UTC. Moments and quantiles of activations are over the **non-zero** ones. Null means: not measured.",
        "",
    ]
    for group, tables in groupby(TABLES.values(), key=lambda table: table.group):
        lines += [f"## {group.capitalize()}", ""]
        for table in tables:
            lines += section(table)
    return "\n".join([*lines, *views(), *queries()]).rstrip() + "\n"


def section(table: Table) -> list[str]:
    volatile = " Differs from run to run: left out when stores are compared." if table.volatile else ""
    key = f" Key: {', '.join(f'`{name}`' for name in table.key)}." if table.key else " No key."
    head = [f"### {table.name}", "", f"{table.meaning} *{WRITING[table.writing]}.*{key}{volatile}", ""]
    return [*head, "| column | type | unit | meaning |", "|---|---|---|---|", *map(row, table.columns), ""]


def row(column: Column) -> str:
    words = f": {', '.join(f'`{word}`' for word in column.one_of)}" if column.one_of else ""
    always = "" if column.nullable else " *(always given)*"
    cells = (f"`{column.name}`", str(column.type), column.unit + words, column.meaning + always)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def views() -> list[str]:
    lines = ["## Views and macros", "", "| name | what it answers |", "|---|---|"]
    for path in sorted(VIEWS.glob("*.sql")):
        comment = [line[2:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("--")]
        lines.append(f"| `{path.stem}` | {' '.join(comment).replace('|', chr(92) + '|')} |")
    return [*lines, ""]


def queries() -> list[str]:
    lines = ["## Questions that come along", "", "`almanac query NAME --param name=value`", ""]
    lines += ["| name | question | parameters | a row is |", "|---|---|---|---|"]
    for name, asked in QUERIES.items():
        parameters = ", ".join(f"`{parameter}`" for parameter in asked.parameters)
        lines.append(f"| `{name}` | {asked.question} | {parameters} | {asked.grain.removeprefix('one row per ')} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
