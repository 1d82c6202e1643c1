"""Values for GPUs are rendered in the form in which the operator writes them back, and valid."""

from typing import Any

import pytest

from tests.helm import schemas
from tests.helm.chart import find, render
from tests.helm.gpu import BLOCK, gpu
from tests.helm.operator_form import differences, operator_form
from tests.helm.test_node_weights import values as node_weights
from tests.helm.test_scheduling import SCHEDULING

RDMA: dict[str, Any] = {"resource": "rdma/ib", "count": 8}
VALUES = [
    pytest.param(gpu({"rdma": RDMA | {"hca": ["mlx5_0", "mlx5_1"]}}), id="names"),
    pytest.param(gpu({"rdma": RDMA | {"hca": "mlx5"}}), id="prefix"),
    pytest.param(gpu({"rdma": RDMA | {"memlock": "root"}}), id="root"),
    pytest.param(gpu({"rdma": RDMA | {"hostNetwork": True, "networks": "a,b"}}), id="networks"),
    pytest.param(
        gpu({"groups": 3, "topology": {"key": BLOCK, "required": True}}), id="block-a-group"
    ),
    pytest.param(gpu({"groups": 3, "topology": {"key": BLOCK}}), id="preferred"),
    pytest.param(
        gpu(
            {
                "topology": {"key": BLOCK, "required": True},
                "tolerations": [
                    {
                        "key": "a",
                        "operator": "Exists",
                        "effect": "NoExecute",
                        "tolerationSeconds": 9,
                    }
                ],
                "affinity": {
                    "podAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [
                            {
                                "weight": 7,
                                "podAffinityTerm": {
                                    "topologyKey": "zone",
                                    "labelSelector": {"matchLabels": {"a": "y"}},
                                },
                            }
                        ]
                    }
                },
            }
        ),
        id="own-affinity",
    ),
    pytest.param(gpu(scheduling=SCHEDULING | {"podLabels": {"on": "y"}}), id="schedulers"),
    pytest.param(
        gpu(
            dnsPolicy="None",
            dnsConfig={
                "nameservers": ["169.254.20.10"],
                "searches": ["svc.cluster.local"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
            },
        ),
        id="dns",
    ),
    pytest.param(node_weights(), id="weights-on-nodes"),
    pytest.param(gpu({"env": {"HOME": "/x", "NCCL_DEBUG": "1e3"}}), id="variables"),
]


@pytest.mark.parametrize("values", VALUES)
def test_a_second_upgrade_finds_nothing_to_change(values: dict[str, Any]) -> None:
    spec = find(render(**values), "RayService")["spec"]
    assert differences(spec, operator_form(spec)) == {}


@pytest.mark.parametrize("values", VALUES)
def test_every_object_is_valid_and_no_field_unknown(values: dict[str, Any]) -> None:
    on = {"fabricCheck": {"enabled": True}, "imagePrePull": {"enabled": True}}
    for item in render(**values, **on):
        for version in ("1.30", "1.33", "1.36"):
            assert schemas.problems(item, version) == [], item["metadata"]["name"]


@pytest.mark.parametrize("values", VALUES)
def test_both_helms_render_the_same(values: dict[str, Any]) -> None:
    on = {"fabricCheck": {"enabled": True}, "imagePrePull": {"enabled": True}}
    assert render(helm="3", **values, **on) == render(helm="4", **values, **on)
