"""The controller as other processes ask it: checks who asks whom, then does what `LocalController` does.

Answers nothing in the controller's name but while its lease stands: one that was cut off from the metadata log sends
its followers to read it themselves.
"""

import asyncio
from typing import Any

from controller import commands as c
from controller import wire as w
from controller.codec import Malformed, UnknownTag
from controller.decide.context import require_alive
from controller.runtime import Runtime
from protocol.errors import ErrorCode, KafkaError
from storage.seal import CommitSeal

WAIT_MS_MAX = 30_000
FOLLOW_BYTES_MAX = 4 << 20

_BY_THE_ASKER = (
    CommitSeal,
    c.RegisterBroker,
    c.RegisterWal,
    c.NameRecoverer,
    c.ReportScan,
    c.RetireWal,
    c.CleanStop,
    c.AllocateProducerIds,
    c.LeaveCluster,
    c.ReplaceRanges,
    c.WriteManifests,
    c.CloseJob,
    c.CompactRanges,
    c.CloseCompaction,
)
"""Commands in the name of their `incarnation`, which nobody else may give."""
_BY_ANY_BROKER = (
    c.DeclareLost,
    c.CreateTopics,
    c.CreateInternalTopic,
    c.CreatePartitions,
    c.DeleteTopics,
    c.AlterConfigs,
    c.AdvanceLogStart,
    c.RaiseFormatLevel,
    c.RequestMoves,
    c.CancelMoves,
    c.DrainBroker,
    c.UpdateFeatures,
    c.AlterQuotas,
    c.AlterScram,
    c.CreateAcls,
    c.DeleteAcls,
    c.UnregisterBroker,
)


class ControllerService:
    """Calls in, replies out; knows nothing of how they travel. Every call ends within `WAIT_MS_MAX`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def answer(self, data: bytes) -> bytes:
        """The reply to a call; what cannot be answered is `Refused`, also what is no call at all."""
        try:
            reply = await self._answer(w.decode_call(data))
        except Malformed as error:
            reply = self._refused(KafkaError(ErrorCode.INVALID_REQUEST, str(error)))
        except UnknownTag as error:
            reply = self._refused(KafkaError(ErrorCode.UNSUPPORTED_VERSION, f"{error}: upgrade the controller first"))
        except KafkaError as error:
            reply = self._refused(error)
        return w.encode_reply(reply)

    def _refused(self, error: KafkaError) -> w.Refused:
        state = self._runtime.replica.state
        return w.Refused(int(error.code), error.message, -1 if state.controller_resigned else state.controller_node)

    async def _answer(self, call: w.Call) -> w.Reply:
        self._check_cluster(call)
        if isinstance(call.request, w.Who):
            return w.Here(self._runtime.incarnation)
        self._check(call)
        match call.request:
            case w.Heartbeat() as beat:
                return w.Granted(*self._runtime.heartbeat(call.incarnation, beat.position, dict(beat.validated)))
            case w.Follow() as follow:
                return await self._follow(call, follow)
            case w.Ask() as ask:
                command = c.decode_command(ask.command)
                self._check_command(call, command)
                answer = await self._runtime.ask(command, min(max(ask.timeout_ms, 0), WAIT_MS_MAX))
                return w.Answered(c.encode_answer(answer), self._runtime.replica.state.position)

    def _check_cluster(self, call: w.Call) -> None:
        state = self._runtime.replica.state
        if call.cluster_id != state.cluster_id:
            raise KafkaError(
                ErrorCode.INCONSISTENT_CLUSTER_ID,
                f"this is cluster {state.cluster_id}, node {call.node_id} belongs to {call.cluster_id}",
            )

    def _check(self, call: w.Call) -> None:
        state = self._runtime.replica.state
        if call.addressee != self._runtime.incarnation:
            raise KafkaError(ErrorCode.NOT_CONTROLLER, "the process that was meant does not run here any more")
        self._check_leads()
        known = state.broker_table.incarnations.get(call.incarnation)
        node_id = known.node_id if known is not None else state.broker_table.closed.get(call.incarnation, call.node_id)
        if node_id != call.node_id:
            raise KafkaError(
                ErrorCode.CLUSTER_AUTHORIZATION_FAILED,
                f"incarnation {call.incarnation:016x} is node {node_id}, not node {call.node_id}",
            )
        self._runtime.found()

    def _check_leads(self) -> None:
        if not self._runtime.leads or not self._runtime.may_grant:
            raise KafkaError(ErrorCode.NOT_CONTROLLER, "this process is not the controller, or cannot know that it is")

    def _check_command(self, call: w.Call, command: Any) -> None:
        if isinstance(command, _BY_THE_ASKER):
            speaker = command.incarnation
        elif isinstance(command, c.EndSession):
            speaker = command.requester
        elif isinstance(command, _BY_ANY_BROKER):
            speaker = call.incarnation
        else:
            raise KafkaError(
                ErrorCode.CLUSTER_AUTHORIZATION_FAILED, f"{type(command).__name__} is the controller's own"
            )
        if speaker != call.incarnation:
            raise KafkaError(
                ErrorCode.CLUSTER_AUTHORIZATION_FAILED,
                f"incarnation {call.incarnation:016x} speaks in the name of {speaker:016x}",
            )
        if not isinstance(command, c.RegisterBroker):
            require_alive(self._runtime.replica.state, call.incarnation)
        elif command.node_id != call.node_id:
            raise KafkaError(ErrorCode.CLUSTER_AUTHORIZATION_FAILED, "a broker registers itself")

    async def _follow(self, call: w.Call, follow: w.Follow) -> w.Entries:
        replica = self._runtime.replica
        if not 0 < follow.position <= replica.state.position + 1:
            raise KafkaError(ErrorCode.NOT_CONTROLLER, f"entry {follow.position} is beyond what this process knows")
        self._runtime.followed(call.incarnation, follow.position - 1)
        try:
            async with asyncio.timeout(min(max(follow.wait_ms, 0), WAIT_MS_MAX) / 1000):
                await replica.wait_applied(follow.position)
        except TimeoutError:
            pass
        self._check_leads()  # whoever is not sure to lead any more does not know the end of the log
        found = replica.recent.since(follow.position, min(follow.bytes_max, FOLLOW_BYTES_MAX))
        if found is None:
            raise KafkaError(ErrorCode.OFFSET_OUT_OF_RANGE, f"entry {follow.position} is in the bucket only")
        return w.Entries(tuple(found))
