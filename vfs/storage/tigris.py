"""TigrisStorage: S3Storage with Tigris's defaults, so that a Fly machine needs no configuration at all.

`fly storage create` sets BUCKET_NAME, AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION.
"""

from __future__ import annotations

import os
from typing import Any

from vfs.storage.s3 import S3Storage

__all__ = ["ENDPOINT", "TigrisStorage"]

ENDPOINT = "https://fly.storage.tigris.dev"


class TigrisStorage(S3Storage):
    """Options are S3Storage's; what is not given comes from the environment."""

    def __init__(
        self, bucket: str | None = None, *, endpoint: str | None = None, region: str | None = None, **options: Any
    ) -> None:
        bucket = bucket or os.environ.get("BUCKET_NAME")
        if not bucket:
            raise ValueError(
                "tigris: no bucket; set BUCKET_NAME (`fly storage create` does), or name it: tigris://BUCKET"
            )
        super().__init__(
            bucket,
            endpoint=endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or ENDPOINT,
            region=region or os.environ.get("AWS_REGION") or "auto",
            **options,
        )
