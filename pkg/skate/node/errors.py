"""Why a node does not start. A leaf: raised in the node manager's process, and again in that which started it."""

from __future__ import annotations


class CannotStart(RuntimeError):
    """A node manager could not start; the text says why, and what to do."""


class CannotJoin(CannotStart):
    """The cluster did not let the node in, or there is none at that address."""
