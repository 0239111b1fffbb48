"""What has lived through one full collection is in the way of no request again."""

from __future__ import annotations

import gc

from mount import collector


def test_what_a_full_collection_leaves_alive_is_not_looked_at_again() -> None:
    before = list(gc.callbacks)
    collector.install()
    try:
        kept = [[number] for number in range(10_000)]
        assert len(gc.get_objects()) > 10_000
        gc.collect()
        assert len(gc.get_objects()) < 1000 and gc.get_freeze_count() > len(kept)
    finally:
        gc.callbacks[:] = before
        gc.unfreeze()
