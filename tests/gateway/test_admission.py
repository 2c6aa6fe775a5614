from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.errors import Forbidden, Unauthenticated
from sovereign_ai.gateway import admission
from sovereign_ai.gateway.admission import KeyRecord

SECRET = "sk-" + "ab" * 32


def record(*, expires: float | None = None, revoked: float | None = None) -> KeyRecord:
    return KeyRecord(
        id="key-1",
        name="laptop",
        prefix="sk-…abab",
        digest=admission.digest(SECRET),
        created=0.0,
        expires=expires,
        revoked=revoked,
    )


def test_digest_is_sha256_in_hex() -> None:
    assert admission.digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("header", [f"Bearer {SECRET}", f"bearer  {SECRET} ", f"BEARER {SECRET}"])
def test_bearer_finds_the_key(header: str) -> None:
    assert admission.bearer(header) == SECRET


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dTpw", SECRET])
def test_bearer_refuses_anything_else(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        admission.bearer(header)
    assert caught.value.code == "invalid_api_key"


def test_a_good_key_is_admitted() -> None:
    assert admission.admit(record(expires=10.0), admission.digest(SECRET), now=9.9).id == "key-1"


@pytest.mark.parametrize(
    ("found", "presented", "words"),
    [
        (None, admission.digest(SECRET), "Incorrect"),
        (record(), admission.digest("sk-other"), "Incorrect"),
        (record(revoked=5.0), admission.digest(SECRET), "revoked"),
        (record(expires=10.0), admission.digest(SECRET), "expired"),
    ],
)
def test_other_keys_are_not(found: KeyRecord | None, presented: str, words: str) -> None:
    with pytest.raises(Unauthenticated, match=words) as caught:
        admission.admit(found, presented, now=10.0)
    assert caught.value.code == "invalid_api_key"


def test_after_a_rotation_the_old_secret_works_for_its_grace() -> None:
    rotated = msgspec.structs.replace(
        record(),
        digest=admission.digest("sk-new"),
        previous_digest=admission.digest(SECRET),
        previous_until=7.0,
    )
    assert admission.admit(rotated, admission.digest("sk-new"), now=99.0) is rotated
    assert admission.admit(rotated, admission.digest(SECRET), now=6.9) is rotated
    with pytest.raises(Unauthenticated, match="replaced"):
        admission.admit(rotated, admission.digest(SECRET), now=7.0)


def test_scopes() -> None:
    metrics = msgspec.structs.replace(record(), scopes=("metrics",))
    assert admission.admit(metrics, metrics.digest, 0.0, scope="metrics") is metrics
    with pytest.raises(Forbidden, match="scope `inference`") as caught:
        admission.admit(metrics, metrics.digest, 0.0)
    assert (caught.value.http_status, caught.value.code) == (403, "missing_scope")


def test_models() -> None:
    admission.check_model(record(), "any")
    some = msgspec.structs.replace(record(), models=("a", "b"))
    admission.check_model(some, "b")
    with pytest.raises(Forbidden) as caught:
        admission.check_model(some, "c")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_allowed")
