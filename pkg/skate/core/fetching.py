"""Which large arguments are brought to a node before the tasks that need them get workers there.

Pure, without state: what a request lacks stands in the request (core.leases), and core.admission calls these functions.
Rules:

* What lacks arguments is not granted, and holds nothing: others go first meanwhile. Once they are here, or it has shown
  that they cannot be had, it is a request like any other, in its old place in the line; its tasks say what is wrong.
* Arguments are fetched for all that could be granted now but for them, so nothing ever waits for the fetching of what
  cannot run itself. For what has no room yet they are fetched ahead of time, in the order of the line, so many bytes
  and no more.
* Nothing that was fetched is pinned: a store that fills up spills it, as it does any object that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate.core.bundles import BundledResources
from skate.core.leases import FetchArguments, Lacks, LeaseRequest, StopFetching
from skate.core.resources import Allocation, ResourceSet


def note_lacks(request: LeaseRequest, lacks: Lacks, wanted: int) -> list[StopFetching]:
    """So many leases are wanted from now on (`request.wanted` were before), and these arguments are not here."""
    request.brief = True
    if not wanted or not lacks:
        stops = stop_fetching(request)
        request.lacks = ()
        request.fetched = 0
        return stops
    if not request.wanted:  # else it is known already what it lacks, or that has been tried
        request.lacks = lacks
    return []


def note_fetched(request: LeaseRequest) -> None:
    """What it lacked is here, or cannot be had."""
    if request.fetching:
        request.fetching = False
        request.fetched = sum(size for _, size in request.lacks)
        request.lacks = ()


def stop_fetching(request: LeaseRequest) -> list[StopFetching]:
    """Nobody here wants its arguments any more."""
    if not request.fetching:
        return []
    request.fetching = False
    return [StopFetching(request)]


def start_fetching(
    lacking: Iterable[LeaseRequest], ahead: int, most_ahead: int, resources: BundledResources
) -> list[FetchArguments]:
    """For which of those that lack arguments, in the order of the line, these are to be fetched from now on.

    `ahead`: bytes that are here already for requests that wait, of `most_ahead`. Leaves the resources as they are.
    """
    effects = []
    room: list[Allocation] = []
    short: set[ResourceSet] = set()
    for request in lacking:
        allocation = None if request.demand in short else resources.allocate(request.demand)
        if allocation is not None:
            room.append(allocation)
        else:
            short.add(request.demand)
            ahead += sum(size for _, size in request.lacks)
            if ahead > most_ahead:
                continue
        if not request.fetching:
            request.fetching = True
            effects.append(FetchArguments(request))
    for allocation in room:
        resources.release(allocation)
    return effects


def check(request: LeaseRequest) -> None:
    """Raises AssertionError where an invariant does not hold."""
    if request.fetching and not (request.lacks and request.wanted):
        raise AssertionError(f"{request.lacks} is fetched, and {request.wanted} leases are wanted")
    if request.lacks and not (request.brief and request.wanted):
        raise AssertionError(f"it lacks {request.lacks}, and {request.wanted} leases are wanted")
