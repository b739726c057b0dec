"""The web page. Its entrance is `page.page_router`; `assets` holds its files, and `thumbnails` shows its classes."""
