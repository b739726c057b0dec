"""What became of a request, as middlewares that watch it see it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENT_GONE = 499  # nginx's status for a caller who left before the answer


class AnswerStatus:
    """Runs an application and knows the status of its answer: 499 until there is one, 500 if the application failed."""

    def __init__(self) -> None:
        self.value = CLIENT_GONE  # an app that ends without an answer has nobody left to give it to

    async def of(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.value = message["status"]
            await send(message)

        try:
            await app(scope, receive, watch)
        except Exception:
            self.value = 500
            raise
