"""The project's one statement of what a Kubernetes API server does, served over real HTTP.

In a test with or without asyncio (the server has a thread)::

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

For another process, ``server.kubeconfig(tmp_path / "kubeconfig")`` is what KUBECONFIG names. For a
service account with the rights of Roles that are in the server, pass
``token=rbac.service_account_token(namespace, name)`` to either.

What can be done to it: ``server.patch("nodes", "n1", {"spec": {"unschedulable": True}})`` (JSON
merge patch), ``server.delete("pods", "w0", grace=0)``, ``server.drop()`` (cuts connections),
``server.stop()`` and ``server.start()`` (away and back on the same port),
``server.store.compact()`` (410 for older versions), ``server.store.bookmark("nodes")``,
``server.faults.add(...)`` (errors, hanging or cut answers). ``server.requests`` is what was asked.

Controllers: ``settle(server, KubeRay(), workloads, Kubelet())`` runs the fake operator, Deployments
and nodes until nothing changes; ``with running(server, ...)`` does so beside Helm and other
processes.

``tests/integration/kube`` is the contract: the same exchanges are tried on the fake and, if
MOE_TEST_KUBECONFIG names a kubeconfig, on a real cluster that has KubeRay.

Each module says in its docstring which recorded exchange or which document it follows.
"""
