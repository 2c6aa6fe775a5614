from __future__ import annotations

import json
import re

from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.render.kubernetes import render_stack
from sovereign_ai.render.kubernetes.monitoring import PANELS
from tests.render.kubernetes.examples import stack


def test_every_panel_asks_for_a_metric_that_there_is() -> None:
    exported = set(re.findall(r"^# TYPE (\S+)", Metrics().text().decode(), re.M))
    for title, query, _ in PANELS:
        names = re.findall(r"(?:sovereign|gen_ai_server)_[a-z_]+", query)
        assert names, title
        for name in names:
            found = {name, name.removesuffix("_bucket"), name.removesuffix("_total")}
            assert found & exported, name


def test_what_is_scraped_may_be_reached() -> None:
    objects = render_stack(stack("reference-rig", cluster={"monitoring": True}))
    kinds = [one["kind"] for one in objects]
    assert (kinds.count("ServiceMonitor"), kinds.count("PodMonitor")) == (2, 1)
    policies = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}
    assert policies["sovereign-agent"]["ingress"][0]["ports"] == [{"port": 9400, "protocol": "TCP"}]
    dashboard = next(one for one in objects if one["metadata"]["name"] == "sovereign-dashboard")
    assert len(json.loads(dashboard["data"]["sovereign.json"])["panels"]) == len(PANELS)
    without = render_stack(stack("reference-rig"))
    assert not {"ServiceMonitor", "PodMonitor"} & {one["kind"] for one in without}
