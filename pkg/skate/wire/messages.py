"""The messages between processes: named tuples <-> records of skate._c.frames.

Owns the table code -> message. A message's annotations are its schema (see skate._c.frames.pxd for the letters), so
what is decoded has the right types or is refused with FrameError. Nothing here is ever unpickled.

Who says what:

    process -> node      Register, RequestLeases, ReturnLease, Blocked, Unblocked, StateQuery, Leave,
                         StillUsed, MakeRoom, Restore, ForgetSpilled,
                         RegisterActor, MakeActor, ReleaseActor, WatchActor, FindActor, KillActor,
                         CreateGroup, RemoveGroup, WatchGroup, FindGroup
    node -> process      Registered, LeaseGranted, LeasesFailed, ReclaimLease, Infeasible, Resume, ProcessDied, Log,
                         StateReply, Left, ExitIfUnused, StoreReply, StoreWarning, ActorState, LateAnswer,
                         GroupState, Unschedulable
    owner -> worker      ExportFunction, ForgetFunctions, StartLease, PushTask, RecallTasks, StreamRead
    worker -> owner      TaskDone, TasksReturned, StreamItem, StreamBegins, ActorMade
    node -> actor        BecomeActor, EndActor
    actor -> node        ActorStarted, ActorLeaves
    borrower <-> owner   AskObject, ObjectReady, AddBorrower, ReleaseBorrow, ClaimBorrow, Echo, Echoed
    node -> node         NodesChanged (from the head), NodeReport, Goodbye, ProcessDied, FetchChunk, Chunk,
                         ChunkMissing
    any node -> owner    FindCopy, CopyMade, PullEnded
    owner -> any node    CopyAt, DropCopy
    node -> process      NodeDied, HeadBack
    node -> node         RequestLeasesFor, LeasesStand, ActorPlaced, EndWorker, OwnerLeft
    node -> head         MakeGroup, FollowGroup, RemoveGroup, FindGroup, StateQuery, LifeEnded, BundlesPrepared,
                         RoomMade, RollCall
    head -> node         PrepareBundles, CommitBundles, ReturnBundles, EndGroup, ClaimRoom, DropClaim, GroupStands,
                         StateReply
    process -> any node  WatchProcess, LogsShown (from drivers)
    process -> node      SettleDeath; the answer is DeathSettled
    node -> node, process Speak; the answer is Spoken

An owner of tasks that calls an actor's methods pushes them to the actor's process as it pushes tasks to workers.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from skate._c import frames
from skate.ids import ActorId, NodeId, ObjectId, ProcessId, TaskId

#: code -> schema, as frames.decode wants it
SCHEMAS: list[bytes | None] = [None] * 256
#: code -> message class
MESSAGES: dict[int, type[Any]] = {}

FunctionId = Annotated[bytes, "T"]
Plain = Annotated[Any, "X"]

_LETTERS = {
    bytes: "B",
    str: "S",
    int: "I",
    float: "D",
    bool: "?",
    NodeId: "B",
    ProcessId: "P",
    TaskId: "T",
    ActorId: "T",
    ObjectId: "O",
}

M = TypeVar("M", bound=type)


def _letter(annotation: Any) -> str:
    metadata = getattr(annotation, "__metadata__", None)
    return metadata[0] if metadata else _LETTERS[annotation]


def _message(code: int) -> Any:
    def register(cls: M) -> M:
        hints = get_type_hints(cls, include_extras=True)
        schema = "".join(_letter(hints[name]) for name in cls._fields).encode()  # type: ignore[attr-defined]
        if SCHEMAS[code] is not None:
            raise ValueError(f"two messages have code {code}")
        SCHEMAS[code] = schema
        MESSAGES[code] = cls
        cls.code = code  # type: ignore[attr-defined]
        cls.schema = schema  # type: ignore[attr-defined]
        return cls

    return register


def encode(message: Any) -> bytes:
    """One message as a record; FrameError where a field does not fit its annotation."""
    return frames.encode(message.code, message.schema, message)


# --------------------------------------------------------------------------------------------- process and node


@_message(1)
class Register(NamedTuple):
    """A process has opened its inbox."""

    kind: str
    pid: int
    job: Plain


@_message(2)
class Registered(NamedTuple):
    """The node knows the process: where the store is, what the node has."""

    session: Plain


@_message(3)
class RequestLeases(NamedTuple):
    """How many more leases of a scheduling class an owner could use now. Replaces what it said before."""

    class_id: int
    demand: Plain  # resource name -> units of 1/10,000
    depth: int  # how many tasks deep the owner is nested; deeper goes first
    wanted: int
    environment: Plain  # runtime environment of the workers: None, or variables to set
    where: Plain  # on which nodes: None for any, or core.policies.Where
    arguments: (
        Plain  # None, or the large ones of each of its tasks: [(object id, bytes, [node with a copy, …]), …]
    )


@_message(4)
class ReturnLease(NamedTuple):
    lease: int


@_message(5)
class LeaseGranted(NamedTuple):
    class_id: int
    lease: int
    worker: ProcessId
    allocation: (
        Plain  # what the worker may use, and the group it is in: {"resources": …, "devices": …, "group": …}
    )


@_message(6)
class ReclaimLease(NamedTuple):
    """Others wait for what this lease holds: give it back once what was pushed is done."""

    lease: int


@_message(7)
class Infeasible(NamedTuple):
    """No node of the cluster can ever meet the class's demand."""

    class_id: int
    text: str


