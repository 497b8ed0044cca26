"""The requests that a node's admission knows, to be found by what an event is about.

State: the requests by owner and class; beside them the same again by owner, by placement group, and those that could be
granted something; and which have changed. So what an event costs does not grow with the requests that it has nothing to
do with. Pure.

Invariant (`check`): the tables agree.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate.core.leases import LeaseRequest, Owner
from skate.ids import ProcessId

Key = tuple[ProcessId, int]


class RequestTable:
    """All requests of a node, by (owner, class)."""

    def __init__(self) -> None:
        self.all: dict[Key, LeaseRequest] = {}
        self.owners: dict[ProcessId, Owner] = {}
        #: requests that want something that there can be
        self.open: dict[Key, LeaseRequest] = {}
        #: placement group -> requests for what it has
        self.in_group: dict[str, dict[Key, LeaseRequest]] = {}
        #: requests that want, or have, something else than when `take_news` was called last
        self._news: dict[Key, None] = {}

    def take_news(self) -> Iterable[Key]:
        news, self._news = self._news, {}
        return news

    def add(self, request: LeaseRequest) -> None:
        """A new one, which wants nothing yet."""
        key = (request.owner, request.class_id)
        self.all[key] = request
        self.owners.setdefault(request.owner, Owner()).requests[request.class_id] = request
        if request.demand.group is not None:
            self.in_group.setdefault(request.demand.group, {})[key] = request

    def want(self, request: LeaseRequest, wanted: int) -> None:
        """How many leases a request wants from now on."""
        request.wanted = wanted
        key = (request.owner, request.class_id)
        self._news[key] = None
        if wanted and request.feasible:
            self.open[key] = request
        else:
            self.open.pop(key, None)

    def count(self, request: LeaseRequest, *, reserved: int = 0, held: int = 0) -> None:
        """So many more of its leases wait for workers, or have them."""
        request.reserved += reserved
        request.held += held
        self._news[request.owner, request.class_id] = None

    def drop(self, key: Key) -> None:
        request = self.all.pop(key)
        self._news[key] = None
        self.open.pop(key, None)
        del self.owners[request.owner].requests[request.class_id]
        group = request.demand.group
        if group is not None:
            del self.in_group[group][key]
            if not self.in_group[group]:
                del self.in_group[group]

    def owner_left(self, process: ProcessId) -> Owner | None:
        """Drops an owner with all its requests; what it still has of leases is the caller's to end."""
        owner = self.owners.get(process)
        if owner is not None:
            for class_id in list(owner.requests):
                self.drop((process, class_id))
            del self.owners[process]
        return owner

    def check(self) -> None:
        """Raises AssertionError where the tables do not agree."""
        owned = {
            (owner, class_id): request
            for owner, has in self.owners.items()
            for class_id, request in has.requests.items()
        }
        in_group = {key: each for table in self.in_group.values() for key, each in table.items()}
        for table, kept, there in (
            ("owners", owned, self.all),
            ("open", self.open, {key: r for key, r in self.all.items() if r.wanted and r.feasible}),
            ("in groups", in_group, {key: r for key, r in self.all.items() if r.demand.group is not None}),
        ):
            if kept != there:
                raise AssertionError(f"{table}: {kept}, and there are {there}")
