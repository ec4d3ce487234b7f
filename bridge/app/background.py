"""Tasks that run as long as the bridge does."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Background:
    """Tasks that run as long as the bridge does; `failed` is set when one of them fails."""

    failed: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        self.tasks.append(task)

    async def cancel(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        # More than once: on Python 3.11 a library's `asyncio.wait_for` may swallow a cancellation.
        while running := [task for task in self.tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=0.5)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            logger.critical("%s failed", task.get_name(), exc_info=error)
            self.failed.set()
