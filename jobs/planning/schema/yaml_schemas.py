"""The JSON Schemas of a profile and of a sweep, docs/schema: ``python -m jobs.planning.schema.yaml_schemas NAME``.

They derive from the profile's model and from `TrainConfig`. A sweep that fits its schema may still be wrong:
`sweep plan` also checks what belongs together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from disttrain.config.validation import fields_schema
from disttrain.records.json_values import to_json
from jobs.planning.cluster_profile import SECTIONS, ClusterProfile

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NO_KEYS = ("output_dir",)  # fields that no sweep sets: each run has its own folder
_ALLOCATION = {"type": "string", "pattern": "^[1-9][0-9]{0,5}[x_][1-9][0-9]{0,5}$"}
_ALLOCATIONS = {"type": "array", "items": _ALLOCATION, "minItems": 1, "uniqueItems": True}


def profile_schema() -> dict[str, Any]:
    """The schema of a cluster profile."""
    return {"$schema": _DIALECT, "title": "A cluster profile", **_profile()}


def sweep_schema() -> dict[str, Any]:
    """The schema of a sweep file.

    Where a run may be a command, the keys are the user's own and have any value. Otherwise they are fields of a run.
    """
    own = {
        "anyOf": [{"required": ["command"]}, {"properties": {"zip": {"required": ["command"]}}, "required": ["zip"]}]
    }
    return {
        "$schema": _DIALECT,
        "title": "A sweep",
        "type": "object",
        "properties": {key: _SECTIONS[key] for key in SECTIONS},
        "required": ["name", "allocations"],
        "additionalProperties": False,
        "if": own,
        "else": {
            "properties": {
                "base": {"$ref": "#/$defs/fields"},
                "axes": {"$ref": "#/$defs/lists"},
                "zip": {"$ref": "#/$defs/lists"},
                "exclude": {"items": {"$ref": "#/$defs/entry"}},
                "include": {"items": {"if": {"required": ["command"]}, "else": {"$ref": "#/$defs/entry"}}},
            }
        },
        "$defs": _definitions(),
    }


def _profile() -> dict[str, Any]:
    schema = ClusterProfile.model_json_schema()
    schema.pop("title")
    schema["properties"] = {key: _without_title(value) for key, value in schema["properties"].items()}
    return schema


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the title that pydantic makes of the key."""
    return {key: value for key, value in schema.items() if key != "title"}


def _definitions() -> dict[str, Any]:
    """The parts of a sweep's schema that several sections share."""
    fields = {key: _without_title(value) for key, value in fields_schema().items() if key not in _NO_KEYS}
    # By reference: an editor shows the description of the field, and the file stays small.
    references: dict[str, dict[str, Any]] = {key: {"$ref": f"#/$defs/fields/properties/{key}"} for key in fields}
    lists = {key: {**_LISTS, "items": reference} for key, reference in references.items()}
    entry = {**references, "allocation": {"anyOf": [_ALLOCATION, _ALLOCATIONS]}}
    profile = _profile()
    return {
        "fields": {"type": "object", "properties": fields, "additionalProperties": False},
        "lists": {"type": "object", "properties": lists, "additionalProperties": False},
        "entry": {"type": "object", "properties": entry, "additionalProperties": False},
        "profile": profile,
        "changes": {**profile, "patternProperties": {_ALLOCATION["pattern"]: {"$ref": "#/$defs/profile"}}},
    }


def _section(description: str, kind: str, **rest: Any) -> dict[str, Any]:
    return {"description": description, "type": kind, **rest}


_LISTS = {"type": "array", "minItems": 1}
_SECTIONS: dict[str, dict[str, Any]] = {
    "name": _section(
        "name of the sweep, of its jobs and of its folder", "string", pattern="^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$"
    ),
    "allocations": {
        "description": "nodes x GPUs per node: [1x1, 2x2]; each point runs on each of them",
        **_ALLOCATIONS,
    },
    "command": _section("the command of all runs: python train.py", "string", minLength=1),
    "flags": _section("how a key and its value become arguments of the command: --{key} {value}", "string"),
    "switches": _section(
        "keys of the command that are written without a value", "array", items={"type": "string"}, uniqueItems=True
    ),
    "launcher": _section("what starts the processes of the command: ranks or torchrun", "string"),
    "smoke": _section("arguments that make a run of the command short, for submit --smoke: --max-steps 2", "string"),
    "base": _section("values of all runs", "object"),
    "axes": _section("lists of values; every combination is a point", "object", additionalProperties=_LISTS),
    "zip": _section("lists of equal length, whose values vary together", "object", additionalProperties=_LISTS),
    "exclude": _section(
        "points to leave out: those that match all values of an entry", "array", items={"type": "object"}
    ),
    "include": _section("points to add", "array", items={"type": "object"}),
    "seeds": _section(
        "each point runs once with each of them", "array", items={"type": "integer", "minimum": 0}, minItems=1
    ),
    "measure_link": _section("whether each allocation gets one more run that times its link", "boolean"),
    "slurm": {
        "description": "changes to the profile, for all jobs and under the name of an allocation",
        "$ref": "#/$defs/changes",
    },
}

PAGES: dict[str, Callable[[], dict[str, Any]]] = {"profile": profile_schema, "sweep": sweep_schema}


def schema_page(name: str) -> str:
    """The text of docs/schema/NAME.json."""
    return to_json(PAGES[name](), indent=2) + "\n"


if __name__ == "__main__":
    print(schema_page(sys.argv[1]), end="")
