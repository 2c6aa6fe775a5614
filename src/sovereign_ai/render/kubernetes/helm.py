"""Objects → a Helm chart: the same manifests, with a few values to set. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sovereign_ai import __version__
from sovereign_ai.render.kubernetes.labels import Object
from sovereign_ai.render.kubernetes.text import to_yaml

_OPEN, _CLOSE = "\ue000", "\ue001"
"""Characters of Unicode's private area: no manifest has them, and YAML keeps them."""

_CONTAINERS = {
    "check-store": "controlImage",
    "gateway": "controlImage",
    "agent": "controlImage",
    "triton": "engineImage",
}
"""Container → the value that names its image."""


def to_chart(objects: Sequence[Object]) -> dict[str, str]:
    """File name → content. The namespace is Helm's to make: it is left out."""
    values: dict[str, str] = {}
    templates = {}
    kept = [one for one in objects if one["kind"] != "Namespace"]
    width = len(str(len(kept)))
    for index, one in enumerate(kept, start=1):
        name = f"templates/{index:0{width}}-{one['kind'].lower()}-{one['metadata']['name']}.yaml"
        templates[name] = _template(to_yaml(_with_values(one, values)))
    chart = {
        "apiVersion": "v2",
        "name": "sovereign-stack",
        "description": "Rendered from a plan; render again rather than edit",
        "type": "application",
        "version": __version__,
    }
    return {"Chart.yaml": to_yaml(chart), "values.yaml": to_yaml(dict(sorted(values.items()))), **templates}


def _with_values(one: Any, values: dict[str, str]) -> Any:
    """The object with marks where a value goes; the values as they were."""
    if isinstance(one, Mapping):
        made = {key: _with_values(value, values) for key, value in one.items()}
        if made.get("name") in _CONTAINERS and "image" in made:
            return _with_image(made, values)
        return made
    return [_with_values(each, values) for each in one] if isinstance(one, list) else one


def _with_image(container: Object, values: dict[str, str]) -> Object:
    key = _CONTAINERS[container["name"]]
    values.setdefault(key, container["image"])
    values.setdefault("pullPolicy", container["imagePullPolicy"])
    changed = {**container, "imagePullPolicy": f"{_OPEN}pullPolicy{_CLOSE}"}
    if container["image"] == values[key]:
        changed["image"] = f"{_OPEN}{key}{_CLOSE}"
    return changed


def _template(text: str) -> str:
    """Braces that Helm would read are written as what prints them; then the marks become values."""
    escaped = text.replace("{{", '{{ "{{" }}')
    return escaped.replace(f'"{_OPEN}', "{{ .Values.").replace(f'{_CLOSE}"', " | quote }}")