@_message(8)
class ProcessDied(NamedTuple):
    """A process of the node is gone, with what is known of why."""

    process: ProcessId
    cause: str
    running: bytes  # the task it was running: an id, or empty
    answered: int  # how many tasks of its lease it had answered, whether or not the answers ever left it


@_message(9)
class Blocked(NamedTuple):
    """The worker's task waits for an object: its CPUs are free for others."""

    lease: int


@_message(10)
class Unblocked(NamedTuple):
    """The wait is over: the worker wants its CPUs back and goes on at `Resume`."""

    lease: int


@_message(11)
class Resume(NamedTuple):
    lease: int


@_message(12)
class Log(NamedTuple):
    """Lines that a worker printed."""

    source: str  # "stdout" or "stderr"
    name: str  # the task that printed them
    pid: int
    text: str


@_message(34)
class LogsShown(NamedTuple):
    """A driver has shown, or given up, so many characters of the `Log`s of this node."""

    characters: int


@_message(13)
class StateQuery(NamedTuple):
    token: int
    what: str


@_message(14)
class StateReply(NamedTuple):
    token: int
    value: Plain


@_message(15)
class Leave(NamedTuple):
    """A driver is done: its workers end, and `Left` comes when all they printed has been sent."""

    reason: str


@_message(16)
class Left(NamedTuple):
    """To a driver: it may go. To a worker: its program is over; it runs its exit handlers, and ends."""

    reason: str


@_message(17)
class ExitIfUnused(NamedTuple):
    """The node has more idle workers than it needs; one that owns nothing others hold ends itself."""

    reason: str


@_message(18)
class StillUsed(NamedTuple):
    """The answer of a worker that stays."""

    reason: str


@_message(19)
class LeasesFailed(NamedTuple):
    """No worker for the class can be started: what waits for one fails."""

    class_id: int
    cause: str


# ----------------------------------------------------------------------------------------- the store and its node


@_message(40)
class MakeRoom(NamedTuple):
    """A put found no room for `nbytes`, `attempt` times after it was told that there is some; see core.spilling."""

    token: int
    nbytes: int
    attempt: int


@_message(41)
class Restore(NamedTuple):
    """A get did not find the object in the store, `attempt` times after it was told that it is there."""

    token: int
    object: ObjectId
    attempt: int


