"""`almanac import` and `almanac export`: SAEs of other tools in, ours out; a folder or a hub, the same two verbs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.build import build_run
from flows.cli.common import StoreOption, open_store, out, text

if TYPE_CHECKING:  # torch takes seconds to import: only the commands that need it pay
    from flows.config import RunConfig

__all__ = ["register"]

Sites = Annotated[
    list[str], typer.Option("--site", help="Site it reads (and writes), e.g. model.layers.6; again for a crosscoder.")
]


def import_command(  # noqa: PLR0913 (one parameter per option)
    path: Annotated[str, typer.Argument(help="Folder of the SAE, or a hub name: user/repo/folder@revision.")],
    site: Sites,
    model: Annotated[
        str | None, typer.Option(help="Language model: demo_lm, a folder, or a hub name.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name in the catalog [default: the folder's].")] = None,
    write_site: Annotated[
        list[str] | None, typer.Option("--write-site", help="Site it writes, if another (a transcoder).")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Run file that says the corpus (and the model) to describe it on.")
    ] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Text to describe it on, if no run file says so: files or folders.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="At most so many tokens of it.")] = None,
    store: StoreOption = None,
    local: Annotated[bool, typer.Option("--local", help="Run without Prefect: the same path, the same bytes.")] = False,
) -> None:
    """Put an SAE that exists through describe and publish: sae-lens, sparsify, dictionary_learning, Gemma Scope, ours.

    Examples:
      almanac import ./my_sae --model gpt2 --site transformer.h.8 --corpus text.jsonl
      almanac import user/repo/layer_6 --model ./my_model --site model.layers.6 --run my_run.toml
    """
    from flows.config import RunConfig, load_run
    from flows.errors import RunConfigError
    from flows.imports import Import

    base = load_run(run) if run else RunConfig()
    if model is None and run is None:
        raise RunConfigError("which language model does the SAE read? Name it with --model, or give a run file: --run")
    given = Import.model_validate({"path": path, "name": name, "read": site, "write": write_site or []})
    changes: dict[str, Any] = {"imports": (given,), "recipes": (), "name": f"import-{Path(path).name}"}
    if model is not None:
        changes["lm"] = base.lm.model_copy(update={"model": model})
    changes["corpus"] = _corpus(base, corpus, max_tokens)
    changes["harvest"] = base.harvest.model_copy(update={"sites": ()})
    build_run(base.model_copy(update=changes), store, local)


def _corpus(base: "RunConfig", paths: list[str] | None, max_tokens: int | None) -> Any:
    from saelib.text import CorpusConfig, Source

    corpus = base.corpus
    if paths:
        sources = tuple(Source(path=path) for path in paths)
        corpus = CorpusConfig(name=Path(paths[0]).stem, sources=sources)
    return corpus if max_tokens is None else corpus.model_copy(update={"max_tokens": max_tokens})


def export_command(  # noqa: PLR0913 (one parameter per option)
    sae: Annotated[str, typer.Argument(metavar="SAE", help="sae_id, family, or a part of it that is unique.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    form: Annotated[str, typer.Option("--format", help="saelens, sparsify, or almanac (our own).")] = "saelens",
    push: Annotated[str | None, typer.Option(metavar="USER/REPO", help="Upload it to this hub repository.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
    store: StoreOption = None,
) -> None:
    """Write an SAE in another tool's form, with a model card; --push uploads it to a hub.

    Examples:
      almanac export batchtopk ./for_saelens
      almanac export batchtopk ./card --format sparsify --push me/my-saes --private
    """
    from flows import exchange

    console = out()
    for path in exchange.export(open_store(store), sae, folder, form):
        console.print(text(f"{path}  {path.stat().st_size:,} bytes"), soft_wrap=True)
    if push:
        console.print(text(f"pushed to {exchange.push(folder, push, private)}"), soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import")(import_command)
    app.command("export")(export_command)
