"""Ray Serve LLM's data-parallel app on a private Ray cluster, until SIGTERM.

    python -m loadtest.bench.ray_serve_llm PORT ENGINE_ARGUMENTS_JSON

The app is that of ``ray.serve.llm.build_dp_openai_app`` with its defaults: Serve's HTTP proxy, one
ingress replica, and a gang of replicas with one data-parallel rank each. Packages beyond ours are
on PYTHONPATH (``deployments``).
"""

import json
import signal
import sys
from typing import Any

from serving.engine.ray import cluster
from serving.settings import Settings, load_settings

_RANK_CPUS = 2
"""Number of Ray CPUs of a rank: one for its replica, one for its worker."""
_OTHER_CPUS = 2
"""Number of additional Ray CPUs: one for the ingress replica, and one spare."""


def configuration(settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the argument of ``build_dp_openai_app``.

    Args:
        settings: All settings.
        arguments: Engine arguments of vLLM, the same as for vLLM's own server.
    """
    return {
        "llm_config": {
            "model_loading_config": {
                "model_id": settings.model.name,
                "model_source": settings.model.path,
            },
            "accelerator_config": {"kind": "cpu"},
            "engine_kwargs": arguments,
            # vLLM's server also runs without statistics; Ray Serve LLM enables them by default.
            "log_engine_metrics": not arguments.get("disable_log_stats", False),
        }
    }


def serve(port: int, arguments: dict[str, Any]) -> None:
    """Start Ray, Serve and the app; wait until all replicas are ready."""
    ranks = arguments["data_parallel_size"]
    settings = load_settings(flags={"ray": {"num_cpus": ranks * _RANK_CPUS + _OTHER_CPUS}})
    cluster.start_private(settings)
    # Ray and vLLM read the environment that start_private prepares: import them after it.
    from ray import serve as ray_serve
    from ray.serve.llm import build_dp_openai_app

    quiet = {"log_level": "WARNING", "enable_access_log": False}  # like vLLM's server
    ray_serve.start(http_options={"host": cluster.LOOPBACK, "port": port}, logging_config=quiet)
    application = build_dp_openai_app(configuration(settings, arguments))
    ray_serve.run(application, name=settings.model.name, logging_config=quiet)


def main() -> None:
    """Run the command line: serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve(int(sys.argv[1]), json.loads(sys.argv[2]))
        print("READY", flush=True)
        signal.pause()
    finally:
        cluster.disconnect()


if __name__ == "__main__":
    main()