@_message(42)
class ForgetSpilled(NamedTuple):
    """Nobody wants the spilled copy of the object any more, if there is one. Answered where the token is not 0."""

    token: int
    object: ObjectId


@_message(43)
class StoreReply(NamedTuple):
    token: int
    value: Plain  # core.spilling's answer: a word and what belongs to it


@_message(44)
class StoreWarning(NamedTuple):
    """The store is nearly full: what a driver should show its user."""

    text: str


# ------------------------------------------------------------------------------------------------ owner and worker


@_message(20)
class ExportFunction(NamedTuple):
    """A function, once to each worker that needs it, and again where that was to forget it."""

    function: FunctionId
    name: str
    pickled: bytes


@_message(35)
class ForgetFunctions(NamedTuple):
    """The owner exports these again, should it push another task of them."""

    functions: Plain


@_message(21)
class StartLease(NamedTuple):
    """From here on the worker serves this owner's lease."""

    lease: int
    depth: int
    allocation: Plain


@_message(22)
class PushTask(NamedTuple):
    task: TaskId
    function: FunctionId
    args: bytes  # packed (args, kwargs) with ArgRef for each top-level ref; empty: no arguments
    dependencies: Plain  # None, or [(object id, state, value), …]: what the ArgRefs stand for
    returns: int  # number of return values; below 0 a stream of them, see runtime.streams
    attempt: int
    name: str  # what the program calls the task; empty: the function's name
    max_calls: int  # of the function, after which the worker ends; 0: any number


@_message(23)
class TaskDone(NamedTuple):
    task: TaskId
    elapsed_ns: int
    values: Plain  # [(state, value, contents), …], contents: None or [(object id, via), …]
    kept: Plain  # None, or [(object id, container), …]: borrowed refs that the worker still holds


@_message(24)
class RecallTasks(NamedTuple):
    """Give back what has not begun."""

    lease: int


@_message(25)
class TasksReturned(NamedTuple):
    lease: int
    tasks: Plain  # ids of tasks that have not begun and will not


@_message(26)
class StreamItem(NamedTuple):
    """A generator has yielded its `number`-th value, counted from 0."""

    task: TaskId
    number: int
    state: int
    value: Plain
    contents: Plain  # as in TaskDone


@_message(27)
class StreamRead(NamedTuple):
    """The owner's program has taken so many items of the stream; below 0: nobody reads it any more."""

    task: TaskId
    read: int
    received: int  # so many have come


@_message(29)
class StreamBegins(NamedTuple):
    """A generator is about to run, not for the first time: StreamRead says which values are not to be sent again."""

    task: TaskId


@_message(28)
class LateAnswer(NamedTuple):
    """From the node: a worker that has died had given this answer; perhaps it never left (see wire.testament)."""

    worker: ProcessId
    attempt: int  # which one it answered
    record: bytes  # a TaskDone or StreamItem; a task's id alone, where the answer was too long to write down


# ---------------------------------------------------------------------------------------------------------- actors


@_message(50)
class RegisterActor(NamedTuple):
    """The sender owns a new actor. Answered by StateReply where the token is not 0: None, or who has the name."""

    token: int
    actor: ActorId
    name: str  # empty: none
    namespace: str
    detached: bool
    about: Plain  # what a handle made from the name needs
    ending: bytes  # the actor that has the name, where the sender knows that it is bound to end; empty: none


@_message(51)
class MakeActor(NamedTuple):
    """The constructor's arguments are there."""

    actor: ActorId
    spec: Plain  # core.actors leaves it alone; runtime.actors makes it, node.manager and worker.actor read it
    error: bytes  # an argument has failed with this: the actor cannot be made


@_message(52)
class ReleaseActor(NamedTuple):
    """Nobody holds a handle of the sender's actor any more; to the head: its name is free."""

    actor: ActorId


@_message(53)
class WatchActor(NamedTuple):
    """The sender wants to hear how the actor stands, now and from now on."""

    actor: ActorId


