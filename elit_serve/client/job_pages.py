"""Lists of jobs: a page at a time, or job by job over all pages, as OpenAI's clients have it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any

from elit_serve.client.job_answers import Job, JobPage


class JobPages:
    """A page of jobs, the newest first, and the way to those that follow.

    Iterating over it goes over the jobs of all pages, and fetches each when it is needed.
    """

    def __init__(self, page: JobPage, fetch: Callable[[str], JobPage]) -> None:
        self._page, self._fetch = page, fetch

    @property
    def data(self) -> tuple[Job, ...]:
        """The jobs of this page alone."""
        return self._page.data

    @property
    def next_cursor(self) -> str | None:
        """For `list(cursor=...)`, to get the next page at some other time; None on the last one."""
        return self._page.next_cursor

    def has_next_page(self) -> bool:
        return self._page.next_cursor is not None

    def get_next_page(self) -> JobPages:
        """Raises ValueError on the last page."""
        return JobPages(self._fetch(_cursor(self._page)), self._fetch)

    def iter_pages(self) -> Iterator[JobPages]:
        """This page and all that follow."""
        page = self
        yield page
        while page.has_next_page():
            page = page.get_next_page()
            yield page

    def __iter__(self) -> Iterator[Job]:
        for page in self.iter_pages():
            yield from page.data


class AsyncJobPages:
    """`JobPages` for asyncio: `async for` goes over the jobs of all pages."""

    def __init__(self, page: JobPage, fetch: Callable[[str], Awaitable[JobPage]]) -> None:
        self._page, self._fetch = page, fetch

    @property
    def data(self) -> tuple[Job, ...]:
        """The jobs of this page alone."""
        return self._page.data

    @property
    def next_cursor(self) -> str | None:
        """For `list(cursor=...)`, to get the next page at some other time; None on the last one."""
        return self._page.next_cursor

    def has_next_page(self) -> bool:
        return self._page.next_cursor is not None

    async def get_next_page(self) -> AsyncJobPages:
        """Raises ValueError on the last page."""
        return AsyncJobPages(await self._fetch(_cursor(self._page)), self._fetch)

    async def iter_pages(self) -> AsyncIterator[AsyncJobPages]:
        """This page and all that follow."""
        page = self
        yield page
        while page.has_next_page():
            page = await page.get_next_page()
            yield page

    async def __aiter__(self) -> AsyncIterator[Job]:
        async for page in self.iter_pages():
            for job in page.data:
                yield job


class AsyncJobList:
    """What is listed: `await` gives the first page, `async for` the jobs of all pages."""

    def __init__(self, first: Callable[[], Awaitable[AsyncJobPages]]) -> None:
        self._first = first

    def __await__(self) -> Generator[Any, None, AsyncJobPages]:
        return self._first().__await__()

    async def __aiter__(self) -> AsyncIterator[Job]:
        async for job in await self._first():
            yield job


def _cursor(page: JobPage) -> str:
    if page.next_cursor is None:
        raise ValueError("this is the last page; has_next_page() says so")
    return page.next_cursor
