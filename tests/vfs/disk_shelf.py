"""An integrator's persistence on disk, in one JSON file, so that it survives the process that used it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tests.vfs.shelf import BigShelf, Ledger


class DiskShelf(BigShelf):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        if path.exists():
            stored = json.loads(path.read_text())
            self._versions = stored["versions"]
            self.files = {name: (base64.b64decode(text), version) for name, (text, version) in stored["files"].items()}

    async def _carry_out(self, operation: str, path: str, act: Any) -> Any:
        def and_keep() -> Any:
            answer = act()
            files = {name: (base64.b64encode(text).decode(), version) for name, (text, version) in self.files.items()}
            aside = self.path.with_suffix(".new")
            aside.write_text(json.dumps({"versions": self._versions, "files": files}))
            aside.rename(self.path)
            return answer

        return await super()._carry_out(operation, path, and_keep)


class DiskBatches(DiskShelf, Ledger):
    """With transactions."""