@_message(54)
class ActorState(NamedTuple):
    """How an actor stands; see core.actors."""

    actor: ActorId
    state: int
    worker: Plain  # process id where it is ALIVE, else None
    cause: Plain  # None, or why its last process ended


@_message(55)
class BecomeActor(NamedTuple):
    """The worker makes the actor, and serves it until it ends."""

    actor: ActorId
    lease: int
    allocation: Plain
    spec: Plain
    restarts: int


@_message(56)
class ActorStarted(NamedTuple):
    """The constructor has returned, or raised `error`."""

    actor: ActorId
    error: bytes


@_message(57)
class ActorMade(NamedTuple):
    """To the owner: the constructor is done with its arguments; the actor still holds `kept`, as in TaskDone.

    Of an error that it raised (ActorStarted has it), `contents` are the refs inside, as in TaskDone.
    """

    actor: ActorId
    kept: Plain
    contents: Plain


@_message(58)
class ActorLeaves(NamedTuple):
    """The actor ends itself on purpose."""

    actor: ActorId
    why: str


@_message(59)
class EndActor(NamedTuple):
    """Nobody needs the actor any more: it finishes what it was asked and ends."""

    actor: ActorId


@_message(60)
class FindActor(NamedTuple):
    """Which actor has the name? Answered by StateReply: None, or (actor id, about)."""

    token: int
    name: str
    namespace: str


@_message(61)
class KillActor(NamedTuple):
    """The actor's process ends at once."""

    actor: ActorId
    no_restart: bool
    by: str  # who says so, for the error


# ------------------------------------------------------------------------------------------------ placement groups


@_message(70)
class CreateGroup(NamedTuple):
    """The sender wants a placement group. Answered by StateReply if the token is not 0: None, or who has the name."""

    token: int
    group: TaskId
    spec: Plain  # bundles, strategy, …: see runtime.groups


@_message(71)
class RemoveGroup(NamedTuple):
    """The group is not wanted any more. From a manager, answered by StateReply: None, once that is sure."""

    token: int  # 0: no answer is wanted
    group: TaskId


@_message(72)
class WatchGroup(NamedTuple):
    """The sender wants to hear once the group is CREATED or REMOVED."""

    group: TaskId


@_message(73)
class GroupState(NamedTuple):
    """How a group stands; see core.groups."""

    group: TaskId
    state: int


@_message(74)
class FindGroup(NamedTuple):
    """Which group has the name? Answered by StateReply: None, or (group id, bundles)."""

    token: int
    name: str
    namespace: str


@_message(75)
class Unschedulable(NamedTuple):
    """What the class asks for can never be met: what waits for it fails."""

    class_id: int
    removed: bool  # because its placement group was removed
    text: str


@_message(76)
class PrepareBundles(NamedTuple):
    """The head to a node: take what these bundles need, all of it, or nothing."""

    group: TaskId
    attempt: int
    bundles: Plain  # {index: {resource name: units}}


@_message(77)
class BundlesPrepared(NamedTuple):
    """The answer."""

    group: TaskId
    attempt: int
    taken: bool
    available: Plain  # what the node has free after that: resource name -> units


@_message(78)
class CommitBundles(NamedTuple):
    """The head to a node: what it has taken may be used."""

    group: TaskId
    indexes: Plain


@_message(79)
class ReturnBundles(NamedTuple):
    """The head to a node: what it has taken, or is about to, is not wanted."""

    group: TaskId
    indexes: Plain


@_message(98)
class EndGroup(NamedTuple):
    """The head to a node: the group is removed, what runs in it ends, its bundles are free."""

    group: TaskId


@_message(99)
class ClaimRoom(NamedTuple):
    """The head to a node: clear room for these bundles; replaces an older claim."""

    group: TaskId
    bundles: Plain  # [{resource name: units}, …]


@_message(100)
class DropClaim(NamedTuple):
    group: TaskId


@_message(101)
class RoomMade(NamedTuple):
    """A node to the head: there is room for a claim."""

    available: Plain


