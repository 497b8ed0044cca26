"""Tests with real processes that are killed, forked, interrupted and overloaded."""
