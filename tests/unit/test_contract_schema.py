# SPDX-License-Identifier: Apache-2.0
"""The CRD and the reference page say what the models say, and hold to what the API server asks of a schema."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from manifest_cases import GOOD, MANIFESTS

from tandem_api.manifest import load, read
from tandem_api.reference import PAGE, page
from tandem_api.schema import ANYTHING, CRD_PATH, RULES, Schema, crd, crd_yaml, defaulted, spec_schema, status_schema
from tandem_api.spec import RLJobSpec


def fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every field below a schema, with its path."""
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}", part
        yield from fields(part, f"{path}.{name}")
        yield from fields(part.get("items", {}), f"{path}.{name}[]")


ALL = [*fields(spec_schema(), "spec"), *fields(status_schema(), "status")]


@pytest.mark.parametrize(
    ("module", "path", "text"), [("schema", CRD_PATH, crd_yaml()), ("reference", PAGE, page())], ids=["crd", "page"]
)
def test_the_generated_file_is_up_to_date(module: str, path: Path, text: str) -> None:
    assert path.read_text() == text, f"run python -m tandem_api.{module}"


def test_check_fails_with_a_diff_when_the_file_differs(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from tandem_api.generated import write_or_check;"
        f"write_or_check(Path({str(tmp_path / 'file')!r}), 'new\\n')"
    )

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout

    (tmp_path / "file").write_text("old\n")
    code, diff = run("--check")
    assert code == 1
    assert "-old" in diff
    assert "+new" in diff
    run()
    assert run("--check") == (0, "")


def test_every_field_is_described_in_a_sentence() -> None:
    assert [path for path, part in ALL if not re.match(r"[\w(].*\.$", part.get("description", ""), re.DOTALL)] == []


def test_every_number_of_the_spec_has_both_bounds_or_is_real() -> None:
    integers = [(path, part) for path, part in ALL if part.get("type") == "integer" and path.startswith("spec")]

    assert [path for path, part in integers if "minimum" not in part or "maximum" not in part] == []


def test_everything_a_rule_may_walk_through_is_bounded() -> None:
    spec = [(path, part) for path, part in ALL if path.startswith("spec")]

    assert [path for path, part in spec if part.get("type") == "array" and "maxItems" not in part] == []
    strings = [(path, part) for path, part in spec if part.get("type") == "string" and "enum" not in part]
    assert [path for path, part in strings if "maxLength" not in part] == []


def test_the_schema_is_structural() -> None:
    forbidden = {"$ref", "$defs", "const", "oneOf", "prefixItems", "title"}
    for path, part in ALL:
        assert not forbidden & part.keys(), path
        assert not isinstance(part.get("exclusiveMinimum"), int | float) or part["exclusiveMinimum"] is True, path
        assert "properties" not in part or "additionalProperties" not in part, path
        assert "type" in part or part.get("x-kubernetes-int-or-string"), path
        assert part.get("type") != "object" or part.keys() & {"properties", "additionalProperties", ANYTHING}, path


def test_the_path_of_every_rule_exists() -> None:
    root = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, part in [("", root), ("spec", spec_schema()), *ALL]:
        for rule in part.get(RULES, ()):
            inner = part
            for name in rule.get("fieldPath", "").split(".")[1:]:
                assert name in inner["properties"], f"{path}: {rule['fieldPath']}"
                inner = inner["properties"][name]


def test_the_status_has_no_defaults() -> None:
    assert [path for path, part in ALL if path.startswith("status") and "default" in part] == []


def test_the_file_is_read_back_as_what_was_written() -> None:
    assert yaml.safe_load(CRD_PATH.read_text()) == crd()


@pytest.mark.parametrize("name", GOOD)
def test_the_server_s_defaults_are_the_models_defaults(name: str) -> None:
    path = MANIFESTS / f"{name}.yaml"
    written = RLJobSpec.model_validate(read(path).spec)

    assert RLJobSpec.model_validate(defaulted(read(path).spec, spec_schema())) == written == load(path).spec


@pytest.mark.parametrize("name", GOOD)
def test_a_spec_survives_being_dumped_and_read(name: str) -> None:
    spec = load(MANIFESTS / f"{name}.yaml").spec

    assert RLJobSpec.model_validate_json(spec.wire()) == spec
