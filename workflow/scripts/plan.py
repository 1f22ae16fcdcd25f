"""What a profile asks for, what of it is published already, and what is made of the records. Needs no torch.

The Snakefile plans by this, and `paper.py` rebuilds the published tables and figures by it. A published record is never
computed again and never changed: it is shown beside one's own, unless the profile says `compare: none`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ptmq.common.errors import InputError, one_of
from ptmq.suite.profile import FP32, Run, all_runs

EXTENSIONS = {"tables": ("csv", "html", "md", "tex"), "figures": ("pdf", "svg", "png")}
FP_RUN = "{}/" + FP32 + "/default/W32A32/seed0"
# The parts of a method that an ablation varies: the method's variants whose names begin with it.
ABLATIONS = {
    "mfm": ("ptmq", "the cases of the feature mixer"),
    "gd": ("ptmq", "the forms of the GD-Loss"),
    "groups": ("ptmq", "the split of the widths into groups"),
    "rounding": ("ptmq", "the initial V, and R shared or not"),
    "budget": ("ptmq", "iterations and calibration images"),
    "correction": ("nested", "what is corrected, and whether it is matched or learned"),
    "grid": ("nested", "one grid, or one a width"),
    "learned": ("nested", "the widths whose rounding is learned, where it is stored, and how widths are drawn"),
}
CHOSEN = {
    "methods": "method",
    "backbones": "backbone",
    "variants": "variant",
    "seeds": "seed",
}  # `only` -> field of Run
RENAMED = {"steps": "iterations", "activation_steps": "activation_iterations"}  # settings in older records
EXECUTION = ("compile", "autocast", "features_in_main_memory")  # once settings, in older records


@dataclass(frozen=True)
class Report:
    """One script over records: a rule of the workflow.

    reads: its inputs by name, or a function that gives them · kind: category in the report · makes: its outputs by
    caption · arguments: of the script, with places for input, output, folder (of its first output) and root (above).
    """

    script: str
    reads: Mapping[str, Any]
    kind: str
    makes: Mapping[str, list[str]]
    arguments: str

    def command(self, reads: Any, output: Any) -> str:
        """The arguments, once the files are known."""
        folder = Path(output[0]).parent
        return self.arguments.format(input=reads, output=output[0], folder=folder, root=folder.parent)

    def command_here(self) -> list[str]:
        """Script and arguments where all files lie at their places."""
        reads = {name: paths() if callable(paths) else paths for name, paths in self.reads.items()}
        spaced = {name: paths if isinstance(paths, str) else " ".join(paths) for name, paths in reads.items()}
        outputs = [path for paths in self.makes.values() for path in paths]
        return [self.script, *self.command(SimpleNamespace(**spaced), outputs).split()]


def same_run(published: Mapping[str, Any], run: Run) -> bool:
    """Whether a published record is of this run: everything that decides its result is the same."""
    settings = {RENAMED.get(name, name): value for name, value in published.get("settings", {}).items()}
    execution = {name: settings.pop(name) for name in EXECUTION if name in settings} | published.get("execution", {})
    placed = {"target": "none"}  # what a record does not say
    mine = (run.dataset, list(run.widths), run.groups, run.seed, run.settings, run.calibration_images,
            placed | run.conversion)  # fmt: skip
    theirs = (published["dataset"], published["widths"], published["groups"], published["seed"], settings,
              published["calibration_images"], placed | published.get("conversion", {}))  # fmt: skip
    return mine == theirs and {k for k, v in execution.items() if v} == {k for k, v in run.execution.items() if v}


class Plan:
    """A profile, and the records of its runs.

    folder: where its own results lie · published: the folder of all published results · from_records: nothing is
    computed, what has a record is reported.
    """

    def __init__(self, profile: Mapping[str, Any], folder: str, published: str, from_records: bool = False):
        self.profile, self.folder, self.from_records = profile, folder, from_records
        self.name = profile["profile"]
        self.runs = {run.name: run for run in all_runs(profile)}
        compared = self._compared(published)
        self.published = f"{published}/{compared}" if compared else None
        ablations = Path(published, profile.get("ablations", "none"))
        self.ablation_runs = [f"{ablations}/runs.csv"] if (ablations / "records").is_dir() else []
        self.ceilings = {backbone: FP_RUN.format(backbone) for backbone in profile["backbones"]}
        self.taken = [name for name in [*self.ceilings.values(), *self.runs] if self._is_published(name)]
        self.planned = self._planned()

    def _planned(self) -> list[str]:
        """The runs that are the profile's own: computed, or where nothing is computed reported from their records."""
        if self.from_records:
            known = [*sorted(self.ceilings.values()), *sorted(self.runs)]
            return [name for name in known if name not in self.taken or Path(self.record(name)).exists()]
        only = self.profile.get("only")
        runs = [name for name in self.runs if name not in self.taken] if only is None else self._chosen(only)
        needed = {self.runs[name].backbone for name in runs}
        if only is None:
            needed |= {backbone for backbone, name in self.ceilings.items() if name not in self.taken}
        return sorted(self.ceilings[backbone] for backbone in needed) + sorted(runs)

    def _compared(self, published: str) -> str | None:
        """The published profile to compare with: `published` is that of the same name, if there is one."""
        name, folder = self.profile.get("compare", "published"), Path(published)
        there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        if name == "published":
            return self.name if self.name in there else None
        return None if name == "none" else one_of("compare: published profile", name, there)

    def _is_published(self, name: str) -> bool:
        """Whether a run of the profile has a published record with its settings."""
        path = f"{self.published}/records/{name}.json"
        if self.published is None or not Path(path).exists():
            return False
        run = json.loads(Path(path).read_text())["run"]
        return name not in self.runs or same_run(run, self.runs[name])

    def _chosen(self, only: Mapping[str, Any]) -> list[str]:
        """The runs that `only` names. Raises InputError for a name that the profile does not have."""
        for key, wanted in only.items():
            field = CHOSEN[one_of("only: key", key, CHOSEN)]
            known = {str(getattr(run, field)) for run in self.runs.values()}
            for value in wanted if isinstance(wanted, list) else [wanted]:
                one_of(f"only: {field}", str(value), known)
        found = [name for name, run in self.runs.items() if all(
            str(getattr(run, CHOSEN[key])) in map(str, wanted if isinstance(wanted, list) else [wanted])
            for key, wanted in only.items())]  # fmt: skip
        if not found:
            raise InputError(f"only: no run of profile {self.name!r} is all of {dict(only)}. Choose less.")
        return found

    # ------------------------------------------------------------ files
    def record(self, name: str, kind: str = "records") -> str:
        """A run's own record."""
        return f"{self.folder}/{kind}/{name}.json"

    def own(self, names: list[str], kind: str = "records") -> list[str]:
        """Records of those runs that are the profile's own."""
        own = [self.record(name, kind) for name in names if name in self.planned]
        return [path for path in own if Path(path).exists()] if self.from_records else own

    def shown(self, names: list[str], kind: str = "records") -> list[str]:
        """Records of those runs that are reported: one's own, then published ones."""
        others = [f"{self.published}/{kind}/{name}.json" for name in names if name in self.taken]
        return self.own(names, kind) + [path for path in others if Path(path).exists()]

    def outputs(self, kind: str, name: str) -> list[str]:
        """The files of a table or of a figure."""
        return [f"{self.folder}/{kind}/{name}.{extension}" for extension in EXTENSIONS[kind]]

    def kept(self, records: list[str]) -> list[str]:
        """Which images were classified correctly, beside these records: older ones do not have it."""
        paths = [path.removesuffix(".json") + ".correct.safetensors" for path in records]
        made = "" if self.from_records else f"{self.folder}/"
        return [path for path in paths if Path(path).exists() or (made and path.startswith(made))]

    def of(self, method: str, variant: str = "default") -> list[str]:
        """Names of a method's runs that are reported."""
        names = set(self.planned) | set(self.taken)
        return [n for n, run in self.runs.items() if n in names and (run.method, run.variant) == (method, variant)]

    def asked(self, names: list[str]) -> str:
        """Runs with their widths, as collect.py is told of them."""
        widths = {name: self.runs[name].widths if name in self.runs else ["W32A32"] for name in names}
        return " ".join(f"{name}:{','.join(each)}" for name, each in widths.items())

    @property
    def records(self) -> list[str]:
        """All records that are reported."""
        return self.shown(list(dict.fromkeys([*self.planned, *self.taken])))

    @property
    def mixed(self) -> list[str]:
        """Records of mixed precision: of PTMQ's default."""
        return self.shown(self.of("ptmq"), "mixed")

    @property
    def learned(self) -> list[str]:
        """Records of the default variant of methods that are not rounding to nearest."""
        names = set(self.planned) | set(self.taken)
        mine = [n for n, run in self.runs.items() if n in names and run.variant == "default"]
        return self.shown([n for n in mine if not self.runs[n].method.startswith("nearest")])

    # ------------------------------------------------------------ ONNX files
    @property
    def for_onnx(self) -> list[str]:
        """Names of the runs that are reported and calibrated for ONNX."""
        names = set(self.planned) | set(self.taken)
        return [n for n, run in self.runs.items() if n in names and run.conversion.get("target") == "onnx"]

    @property
    def deployed(self) -> list[str]:
        """Records of their files."""
        return self.shown(self.for_onnx, "deploy")

    def needed_for_onnx(self, names: list[str]) -> list[str]:
        """The names, or files of runs. Raises InputError where there are none."""
        if names:
            return names
        raise InputError(
            f"profile {self.name!r} has no run with target: onnx. Set it for a backbone, a method or a variant, as"
            " workflow/config/digits.yaml does."
        )

    # ------------------------------------------------------------ ablations
    def variants(self, ablation: str) -> list[str]:
        """Names of the runs of an ablation's variants."""
        method, _ = ABLATIONS[ablation]
        return [n for n, r in self.runs.items() if r.method == method and r.variant.startswith(f"{ablation}_")]

    def reported_variants(self, ablation: str) -> list[str]:
        """Those of them that are reported."""
        return [name for name in self.variants(ablation) if self.shown([name])]

    def ablation_records(self, ablation: str) -> list[str]:
        """Records that an ablation compares: the default, its variants, and rounding to nearest as the floor. Backbones
        without such a variant have nothing to compare.

        Raises InputError where the profile has no such variant, or one without the default to compare it with.
        """
        where, (method, part) = f"profile {self.name!r}", ABLATIONS[ablation]
        if not self.reported_variants(ablation):
            raise InputError(
                f"{where} has no variant of {method} whose name begins with '{ablation}_', so there is nothing for"
                f" ablation_{ablation} ({part}) to compare. Use --configfile"
                " workflow/config/cifar10_ablations.yaml, or add variants to the profile."
            )
        default = self.of(method)
        alone = {(self.runs[name].backbone, self.runs[name].seed) for name in self.variants(ablation)}
        alone -= {(self.runs[name].backbone, self.runs[name].seed) for name in default}
        if alone:
            backbone, seed = min(alone)
            raise InputError(
                f"{where}: variants are compared with the variant 'default' of the same backbone and seed, which is"
                f" missing for {backbone}, seed {seed}. Add 'default: {{}}' to the variants of {method}, with the seeds"
                " of the others."
            )
        varied = {self.runs[name].backbone for name in self.reported_variants(ablation)}
        names = default + self.reported_variants(ablation) + self.of("nearest_mse")
        return self.shown([name for name in names if self.runs[name].backbone in varied])

    @property
    def ablated(self) -> list[str]:
        """The ablations that the profile has variants for."""
        return [ablation for ablation in ABLATIONS if self.reported_variants(ablation)]

    # ------------------------------------------------------------ reports
    def reports(self) -> dict[str, Report]:
        """What is made of the records, by the name of the rule."""
        tidy, tables, figures = {"runs": f"{self.folder}/runs.csv"}, "tables", "figures"
        of_runs = [path for name in ("accuracy", "divergence", "cost") for path in self.outputs(tables, name)]
        own = f"--own {self.asked(self.planned)}" if self.planned else ""
        others = f"--published {self.published} {self.asked(self.taken)}" if self.taken else ""
        plain = "--runs {input.runs} --out {folder}"
        kept = self.kept(self.records)
        made = {
            "collect": Report(  # one tidy row a backbone, method, variant, width and seed
                "collect", {"records": self.records, "correct": kept, "deployed": self.deployed}, "Configuration",
                {"runs": [tidy["runs"]]},
                f"--root {{folder}} --out {{output}} {'--partial' if self.from_records else ''} {own} {others}",
            ),
            "tables": Report("tables", tidy, "Tables", {"tables": of_runs}, plain),
            "accuracy": Report("accuracy", tidy, "Figures", {"accuracy": self.outputs(figures, "accuracy")}, plain),
            "headline": Report(  # what one calibration for all widths loses and costs, against one for each
                "headline", {**tidy, "correct": kept}, "Figures",
                {"headline": self.outputs(figures, "headline") + self.outputs(tables, "headline")},
                "--runs {input.runs} --out {root}",
            ),
            "cost": Report("cost", tidy, "Figures", {"cost": self.outputs(figures, "cost")}, plain),
            "blocks": Report(  # reconstruction error block by block, soft rounding values before and after learning
                "blocks", {"records": self.learned}, "Figures",
                {name: self.outputs(figures, name) for name in ("blocks", *(["rounding"] if self.of("ptmq") else []))},
                "--out {folder} --records {input.records}",
            ),
            "frontier": Report(  # accuracy against bits and size, a width for every block; what a switch costs
                "frontier", {"records": self.mixed}, "Mixed precision",
                {"frontier": [*self.outputs(tables, "frontier"), *self.outputs(figures, "frontier"),
                              *self.outputs(tables, "switching")]},
                "--out {root} --records {input.records}",
            ),
            "deploy": Report(  # what the exported files are worth
                "deploy", {"records": lambda: self.needed_for_onnx(self.deployed)}, "Deployment",
                {"deploy": self.outputs(tables, "deploy") + self.outputs(figures, "deploy")},
                "--out {root} --records {input.records}",
            ),
            "verdict": Report(  # what the runs say about the paper's claims
                "verdict", {**tidy, "correct": kept, "mixed": self.mixed, "ablations": self.ablation_runs}, "Verdict",
                {name: self.outputs(tables, name) for name in ("verdict", "checks")},
                "--published $PTMQ_PROJECT/workflow/published.yaml --runs {input.runs} --mixed {input.mixed}"
                f" {'--ablations {input.ablations}' if self.ablation_runs else ''} --out {{folder}}",
            ),
        }  # fmt: skip
        for ablation in ABLATIONS:  # the variants whose names begin with it, beside the default
            missing = [name for name in self.variants(ablation) if not self.shown([name])]
            name = f"ablation_{ablation}"
            reads = {"records": lambda ablation=ablation: self.ablation_records(ablation)}
            reads["correct"] = lambda ablation=ablation: self.kept(self.ablation_records(ablation))
            made[name] = Report(
                "ablation", reads, "Ablations",
                {name: self.outputs(tables, name) + self.outputs(figures, name)},
                f"--root {{root}} --name {ablation} --method {ABLATIONS[ablation][0]} --records {{input.records}}"
                f" --missing {' '.join(missing)}",
            )  # fmt: skip
        return made

    def wanted(self) -> list[str]:
        """Names of the reports that the profile's results consist of."""
        found = ["collect", "tables", "accuracy", *(["cost", "blocks"] if self.learned else [])]
        found += [f"ablation_{ablation}" for ablation in self.ablated]
        found += ["deploy"] if self.deployed else []
        if self.profile.get("verdict"):
            found += ["headline", "verdict", *(["frontier"] if self.mixed else [])]
        return found


def outputs_of(report: Report) -> list[str]:
    """All files that a report makes."""
    return [path for paths in report.makes.values() for path in paths]