@_message(102)
class MakeGroup(NamedTuple):
    """CreateGroup in the name of a process of the sender's node. Whoever sends it hears how the group stands."""

    token: int
    group: TaskId
    spec: Plain
    lives_with: bytes  # the driver or detached actor with which it ends


@_message(103)
class FollowGroup(NamedTuple):
    """The sending manager wants to hear how the group stands, now and whenever that changes."""

    group: TaskId


@_message(104)
class GroupStands(NamedTuple):
    """The head to who follows a group."""

    group: TaskId
    state: int
    bundles: Plain  # [{resource name: units}, …]
    nodes: Plain  # where each bundle is: [node or None, …]


@_message(105)
class LifeEnded(NamedTuple):
    """A driver or detached actor of the sender's node is gone, with which groups end. Answered as RemoveGroup."""

    token: int
    lives_with: bytes


# ----------------------------------------------------------------------------------------------------------- nodes


@_message(80)
class NodeDied(NamedTuple):
    """A node of the cluster is gone, and all its processes with it."""

    node: NodeId
    cause: str  # as in ProcessDied


@_message(81)
class WatchProcess(NamedTuple):
    """To the process's node: the sender's node wants to hear of its death. Answered at once where it is dead."""

    process: ProcessId


@_message(82)
class NodesChanged(NamedTuple):
    """The head to all nodes: these rows of the table of nodes are new; see core.membership."""

    rows: Plain


@_message(83)
class NodeReport(NamedTuple):
    """A node to the head: what it has, what of it is free, and what waits there."""

    total: Plain  # resource name -> units; those of placement groups among them
    available: Plain
    demands: Plain  # [({resource name: amount}, how many, feasible), …]


@_message(84)
class Goodbye(NamedTuple):
    """The sending node ends."""

    why: str
    returns: bool  # it is the head, and is to come back


@_message(85)
class RequestLeasesFor(NamedTuple):
    """RequestLeases in the name of an owner of the sender's node, a process or an actor; see core.shares."""

    owner: bytes
    class_id: int
    number: int  # of this request, for the answer
    demand: Plain
    depth: int
    wanted: int  # without those that have resources there, and no worker yet
    environment: Plain
    captures: bool  # tasks of what runs there go to its placement group, too
    for_actor: bool
    lends: bool  # the actor holds no CPU
    detached: bool  # the actor outlives its maker
    arguments: Plain  # None, or [(object id, bytes), …]: what each of the tasks needs there
    job: Plain  # what workers of the owner's program need to know


@_message(86)
class LeasesStand(NamedTuple):
    """The answer, again and again: how many leases wait for resources, how many for a worker, whether any have both."""

    owner: bytes
    class_id: int
    number: int  # the request that this is about
    waiting: int
    reserved: int
    held: bool


@_message(87)
class ActorPlaced(NamedTuple):
    """To the node of the actor's maker: there is a worker for it; or there is none (empty), and why."""

    actor: ActorId
    worker: bytes
    lease: int
    allocation: Plain
    why: str


@_message(88)
class EndWorker(NamedTuple):
    """To the worker's node: an actor in it is to end at once."""

    worker: ProcessId
    why: str


@_message(89)
class OwnerLeft(NamedTuple):
    """What was asked for this actor, and what it has on the receiver's node, is not needed any more."""

    owner: bytes


@_message(110)
class RollCall(NamedTuple):
    """To a head that has come, after the names: what the node has of which a head must know. See node.recovery."""

    named: Plain  # ids of this node's actors that have names; those of others are free
    housed: (
        Plain  # detached actors that stand in the head's directory: [(actor, worker, lease, allocation), …]
    )
    bundles: Plain  # [(placement group, [index of a bundle that is prepared, …], [… committed, …]), …]
    made: Plain  # of each process that makes groups, the newest of which the head was told


@_message(111)
class HeadBack(NamedTuple):
    """To all processes: a head has come. Detached actors of the nodes where it was before stand in its directory."""

    former: Plain  # ids of these nodes


