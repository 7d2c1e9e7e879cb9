"""Named bytes under a URL: the few operations of object storage that runs need, by fsspec, which torch brings along."""

import contextlib
import importlib.util
import os
from typing import Any

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Objects:
    """The objects under a URL; names are paths below it. Nothing is cached: other machines write there too."""

    def __init__(self, url: str):
        import fsspec  # 0.1 s that a race in a folder does not need

        scheme = url.partition("://")[0]
        package = PACKAGES.get(scheme)
        if package and importlib.util.find_spec(package) is None:
            extra = 'pip install "velodrome[s3]"' if package == "s3fs" else f"pip install {package}"
            raise ValueError(f"{url} needs the package {package}: {extra}.")
        options: dict[str, Any] = {"auto_mkdir": True} if scheme == "file" else {}
        try:
            self.files, self.base = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{url} is no place for runs ({error}): write a folder, file://…, or s3://bucket/….") from None
        self.local = scheme == "file"

    def path(self, name: str) -> str:
        """Where the storage has it."""
        return f"{self.base}/{name}"

    def read(self, name: str) -> bytes | None:
        """The bytes, or None if there are none of that name."""
        try:
            data: bytes = self.files.cat_file(self.path(name))
        except (FileNotFoundError, IsADirectoryError):
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """All of it or nothing, in the place of what was there."""
        path = self.path(name)
        if not self.local:
            self.files.pipe_file(path, data)
            return
        beside = f"{os.path.dirname(path)}/.tmp-{os.getpid()}-{os.path.basename(path)}"
        self.files.pipe_file(beside, data)
        os.replace(beside, path)

    def create(self, name: str, data: bytes) -> bool:
        """Write it if nobody has; S3, GCS, files and memory do this in one operation."""
        try:
            self.files.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return bool(self.files.exists(self.path(name)))

    def names(self, name: str) -> list[str]:
        """What is directly below `name`; empty if nothing is."""
        try:
            found = self.files.ls(self.path(name), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(n for n in names if n and not n.startswith("."))

    def remove(self, name: str) -> None:
        """The object, or all below it, if there is any."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm(self.path(name), recursive=True)
