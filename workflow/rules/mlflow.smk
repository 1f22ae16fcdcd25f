# All tables, figures and run records in MLflow.

# Parent run -> its tables and figures, and the records that are its children. A variant of an ablation is logged there.
PARENTS = {"accuracy": {"artifacts": TABLES + FIGURES, "records": RECORDS}}
for ablation in filter(variants_of, ABLATIONS):
    mine = files("records", variants_of(ablation))
    PARENTS["accuracy"]["records"] = [path for path in PARENTS["accuracy"]["records"] if path not in mine]
    PARENTS[f"ablation_{ablation}"] = {"artifacts": ablation_outputs(ablation), "records": mine}
if PROFILE.get("verdict"):
    PARENTS["verdict"] = {"artifacts": VERDICT, "records": []}
    if MIXED:
        PARENTS["frontier"] = {"artifacts": FRONTIER, "records": MIXED}

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
