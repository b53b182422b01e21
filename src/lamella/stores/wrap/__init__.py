"""Stores around stores: reading only, trying again, limiting speed. Each passes the contract of the store inside."""

from lamella.stores.wrap.limited import LimitedStore, TokenBucket
from lamella.stores.wrap.read_only import ReadOnlyStore
from lamella.stores.wrap.retrying import Backoff, RetryingStore
from lamella.stores.wrap.wrapper import Wrapper

__all__ = ["Backoff", "LimitedStore", "ReadOnlyStore", "RetryingStore", "TokenBucket", "Wrapper"]
