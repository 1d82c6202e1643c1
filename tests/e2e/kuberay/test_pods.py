"""The start commands equal those that the operator wrote into real pods."""

import pytest

from tests.e2e.kuberay import pods

CASES = [
    pytest.param(
        None,
        {
            "dashboard-host": "0.0.0.0",
            "num-cpus": "0",
            "num-gpus": "0",
            "object-store-memory": "100000000",
        },
        "8Gi",
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head  --block  "
        "--dashboard-agent-listen-port=52365  --dashboard-host=0.0.0.0  --memory=8589934592  "
        "--metrics-export-port=8080  --num-cpus=0  --num-gpus=0  --object-store-memory=100000000 ",
        id="head",
    ),
    pytest.param(
        "rec-moe-serving-v9j2p-head-svc.default.svc.cluster.local:6379",
        {
            "num-cpus": "2",
            "num-gpus": "0",
            "object-store-memory": "100000000",
            "resources": '"{\\"pool-cpu\\": 1}"',
        },
        "4Gi",
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start  "
        "--address=rec-moe-serving-v9j2p-head-svc.default.svc.cluster.local:6379  --block  "
        "--dashboard-agent-listen-port=52365  --memory=4294967296  --metrics-export-port=8080  "
        "--num-cpus=2  --num-gpus=0  --object-store-memory=100000000  "
        '--resources="{\\"pool-cpu\\": 1}" ',
        id="worker",
    ),
]


@pytest.mark.parametrize(("head", "parameters", "memory", "command"), CASES)
def test_the_start_command_is_the_recorded_one(
    head: str | None, parameters: dict[str, str], memory: str, command: str
) -> None:
    container = {"resources": {"limits": {"memory": memory}}}
    pod = {"rayStartParams": parameters, "template": {"spec": {"containers": [container]}}}
    assert pods.start_command(pod, head=head) == command
