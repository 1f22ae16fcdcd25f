"""Profiles and runs: what a configuration file asks for, as one list of runs.

A profile (workflow/config/*.yaml) names a dataset, backbones and methods; a run is one calibration of one
backbone by one method. Importing this file does not import torch, so the workflow can read it quickly.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ptmq.common.errors import InputError, one_of, require
from ptmq.common.provenance import declared
from ptmq.models.backbone import CNN_GROUPS, find_backbone

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

SCHEMA = Path(__file__).parent.parent.parent / "workflow" / "schemas" / "profile.schema.yaml"
TYPES = {  # what JSON schema calls them -> what a person does
    "array": "a list, such as [a, b]",
    "object": "a mapping, such as {key: value}",
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "empty",
}
FP32, MULTI = "fp32", "multi"
CONVERSION = ("keep_fp", "rules", "strict", "target")  # what a backbone says of how it is converted


@dataclass(frozen=True)
class Run:
    """One calibration: everything that decides its result. `widths` are strings such as W4A4."""

    profile: str
    dataset: str
    backbone: str
    method: str
    variant: str
    widths: tuple[str, ...]
    groups: dict[str, list[str]] | None
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, bool] = field(default_factory=dict)  # see `ptmq.reconstruction.settings.Execution`
    calibration_images: int = 1024
    device: str = "cpu"
    threads: int = 1
    label: str = MULTI  # the width of a single-width run, else 'multi'
    conversion: dict[str, Any] = field(default_factory=dict)  # keep_fp, rules, strict, target: see `QuantizationSpec`

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", "0 or more", self.seed)
        require(self.calibration_images >= 1, "calibration_images", "at least 1", self.calibration_images)

    @property
    def name(self) -> str:
        """Path of the run below models/, records/ and logs/."""
        return f"{self.backbone}/{self.method}/{self.variant}/{self.label}/seed{self.seed}"

    def to_json(self) -> str:
        """The run as one line of JSON, the same for the same run."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """Read what `to_json` wrote. Raises InputError for anything else."""
        try:
            values = json.loads(text)
            return cls(**{**values, "widths": tuple(values["widths"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"run {text[:80]!r} is not a run in JSON: {error}.") from None


def read_profile(path: Path) -> dict[str, Any]:
    """Read and validate a profile file."""
    try:
        profile = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise InputError(f"profile {str(path)!r} cannot be read: {reason}. Known: workflow/config/*.yaml.") from None
    except yaml.YAMLError as error:
        raise InputError(f"profile {str(path)!r} is not valid YAML: {error}.") from None
    return validate(profile)


def validate(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Check a profile against the JSON schema. Raises InputError, one sentence a mistake."""
    checked: dict[str, Any] = _typed(profile)
    try:
        import jsonschema
    except ImportError:  # a machine without the workflow's packages: the settings still check themselves
        return checked
    if not SCHEMA.exists():  # installed without the workflow
        return checked
    schema = yaml.safe_load(SCHEMA.read_text())
    problems = sorted(
        jsonschema.Draft202012Validator(schema).iter_errors(checked), key=lambda e: list(map(str, e.path))
    )
    if problems:
        raise InputError("profile: " + " ".join(dict.fromkeys(map(_explain, problems))))
    checked["backbones"] = {name: body or {} for name, body in checked["backbones"].items()}
    _check_names(checked)
    return checked


def _check_names(profile: Mapping[str, Any]) -> None:
    """Names that one part of a profile uses must be defined in the other."""
    backbones, methods = profile["backbones"], profile["methods"]
    for backbone, body in backbones.items():
        for method in body.get("settings", {}):
            one_of(f"backbones.{backbone}.settings: method", method, methods)
    for method, body in methods.items():
        body = body or {}
        variants = {f".variants.{name}": changes or {} for name, changes in (body.get("variants") or {}).items()}
        for part, chosen in {"": body, **variants}.items():
            for backbone in chosen.get("backbones", []):
                one_of(f"methods.{method}{part}.backbones: backbone", backbone, backbones)
        for backbone in body["widths"] if isinstance(body.get("widths"), Mapping) else []:
            one_of(f"methods.{method}.widths: backbone", backbone, backbones)


def _typed(value: Any) -> Any:
    """Numbers and truth values that arrived as text: Snakemake hands over nested --config values so."""
    if isinstance(value, Mapping):
        return {key: _typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_typed(part) for part in value]
    if isinstance(value, str):
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        return read if isinstance(read, int | float) else value
    return value


