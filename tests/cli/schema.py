"""Documents held against the schema that is derived from their classes."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

from inspector.report.schema import schema

_VALIDATOR = Draft202012Validator(schema())


def errors(document: Any) -> list[str]:
    """What is wrong with ``document``; empty when it is what is documented."""
    return [f"{error.json_path}: {error.message}" for error in _VALIDATOR.iter_errors(document)]
