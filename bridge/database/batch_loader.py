"""Reads batched by what is waiting, never by a timer.

The first request goes at once; those that arrive while it is under way go together in the next
statement. A batch begins after its requests arrived, so that no answer is older than its question.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from ..core.deadlines import Deadlines
from ..errors import BridgeError, DatabaseTimeout
from .pool import StatementRefused

Key = TypeVar("Key", bound=Hashable)
Model = TypeVar("Model")
Load = Callable[[Sequence[Key], float], Awaitable[Mapping[Key, Model]]]

# Two statements under way keep the database busy while the rows of another are turned to models.
LANES = 2
# What is read by one statement, and handed out in one turn of the loop: batches of a hundred
# readings would else keep the loop from hearing, and refusing, anything new.
_KEYS_A_STATEMENT = 1024
_MODELS_A_TURN = 128
# What a batch whose oldest request has waited long may still take, in seconds.
_LEAST_TIME = 0.5


class _Asker(NamedTuple, Generic[Key, Model]):
    """Who waits for the models of which keys, and since when on the loop's clock."""

    keys: Sequence[Key]
    answer: "asyncio.Future[list[Model | BridgeError | None]]"
    arrived: float


class BatchLoader(Generic[Key, Model]):
    """Loads models by key, many keys in one statement.

    `load` gets the keys and a deadline on the loop's clock. Each request is answered, or fails,
    within `timeout` seconds of its arrival (half a second more behind a slow statement). Where a
    statement fails over one of its keys or rows, that key alone fails.
    """

    def __init__(self, load: Load[Key, Model], timeout: float, deadlines: Deadlines) -> None:
        self._loop = asyncio.get_running_loop()
        self._load = load
        self._deadlines = deadlines
        self._timeout = timeout
        # Requests for the next statement, in the order of their arrival.
        self._waiting: list[_Asker[Key, Model]] = []
        self._overdue: int | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def get(self, key: Key) -> Model | None:
        """The model of `key`, read after this call; None when there is none."""
        (model,) = await self.get_all((key,))
        if isinstance(model, BridgeError):
            raise model
        return model

    def get_all(self, keys: Sequence[Key]) -> "asyncio.Future[list[Model | BridgeError | None]]":
        """The models of `keys`, in their order, read by one statement after this call.

        A key over which the statement failed has its error in its place.
        """
        answer: asyncio.Future[list[Model | BridgeError | None]] = self._loop.create_future()
        self._waiting.append(_Asker(keys, answer, self._loop.time()))
        if len(self._waiting) == 1:
            if len(self._under_way) < LANES:
                self._begin()
            else:
                self._watch_the_first()
        return answer

    async def close(self) -> None:
        """Cancel those who wait and the statements that run; wait until these have ended."""
        for asker in self._take(len(self._waiting)):
            asker.answer.cancel()
        under_way = list(self._under_way)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def _begin(self) -> None:
        # It begins in the next turn of the loop, with all that arrives in this one.
        task = self._loop.create_task(self._fill(), name="batch of reads")
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    async def _fill(self) -> None:
        askers = self._next_askers()
        if self._waiting and len(self._under_way) < LANES:
            self._begin()
        if not askers:
            # All were given up in this turn of the loop.
            return
        now = self._loop.time()
        oldest = askers[0].arrived
        deadline = max(oldest + self._timeout, now + min(_LEAST_TIME, self._timeout))
        wanted = dict.fromkeys(key for asker in askers for key in asker.keys)
        try:
            await _hand_out(await self._load_each(tuple(wanted), deadline), askers)
        except BaseException as error:
            _fail(askers, error)
            if not isinstance(error, Exception):
                raise

    async def _load_each(
        self, keys: Sequence[Key], deadline: float
    ) -> Mapping[Key, Model | BridgeError]:
        """The models of `keys`, by one statement; by halves, where one of them makes it fail."""
        try:
            return await self._load(keys, deadline)
        except StatementRefused as refused:
            if not refused.over_content:
                raise
            if len(keys) == 1:
                return {keys[0]: refused}
        middle = len(keys) // 2
        models: dict[Key, Model | BridgeError] = {}
        for half in (keys[:middle], keys[middle:]):
            try:
                models.update(await self._load_each(half, deadline))
            except BridgeError as error:
                models.update(dict.fromkeys(half, error))
        return models

    def _next_askers(self) -> "list[_Asker[Key, Model]]":
        keys = count = 0
        while count < len(self._waiting) and keys < _KEYS_A_STATEMENT:
            keys += len(self._waiting[count].keys)
            count += 1
        return self._take(count)

    def _take(self, count: int) -> "list[_Asker[Key, Model]]":
        askers, self._waiting = self._waiting[:count], self._waiting[count:]
        self._watch_the_first()
        return askers

    def _watch_the_first(self) -> None:
        if self._overdue is not None:
            self._deadlines.cancel(self._overdue)
            self._overdue = None
        if self._waiting:
            overdue = self._waiting[0].arrived + self._timeout
            self._overdue = self._deadlines.call_at(overdue, self._give_up)

    def _give_up(self) -> None:
        count = sum(
            self._deadlines.has_passed(asker.arrived + self._timeout) for asker in self._waiting
        )
        _fail(self._take(count), DatabaseTimeout())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting:
            self._begin()


async def _hand_out(
    models: Mapping[Key, Model | BridgeError], askers: "Iterable[_Asker[Key, Model]]"
) -> None:
    handed_out = 0
    for keys, answer, _ in askers:
        if not answer.done():
            answer.set_result([models.get(key) for key in keys])
        handed_out += len(keys)
        if handed_out > _MODELS_A_TURN:
            # Their handlers all run in the next turn of the loop, which must stay short.
            handed_out = 0
            await asyncio.sleep(0)


def _fail(askers: "Iterable[_Asker[Key, Model]]", error: BaseException) -> None:
    for _, answer, _ in askers:
        if answer.done():
            continue
        if isinstance(error, Exception):
            answer.set_exception(error)
        else:
            answer.cancel()
