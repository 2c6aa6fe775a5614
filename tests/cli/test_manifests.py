from __future__ import annotations

from pathlib import Path

import yaml

from tests.cli.conftest import Here, here
from tests.render.kubernetes.examples import EXAMPLES

__all__ = ["here"]

RIG = (
    "-f",
    str(EXAMPLES / "reference-rig" / "factory.yaml"),
    "-i",
    str(EXAMPLES / "reference-rig" / "inventory.json"),
)


def test_all_to_standard_output(here: Here) -> None:
    done = here("render", *RIG)
    assert (done.code, done.err) == (0, "")
    kinds = [one["kind"] for one in yaml.safe_load_all(done.out)]
    assert kinds[0] == "Namespace"
    assert kinds.count("Deployment") == 4


def test_into_a_folder_and_again(here: Here, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    assert here("render", *RIG, "-o", str(folder)).code == 0
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"kustomization.yaml", "triton-stack.yaml"} < files.keys()
    (folder / "mine.txt").write_text("not rendered")
    (folder / "99-old.yaml").write_text("rendered before")
    assert here("render", *RIG, "-o", str(folder)).code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        **files,
        "mine.txt": b"not rendered",
    }


def test_a_chart(here: Here, tmp_path: Path) -> None:
    assert here("render", *RIG, "-o", str(tmp_path / "chart"), "--format", "helm").code == 0
    assert (tmp_path / "chart" / "Chart.yaml").exists()
    assert list((tmp_path / "chart" / "templates").glob("*-deployment-triton-*.yaml"))
    refused = here("render", *RIG, "--format", "helm")
    assert (refused.code, "a chart is a folder" in refused.err) == (64, True)


def test_a_saved_plan(here: Here, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert here("plan", *RIG, "--save", str(plan)).code == 0
    assert here("render", *RIG, "--plan", str(plan)).out == here("render", *RIG).out


def test_what_cannot_be_written(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = here("render", *RIG, "-o", str(tmp_path / "file"))
    assert (done.code, "is not a folder" in done.err) == (64, True)
    done = here("render", *RIG, "-o", str(tmp_path / "file" / "below"))
    assert done.code in (64, 74)


def test_the_keys_of_this_home(here: Here) -> None:
    """Their digests; a key itself is nowhere."""
    secret = here("keys", "create", "me").out
    key = next(word for word in secret.split() if word.startswith("sk-"))
    out = here("render", *RIG).out
    assert '\\"name\\": \\"me\\"' in out or '"name": "me"' in out
    assert key not in out
