# All tables, figures and run records in MLflow.

# Parent run -> its tables and figures, and the records that are its children: the profile's own. A variant of an ablation
# is logged there.
PARENTS = {name: {"artifacts": outputs_of(REPORTS[name]), "records": []} for name in PLAN.wanted() if name != "collect"}
PARENTS = {
    name: files for name, files in PARENTS.items() if name in ("verdict", "frontier", "deploy") or "ablation" in name
}
for name, files in PARENTS.items():
    if name.startswith("ablation_"):
        files["records"] = PLAN.own(PLAN.variants(name.removeprefix("ablation_")))
    elif name == "frontier":
        files["records"] = PLAN.own(PLAN.of("ptmq"), "mixed")
elsewhere = {path for files in PARENTS.values() for path in files["records"]}
PARENTS["accuracy"] = {
    "artifacts": [p for name in PLAN.wanted() if name in ("tables", "accuracy", "cost", "blocks")
                  for p in outputs_of(REPORTS[name])],
    "records": [path for path in PLAN.own(PLAN.planned) if path not in elsewhere],
}  # fmt: skip
ARTIFACTS = [path for parent in PARENTS.values() for path in parent["artifacts"]]
CHILDREN = [path for parent in PARENTS.values() for path in parent["records"]]


rule mlflow:
    # One process logs all records: a record that is there already is left alone.
    input:
        artifacts=ARTIFACTS,
        records=CHILDREN,
    output:
        f"{OUT}/mlflow.json",
    log:
        f"{OUT}/logs/mlflow.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        code=code_sha256(SCRIPTS / "log_mlflow.py"),
        root=lambda wildcards, output: os.path.dirname(output[0]),
        uri=PROFILE.get("tracking_uri") or f"sqlite:///{OUT}/mlflow.db",
        profile=PROFILE["profile"],
        # where the results lie is known when the rule runs: in a bucket, they are fetched to elsewhere
        parents=json.dumps(inside_results(PARENTS)),
    shell:
        logged(
            "printf '%s' {params.parents:q} | python $PTMQ_PROJECT/workflow/scripts/log_mlflow.py --root {params.root}"
            " --uri {params.uri:q} --experiment {params.profile} --out {output}"
        )
