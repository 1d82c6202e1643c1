"""Settings of batches: their storage, their limits, and the capacity that they may use."""

from pydantic import Field, model_validator

from serving.settings.base import Seconds, SettingsGroup


class BatchSettings(SettingsGroup):
    """OpenAI-compatible files and batches, run on idle capacity (deploy/docs/batch.md)."""

    directory: str | None = None
    """Folder of the SQLite database, unless database_url is set, and of the files, unless
    storage_url is set. Created if missing. Without database_url, each router needs a separate
    folder. With database_url but without storage_url, all routers need the same folder, e.g. on a
    network file system. If null, batches are disabled, and their routes return 501."""
    database_url: str | None = Field(None, pattern=r"^postgresql://")
    """PostgreSQL database through which several routers share batches, e.g.
    postgresql://moe@host/batches. Null means an SQLite database in directory."""
    database_password_file: str | None = None
    """File with the password of the PostgreSQL user. Null means the password in database_url, if it
    contains one."""
    database_timeout: Seconds = 10.0
    """Timeout for connecting to PostgreSQL and for each statement, seconds."""
    storage_url: str | None = Field(None, pattern=r"^s3://[^/]+")
    """Bucket and prefix of the files in S3-compatible object storage, e.g. s3://bucket/batches.
    Credentials come from the environment, files or the machine's role, as for all AWS clients. If
    null, files are stored in directory."""
    storage_endpoint: str | None = Field(None, pattern=r"^https?://")
    """URL of the object storage, e.g. https://minio:9000. Null means the AWS endpoint."""
    storage_timeout: Seconds = 10.0
    """Timeout for connecting to the object storage and for each read, seconds."""
    max_file_bytes: int = Field(2**30, ge=2**10)
    """Maximum size of an uploaded file, bytes."""
    max_lines: int = Field(1_000_000, ge=1)
    """Maximum number of lines of a batch; further lines are not run."""
    tenant_bytes: int = Field(10 * 2**30, ge=2**10)
    """Maximum total size of a tenant's files, including results, bytes. Uploads beyond it are
    rejected."""
    tenant_files: int = Field(1000, ge=1)
    """Maximum number of a tenant's files. Uploads beyond it are rejected."""
    tenant_batches: int = Field(100, ge=1)
    """Maximum number of a tenant's batches that have not ended."""
    max_window: Seconds = 7 * 86400.0
    """Maximum completion window of a batch, seconds."""
    retention: Seconds = 30 * 86400.0
    """Time after which a file is deleted, unless its upload sets a shorter time, seconds. A batch
    is deleted this long after the end of its completion window."""
    max_running_lines: int = Field(256, ge=1)
    """Maximum number of lines that a router runs or prepares at the same time, over all batches."""
    lease: Seconds = 30.0
    """Duration of a router's lease on the lines that it runs, seconds. If the router does not renew
    the lease in this time, other routers take over its lines. Differences between the routers'
    clocks must be small compared to it."""
    interval: Seconds = 1.0
    """Interval at which a router looks for new batches, seconds."""
    itl_slo: Seconds | None = None
    """Maximum duration of an engine step, and thus maximum inter-token latency, while lines run
    alongside other requests, seconds. If null, max_step_growth applies."""
    max_step_growth: float = Field(0.1, ge=0)
    """Fraction by which lines may lengthen an engine step that also serves other requests. Ignored
    if itl_slo is set."""
    ttft_slo: Seconds | None = None
    """Target p90 time to first token of other requests, seconds. While it is exceeded, fewer lines
    run alongside them. If null, the time to first token does not limit lines."""
    kv_reserve: float = Field(0.1, ge=0, lt=1)
    """Fraction of a rank's KV cache that is kept free of lines."""

    @model_validator(mode="after")
    def _check(self) -> "BatchSettings":
        if self.database_url is not None and self.directory is None:
            raise ValueError("database_url requires directory, which holds the files")
        if self.database_password_file is not None and self.database_url is None:
            raise ValueError("database_password_file requires database_url")
        if self.storage_url is not None and self.directory is None:
            raise ValueError("storage_url requires directory, which enables batches")
        if self.storage_endpoint is not None and self.storage_url is None:
            raise ValueError("storage_endpoint requires storage_url")
        if self.lease < 3 * self.interval:
            raise ValueError("lease must be at least three times interval")
        return self
