"""Every published table is that of the published records, and one's own records can be published beside them."""

import json
import shutil

import paper
import publish
import pytest

from tests.toys import ROOT

PUBLISHED = ROOT / "results" / "published"


def tables(folder) -> dict[str, str]:
    """The tables of all profiles as text, but for HTML."""
    paths = [
        path for path in folder.rglob("*") if path.parent.name == "tables" and path.suffix in (".csv", ".md", ".tex")
    ]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in [*paths, *folder.glob("*/runs.csv")]}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory, request):
    """A copy of the published records with nothing made of them, and what `paper` makes."""
    folder = tmp_path_factory.mktemp("published") / "results/published"
    ignore = shutil.ignore_patterns("tables", "figures", "runs.csv", "mlflow*")
    shutil.copytree(PUBLISHED, folder, ignore=ignore)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent.parent)
        paper.rebuild(folder.relative_to(folder.parent.parent))
    return folder


def test_the_published_tables_are_those_of_the_published_records(rebuilt):
    made, committed = tables(rebuilt), tables(PUBLISHED)
    assert set(made) == set(committed) and len(made) > 30
    assert {name: text for name, text in made.items() if text != committed[name]} == {}


def test_every_published_figure_is_made_again(rebuilt):
    made, committed = (
        {path.relative_to(folder) for path in folder.rglob("figures/*")} for folder in (rebuilt, PUBLISHED)
    )
    assert made >= committed and all((rebuilt / path).stat().st_size > 1000 for path in committed)


def test_only_records_of_committed_code_are_published(tmp_path, monkeypatch):
    name = "records/resnet20/fp32/default/W32A32/seed0.json"
    body = json.loads((PUBLISHED / "cifar10" / name).read_text())
    own, published = tmp_path / "results/digits" / name, tmp_path / "results/published"
    own.parent.mkdir(parents=True)
    monkeypatch.setattr(paper, "rebuild", lambda folder: None)
    arguments = [
        "publish",
        "--profile",
        "digits",
        "--results",
        str(tmp_path / "results"),
        "--published",
        str(published),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    for commit in ("unknown", "0123456789ab+"):
        own.write_text(json.dumps(body | {"commit": commit}))
        with pytest.raises(SystemExit, match="1 records are of code that was not committed, first .*seed0.json"):
            publish.main()
        assert not published.exists()
    own.write_text(json.dumps(body))
    publish.main()
    assert (published / "digits" / name).read_bytes() == own.read_bytes()
