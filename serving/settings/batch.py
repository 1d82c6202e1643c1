"""Settings of batches: storage, limits, and how much runs alongside other requests."""

from pydantic import Field, model_validator

from serving.settings.base import Seconds, SettingsGroup


class BatchSettings(SettingsGroup):
    """Files and batches of OpenAI's API, which use spare capacity (deploy/docs/batch.md)."""

    directory: str | None = None
    """Folder of the SQLite database, unless database_url is set, and of the files, unless
    storage_url is set. Created if missing. Without database_url, each router needs a separate
    folder; with database_url and without storage_url, all routers must share one, for example on a
    network file system. If null, batches are disabled and their routes respond with 501."""
    database_url: str | None = Field(None, pattern=r"^postgresql://")
    """PostgreSQL database with which several routers run the same batches, e.g.
    postgresql://moe@host/batches. Null means SQLite in directory."""
    database_password_file: str | None = None
    """File with the password of the PostgreSQL user. If null, the password in the URL is used, if
    there is one."""
    database_timeout: Seconds = 10.0
    """Timeout for connecting to PostgreSQL and for each statement, seconds."""
    storage_url: str | None = Field(None, pattern=r"^s3://[^/]+")
    """Bucket and prefix of the files in S3-compatible object storage, e.g. s3://bucket/batches.
    Credentials come from the environment, files or the machine's role, as for any AWS client. If
    null, the files are in directory."""
    storage_endpoint: str | None = Field(None, pattern=r"^https?://")
    """URL of the object storage, e.g. https://minio:9000. Null means AWS."""
    storage_timeout: Seconds = 10.0
    """Timeout for connecting to the object storage and for each read, seconds."""
    max_file_bytes: int = Field(2**30, ge=2**10)
    """Maximum size of an uploaded file, bytes."""
    max_lines: int = Field(1_000_000, ge=1)
    """Maximum number of lines of a batch; further lines are not run."""
    tenant_bytes: int = Field(10 * 2**30, ge=2**10)
    """Maximum total size of a tenant's files, including results, bytes. Further uploads are
    rejected."""
    tenant_files: int = Field(1000, ge=1)
    """Maximum number of a tenant's files. Further uploads are rejected."""
    tenant_batches: int = Field(100, ge=1)
    """Maximum number of a tenant's batches that have not ended."""
    max_window: Seconds = 7 * 86400.0
    """Maximum completion window of a batch, seconds."""
    retention: Seconds = 30 * 86400.0
    """Time until a file is deleted, unless its upload sets a shorter one, and from the end of a
    batch's completion window until the batch is deleted, seconds."""
    max_running_lines: int = Field(256, ge=1)
    """Maximum number of lines of all batches that a router runs or prepares at the same time."""
    lease: Seconds = 30.0
    """Time without a renewal by a router after which other routers take over its lines, seconds.
    The clocks of the routers must agree to a small fraction of it."""
    interval: Seconds = 1.0
    """Interval at which a router looks for new batches, seconds."""
    itl_slo: Seconds | None = None
    """Maximum duration of an engine step, and thus inter-token latency, with lines alongside other
    requests, seconds. If null, max_step_growth applies."""
    max_step_growth: float = Field(0.1, ge=0)
    """Fraction by which lines may lengthen an engine step beyond the step that other requests have
    at their recent peak, without itl_slo."""
    peak_window: float = Field(60.0, ge=0)
    """Time over which the recent peak of other requests is determined, seconds: the number on the
    busiest rank of a group that they exceed 10 % of the time. If 0, their current number is used,
    so that lines lengthen each step by at most max_step_growth."""
    max_idle_step: Seconds | None = None
    """Maximum duration of an engine step that runs only lines, seconds; a request that arrives
    waits for the step in progress. Null means no limit."""
    ttft_slo: Seconds | None = None
    """Target p90 time to first token of other requests, seconds. While it is exceeded, fewer lines
    run alongside them. If null, it is not considered."""
    kv_reserve: float = Field(0.1, ge=0, lt=1)
    """Fraction of a rank's KV cache that lines leave free."""

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
