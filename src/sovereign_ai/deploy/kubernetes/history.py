"""What was applied and became ready: kept in the cluster itself, in Secrets, since manifests have one.

A revision is the whole of the manifests, packed, in as many Secrets as it takes. The first of them is written
last: a revision without it is not there.
"""

from __future__ import annotations

import base64
import gzip
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from sovereign_ai.deploy.kubernetes.door import Door
from sovereign_ai.deploy.kubernetes.kinds import LAST_GOOD, SECRET, is_record, labels_of
from sovereign_ai.deploy.kubernetes.manifests import Wanted, wanted
from sovereign_ai.errors import DeployError
from sovereign_ai.render.kubernetes.labels import COMPONENT, DOMAIN, Object, described, digest, owned

NAME = "sovereign-last-good"
REVISION, DIGEST, PARTS, WHEN = (f"{DOMAIN}/{word}" for word in ("revision", "digest", "parts", "applied-at"))
KEY = "manifests.json.gz"

PART_BYTES = 900_000
"""A Secret may hold 1 MiB, and etcd takes requests of 1.5 MiB, in which this is base64."""
KEPT = 10
"""Revisions."""


class Revision(NamedTuple):
    number: int
    digest: str
    applied_at: str
    """RFC 3339."""
    secrets: tuple[Object, ...]
    """In order."""


def pack(good: Wanted, number: int, applied_at: str) -> list[Object]:
    """The Secrets of a revision, in order. The same objects give the same bytes."""
    packed = gzip.compress(msgspec.json.encode(good.objects, order="deterministic"), mtime=0)
    parts = [packed[start : start + PART_BYTES] for start in range(0, len(packed), PART_BYTES)]
    annotations = {
        DIGEST: digest(good.objects),
        PARTS: str(len(parts)),
        WHEN: applied_at,
    }
    return [_secret(good.namespace, number, index, part, annotations) for index, part in enumerate(parts)]


def _secret(namespace: str, number: int, index: int, part: bytes, annotations: dict[str, str]) -> Object:
    labels = {**owned(namespace), COMPONENT: LAST_GOOD, REVISION: str(number)}
    name = f"{NAME}-{number}" + (f"-{index}" if index else "")
    data = {KEY: base64.b64encode(part).decode()}
    made = described("Secret", name, namespace, labels, type="Opaque", immutable=True, data=data)
    return {**made, "metadata": {**made["metadata"], "annotations": annotations}}


def revisions(secrets: Iterable[Object]) -> list[Revision]:
    """Of all of a stack's Secrets, the complete revisions, the newest first."""
    parts: dict[int, list[Object]] = {}
    for one in secrets:
        if is_record(one) and labels_of(one).get(REVISION, "").isdigit():
            parts.setdefault(int(labels_of(one)[REVISION]), []).append(one)
    found = (_revision(number, its) for number, its in sorted(parts.items(), reverse=True))
    return [one for one in found if one]


def _revision(number: int, secrets: Sequence[Object]) -> Revision | None:
    ordered = sorted(secrets, key=lambda one: (len(one["metadata"]["name"]), one["metadata"]["name"]))
    first = ordered[0]
    notes = first["metadata"].get("annotations") or {}
    if first["metadata"]["name"] != f"{NAME}-{number}" or notes.get(PARTS) != str(len(ordered)):
        return None
    return Revision(number, str(notes.get(DIGEST)), str(notes.get(WHEN)), tuple(ordered))


def unpack(revision: Revision) -> Wanted:
    """Raises DeployError where it is damaged."""
    try:
        packed = b"".join(base64.b64decode(one["data"][KEY], validate=True) for one in revision.secrets)
        objects = msgspec.json.decode(gzip.decompress(packed), type=tuple[Object, ...])
    except (KeyError, ValueError, OSError, EOFError, zlib.error) as error:
        raise DeployError(f"revision {revision.number} cannot be read: {error}", _CHOOSE) from error
    if digest(objects) != revision.digest:
        raise DeployError(f"revision {revision.number} is not what was kept", _CHOOSE)
    return wanted(objects)


_CHOOSE = "choose another with --to"


def remember(door: Door, good: Wanted, *, now: Callable[[], float] = time.time) -> tuple[int, bool]:
    """The number of the revision that has these manifests, and whether it is a new one. The oldest go."""
    secrets = door.ours(SECRET, good.namespace)
    known = revisions(secrets)
    if known and known[0].digest == digest(good.objects):
        return known[0].number, False
    number = 1 + max((int(labels_of(one).get(REVISION, 0)) for one in secrets if is_record(one)), default=0)
    for one in reversed(pack(good, number, _moment(now()))):
        door.apply(one)
    for one in (secret for old in known[KEPT - 1 :] for secret in old.secrets):
        door.delete(one)
    return number, True


def _moment(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
