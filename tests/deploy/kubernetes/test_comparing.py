from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.deploy.kubernetes.comparing import Change, differences, normal, owned_fields

VALUES = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def of(**fields: Any) -> dict[str, Any]:
    return {"kind": "Deployment", "metadata": {"name": "x"}, **fields}


def changes(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    return [tuple(one) for one in differences(of(spec=old), of(spec=new))]


def test_what_the_server_sets_does_not_count() -> None:
    metadata = {"name": "x", "uid": "1", "resourceVersion": "2", "generation": 3, "managedFields": [1]}
    live = of(metadata={**metadata, "creationTimestamp": "now"}, status={"replicas": 1})
    assert differences(live, of()) == ()
    assert normal(live) == of()


def test_fields_come_go_and_change() -> None:
    assert changes({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": 4}) == [
        ("spec.a", 1, None),
        ("spec.b.c", 2, 3),
        ("spec.d", None, 4),
    ]
    assert changes({"a": {"b": 1}}, {"a": 2}) == [("spec.a", {"b": 1}, 2)]


def test_items_are_told_apart_by_their_keys() -> None:
    old = [{"name": "a", "image": "1"}, {"name": "b"}]
    new = [{"name": "b"}, {"name": "a", "image": "2"}, {"name": "c"}]
    assert changes(old, new) == [
        ("spec[a].image", "1", "2"),
        ("spec[c]", None, {"name": "c"}),
        ("spec (order)", ["a", "b"], ["b", "a"]),
    ]
    mounts = [{"name": "x", "mountPath": "/a"}, {"name": "x", "mountPath": "/b"}]
    assert changes(mounts, mounts[:1]) == [("spec[/b]", mounts[1], None)]


def test_plain_lists() -> None:
    assert changes(["a", "b"], ["a", "c"]) == [("spec[1]", "b", "c")]
    assert changes(["a", "b"], ["b"]) == [("spec", ["a", "b"], ["b"])]
    assert changes([{"x": 1}], [{"x": 2}]) == [("spec[0].x", 1, 2)]


def test_names_with_dots_and_slashes_stand_in_brackets() -> None:
    (one,) = differences(of(data={"a.json": "1"}), of(data={"a.json": "2"}))
    assert one == Change("data[a.json]", "1", "2")


def test_secrets_are_never_shown() -> None:
    old, new = ({"kind": "Secret", "metadata": {}, "data": {"keys": value}} for value in ("b2xk", "bmV3"))
    (one,) = differences(old, new)
    assert one.path == "data.keys"
    assert "b2xk" not in str(one) and "bmV3" not in str(one)
    assert one.old.startswith("secret, digest ") and one.old != one.new


@given(VALUES, VALUES)
def test_there_is_a_change_where_and_only_where_something_differs(old: Any, new: Any) -> None:
    found = differences(of(spec=old), of(spec=new))
    assert bool(found) == (old != new)
    for one in found:
        assert one.old != one.new
        assert one.path.startswith("spec")


def test_owned_fields() -> None:
    ours = {"manager": "sovereign", "operation": "Apply", "fieldsV1": {"f:spec": {}}}
    others = [
        {**ours, "manager": "kubectl"},
        {**ours, "operation": "Update"},
        {**ours, "subresource": "status"},
    ]
    assert owned_fields({"metadata": {"managedFields": [*others, ours]}}) == {"f:spec": {}}
    assert owned_fields({"metadata": {"managedFields": others}}) is None
    assert owned_fields({"metadata": {}}) is None
