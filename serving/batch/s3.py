"""Contents of files in a bucket of an S3-compatible object storage.

A content becomes visible when its multipart upload is completed. Credentials come from the places
where boto3 looks for them: environment, files, or the machine's role.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from serving.errors import ResourceNotFound, StorageFull

PART_BYTES = 8 * 2**20
"""Size of the parts of an upload, bytes; S3 permits 5 MiB to 5 GiB, and 10,000 parts."""
_MISSING = frozenset({"NoSuchKey", "404"})
_BEYOND_END = "InvalidRange"
_UNSUPPORTED = "NotImplemented"


class Bucket:
    """Contents as objects under a prefix of a bucket; safe to use from several threads."""

    def __init__(self, url: str, endpoint: str | None, timeout: float) -> None:
        """Prepare connections, which are opened when they are needed.

        Args:
            url: ``s3://bucket/prefix``.
            endpoint: URL of the service. None means AWS.
            timeout: Timeout for connecting and for each read, seconds.
        """
        parsed = urlsplit(url)
        self.name = parsed.netloc
        prefix = parsed.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                connect_timeout=timeout,
                read_timeout=timeout,
                retries={"mode": "standard", "max_attempts": 3},
            ),
        )

    def create(self, name: str) -> "ObjectUpload":
        """Start to write a content; see ``ObjectStore``."""
        return ObjectUpload(self, self._prefix + name)

    def read(self, name: str, start: int, length: int) -> bytes:
        """Return part of a content; see ``ObjectStore``."""
        with _failures(name):
            try:
                answer = self.client.get_object(
                    Bucket=self.name,
                    Key=self._prefix + name,
                    Range=f"bytes={start}-{start + length - 1}",
                )
            except ClientError as error:
                if error.response["Error"]["Code"] == _BEYOND_END:
                    return b""
                raise
            data: bytes = answer["Body"].read()
            return data

    def delete(self, name: str) -> None:
        """Delete a content and unfinished uploads of it; see ``ObjectStore``."""
        key = self._prefix + name
        with _failures(name):
            for upload in self._unfinished(key):
                self.client.abort_multipart_upload(
                    Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"]
                )
            self.client.delete_object(Bucket=self.name, Key=key)

    def _unfinished(self, key: str) -> list[dict[str, Any]]:
        """Return unfinished uploads; none if the service does not implement the list."""
        try:
            found = self.client.list_multipart_uploads(Bucket=self.name, Prefix=key)
        except ClientError as error:
            if error.response["Error"]["Code"] == _UNSUPPORTED:
                return []
            raise
        uploads: list[dict[str, Any]] = found.get("Uploads", [])
        return uploads


class ObjectUpload:
    """Writes an object in parts; an empty or small one with a single request."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._pending = bytearray()
        self._upload_id: str | None = None
        self._parts: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        """Append data; see ``ObjectWriter``."""
        self._pending += data
        while len(self._pending) >= PART_BYTES:
            self._send(bytes(self._pending[:PART_BYTES]))
            del self._pending[:PART_BYTES]

    def commit(self) -> None:
        """Make the object visible; see ``ObjectWriter``."""
        client, place = self._bucket.client, {"Bucket": self._bucket.name, "Key": self._key}
        with _failures(self._key):
            if self._upload_id is None:
                client.put_object(**place, Body=bytes(self._pending))
                return
            if self._pending:
                self._send(bytes(self._pending))
            client.complete_multipart_upload(
                **place, UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}
            )
            self._upload_id = None

    def abort(self) -> None:
        """Discard the parts. A lifecycle rule of the bucket removes those that remain."""
        upload_id, self._upload_id = self._upload_id, None
        if upload_id is not None:
            with contextlib.suppress(BotoCoreError, ClientError):
                self._bucket.client.abort_multipart_upload(
                    Bucket=self._bucket.name, Key=self._key, UploadId=upload_id
                )

    def _send(self, part: bytes) -> None:
        client, place = self._bucket.client, {"Bucket": self._bucket.name, "Key": self._key}
        with _failures(self._key):
            if self._upload_id is None:
                self._upload_id = client.create_multipart_upload(**place)["UploadId"]
            number = len(self._parts) + 1
            sent = client.upload_part(
                **place, UploadId=self._upload_id, PartNumber=number, Body=part
            )
            self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})


@contextlib.contextmanager
def _failures(name: str) -> Iterator[None]:
    """Convert the errors of boto3.

    Raises:
        ResourceNotFound: There is no such object.
        StorageFull: Anything else failed.
    """
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] in _MISSING:
            raise ResourceNotFound(f"the content of {name} is gone") from error
        raise StorageFull(f"the object storage failed ({error}); try again later") from error
    except BotoCoreError as error:
        raise StorageFull(f"the object storage does not answer ({error})") from error
