"""OpenAI's image routes, in terms of our own. Its entrance is `routes.router`; `errors` has the shape of refusals."""
