"""The store: the only room that knows SQL. Open ``SqliteStore``; speak to it as ``Store``."""

from .protocol import IdempotencyKey, Repeat, Store, StoreRefused

__all__ = ["IdempotencyKey", "Repeat", "Store", "StoreRefused"]
