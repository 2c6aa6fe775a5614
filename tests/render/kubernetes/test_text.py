from __future__ import annotations

from io import StringIO
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ruamel.yaml import YAML

from sovereign_ai.render.kubernetes import Object, Stack, render_stack, to_stack
from sovereign_ai.render.kubernetes.helm import to_chart
from sovereign_ai.render.kubernetes.labels import dns_label, label_value
from sovereign_ai.render.kubernetes.text import to_yaml
from tests.render.kubernetes.examples import stack

HOSTILE = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=300),
    st.sampled_from(
        ["on", "no", "y", "~", "null", "1e3", "012", "0x1f", "1_000", "12:30:45", "=", "<<", ".inf"]
    ),
    st.sampled_from(
        ["a: b", "- x", "# c", "&a", "*a", "!!str x", "%TAG", "@a", "`a`", "{a", "[a", "a\n---\nb"]
    ),
    st.sampled_from(
        ['"', "'", "\\", "a\nb", "a\n", "\n a", " a ", "\t", "\u2028", "\x85", "ü" * 300, "{{ .x }}"]
    ),
)


def loaded(text: str) -> list[Any]:
    """By two parsers: YAML 1.1, as Kubernetes reads it, and 1.2."""
    one = list(yaml.safe_load_all(text))
    two = list(YAML(typ="safe", pure=True).load_all(StringIO(text)))
    assert one == two
    return one


@given(st.recursive(HOSTILE, lambda inner: st.lists(inner) | st.dictionaries(HOSTILE, inner), max_leaves=8))
def test_whatever_the_text_it_comes_back(value: Any) -> None:
    assert loaded(to_yaml({"value": value})) == [{"value": value}]


def shape(one: Any) -> Any:
    """An object without its texts."""
    if isinstance(one, dict):
        return [(key if key.isalpha() else "", shape(value)) for key, value in one.items()]
    if isinstance(one, list):
        return [shape(each) for each in one]
    return type(one).__name__


def with_names(model: str, version: str, node: str, device: str) -> Stack:
    """The CPU's stack, with other names at every place where a plan has one of a person's."""
    one = stack("cpu-only")
    deployments = tuple(
        replace(each, model=model + str(index), version=version, node=node)
        for index, each in enumerate(one.plan.deployments)
    )
    tiers = tuple(replace(tier, rule=device) for tier in one.plan.tiers)
    return replace(one, plan=replace(one.plan, deployments=deployments, tiers=tiers))


PLAIN = with_names("m", "1", "n", "d")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_hostile_names_change_no_structure(model: str, version: str, node: str, device: str) -> None:
    objects = render_stack(with_names(model, version, node, device))
    back = loaded(to_stack(objects))
    assert back == list(objects)
    assert [shape(one) for one in back] == [shape(one) for one in render_stack(PLAIN)]
    for one in back:
        name = one["metadata"]["name"]
        assert dns_label(name) == name


@given(HOSTILE)
def test_names_that_kubernetes_takes(text: str) -> None:
    name = dns_label(text)
    assert dns_label(name) == name
    assert 0 < len(name) <= 63
    assert len(label_value(text)) <= 63


@given(HOSTILE, HOSTILE)
def test_other_texts_have_other_names(one: str, other: str) -> None:
    assert (dns_label(one) == dns_label(other)) == (one == other)


def expand(text: str, values: Object) -> str:
    """What Helm would make of our templates: they have two expressions and no more."""
    for key, value in values.items():
        text = text.replace("{{ .Values." + key + " | quote }}", f'"{value}"')
    return text.replace('{{ "{{" }}', "{{")


def test_a_chart_with_its_own_values_is_the_stack() -> None:
    objects = [*render_stack(stack("reference-rig", keys='[{"name": "{{ x }}"}]'))]
    files = to_chart(objects)
    values = yaml.safe_load(files["values.yaml"])
    assert values == {
        "controlImage": "localhost/sovereign-ai:0.1.0",
        "engineImage": "nvcr.io/nvidia/tritonserver:24.12-vllm-python-py3",
        "pullPolicy": "IfNotPresent",
    }
    assert yaml.safe_load(files["Chart.yaml"])["apiVersion"] == "v2"
    made = [
        yaml.safe_load(expand(text, values)) for name, text in files.items() if name.startswith("templates/")
    ]
    assert made == [one for one in objects if one["kind"] != "Namespace"]
    changed = [expand(text, {**values, "controlImage": "x/y:2"}) for text in files.values()]
    assert sum('"x/y:2"' in text for text in changed) == 5, "three engines' checks, the gateway, the agent"
