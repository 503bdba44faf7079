"""SAEs out of a store and back in: other tools' folders, model cards, a hub on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub import Repositories, local_hub
from tiny_builds import tiny
from typer.testing import CliRunner

from catalog import Store, connect
from flows import exchange
from flows.cli import app
from flows.config import RunConfig
from flows.errors import ExchangeError, RecipeError
from flows.imports import Import, imported
from flows.path import path
from flows.place import Place, Quiet
from saelib import interop
from saelib.base import Ends, Site
from saelib.sae import SAE

Built = tuple[RunConfig, Place]
SITE = "model.layers.1"


def published_sae(place: Place) -> SAE:
    (uri,) = connect(place.store).execute("select weights_uri from sae").fetchone() or ("",)
    return SAE.load((place.store.root / str(uri)).parent)


def some_x(sae: SAE) -> torch.Tensor:
    return 3 * torch.randn(64, sae.d_in, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["saelens", "almanac"])
def test_what_is_exported_is_read_as_the_same_sae(form: str, built: Built, tmp_path: Path) -> None:
    sae = published_sae(built[1])
    files = exchange.export(built[1].store, None, tmp_path / "out", form)
    assert "README.md" in {file.name for file in files} and [entry.name for entry in tmp_path.iterdir()] == ["out"]
    again, x = interop.read(tmp_path / "out"), some_x(sae)
    torch.testing.assert_close(again.encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again(x), sae(x), atol=1e-5, rtol=1e-5)


def test_a_card_tells_where_an_sae_is_from_and_how_good_it_is(built: Built, tmp_path: Path) -> None:
    exchange.export(built[1].store, None, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    fvu, sae_id = (
        connect(built[1].store).execute("select value, sae_id from sae_metric where metric = 'fvu'").fetchone() or ()
    )
    assert card.startswith("---\n") and f"`{sae_id}`" in card and f"| fvu | {fvu:.4g} |" in card
    assert "SAE.load_from_disk" in card and '"architecture": "batchtopk"' in card


def test_text_of_the_catalog_is_no_markup_in_a_card() -> None:
    facts = dict.fromkeys(
        ["repo", "model_id", "sites_read", "sites_written", "architecture", "nonlinearity", "n_features", "d_in",
         "d_out", "dataset_uri", "train_tokens", "origin", "sae_id", "weights_sha256", "config"]
    )  # fmt: skip
    facts |= {"sites_read": ["a"], "sites_written": ["a"], "n_features": 3, "d_in": 1, "d_out": 1, "metrics": []}
    facts |= {"sae_id": "x`<script>alert(1)</script>`|\n# owned", "repo": "[a](javascript:b)"}
    card = exchange.card(facts, "saelens")
    outside = "".join(card.split("---", 2)[2].split("`")[::2])
    assert "<script>" not in outside and "javascript" not in outside and "\n# owned" not in card


def test_an_export_never_writes_over_a_folder(built: Built, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").write_text("keep")
    with pytest.raises(ExchangeError, match="is there already"):
        exchange.export(built[1].store, None, tmp_path / "mine")
    assert (tmp_path / "mine/notes").read_text() == "keep"
    with pytest.raises(ExchangeError, match="unknown format 'pickle'; known are saelens"):
        exchange.export(built[1].store, None, tmp_path / "new", "pickle")
    with pytest.raises(Exception, match="sparsify"):
        exchange.export(built[1].store, None, tmp_path / "new", "sparsify")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine"], "and leaves nothing behind"


def test_an_imported_sae_goes_through_describe_and_publish(built: Built, corpus: Path, tmp_path: Path) -> None:
    exchange.export(built[1].store, None, tmp_path / "theirs")
    given = {"path": str(tmp_path / "theirs"), "name": "from-saelens", "read": SITE}
    config = tiny(corpus, recipes=[], imports=[given], harvest={"sites": []})
    place = Place(Store.create(tmp_path / "store"), Quiet())
    path(config, place)
    found = connect(place.store).execute("select sae_id, origin, sites_read, seed, train_tokens from sae").fetchall()
    assert found == [(f"demo_lm/{SITE}/from-saelens@1", "saelens", [SITE], None, None)]
    columns = "feature, n_fires, act_max, top_token, reconstructive"
    for before, after in zip(
        connect(built[1].store).execute(f"select {columns} from feature order by feature").fetchall(),
        connect(place.store).execute(f"select {columns} from feature order by feature").fetchall(),
        strict=True,
    ):
        assert before[0] == after[0] and abs(before[1] - after[1]) <= 2, "the same features on the same text"
        assert before[2] == pytest.approx(after[2], rel=1e-3)
    path(config, place)
    assert [report.state for report in place.reports if report.step == "import"] == ["finished", "reused"]


def test_imports_need_names_of_their_own(built: Built, tmp_path: Path) -> None:
    exchange.export(built[1].store, None, tmp_path / "one")
    given = Import.model_validate({"path": str(tmp_path / "one"), "read": SITE})
    with pytest.raises(RecipeError, match=f"two imports are called {SITE}/one"):
        imported([given, given])


def test_an_import_says_its_sites() -> None:
    given = Import.model_validate({"path": "x", "read": "a.mlp:in", "write": ["a.mlp"]})
    assert given.ends == Ends(read=(Site(path="a.mlp", side="in"),), write=(Site(path="a.mlp"),))


def test_the_commands_export_and_import(built: Built, corpus: Path, tmp_path: Path) -> None:
    run = CliRunner()
    store = str(built[1].store.root)
    out = run.invoke(app, ["export", "batchtopk", str(tmp_path / "theirs"), "--store", store], catch_exceptions=False)
    assert out.exit_code == 0 and "README.md" in out.output
    given = ["--model", "demo_lm", "--site", SITE, "--corpus", str(corpus), "--max-tokens", "9000", "--local"]
    into = run.invoke(
        app, ["import", str(tmp_path / "theirs"), *given, "--store", str(tmp_path / "store")], catch_exceptions=False
    )
    assert into.exit_code == 0, into.output
    assert f"demo_lm/{SITE}/theirs@1" in into.output


def test_an_import_of_nothing_is_refused_in_our_words(tmp_path: Path) -> None:
    run = CliRunner()
    given = ["import", "nothing here", "--site", SITE, "--model", "demo_lm", "--local", "--store", str(tmp_path / "s")]
    with pytest.raises(ExchangeError, match="there is nothing at 'nothing here'; give a folder, or a hub name"):
        run.invoke(app, given, catch_exceptions=False)


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    kept: Repositories = {"someone/saes": {}}
    with local_hub(kept) as address:
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        yield kept


def test_a_hub_takes_an_export_and_gives_it_back(built: Built, tmp_path: Path, repositories: Repositories) -> None:
    exchange.export(built[1].store, None, tmp_path / "out")
    address = exchange.push(tmp_path / "out", "me/mine")
    assert address.endswith("me/mine")
    assert set(repositories["me/mine"]) == {"README.md", "cfg.json", "sae_weights.safetensors"}
    repositories["someone/saes"] = {f"layer_1/{name}": file for name, file in repositories["me/mine"].items()}
    folder = exchange.fetched("someone/saes/layer_1")
    sae, x = published_sae(built[1]), some_x(published_sae(built[1]))
    torch.testing.assert_close(interop.read(folder).encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
    assert json.loads((folder / "cfg.json").read_text())["d_sae"] == sae.n_features


def test_what_the_hub_does_not_have_is_said(repositories: Repositories) -> None:
    with pytest.raises(ExchangeError, match="the hub does not give 'someone/none'"):
        exchange.fetched("someone/none")
    with pytest.raises(ExchangeError, match="'someone/saes' has no folder 'nope'"):
        exchange.fetched("someone/saes/nope")


def test_a_push_without_a_token_says_what_to_do(
    tmp_path: Path, repositories: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    (tmp_path / "out").mkdir()
    with pytest.raises(ExchangeError, match="log in with `hf auth login` or set HF_TOKEN"):
        exchange.push(tmp_path / "out", "me/mine")
