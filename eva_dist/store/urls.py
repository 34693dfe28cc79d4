"""Which URLs can be a store's: pure, for settings are checked by it before anything is opened."""

BUCKETS = ("s3://", "s3a://", "gs://", "az://", "azure://", "adl://", "abfs://", "abfss://")


def is_store_url(text: str) -> bool:
    """Tell whether a URL is one that a store can have, but for a folder's."""
    return text.startswith(("memory://", *BUCKETS))