def _explain(problem: "ValidationError") -> str:
    """One schema error as a sentence: field, rule, value, way out."""
    where = ".".join(map(str, problem.absolute_path)) or "top level"
    schema: Any = problem.schema  # of any shape, like the two that follow
    instance: Any = problem.instance
    value: Any = problem.validator_value
    if problem.validator == "additionalProperties":
        known = schema.get("properties", {})
        for name in instance:
            if name not in known:
                try:
                    one_of(f"{where}: key", name, known)
                except InputError as error:
                    return str(error)
    if problem.validator == "required":
        missing = [key for key in value if key not in instance]
        return f"{where}: missing {', '.join(missing)}."
    if problem.validator == "enum":
        return f"{where} must be one of {', '.join(map(str, value))}. Got {instance!r}."
    return f"{where} must be {_rule(problem)}. Got {instance!r}."


def _rule(problem: "ValidationError") -> str:
    """The rule of a schema error in words."""
    schema: Any = problem.schema
    value: Any = problem.validator_value
    words: dict[Any, Callable[[], str]] = {
        "type": lambda: " or ".join(TYPES.get(name, name) for name in ([value] if isinstance(value, str) else value)),
        "pattern": lambda: f"written like {schema.get('examples', [value])[0]}",
        "minimum": lambda: f"{value} or more",
        "minItems": lambda: f"a list of at least {value}",
        "minProperties": lambda: f"a mapping of at least {value}",
        "maxProperties": lambda: f"a mapping of at most {value}",
        "uniqueItems": lambda: "a list without repetition",
    }
    return words.get(problem.validator, lambda: problem.message)()


def widths_of(groups: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """All widths of the groups, as they are listed."""
    return tuple(width for group in groups.values() for width in group)


def runs_of(profile: Mapping[str, Any], backbone: str, method: str) -> list[Run]:
    """The runs that a profile asks for of one method on one backbone: variants x seeds (x widths)."""
    where = f"profile {profile['profile']}"
    body = profile["backbones"][one_of(f"{where}: backbone", backbone, profile["backbones"])] or {}
    entry = find_backbone(backbone)  # what the registry says of it counts where the profile says nothing
    standard = entry.settings.get(method, {}) if entry else {}
    standard_groups = entry.groups if entry else CNN_GROUPS
    chosen = profile["methods"][one_of(f"{where}: method", method, profile["methods"])] or {}
    runs = []
    for variant, changes in (chosen.get("variants") or {"default": {}}).items():
        own = body.get("settings", {}).get(method, {})
        settings = {**standard, **chosen.get("settings", {}), **own, **(changes or {})}
        if backbone not in settings.pop("backbones", chosen.get("backbones", [backbone])):
            continue
        groups = settings.pop("groups", body.get("groups", standard_groups))
        images = settings.pop("calibration_images", profile["calibration_images"])
        seeds = settings.pop("seeds", body.get("seeds", profile["seeds"]))
        execution = {**profile.get("execution", {}), **settings.pop("execution", {})}
        conversion = {name: body[name] for name in CONVERSION if name in body}
        if "target" in settings:
            conversion["target"] = settings.pop("target")
        if (own_target := declared(method, "target", "none")) != "none":
            conversion.setdefault("target", own_target)
        widths = chosen.get("widths", {})
        widths = tuple(widths.get(backbone, widths_of(groups)) if isinstance(widths, Mapping) else widths)
        for seed in seeds:
            for part in [(w,) for w in widths] if chosen.get("per_width") else [widths]:
                runs.append(
                    Run(
                        profile=profile["profile"],
                        dataset=profile["dataset"],
                        backbone=backbone,
                        method=method,
                        variant=variant,
                        widths=part,
                        groups={name: list(group) for name, group in groups.items()},
                        seed=seed,
                        settings=settings,
                        execution=execution,
                        calibration_images=images,
                        device=profile.get("device", "auto"),
                        threads=profile.get("threads", 1),
                        label=part[0] if chosen.get("per_width") else MULTI,
                        conversion=conversion,
                    )
                )
    return runs


def all_runs(profile: Mapping[str, Any]) -> list[Run]:
    """Every run of a profile, FP32 not included."""
    return [run for b in profile["backbones"] for m in profile["methods"] for run in runs_of(profile, b, m)]
