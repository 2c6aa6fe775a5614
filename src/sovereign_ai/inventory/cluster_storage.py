"""What the cluster's nodes hold: volumes of models, and images. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sovereign_ai.inventory.cluster_case import ClusterCase
from sovereign_ai.inventory.findings import Check, Seen, fault, ok, skipped, warning

MOST_IMAGES = 50
"""The kubelet lists no more (nodeStatusMaxImages)."""
LOADED = "localhost/"
"""Images that no registry has: somebody must load them on every node."""


def _none(case: ClusterCase, *kinds: str) -> str:
    """Why no volume is judged."""
    if reason := case.unknown(*kinds):
        return reason
    if case.demand.settings.storage.kind != "local":
        return "volumes are hostPath: nothing is bound"
    return "" if case.cluster.claims else "no claim in the namespace yet: apply makes them"


def _storage_class(case: ClusterCase) -> Iterator[Seen]:
    if reason := _none(case, "storageclasses", "persistentvolumeclaims"):
        yield skipped(reason)
        return
    wanted = {claim.storage_class for claim in case.cluster.claims or () if claim.storage_class}
    missing = sorted(wanted - set(case.cluster.storage_classes or ()))
    for name in missing:
        yield fault(f"there is no StorageClass {name}", "sovereign apply, or bring it back with kubectl")
    if not missing:
        yield ok(", ".join(sorted(wanted)) or "claims name none")


def _volumes(case: ClusterCase) -> Iterator[Seen]:
    if reason := _none(case, "persistentvolumes", "persistentvolumeclaims"):
        yield skipped(reason)
        return
    lost = [volume for volume in case.cluster.volumes or () if volume.phase in ("Released", "Failed")]
    for volume in lost:
        what = f"its claim {volume.claim} was deleted: it takes no new one by itself"
        patch = """-p '{"spec":{"claimRef":{"uid":null,"resourceVersion":null}}}'"""
        yield fault(what, f"kubectl patch pv {volume.name} {patch}", volume.name)
    unbound = [claim for claim in case.cluster.claims or () if claim.phase != "Bound"]
    for claim in unbound:
        what = f"{claim.phase}: pods of its node wait for it"
        fix = f"kubectl -n {case.demand.settings.namespace} describe pvc {claim.name}"
        yield (fault if claim.phase == "Lost" else warning)(what, fix, claim.name)
    if not lost and not unbound:
        yield ok(f"{len(case.cluster.claims or ())} claims are bound")


def _images(case: ClusterCase) -> Iterator[Seen]:
    if reason := case.unknown("nodes"):
        yield skipped(reason)
        return
    missing = [
        (node, image) for node in case.ours for image in case.demand.images if image not in node.images
    ]
    capped = sorted({node.name for node, _ in missing if node.images_listed >= MOST_IMAGES})
    told = [(node, image) for node, image in missing if node.name not in capped]
    for node, image in told:
        if image.startswith(LOADED):
            what = f"{image} is not on it, and no registry has it"
            yield fault(what, f"ctr -n k8s.io images import FILE.tar, on {node.name}", node.name)
        else:
            yield warning(f"{image} is not on it yet", f"crictl pull {image}, or wait at first", node.name)
    if capped:
        yield skipped(f"{', '.join(capped)} lists {MOST_IMAGES} images of more: crictl images tells there")
    elif not told:
        yield ok(f"{len(case.demand.images)} images on every node of ours")


STORAGE_CHECKS: tuple[Check[ClusterCase], ...] = (
    Check("storage class", _storage_class),
    Check("volumes", _volumes),
    Check("images", _images),
)
