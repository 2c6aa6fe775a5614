"""Objects → YAML that says the same to every parser. Pure.

Kubernetes reads YAML 1.1, where `on`, `no`, `1e3` and `012` are not the texts they look like: so every text
is quoted, keys too where they could be read as something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from sovereign_ai.render.kubernetes.labels import Object

STACK_FILE = "triton-stack.yaml"
KUSTOMIZATION = "kustomization.yaml"


class _Dumper(yaml.SafeDumper):
    """Texts in double quotes, several lines as a block; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    tag = "tag:yaml.org,2002:str"
    if "\n" in text and _is_plain(text):
        return dumper.represent_scalar(tag, text, style="|")
    return dumper.represent_scalar(tag, text, style='"')


def _is_plain(text: str) -> bool:
    """Whether a block keeps it: printable, no blanks at the end of a line or the beginning of the text."""
    lines = text.split("\n")
    return not text.startswith((" ", "\n", "\t")) and all(
        line == line.rstrip() and (line.isprintable() or not line) for line in lines
    )


_Dumper.add_representer(str, _text)


def _mapping(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.MappingNode:
    """Keys of our own words stand bare; others (labels, variables) are quoted like every text."""
    node = dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=False)
    for key, _ in node.value:
        if key.value.isascii() and key.value.isalpha() and key.value.lower() not in _WORDS:
            key.style = None
    return node


_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_Dumper.add_representer(dict, _mapping)


def to_yaml(one: Object) -> str:
    text: str = yaml.dump(one, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return text


def to_stack(objects: Iterable[Object]) -> str:
    """All of them in one file."""
    return "".join(f"---\n{to_yaml(one)}" for one in objects)


def to_files(objects: Sequence[Object]) -> dict[str, str]:
    """File name → content: one a object, in order, and what kustomize reads."""
    width = len(str(len(objects)))
    files = {
        f"{index:0{width}}-{one['kind'].lower()}-{one['metadata']['name']}.yaml": to_yaml(one)
        for index, one in enumerate(objects, start=1)
    }
    listed: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(files),
    }
    return {KUSTOMIZATION: to_yaml(listed), **files}
