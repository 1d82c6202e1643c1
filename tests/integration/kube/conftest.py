"""Tests run on the fake, and also on a real cluster if MOE_TEST_KUBECONFIG names one."""

import pytest

from tests.integration.kube.target import Target, real
from tests.kube.server import KubeServer


@pytest.fixture(scope="module", params=["fake", *(["real"] if real() else [])])
def target(request, tmp_path_factory):
    config = real()
    if request.param == "real":
        assert config is not None
        made = Target(config)
        yield made
        made.close()
        return
    with KubeServer() as server:
        folder = tmp_path_factory.mktemp("kube")
        made = Target(server.kubeconfig(folder / "kubeconfig"), server)
        yield made
        made.close()