# ------------------------------------------------------------------------------------------- objects between nodes


@_message(90)
class FindCopy(NamedTuple):
    """A node manager to an object's owner: where can it be pulled from? See core.copies."""

    object: ObjectId
    pull: int  # the asking node's number for it
    missed: Plain  # [(node, why), …]: those that it was told of, and did not get it from


@_message(91)
class CopyAt(NamedTuple):
    """The answer."""

    pull: int
    size: int
    source: NodeId  # empty: nowhere, and
    why: str


@_message(92)
class CopyMade(NamedTuple):
    """The sending manager's node has a copy now."""

    object: ObjectId


@_message(93)
class PullEnded(NamedTuple):
    """The sending manager does not want a copy any more."""

    object: ObjectId


@_message(94)
class DropCopy(NamedTuple):
    """The owner frees the object: what that node has of it goes."""

    object: ObjectId


@_message(95)
class FetchChunk(NamedTuple):
    """A node manager asks another for bytes of an object."""

    object: ObjectId
    pull: int
    offset: int
    size: int


@_message(96)
class Chunk(NamedTuple):
    """The answer: its bytes travel beside the frame, see wire.cluster."""

    pull: int
    offset: int


@_message(97)
class ChunkMissing(NamedTuple):
    """The asked node has not got the object, or cannot read it."""

    pull: int
    why: str


# ---------------------------------------------------------------------------------------------- owner and borrower


@_message(30)
class AskObject(NamedTuple):
    object: ObjectId


@_message(31)
class ObjectReady(NamedTuple):
    object: ObjectId
    state: int
    value: Plain
    contents: Plain  # None, or [object id, …]: of an error, the refs inside


@_message(32)
class AddBorrower(NamedTuple):
    """`borrower` holds the object too. Goes to the owner, or to whoever keeps it alive for the sender."""

    object: ObjectId
    borrower: ProcessId
    container: bytes  # the object it was found in; empty where the receiver knows the object itself


@_message(33)
class ReleaseBorrow(NamedTuple):
    """The sender holds the object no more, but still `kept`, which it found inside."""

    object: ObjectId
    owed: int
    kept: Plain  # None, or [object id, …]


@_message(36)
class ClaimBorrow(NamedTuple):
    """The sender holds the object, and counts so often. Whoever was to say so is dead, and it may never have left."""

    object: ObjectId
    owed: int
    gone: bytes  # the dead process or node


@_message(37)
class Echo(NamedTuple):
    """Answered at once: then what was said before was heard, and answered."""

    number: int  # of who asks; 0: as core.references counts them


@_message(38)
class Echoed(NamedTuple):
    """The answer."""

    number: int


@_message(112)
class SettleDeath(NamedTuple):
    """The sender keeps what a dead process of its node held until all who may have it from there have claimed it."""

    dead: ProcessId


@_message(113)
class DeathSettled(NamedTuple):
    """They have."""

    dead: ProcessId


@_message(114)
class Speak(NamedTuple):
    """Say once what you have claimed, after this death above all, has been heard; see core.settling."""

    number: int
    dead: ProcessId


@_message(115)
class Spoken(NamedTuple):
    number: int


#: what only a node manager says to a process -> whether only its own does (who ends, who is dead, what it asked)
SAID_BY: dict[type[Any], bool] = {
    Registered: True,
    ProcessDied: True,
    NodeDied: True,
    HeadBack: True,
    Left: True,
    StateReply: True,
    StoreReply: True,
    StoreWarning: True,
    ExitIfUnused: True,
    Resume: True,
    Speak: True,
    DeathSettled: True,
    LeaseGranted: False,
    LeasesFailed: False,
    ReclaimLease: False,
    Infeasible: False,
    Unschedulable: False,
    Log: False,
    ActorState: False,
    GroupState: False,
    LateAnswer: False,
    BecomeActor: False,
    EndActor: False,
}
