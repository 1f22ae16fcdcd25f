"""Run records -> MLflow: a parent run for every table, a child for every record. Logging again doubles nothing.

    log_mlflow.py --root results/digits --uri sqlite:///results/digits/mlflow.db --experiment digits
        --out results/digits/mlflow.json < parents.json

parents.json maps the name of a parent to {"artifacts": [FILE ...], "records": [FILE ...]}, paths inside the root. A
child is found again by the hash of its record; accuracy is a metric whose step is the weight bits (of a mixed-precision
network: a hundred times their average). A calibrated model is a logged model of its run, its images are dataset inputs.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a wrong address is told in seconds, not minutes
import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"
PARENT, HASH = "ptmq.parent", "ptmq.record_sha256"


def database(uri: str) -> None:
    """Make the tables of a new SQLite file under another name, then rename it: a kill leaves all of them or none."""
    path = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not path.exists():
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        MlflowClient(f"{SQLITE}{unfinished}").search_experiments()
        unfinished.rename(path)


def experiment(client: MlflowClient, name: str, root: Path) -> str:
    """The experiment's id, made where it is missing; artifacts of a local store lie beside it."""
    place = (root / "mlflow").resolve().as_uri() if client.tracking_uri.startswith("sqlite") else None
    found = client.get_experiment_by_name(name)
    if found and place and found.artifact_location != place:  # the project was copied or moved
        return experiment(client, f"{name} in {root.resolve()}", root)
    return found.experiment_id if found else client.create_experiment(name, place)


def tagged(client: MlflowClient, experiment_id: str, tag: str) -> dict[str, str]:
    """Tag value -> run id of all finished runs that carry the tag."""
    runs, token = {}, None
    while True:
        page = client.search_runs([experiment_id], f"tags.`{tag}` != ''", max_results=1000, page_token=token)
        runs |= {run.data.tags[tag]: run.info.run_id for run in page if run.info.status == "FINISHED"}
        token = page.token
        if not token:
            return runs


def parameters(record: dict) -> dict[str, str]:
    """Everything that was set: the run and its protocol."""
    values = {**record["run"], **record["protocol"], **record["environment"], "commit": record["commit"]}
    return {key: str(value) for key, value in values.items()}


def dataset(record: dict, split: str) -> MetaDataset:
    """A split of the record's dataset, known by the hashes of its files."""
    hashes = json.dumps(record["sha256"].get("data", {}), sort_keys=True)
    source = CodeDatasetSource({"dataset": record["run"]["dataset"], "split": split})
    digest = hashlib.sha256(f"{hashes} {split}".encode()).hexdigest()[:36]
    return MetaDataset(source, f"{record['run']['dataset']} ({split})", digest)


def metrics(record: dict, now: int, model: str | None) -> list[Metric]:
    """Accuracy by width, cost, and the reconstruction loss of every unit; or the points of a frontier.

    model: the logged model that they are of, if any.
    """
    found = [Metric("fp_top1", record["fp_top1"], now, 0)]
    for point in record.get("points", []):
        found.append(Metric(f"top1_{point['kind']}", point["top1"], now, round(100 * point["average_bits"])))
    found += [Metric(key, value, now, 0) for key, value in record.get("switching", {}).items()]
    groups = [width for group in (record["run"].get("groups") or {}).values() for width in group]
    for line in record.get("results", []):
        # one curve over the widths that a multi-bit network switches between, one for each activation width beside
        mode = f".{line['mode']}" if line.get("mode") else ""
        curve = "top1" if line["width"] in groups else f"top1_A{line['a_bits']}"
        found.append(Metric(curve + mode, line["top1"], now, line["w_bits"]))
        found.append(Metric(f"top1_{line['width']}{mode}", line["top1"], now, line["w_bits"]))
        found.append(Metric(f"kl_{line['width']}{mode}", line["kl"], now, line["w_bits"]))
    found += [Metric(key, value, now, 0) for key, value in record.get("cost", {}).items()]
    training = record.get("training", {})
    found += [Metric("loss.training", value, now, epoch) for epoch, value in enumerate(training.get("loss", []), 1)]
    for index, unit in enumerate(record.get("units", [])):
        name = f"loss.{index:02d}.{unit['unit']}"
        found += [Metric(name, value, now, step) for step, value in enumerate(unit["loss"])]
        found += [Metric(f"error_after.{w}", value, now, index) for w, value in unit["error_after"].items()]
    return [Metric(m.key, m.value, m.timestamp, m.step, model_id=model) for m in found]


def log_model(client: MlflowClient, run: str, name: str, folder: Path, record: dict) -> str | None:
    """The calibrated model as a logged model of its run; its id, None where the model is not kept."""
    if not folder.is_dir():
        return None
    model = mlflow.initialize_logged_model(
        name.replace("/", "-"), source_run_id=run, params=parameters(record), model_type=record["run"]["method"]
    )
    client.log_model_artifacts(model.model_id, str(folder))
    mlflow.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def log_record(client: MlflowClient, parent: str, path: Path, digest: str, root: Path) -> None:
    """One child run; the tag that marks it as complete comes last."""
    record = json.loads(path.read_text())
    kind, *rest = path.relative_to(root).with_suffix("").parts
    name = "/".join(rest) if kind == "records" else "/".join([kind, *rest])
    with mlflow.start_run(run_name=name, nested=True, parent_run_id=parent) as run:
        mlflow.log_params(parameters(record))
        mlflow.log_input(dataset(record, "train"), context="calibration")
        mlflow.log_input(dataset(record, record["split"]), context="evaluation")
        model = log_model(client, run.info.run_id, name, root / "models" / name, record) if kind == "records" else None
        found = metrics(record, int(time.time() * 1000), model)
        for start in range(0, len(found), 1000):
            client.log_batch(run.info.run_id, metrics=found[start : start + 1000])
        mlflow.log_artifact(str(path))
        mlflow.set_tag(HASH, digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    asked = json.load(sys.stdin)
    try:
        database(args.uri)
        mlflow.set_tracking_uri(args.uri)
        client = MlflowClient()
        experiment_id = experiment(client, args.experiment, args.root)
        mlflow.set_experiment(experiment_id=experiment_id)
        parents = tagged(client, experiment_id, PARENT)
    except Exception as error:  # whatever the server or its driver raises: the results stay where they are
        sys.exit(f"error: MLflow at {args.uri} cannot be reached: {error}. The results are kept; run again later.")
    known, new, count = tagged(client, experiment_id, HASH), 0, 0
    for name, files in asked.items():
        parent = parents.get(name)
        if parent is None:
            with mlflow.start_run(experiment_id=experiment_id, run_name=name, tags={PARENT: name}) as run:
                parent = run.info.run_id
        for path in (args.root / record for record in files["records"]):
            count += 1
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest not in known:
                log_record(client, parent, path, digest, args.root)
                new += 1
        for artifact in files["artifacts"]:
            client.log_artifact(parent, str(args.root / artifact))
    args.out.write_text(json.dumps({"uri": args.uri, "experiment": args.experiment, "records": count}) + "\n")
    print(f"{new} new of {count} records; mlflow ui --backend-store-uri {args.uri}")


if __name__ == "__main__":
    main()
