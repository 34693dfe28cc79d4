"""The catalogue: a store's artifacts as pages, to search, look at, compare and load."""

from eva_dist.gateway.catalogue.routes import add_pages, refusal_page

__all__ = ["add_pages", "refusal_page"]
