"""The Ray cluster: a private one on loopback, or one that runs already.

``ray`` is imported inside the functions: its settings come from the environment and are
read at import, so the environment is prepared first.
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
from serving.settings import Settings

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's smallest allowed is about 75 MB; nothing of ours goes through the object store."""


class RayNotStarted(EngineError):
    """A private Ray did not come up."""

    def __init__(self, reason: str, folder: Path) -> None:
        super().__init__(f"Ray did not start: {reason} Its logs: {folder}")
        self.folder = folder
        """Its session files."""


_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class PrivateRay:
    """A Ray that this process started and that dies with it."""

    address: str
    folder: Path
    """Session files and logs; a short path, because Ray puts its sockets there."""
    token: str
    """Needed to connect; kept out of the user's ~/.ray."""
    dashboard_url: str | None

    @property
    def log_folder(self) -> Path:
        """Where Ray and the ranks log."""
        return self.folder / "session_latest" / "logs"


_UNWATCHED = {
    # Tasks and Ray's own metrics, which only its dashboard shows.
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_timeline": "0",
    "RAY_event_stats": "0",
}


def ray_environment(token: str, *, watched: bool = False) -> dict[str, str]:
    """Return the variables of every Ray that we start: closed, small, and it cleans up.

    Args:
        token: needed to connect.
        watched: somebody looks at it in Ray's dashboard.

    Idle, Ray takes half as much of a processor as with its own settings: 50 ms a second in place
    of 93, for two ranks on a machine that has two cores for all.
    """
    return ({} if watched else _UNWATCHED) | {
        # Serve's controller looks at its replicas ten times a second, which takes 40 ms of it;
        # our groups take half a minute to start.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # Other users of the machine may not run code here.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Replicas bring their own environment, so idle default workers are never used.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # When a replica is killed, its engine processes go too.
        "RAY_process_group_cleanup_enabled": "1",
        # Ray would run its workers at nice 15: behind everything else on the machine.
        "RAY_worker_niceness": "0",
    }


def private_environment(token: str, *, watched: bool = False) -> dict[str, str]:
    """Return the variables of a private Ray: loopback only, and quiet besides."""
    return ray_environment(token, watched=watched) | {
        # Ray.init's own _node_ip_address turns 127.0.0.1 into the machine's outer address;
        # "no clusters" is what makes it stay on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        "RAY_LOG_TO_DRIVER": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def needed_cpus(settings: Settings) -> int:
    """Return the Ray CPUs of a private cluster: what the groups need, or what is set."""
    if settings.ray.num_cpus is not None:
        return max(1, int(settings.ray.num_cpus))
    group = settings.group
    ranks = group.count * group.data_parallel
    return max(1, int(ranks * (REPLICA_CPUS + group.cpus_per_rank) + 0.999))


def _own_resources(settings: Settings) -> dict[str, float]:
    """Return what a private cluster offers beside CPUs: it is the pool that its groups ask for."""
    name = settings.group.node_resource
    return {} if name is None else {name: 1.0}


def start_private(settings: Settings) -> PrivateRay:
    """Start Ray on loopback and connect to it; blocks for several seconds.

    Must be called from the main thread: the kernel ends Ray's processes when the thread
    that started them ends, which is what keeps a killed ``up`` from leaving them behind.

    Raises:
        EngineError: Ray did not start; the message names its logs.
    """
    token = _own_token()
    _set_environment(private_environment(token, watched=settings.ray.dashboard))
    folder = Path(tempfile.mkdtemp(prefix="moe-"))
    import ray

    try:
        context = ray.init(
            address="local",
            num_cpus=needed_cpus(settings),
            resources=_own_resources(settings),
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
    """Connect to the running cluster at ``address`` (host:port, or auto).

    Raises:
        EngineError: it cannot be reached or refuses us.
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
    """Leave the cluster; a private one stops. Safe without a connection."""
    import ray

    # Stopping is best effort here: the supervisor checks each process afterwards.
    with contextlib.suppress(Exception):
        ray.shutdown()


def forget(folder: Path) -> None:
    """Delete the session files of a private Ray whose processes have been ended."""
    shutil.rmtree(folder, ignore_errors=True)


def nodes() -> tuple[NodeRoom, ...]:
    """Return the live nodes with their total and free resources."""
    import ray

    # The public available_resources() sums over the cluster; Serve itself uses this one.
    from ray._private.state import available_resources_per_node

    free: Mapping[str, Mapping[str, float]] = available_resources_per_node()
    return tuple(
        NodeRoom(
            address=str(node["NodeManagerAddress"]),
            total=dict(node["Resources"]),
            # A node that has just joined has not reported yet: nothing runs there.
            free=dict(free.get(node["NodeID"], node["Resources"])),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def placed_gangs(app: str) -> int:
    """Return how many gangs of Serve application ``app`` hold their resources."""
    return sum(state == "CREATED" for state in gangs(app).values())


def gangs(app: str) -> dict[str, str]:
    """Return the gangs of Serve application ``app``: id, and state of their placement group."""
    from ray.serve._private.common import GANG_PG_NAME_PREFIX
    from ray.util import placement_group_table

    table: Mapping[str, Mapping[str, object]] = placement_group_table()
    prefix = f"{GANG_PG_NAME_PREFIX}{app}_"
    return {
        # Serve's name ends in _INDEX_GANG.
        str(entry["name"]).rpartition("_")[2]: str(entry["state"])
        for entry in table.values()
        if str(entry["name"]).startswith(prefix)
    }


def own_address() -> str:
    """Return the address by which Ray knows this node."""
    import ray.util

    return str(ray.util.get_node_ip_address())


@functools.cache
def _own_token() -> str:
    """Return this process's token; always the same, because Ray reads it once a process."""
    return secrets.token_hex(32)


def _set_environment(values: Mapping[str, str]) -> None:
    """Set variables for this process and all that it starts."""
    os.environ.update(values)
    # A Ray that the user works with must be neither used nor disturbed.
    os.environ.pop("RAY_ADDRESS", None)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # Ray's errors may hold whole logs.
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " …"
