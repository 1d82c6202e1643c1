"""A fake Kubernetes API server over real HTTP, with the checks and errors of a real one.

In a test with or without asyncio (the server has its own thread)::

    from tests.kube.server import KubeServer
    from tests.kube import objects

    @pytest.fixture
    def server():
        with KubeServer() as server:
            yield server

    async def test_something(server, tmp_path):
        server.create(objects.node("n1"))
        server.create(objects.raycluster("moe", objects.worker_group("ranks", replicas=2)))
        api = KubernetesApi(SETTINGS, server.configuration())      # as an administrator
        ...
        assert server.get("rayclusters", "moe")["spec"]["workerGroupSpecs"][0]["replicas"] == 4

For another process, set KUBECONFIG to ``server.kubeconfig(tmp_path / "kubeconfig")``. To act as a
service account with the permissions of the server's Roles, pass
``token=rbac.service_account_token(namespace, name)`` to either.

Changes and faults: ``server.patch("nodes", "n1", {"spec": {"unschedulable": True}})`` (JSON
merge patch), ``server.delete("pods", "w0", grace=0)``, ``server.drop()`` (cuts connections),
``server.stop()`` and ``server.start()`` (unreachable, and back on the same port),
``server.store.compact()`` (410 for older versions), ``server.store.bookmark("nodes")``,
``server.faults.add(...)`` (errors, hanging or cut responses). ``server.requests`` has the requests.

Controllers: ``settle(server, KubeRay(), workloads, Kubelet())`` runs the fake operator, Deployments
and nodes until nothing changes; ``with running(server, ...)`` does so in the background, for
Helm and other processes.

``tests/integration/kube`` is the contract: the same exchanges run against the fake and, if
MOE_TEST_KUBECONFIG names a kubeconfig, against a real cluster with KubeRay.

The docstring of each module names the recorded exchange or the document that it follows.
"""
