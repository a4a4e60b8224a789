"""From a path or URL to a file system: S3 by PyArrow, everything else by fsspec.

PyArrow's S3 comes with the wheel we have anyway, and takes the same ``AWS_*`` variables as the embedded engine's.
fsspec's usual ``s3fs`` would bring a dozen packages and, in botocore, a bound (python-dateutil below 3) that our pins
do not meet.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

CONNECT_SECONDS: Final = 5.0
REQUEST_SECONDS: Final = 20.0
_S3: Final = ("s3://", "s3a://")


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path on it.

    Raises:
        ValueError: the scheme is unknown, or the environment says nothing sensible about where S3 is.
        ImportError: the scheme's package is not installed; the message names it.
    """
    if "://" not in url:  # in a URL, "::" chains file systems; a folder may be called so
        local = LocalFileSystem()
        return local, str(local._strip_protocol(url))
    if not url.startswith(_S3):
        fs, path = fsspec.core.url_to_fs(url)
        return fs, str(path)
    path = url.partition("://")[2].strip("/")
    bucket = path.partition("/")[0]
    if not bucket or "@" in bucket:
        raise ValueError("expected s3://BUCKET/FOLDER, with the credentials in AWS_* variables or files")
    return S3(**_endpoint()), path


def masked(url: str) -> str:
    """A URL without user, password and query: the part that may stand in manifests, logs and messages."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}" if separator else url


class S3(ArrowFSWrapper):  # type: ignore[misc]
    """An S3 server as an fsspec file system, which is what ``Store`` speaks. ``fs`` is PyArrow's."""

    protocol = ("s3", "s3a")

    def __init__(self, **endpoint: str) -> None:
        """Connect at first use; ``endpoint`` as for ``pyarrow.fs.S3FileSystem``, empty = AWS."""
        import pyarrow.fs as pafs

        timeouts = {"connect_timeout": CONNECT_SECONDS, "request_timeout": REQUEST_SECONDS}
        # Without the delay a small file is a multipart upload of three requests.
        super().__init__(pafs.S3FileSystem(allow_delayed_open=True, **timeouts, **endpoint))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: folders are parts of names here."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """One put. A signal between opening and writing would close the stream and so commit an empty file; signals
        reach the main thread only, so another one does it."""
        with ThreadPoolExecutor(1) as aside:
            aside.submit(int).result()  # leaving waits only for a thread whose start no signal broke off: start it now
            aside.submit(super().pipe_file, path, value, mode, **kwargs).result()


def _endpoint() -> dict[str, str]:
    """Where S3 is, by the variables that the embedded engine reads too; what that would refuse is refused here."""
    given = os.environ.get("AWS_ENDPOINT_URL")
    if not given:
        return {}
    url = urlsplit(given)
    if url.scheme not in ("http", "https") or not url.netloc or "@" in url.netloc or url.path.strip("/"):
        raise ValueError(f"AWS_ENDPOINT_URL is {masked(given)}; expected http(s)://HOST:PORT and nothing else")
    if url.scheme == "http" and os.environ.get("AWS_ALLOW_HTTP", "").lower() not in ("true", "1"):
        raise ValueError("AWS_ENDPOINT_URL is plain http; set AWS_ALLOW_HTTP=true if that is meant")
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        raise ValueError("AWS_ENDPOINT_URL without AWS_REGION; set the server's, us-east-1 where it has none")
    return {"scheme": url.scheme, "endpoint_override": url.netloc}
