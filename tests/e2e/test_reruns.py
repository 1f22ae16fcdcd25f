"""What a change would run again: dry runs after one real run in a copy of the project."""

import json
from contextlib import contextmanager

import pytest

from ptmq.common.provenance import code_sha256
from tests.projects import QUICK, planned, snakemake

CHANGED = "Params have changed"
RESULTS = {"data", "train", "fp32", "nearest", "ptmq", "evaluate", "mixed"}  # rules that compute
OF_PTMQ = {"ptmq", "evaluate", "mixed"}


@contextmanager
def changed(path, text: str):
    """A file with another text, for a while."""
    before = path.read_text() if path.exists() else None
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_text(before)


def dry_run(project, *config: str):
    return snakemake(project, "-n", "all", "--config", *(config or [QUICK]))


def reruns(project, *files: str) -> dict[str, set[str]]:
    """What a change of the content of some files would run, and why."""
    first, *rest = files
    path = project / first
    with changed(path, f"{path.read_text()}\n# changed\n"):
        return reruns(project, *rest) if rest else planned(dry_run(project))


def by_itself(found: dict[str, set[str]]) -> set[str]:
    """The rules whose own code changed; the others of the plan follow from those."""
    return {rule for rule, reasons in found.items() if CHANGED in reasons}


@pytest.mark.parametrize("files, own, follow", [
    (["baselines/nearest.py", "ptmq/suite/frontier.py"], {"nearest", "evaluate", "mixed"},
     {"collect", "tables", "accuracy", "frontier", "verdict", "mlflow"}),
    (["ptmq/methods/ptmq.py"], OF_PTMQ, {"collect", "blocks", "frontier", "verdict", "mlflow"}),
    (["ptmq/models/definitions/cifar_resnet.py"], {"train", "fp32", "nearest", *OF_PTMQ}, {"collect", "mlflow"}),
])  # fmt: skip
def test_a_change_of_code_reruns_what_depends_on_it(project, files, own, follow):
    found = reruns(project, *files)
    assert by_itself(found) <= own, "no rule of a report, no other method"
    assert own | follow <= set(found), "and what is made of its results"
    assert not set(found) & (RESULTS - own)


def test_a_change_of_the_data_reruns_what_reads_data_and_no_report(project):
    found = reruns(project, "ptmq/data/digits.py")
    assert set(found) >= RESULTS and by_itself(found) <= RESULTS


def test_a_change_of_a_report_redraws_that_report_alone(project):
    found = reruns(project, "workflow/scripts/accuracy.py", "workflow/published.yaml")
    assert by_itself(found) == {"accuracy", "verdict"} and set(found) == {"accuracy", "verdict", "mlflow", "all"}


def test_a_new_method_and_a_new_backbone_rerun_nothing(project):
    method, zoo = project / "baselines/mine.py", project / "ptmq/models/zoo.py"
    text = (project / "baselines/qdrop.py").read_text().replace("QDrop(", "Mine(").replace('"qdrop"', '"mine"')
    start = "BACKBONES: dict[str, Backbone] = {"
    entry = zoo.read_text().replace(start, f'{start}\n    "new": _option_a(110, "0" * 64),')
    with changed(method, text), changed(zoo, entry):
        assert planned(dry_run(project)) == {}


def test_a_network_that_is_trained_longer_is_calibrated_anew_wherever_data_and_weights_lie(project):
    longer = "backbones={digits_resnet: {training: {epochs: 2}}}"
    found = planned(dry_run(project, QUICK, longer, "offline=true", "data_dir=elsewhere", "weights_dir=elsewhere"))
    assert by_itself(found) - {"profile"} == {"train"} and set(found) & RESULTS == RESULTS - {"data"}


def test_another_setting_reruns_its_method_alone(project):
    found = planned(dry_run(project, "methods={ptmq: {settings: {iterations: 4}}}"))
    assert by_itself(found) - {"profile"} == {"ptmq"} and set(found) & RESULTS == OF_PTMQ


# ---------------------------------------------------------------- what is told
def test_a_mistake_in_the_profile_is_one_sentence_before_anything_is_planned(project):
    done = dry_run(project, "sedes=[1]")
    said = done.stdout + done.stderr  # a dry run tells it on stdout
    assert done.returncode and "key 'sedes' is unknown. Did you mean 'seeds'?" in said
    assert "Traceback" not in said and not planned(done)


def test_records_name_the_code_that_the_rules_watch(project):
    """The hash of a training run in the copy is that of the same code here."""
    record = json.loads((project / "results/digits/records/digits_resnet/fp32/default/W32A32/seed0.json").read_text())
    assert record["code_sha256"] == code_sha256("ptmq.suite.evaluation", "ptmq.models.definitions.cifar_resnet")
