"""Why a node does not start. A leaf: raised in the node manager's process, and again in that which started it."""

from __future__ import annotations

import errno


def of_limit(error: OSError) -> str:
    """The error of the system's, with the limit that it may come from."""
    limit = {errno.EMFILE: "ulimit -n", errno.EAGAIN: "ulimit -u", errno.ENOMEM: "ulimit -v"}.get(
        error.errno or 0
    )
    return f"{error} (see `{limit}`)" if limit and limit not in str(error) else str(error)


class CannotStart(RuntimeError):
    """A node manager could not start; the text says why, and what to do."""


class CannotJoin(CannotStart):
    """The cluster did not let the node in, or there is none at that address."""
