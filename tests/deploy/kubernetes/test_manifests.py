from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.deploy.kubernetes.kinds import title
from sovereign_ai.deploy.kubernetes.manifests import read_manifests, wanted
from sovereign_ai.errors import ConfigError
from sovereign_ai.render.kubernetes import render_stack, to_files, to_stack
from tests.deploy.kubernetes.stacks import objects
from tests.render.kubernetes.examples import stack


def changed(kind: str, **metadata: Any) -> list[dict[str, Any]]:
    made = copy.deepcopy(objects("sovereign"))
    next(one for one in made if one["kind"] == kind)["metadata"].update(metadata)
    return made


def test_what_is_rendered_is_taken_and_keeps_its_order() -> None:
    rendered = render_stack(stack("reference-rig"))
    found = wanted(rendered)
    assert found.namespace == "sovereign"
    assert [title(one) for one in found.objects] == [title(one) for one in rendered]


def test_texts_of_a_secret_are_sent_as_data() -> None:
    made = objects("sovereign")
    secret = next(one for one in made if one["kind"] == "Secret")
    secret["data"] = {"other": "AAAA"}
    found = next(one for one in wanted(made).objects if one["kind"] == "Secret")
    assert "stringData" not in found
    assert found["data"] == {"other": "AAAA", "keys.json": base64.b64encode(b"[]\n").decode()}
    assert secret["stringData"], "what was given is not changed"


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ([], "no objects"),
        (["text"], "not a Kubernetes object: text"),
        ([{"kind": "Namespace"}], "not a Kubernetes object"),
        (changed("Service", labels={}), "Service/engine lacks the labels of the stack `sovereign`"),
        (changed("Service", namespace="other"), "Service/engine is of namespace `other`"),
        (changed("Namespace", name="other"), "Namespace/other is of namespace `other`"),
        (changed("Namespace", labels={}), "Namespace/sovereign lacks the labels of the stack `None`"),
        (objects("sovereign") + objects("other"), "lacks the labels of the stack `sovereign`"),
        ([*objects("sovereign"), objects("sovereign")[3]], "ConfigMap/engine-1 is there twice"),
        ([{**objects("sovereign")[0], "kind": "Pod"}], "`Pod` of v1 is not a kind"),
    ],
)
def test_what_is_not_a_stack(made: list[Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        wanted(made)


def test_a_file_and_a_folder_say_the_same(tmp_path: Path) -> None:
    rendered = render_stack(stack("reference-rig"))
    folder = tmp_path / "manifests"
    folder.mkdir()
    for name, text in {**to_files(rendered), "triton-stack.yaml": to_stack(rendered)}.items():
        (folder / name).write_text(text)
    expected = [dict(one) for one in rendered]
    assert read_manifests(folder / "triton-stack.yaml") == expected
    assert read_manifests(folder) == expected, "the kustomization says which files count"
    (folder / "triton-stack.yaml").unlink()
    (folder / "kustomization.yaml").unlink()
    assert read_manifests(folder) == expected


def test_lists_and_empty_documents(tmp_path: Path) -> None:
    file = tmp_path / "stack.yaml"
    file.write_text("---\n---\nkind: List\nitems: [{a: 1}, {b: 2}]\n---\nc: 3\n")
    assert read_manifests(file) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is not there"):
        read_manifests(tmp_path / "nothing")
    (tmp_path / "bad.yaml").write_text("a: 1\nb: [\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:3: not YAML"):
        read_manifests(tmp_path / "bad.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: not YAML"):
        read_manifests(tmp_path / "bytes.yaml")
    (tmp_path / "kustomization.yaml").write_text("resources: [gone.yaml]\n")
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read: No such file"):
        read_manifests(tmp_path)


def test_a_kustomization_that_does_more(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: my-\n")
    with pytest.raises(ConfigError, match="does more than list resources") as caught:
        read_manifests(tmp_path)
    assert "kubectl kustomize" in caught.value.hint
    (tmp_path / "kustomization.yaml").write_text("")
    with pytest.raises(ConfigError, match="does more than list resources"):
        read_manifests(tmp_path)
