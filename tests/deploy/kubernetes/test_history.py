from __future__ import annotations

import base64
import random

import msgspec
import pytest

from sovereign_ai.deploy.kubernetes import history
from sovereign_ai.deploy.kubernetes.kinds import SECRET, title
from sovereign_ai.errors import DeployError
from sovereign_ai.render.kubernetes.labels import Object, described, owned
from tests.deploy.kubernetes.clusters import Cluster
from tests.deploy.kubernetes.stacks import less, more, small, with_image

WHEN = "2026-11-26T00:00:00Z"


def big() -> Object:
    """Nothing that can be packed."""
    noise = base64.b64encode(random.Random(1).randbytes(2_000_000)).decode()
    return described("ConfigMap", "big", "sovereign", owned("sovereign"), data={"noise": noise})


def test_what_is_packed_is_unpacked() -> None:
    secrets = history.pack(small(), 7, WHEN)
    assert [title(one) for one in secrets] == ["Secret/sovereign-last-good-7"]
    (revision,) = history.revisions(secrets)
    assert (revision.number, revision.applied_at) == (7, WHEN)
    assert history.unpack(revision) == small()
    assert history.pack(small(), 7, WHEN) == secrets


def test_a_stack_too_large_for_one_secret() -> None:
    stack = more(small(), big())
    secrets = history.pack(stack, 2, WHEN)
    assert [title(one) for one in secrets] == [
        "Secret/sovereign-last-good-2",
        "Secret/sovereign-last-good-2-1",
        "Secret/sovereign-last-good-2-2",
    ]
    assert all(len(base64.b64decode(one["data"][history.KEY])) <= 900_000 for one in secrets)
    assert all(len(msgspec.json.encode(one)) < 1.5 * 2**20 for one in secrets)
    (revision,) = history.revisions(reversed(secrets))
    assert history.unpack(revision) == stack


def test_a_revision_without_all_its_parts_is_none() -> None:
    secrets = history.pack(more(small(), big()), 2, WHEN)
    for missing in range(3):
        assert history.revisions([*secrets[:missing], *secrets[missing + 1 :]]) == []


def test_the_newest_comes_first_and_others_are_left_out() -> None:
    secrets = [one for number in (9, 10, 2) for one in history.pack(small(), number, WHEN)]
    nameless = described(
        "Secret", "x", "sovereign", {**owned("sovereign"), "app.kubernetes.io/component": "last-good"}
    )
    assert [one.number for one in history.revisions([*secrets, *small().objects, nameless])] == [10, 9, 2]


@pytest.mark.parametrize("data", [{}, {history.KEY: "%"}, {history.KEY: "AAAA"}])
def test_a_damaged_revision(data: dict[str, str]) -> None:
    (secret,) = history.pack(small(), 1, WHEN)
    (revision,) = history.revisions([{**secret, "data": data}])
    with pytest.raises(DeployError, match="revision 1 cannot be read") as caught:
        history.unpack(revision)
    assert "--to" in caught.value.hint


def test_a_revision_that_somebody_changed() -> None:
    (secret,), (other,) = (
        history.pack(small(), 1, WHEN),
        history.pack(less(small(), "Service/engine"), 1, WHEN),
    )
    (revision,) = history.revisions([{**secret, "data": other["data"]}])
    with pytest.raises(DeployError, match="revision 1 is not what was kept"):
        history.unpack(revision)


def test_a_good_one_is_remembered_once(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    changed = small(cluster.namespace, Deployment=with_image("localhost/engine:2.0"))
    with cluster.door() as door:
        assert history.remember(door, stack) == (1, True)
        assert history.remember(door, stack) == (1, False)
        assert history.remember(door, changed) == (2, True)
        assert history.remember(door, stack) == (3, True)
        known = history.revisions(door.ours(SECRET, cluster.namespace))
        assert [history.unpack(one) for one in known] == [stack, changed, stack]
    assert cluster.difference(stack).is_empty, "records are not pruned"


def test_the_largest_stack_fits(cluster: Cluster) -> None:
    """What a real server takes as a Secret is what the packing counts on."""
    stack = small(cluster.namespace)
    cluster.bring(stack)
    huge = big()
    huge["metadata"] = {
        **huge["metadata"],
        "namespace": cluster.namespace,
        "labels": owned(cluster.namespace),
    }
    with cluster.door() as door:
        history.remember(door, more(stack, huge))
        (revision,) = history.revisions(door.ours(SECRET, cluster.namespace))
    assert history.unpack(revision) == more(stack, huge)


def test_the_oldest_are_forgotten(fake: Cluster) -> None:
    fake.bring(small())
    with fake.door() as door:
        for number in range(1, 13):
            stack = small(Deployment=with_image(f"localhost/engine:{number}"))
            assert history.remember(door, stack, now=lambda: 0.0) == (number, True)
        known = history.revisions(door.ours(SECRET, "sovereign"))
    assert [one.number for one in known] == list(range(12, 2, -1))
    assert known[0].applied_at == "1970-01-01T00:00:00Z"


def test_numbers_go_on_after_one_that_was_cut_short(fake: Cluster) -> None:
    fake.bring(small())
    for one in history.pack(more(small(), big()), 4, WHEN)[1:]:
        fake.fake.put(one)
    with fake.door() as door:
        assert history.remember(door, small()) == (5, True)
