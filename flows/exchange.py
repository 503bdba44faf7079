"""SAEs in and out of a store: exported in other tools' forms with a model card, fetched from and pushed to a hub."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import create_repo, snapshot_download, upload_folder
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from catalog import Store, connect
from catalog.guard import answering
from catalog.lookup import find_sae
from flows.errors import ExchangeError
from saelib import interop
from saelib.sae import SAE

__all__ = ["FORMATS", "export", "fetched", "push"]

FORMATS = ("saelens", "sparsify", "almanac")
"""Forms that an SAE is exported in."""

_HUB_NAME = re.compile(r"(?:hf://|hub:)?(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<folder>[^@]+))?(?:@(?P<revision>[\w./-]+))?")

_SUFFIXES = (".json", ".safetensors", ".npz", ".pt")
"""Files of checkpoints; what else a repository holds is left there."""

_LOADING = {
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("FOLDER")',
    "sparsify": 'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("FOLDER")',
    "almanac": 'from pathlib import Path\nfrom saelib.sae import SAE\n\nsae = SAE.load(Path("FOLDER"))',
}


def fetched(source: str) -> Path:
    """A checkpoint's folder: `source` itself where it is there, else fetched from a hub, `user/repo/folder@revision`.

    Raises ExchangeError where it is neither, or the hub does not answer.
    """
    local = Path(source).expanduser()
    if local.exists():
        return local
    name = _HUB_NAME.fullmatch(source)
    if name is None:
        raise ExchangeError(f"there is nothing at {source!r}; give a folder, or a hub name such as user/repo/folder")
    repo, folder, revision = name["repo"], name["folder"], name["revision"]
    wanted = [f"{folder.strip('/')}/*{suffix}" if folder else f"*{suffix}" for suffix in _SUFFIXES]
    try:
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ExchangeError(f"{source!r} is no folder here, and the hub does not give {repo!r}: {error}") from error
    found = root / folder if folder else root
    if not found.exists():
        raise ExchangeError(f"{repo!r} has no folder {folder!r}; look at its files on the hub")
    return found


def export(store: Store, name: str | None, folder: Path, form: str = "saelens") -> list[Path]:
    """Write a published SAE into a new `folder`, with a model card; returns the files.

    Raises ExchangeError for an unknown form, and ConfigError for an SAE that the form cannot hold.
    """
    if form not in FORMATS:
        raise ExchangeError(f"unknown format {form!r}; known are {', '.join(FORMATS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExchangeError(f"{folder} is there already; name a new folder, or remove it")
    facts = _facts(store, name)
    sae = SAE.load((store.root / facts["weights_uri"]).parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
        made = Path(aside) / folder.name
        if form == "almanac":
            made.mkdir()
            sae.save(made)
        else:
            interop.write(sae, made, form, facts["repo"] or facts["model_id"])
        (made / "README.md").write_text(card(facts, form), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        shutil.move(made, folder)
    return sorted(folder.iterdir())


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Upload an exported folder to a hub repository, made where it is not there; returns its address.

    Raises ExchangeError where the hub refuses: most often no token is set (`hf auth login`, or HF_TOKEN).
    """
    try:
        address = create_repo(repo, private=private, exist_ok=True)
        upload_folder(repo_id=repo, folder_path=folder, commit_message="Add a sparse autoencoder")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ExchangeError(
            f"the hub did not take {repo!r}: {error}; log in with `hf auth login` or set HF_TOKEN"
        ) from error
    return str(address)


_FACTS = """
select s.*, m.repo, m.revision, d.uri as dataset_uri, d.licence as dataset_licence
from sae s left join model m using (model_id) left join dataset d on d.dataset_id = s.train_dataset_id
where s.sae_id = $sae_id
"""
_METRICS = 'select metric, value, "lower", "upper", n from sae_metric where sae_id = $sae_id order by metric'


def _facts(store: Store, name: str | None) -> dict[str, Any]:
    connection = connect(store)
    sae_id = find_sae(connection, name)
    with answering(_FACTS):
        facts = _rows(connection, _FACTS, sae_id)[0]
        metrics = _rows(connection, _METRICS, sae_id)
    return facts | {"metrics": metrics}


def _rows(connection: Any, sql: str, sae_id: str) -> list[dict[str, Any]]:
    answer = connection.execute(sql, {"sae_id": sae_id})
    names = [column[0] for column in answer.description]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def card(facts: dict[str, Any], form: str) -> str:
    """The model card of an SAE, in Markdown; text from the catalog stands in code spans, where it is no markup."""
    sites = ", ".join(_code(site) for site in facts["sites_read"])
    written = ", ".join(_code(site) for site in facts["sites_written"])
    about = {
        "language model": _code(facts["repo"] or facts["model_id"]),
        "reads": sites,
        "writes": written,
        "architecture": f"{facts['architecture']} ({facts['nonlinearity']} at inference)",
        "features": f"{facts['n_features']:,}",
        "width": f"{facts['d_in']} read, {facts['d_out']} written",
        "trained on": f"{_code(facts['dataset_uri'])}, {facts['train_tokens'] or 0:,} tokens",
        "origin": _code(facts["origin"]),
        "catalog name": _code(facts["sae_id"]),
        "weights": f"sha256 {_code(facts['weights_sha256'])}",
    }
    head = {"library_name": {"saelens": "saelens"}.get(form, form), "base_model": facts["repo"]}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value)]
    lines += ["tags: [sparse-autoencoder, interpretability]", "---", "", f"# {_code(facts['sae_id'])}", ""]
    lines += ["A sparse autoencoder of a language model's activations.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in about.items()]
    lines += ["", "## Measured on held-out text", "", "| metric | value | 95 % interval | n |", "|---|---|---|---|"]
    lines += [_metric(metric) for metric in facts["metrics"]]
    lines += ["", "## Load", "", "```python", _LOADING[form], "```", "", "## How it was trained", "", "````json"]
    return "\n".join([*lines, json.dumps(json.loads(facts["config"] or "{}"), indent=1, sort_keys=True), "````", ""])


def _metric(metric: dict[str, Any]) -> str:
    value = "–" if metric["value"] is None else f"{metric['value']:.4g}"
    there = metric["lower"] is not None and metric["upper"] is not None
    interval = f"{metric['lower']:.4g} to {metric['upper']:.4g}" if there else "–"
    return f"| {metric['metric']} | {value} | {interval} | {metric['n'] or 0:,} |"


def _code(value: object) -> str:
    """Text in a code span of a table cell."""
    plain = re.sub(r"[\x00-\x1f\x7f]", " ", str(value if value is not None else "not recorded"))
    return "`" + plain.replace("`", "'").replace("|", "\\|") + "`"
