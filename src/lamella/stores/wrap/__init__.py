"""Stores around stores: trying again, limiting speed. Each passes the contract of the store inside."""
