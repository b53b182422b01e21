"""Stores around stores: reading only, trying again, limiting speed. Each passes the contract of the store inside."""
