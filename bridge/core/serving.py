"""One request, from its admission until its reply has left."""

from collections.abc import Callable
from typing import Protocol

from ..errors import BridgeError, Busy
from .admission import Admission, Place
from .replies import Reply
from .request import Request

OnBegun = Callable[[], None]


class Answers(Protocol):
    """The dispatcher, as far as it is needed here."""

    @property
    def admission(self) -> Admission:
        """Gives the places."""

    def takes_place(self, request: Request) -> bool:
        """Whether a request needs one of the places there are."""

    def reject(self, request: Request, error: BridgeError) -> Reply:
        """The reply to a request that is not answered otherwise."""

    async def answer(
        self, request: Request, place: Place | None, on_begun: OnBegun | None
    ) -> Reply:
        """The reply to a request."""


class Serving:
    """One request, from its admission until its reply has left: the body sends the reply."""

    __slots__ = ("_dispatcher", "_on_begun", "_place", "_request")

    def __init__(self, dispatcher: Answers, request: Request, on_begun: OnBegun | None) -> None:
        self._dispatcher = dispatcher
        self._request = request
        self._on_begun = on_begun
        self._place: Place | None = None

    async def __aenter__(self) -> Reply:
        dispatcher, request = self._dispatcher, self._request
        try:
            if dispatcher.takes_place(request):
                self._place = await dispatcher.admission.enter(request.received)
        except Busy as error:
            return dispatcher.reject(request, error)
        try:
            return await dispatcher.answer(request, self._place, self._on_begun)
        except BaseException:
            self._release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._place is not None:
            self._place.release()
