"""A page put together: template, styles, script and data in one file, and a policy that lets it fetch nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
import msgspec
from markupsafe import Markup

import inspector
from inspector.printable import printable
from inspector.report.format import address, count, raw, size

_ASSETS: Final = Path(__file__).with_name("assets")
_SCRIPTS: Final = ("common.js", "table.js", "map.js", "timeline.js")
"""One after the other in one script element.  The last two are each for data of their own."""


def _shown(value: object) -> object:
    """Text as a person may see it; it is escaped for HTML after that."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(hex=address, raw=raw, size=size)
    environment.globals["count"] = count
    return environment


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """What a content security policy calls an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _printable_all(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [one if isinstance(one, int) else _printable_all(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): _printable_all(one) for key, one in value.items()}
    return value


def embedded(value: object) -> Markup:
    """JSON for the inside of a script element: nothing in it ends that or begins a comment, whatever a string holds."""
    text = json.dumps(_printable_all(msgspec.to_builtins(value)), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def page(template: str, data: object, **values: Any) -> str:
    """The whole file.  ``data`` is what the scripts get."""
    style, script = _asset("style.css"), "".join(map(_asset, _SCRIPTS))
    policy = f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; "
    policy += "form-action 'none'"
    return (
        _environment()
        .get_template(template)
        .render(
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            data=embedded(data),
            tool=f"kvm-stage2-inspector {inspector.__version__}",
            **values,
        )
    )
