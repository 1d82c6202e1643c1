"""Connection to a Ray cluster: a private one on loopback, or an existing one.

``ray`` is imported inside the functions because it reads environment variables at import time,
which must be set first.
"""

import contextlib
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.engine.ray.placement import REPLICA_CPUS, NodeRoom
from serving.errors import EngineError
from serving.settings import GroupSettings, Settings, served_models

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 80 * 2**20
"""Size of the object store, bytes. The store is unused; Ray's minimum is about 75 MB."""


class RayNotStarted(EngineError):
    """A private Ray did not start."""

    def __init__(self, reason: str, folder: Path) -> None:
        super().__init__(f"Ray did not start: {reason} Logs: {folder}")
        self.folder = folder
        """Folder of the session files."""


_LONGEST_REASON = 300
"""Maximum length of a quoted error, characters; Ray's errors can contain whole logs."""


@dataclass(frozen=True, slots=True)
class PrivateRay:
    """A Ray cluster that this process has started and that ends with this process."""

    address: str
    """``host:port`` of the GCS."""
    folder: Path
    """Folder of session files and logs; the path is short because Ray creates sockets in it."""
    token: str
    """Authentication token; not stored in the user's ~/.ray."""
    dashboard_url: str | None

    @property
    def log_folder(self) -> Path:
        """Folder of the logs of Ray and the ranks."""
        return self.folder / "session_latest" / "logs"


_UNWATCHED = {
    # Task events and Ray's metrics are used only by the dashboard.
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_timeline": "0",
    "RAY_event_stats": "0",
}


def ray_environment(token: str, *, watched: bool = False) -> dict[str, str]:
    """Return the variables of a Ray cluster with token authentication and low CPU usage.

    They reduce the CPU time of an idle Ray with two ranks from 93 to 50 ms per second (measured on
    a 2-core machine).

    Args:
        token: Authentication token.
        watched: Whether Ray's dashboard is used.
    """
    return ({} if watched else _UNWATCHED) | {
        # By default, Serve's controller runs its loop ten times a second, which uses 40 ms of CPU
        # time per second. A slower loop suffices, because a group takes half a minute to start.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # Prevents other users of the machine from running code in this cluster.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Prestarted workers are never used, because replicas have a runtime environment.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # Kills the engine processes of a replica that is killed.
        "RAY_process_group_cleanup_enabled": "1",
        # Ray's default niceness, 15, gives ranks a low priority on a shared machine.
        "RAY_worker_niceness": "0",
    }


def private_environment(token: str, *, watched: bool = False) -> dict[str, str]:
    """Return the variables of a private Ray, which uses only loopback and prints less."""
    return ray_environment(token, watched=watched) | {
        # ray.init replaces 127.0.0.1 in _node_ip_address with the machine's external address;
        # disabling clusters keeps Ray on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        "RAY_LOG_TO_DRIVER": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def needed_cpus(settings: Settings) -> int:
    """Return the Ray CPUs of a private cluster: ``ray.num_cpus``, or the sum over all groups."""
    if settings.ray.num_cpus is not None:
        return max(1, int(settings.ray.num_cpus))
    needed = sum(
        group.count * group.data_parallel * (REPLICA_CPUS + group.cpus_per_rank)
        for group in _groups(settings)
    )
    return max(1, int(needed + 0.999))


def own_resources(settings: Settings) -> dict[str, float]:
    """Return the custom resources of a private cluster: ``group.node_resource`` of each pool."""
    names = [group.node_resource for group in _groups(settings)]
    return {name: 1.0 for name in names if name is not None}


def _groups(settings: Settings) -> list[GroupSettings]:
    return [pool.settings.group for model in served_models(settings) for pool in model.pools]


def start_private(settings: Settings) -> PrivateRay:
    """Start Ray on loopback and connect to it; blocks for several seconds.

    Call from the main thread: the kernel ends Ray's processes when the thread that started them
    ends, so a killed ``up`` leaves none of them behind.

    Raises:
        RayNotStarted: Ray did not start; the message contains the path of the logs.
    """
    token = _own_token()
    _set_environment(private_environment(token, watched=settings.ray.dashboard))
    folder = Path(tempfile.mkdtemp(prefix="moe-"))
    import ray

    try:
        context = ray.init(
            address="local",
            num_cpus=needed_cpus(settings),
            resources=own_resources(settings),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=settings.ray.dashboard,
            dashboard_host=LOOPBACK,
            dashboard_port=settings.ray.dashboard_port,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
        )
    except Exception as error:
        raise RayNotStarted(_one_line(error), folder) from error
    url = context.dashboard_url or None
    return PrivateRay(
        address=str(context.address_info["gcs_address"]),
        folder=folder,
        token=token,
        dashboard_url=f"http://{url}" if url else None,
    )


def connect(address: str) -> None:
    """Connect to the running cluster at ``address`` (``host:port`` or ``auto``).

    Raises:
        EngineError: The cluster is unreachable or rejects the connection.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise EngineError(
            f"cannot connect to the Ray cluster at {address}: {_one_line(error)}. A cluster "
            "with token authentication needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
            "RAY_AUTH_TOKEN_PATH)"
        ) from error


def disconnect() -> None:
    """Disconnect from the cluster and stop it if it is private. Safe without a connection."""
    import ray

    # Best effort: the caller checks each process afterwards.
    with contextlib.suppress(Exception):
        ray.shutdown()


def forget(folder: Path) -> None:
    """Delete the session files of a private Ray cluster that has ended."""
    shutil.rmtree(folder, ignore_errors=True)


def nodes() -> tuple[NodeRoom, ...]:
    """Return the live nodes with their total and free resources."""
    import ray

    # The public available_resources() sums over the cluster; Serve uses the same private API.
    from ray._private.state import available_resources_per_node

    free: Mapping[str, Mapping[str, float]] = available_resources_per_node()
    return tuple(
        NodeRoom(
            address=str(node["NodeManagerAddress"]),
            total=dict(node["Resources"]),
            # A node that has just joined has not reported yet, and all its resources are free.
            free=dict(free.get(node["NodeID"], node["Resources"])),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def placed_gangs(app: str) -> int:
    """Return the number of gangs of a Serve application that have been placed."""
    return sum(state == "CREATED" for state in gangs(app).values())


def gangs(app: str) -> dict[str, str]:
    """Return the placement-group state of each gang of a Serve application, by gang id."""
    from ray.serve._private.common import GANG_PG_NAME_PREFIX
    from ray.util import placement_group_table

    table: Mapping[str, Mapping[str, object]] = placement_group_table()
    prefix = f"{GANG_PG_NAME_PREFIX}{app}_"
    return {
        # Names of Serve's placement groups end in _INDEX_GANG.
        str(entry["name"]).rpartition("_")[2]: str(entry["state"])
        for entry in table.values()
        if str(entry["name"]).startswith(prefix)
    }


def own_address() -> str:
    """Return the address of this node in the Ray cluster."""
    import ray.util

    return str(ray.util.get_node_ip_address())


@functools.cache
def _own_token() -> str:
    """Return the process's token; constant because Ray reads it once per process."""
    return secrets.token_hex(32)


def _set_environment(values: Mapping[str, str]) -> None:
    """Set variables for this process and its children; unset RAY_ADDRESS."""
    os.environ.update(values)
    # Prevents a connection to another Ray cluster of the user.
    os.environ.pop("RAY_ADDRESS", None)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " …"
