from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sovereign_ai.errors import InventoryError, NoPermission, SovereignError
from sovereign_ai.inventory import document as module
from sovereign_ai.inventory import load_inventory, save_inventory
from sovereign_ai.inventory.nvml import read_gpus
from sovereign_ai.spec import Inventory, Link
from tests.inventory.fakes import H100, FakeNvml, cpu, gpu, inventory, node, six_card_rig

EXAMPLE = Path(__file__).parents[2] / "examples" / "reference-rig" / "inventory.json"


def refused(path: Path) -> InventoryError:
    with pytest.raises(InventoryError) as caught:
        load_inventory(path)
    return caught.value


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """The reference rig's file after an edit of its data, written with its own line breaks."""

    def edit(change: Callable[[Any], None]) -> Path:
        data = msgspec.json.decode(EXAMPLE.read_bytes())
        change(data)
        path = tmp_path / "inventory.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=2))
        return path

    return edit


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "inventory.json"
    for there in (six_card_rig(), inventory(cpu()), inventory(cpu(), gpu(0, "NVIDIA L4", 23034))):
        save_inventory(path, there)
        assert load_inventory(path) == there
    assert path.read_text().endswith("}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_driver_answers_can_be_saved_and_loaded(tmp_path: Path) -> None:
    """Lost cards on two nodes included: their ids are the same."""
    path = tmp_path / "inventory.json"
    gpus = read_gpus(FakeNvml(["NVIDIA H100"] * 3, {("card", 2): 15}, card=H100))
    nodes = [node(*gpus.devices, name="a"), node(*read_gpus(FakeNvml(["A"], {"uuid": 15})).devices, name="b")]
    linked = msgspec.structs.replace(nodes[0], links=gpus.links)
    save_inventory(path, there := Inventory(nodes=(linked, nodes[1], node(cpu(), name="c"))))
    assert load_inventory(path) == there


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inventory.json"
    save_inventory(path, six_card_rig())
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SovereignError, match="no space left while writing the inventory"):
        save_inventory(path, inventory(cpu()))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InventoryError, match="no such file or folder"):
        save_inventory(tmp_path / "none" / "inventory.json", six_card_rig())
    (tmp_path / "folder").mkdir()
    with pytest.raises(InventoryError, match=r"directory"):
        save_inventory(tmp_path / "folder", six_card_rig())

    def refuse(**options: Any) -> tuple[int, str]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(NoPermission):
        save_inventory(tmp_path / "inventory.json", six_card_rig())


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in refused(tmp_path / "none.json").message
    assert "sovereign inventory --save" in refused(tmp_path / "none.json").hint
    assert "directory" in refused(tmp_path).message.lower()
    assert "null" in refused(Path("a\0b")).message
    bad = tmp_path / "bad.json"
    bad.write_bytes(b'{\n"nodes": "\xff"}')
    assert refused(bad).message == f"{bad}:2: not UTF-8 text (byte 12)"
    monkeypatch.setattr(module, "MAX_BYTES", 8)
    assert "no inventory" in refused(bad).message


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "truncated"),
        ('{\n"nodes": [\n', 2, "truncated"),
        ('{\n"nodes": [,]}', 2, "invalid character"),
        ('{"nodes": []}\n\nmore', 3, "trailing characters"),
        ('{\n"nodes":\n NaN}', 3, "invalid character"),
    ],
)
def test_what_is_no_json(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = tmp_path / "inventory.json"
    path.write_text(text)
    error = refused(path)
    assert error.message.startswith(f"{path}:{line}: not valid JSON: ")
    assert problem in error.message


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "inventory.json"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.read_bytes())
    assert load_inventory(path) == load_inventory(EXAMPLE)


def test_json_nested_beyond_all_measure(tmp_path: Path) -> None:
    path = tmp_path / "inventory.json"
    path.write_text('{"nodes": ' + "[" * 200_000)
    assert str(path) in refused(path).message


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[]", "1: expected `object`, got `array`", "docs/reference/inventory.md"),
        ("{}", "1: object missing required field `nodes`", "docs/reference"),
        ('{\n"nodes": [\n{"nam": "x"}]}', "3 (nodes[0].nam): object", "mean `name`?"),
        ('{"nodes": [{"name": 1}]}', "1 (nodes[0].name): expected `str`, got `int`", "docs/reference"),
        ('{"gpus": []}', "1 (gpus): object contains unknown field `gpus`", "fields there: nodes"),
        ('{"nodes": [{"devices": [{"pcie": {"gen": 1}}]}]}', "1 (nodes[0].devices[0].pcie.gen)", "gener"),
        ('{"nodes": [{"name": 1}]', " (nodes[0].name): expected `str`", "docs/reference"),
        ('{"nodes": [{"name": 1]}}]}]', " (nodes[0].name): expected `str`", "docs/reference"),
    ],
)  # fmt: skip
def test_json_that_is_no_inventory(tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = tmp_path / "inventory.json"
    path.write_text(text)
    error = refused(path)
    assert message in error.message
    assert error.message.startswith(str(path))
    assert hint in error.hint


def test_a_key_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "inventory.json"
    path.write_text(EXAMPLE.read_text().replace('"cores": 16,', '"cores": 16,\n"cores": 8,'))
    error = refused(path)
    assert "(nodes[0].cores): the key is given twice (first on line " in error.message


def test_the_line_is_the_one_of_the_value(edited: Callable[[Callable[[Any], None]], Path]) -> None:
    path = edited(lambda data: data["nodes"][0]["devices"][3].update(bandwidth_bytes_per_s=0))
    error = refused(path)
    line = int(error.message.removeprefix(f"{path}:").partition(" ")[0])
    assert path.read_text().splitlines()[line - 1].strip() == '"bandwidth_bytes_per_s": 0,'
    assert "(nodes[0].devices[3].bandwidth_bytes_per_s)" in error.message


def test_a_uuid_on_two_nodes_names_both_places(edited: Callable[[Callable[[Any], None]], Path]) -> None:
    def double(data: Any) -> None:
        data["nodes"].append({**data["nodes"][0], "name": "other"})

    path = edited(double)
    error = refused(path)
    twice = '"id": "GPU-1f2a7333-0e1f-5061-8f3a-77193c18758a",'
    first, second = (at for at, line in enumerate(path.read_text().splitlines(), 1) if line.strip() == twice)
    assert error.message == (
        f"{path}:{second} (nodes[1].devices[0].id): device GPU-1f2a7333-0e1f-5061-8f3a-77193c18758a is there "
        f"twice (first {path}:{first} (nodes[0].devices[0].id))"
    )
    assert "remove or rename" in error.hint


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_file_is_refused_in_our_words_or_read(tmp_path: Path, data: st.DataObject) -> None:
    """One byte of the example is replaced or cut: nothing but an InventoryError comes out."""
    text = bytearray(EXAMPLE.read_bytes())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=3))
    path = tmp_path / "inventory.json"
    path.write_bytes(text)
    try:
        load_inventory(path)
    except InventoryError as error:
        assert str(path) in error.message


def test_links_are_kept(tmp_path: Path) -> None:
    there = msgspec.structs.replace(
        node(gpu(0, "A", 8192), gpu(1, "A", 8192)),
        links=(Link(a="GPU-00000000", b="GPU-00000001", kind="p2p"),),
    )
    save_inventory(tmp_path / "x.json", Inventory(nodes=(there,)))
    assert load_inventory(tmp_path / "x.json").nodes[0].links == there.links
