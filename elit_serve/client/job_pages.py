"""Lists of jobs: a page at a time, or job by job over all pages, as OpenAI's clients have it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any

from elit_serve.client.blocking import done, steps
from elit_serve.client.job_answers import Job, JobPage


class _Page:
    """A page of jobs, the newest first."""

    def __init__(self, page: JobPage) -> None:
        self._page = page

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


class AsyncJobPages(_Page):
    """A page of jobs, the newest first, and the way to those that follow.

    Iterating over it goes over the jobs of all pages, and fetches each when it is needed.
    """

    def __init__(self, page: JobPage, fetch: Callable[[str], Awaitable[JobPage]]) -> None:
        super().__init__(page)
        self._fetch = fetch

    async def get_next_page(self) -> AsyncJobPages:
        """Raises ValueError on the last page."""
        if self.next_cursor is None:
            raise ValueError("this is the last page; has_next_page() says so")
        return AsyncJobPages(await self._fetch(self.next_cursor), self._fetch)

    async def iter_pages(self) -> AsyncGenerator[AsyncJobPages, None]:
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


class JobPages(_Page):
    """`AsyncJobPages` for the client that blocks."""

    def __init__(self, pages: AsyncJobPages) -> None:
        super().__init__(pages._page)
        self._pages = pages

    def get_next_page(self) -> JobPages:
        """Raises ValueError on the last page."""
        return JobPages(done(self._pages.get_next_page()))

    def iter_pages(self) -> Iterator[JobPages]:
        """This page and all that follow."""
        return map(JobPages, steps(self._pages.iter_pages()))

    def __iter__(self) -> Iterator[Job]:
        for page in self.iter_pages():
            yield from page.data


class AsyncJobList:
    """What is listed: `await` gives the first page, `async for` the jobs of all pages."""

    def __init__(self, first: Callable[[], Awaitable[AsyncJobPages]]) -> None:
        self._first = first

    def __await__(self) -> Generator[Any, None, AsyncJobPages]:
        return self._first().__await__()

    async def __aiter__(self) -> AsyncIterator[Job]:
        async for job in await self._first():
            yield job
