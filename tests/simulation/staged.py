"""Faults of several steps, in the order in which a rule of the product is needed: drawn by chance they are rare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from controller.commands import RequestMoves
from controller.facts import MoveTarget
from controller.object_log import ENTRIES, SNAPSHOTS, entry_key
from controller.sessions import with_margin
from protocol.errors import KafkaError
from storage.object_store import NotFound
from tests.simulation.scheduler import MS, S
from tests.simulation.store import StoreFaults, at_once

if TYPE_CHECKING:
    from controller.state import ClusterState
    from tests.simulation.disk import Image
    from tests.simulation.faults import Faults
    from tests.simulation.machines import Machine
    from tests.simulation.nodes import Node


def _follower(faults: Faults) -> Node | None:
    """Of the brokers that serve and do not control, in a cluster where somebody does, one with the slowest clock."""
    nodes = [node for node in faults.world.nodes if node.running and node.ready and not node.leads]
    if not nodes:
        return None
    faults.rng.shuffle(nodes)
    return min(nodes, key=lambda node: node.host.rate)


def _cut_off_for_a_session(faults: Faults, island: list[Node]) -> None:
    """Longer than it takes until others have taken over: only clients reach these brokers, which reach each other."""
    world = faults.world
    faults._record("forgotten", nodes=[node.node_id for node in island])
    lasts_ms = with_margin(world.session_ms + world.lease_ms) * 5 // 4 + 2_000
    faults._for(lasts_ms, lasts_ms + 2_000, faults._cut_off(island, both_ways=True, bucket="unreachable"))


def forgotten(faults: Faults) -> None:
    """A broker that does not control is cut off until its session has ended and others lead its logs."""
    node = _follower(faults)
    if node is not None:
        _cut_off_for_a_session(faults, [node])


def usurped(faults: Faults) -> None:
    """The controller is cut off together with another broker, until the others have a controller of their own."""
    node, controller = _follower(faults), faults._controller()
    if node is not None and controller is not None:
        _cut_off_for_a_session(faults, [controller, node])


def usurped_late(faults: Faults) -> None:
    """The same, when the controller was stopped just before it would have heard that its last entry is written, and has
    only just heard it.

    It hears a little of the others and of the bucket before it is cut off: the append looks once more at the bucket.
    """
    controller, world = faults._controller(), faults.world
    if controller is None or controller.process is None or controller.broker is None:
        return
    process, replica, began_ns = controller.process, controller.broker.runtime.replica, world.scheduler.now_ns

    def written() -> bool:
        try:
            at_once(world.bucket.memory.head(entry_key(replica.state.position + 1)))
        except NotFound:
            return False
        return True

    def watch() -> None:
        if world.quiet or process.stopped or not process.alive or world.scheduler.now_ns > began_ns + 10 * S:
            return
        if not written():
            world.scheduler.call_later_ns(MS, watch)
            return
        faults._record("pause", node=controller.node_id)
        process.pause()
        over = faults._trouble([controller], "asleep")
        position = replica.state.position

        def resume() -> None:
            faults._record("resume", node=controller.node_id)
            process.resume()
            over()
            heard()

        def heard() -> None:
            if world.quiet or not process.alive or controller.process is not process:
                return
            if replica.state.position == position:
                world.scheduler.call_later_ns(MS // 4, heard)
                return
            node = _follower(faults)
            if node is not None:
                _cut_off_for_a_session(faults, [controller, node])

        faults._for(world.lease_ms * 7 // 8, world.lease_ms * 15 // 16, resume)

    watch()


def stopped_appending(faults: Faults) -> None:
    """The controller is stopped with an entry in its hands, until others have taken over and trimmed the log."""
    controller, world = faults._controller(), faults.world
    if controller is None or controller.process is None or len(world.nodes) < 2:
        return
    process = controller.process
    gone_ms = 3 * world.session_ms + world.lease_ms

    def stop(key: str, data: bytes, writer: object) -> None:
        if writer is process and key.startswith(ENTRIES) and data:
            world.bucket.on_write = _nothing
            if not world.quiet and not process.stopped:
                faults._pause_for(controller, gone_ms, gone_ms + 3_000)

    world.bucket.on_write = stop


def _nothing(key: str, data: bytes, writer: object) -> None:
    pass


def lost_snapshot(faults: Faults) -> None:
    """The next snapshot of the metadata never arrives; soon after, its writer and the others are killed."""
    world = faults.world

    def lose(key: str, data: bytes, writer: object) -> None:
        if not key.startswith(SNAPSHOTS) or world.quiet or world.bucket.slowness > 1:
            return
        world.bucket.on_write = _nothing
        faults._record("lost_snapshot")
        over, before = faults._trouble(world.nodes, "store"), world.bucket.faults
        world.bucket.faults = StoreFaults(lost=1.0)

        def end() -> None:
            world.bucket.faults = before
            over()

        faults._for(20, 60, end)
        world.scheduler.call_later_ns(faults.rng.randint(4_000, 8_000) * MS, kill)

    def kill() -> None:
        for node in world.nodes:
            if node.running and not world.quiet:
                faults._kill_one(node)

    world.bucket.on_write = lose


def stopped_writing(faults: Faults) -> None:
    """A broker is stopped with a group on its way to the disk, until others may have taken over."""
    faults._zombie(writing=True)


def late_grants(faults: Faults) -> None:
    """The controller's answers reach a broker late, and right after one of them nothing reaches it but clients."""
    node, controller, world = _follower(faults), faults._controller(), faults.world
    if node is None or controller is None or node.broker is None:
        return
    broker, began_ns = node.broker, world.scheduler.now_ns
    late_ms = world.session_ms * 3 // 20  # a heartbeat is given up after a sixth of the session
    faults._record("late_grants", node=node.node_id, ms=late_ms)
    link = controller.host.name, node.host.name
    world.network.slow(*link, late_ms * MS)
    over = faults._trouble([node], "network")
    known_ms, late_from_ns = broker.session.deadline_ms, began_ns + late_ms * MS

    def watch() -> None:
        given_up = world.quiet or node.broker is not broker or world.scheduler.now_ns > began_ns + 20 * S
        if not given_up and not (world.scheduler.now_ns > late_from_ns and broker.session.deadline_ms > known_ms):
            world.scheduler.call_later_ns(5 * MS, watch)
            return
        world.network.slow(*link, 0)
        over()
        if not given_up:
            lasts_ms = 2 * world.session_ms + world.lease_ms
            faults._for(lasts_ms, lasts_ms + 2_000, faults._cut_off([node], both_ways=True, bucket="unreachable"))

    watch()


def long_sleep(faults: Faults) -> None:
    """A machine is suspended until others have taken over, and when it wakes up only clients reach it for a while."""
    node, world = faults._node(), faults.world
    if node is None or not node.ready:
        return
    machine, boot = node.machine, node.machine.boot_id
    faults._record("suspend", host=machine.name)
    machine.suspend()
    over = faults._trouble(machine.nodes, "asleep")

    def wake() -> None:
        if machine.suspended and machine.boot_id == boot:
            if not world.quiet:
                heal = faults._cut_off(machine.nodes, both_ways=True, bucket="unreachable")
                faults._for(2_000, 4_000, heal)
            faults._record("wake", host=machine.name)
            machine.resume()
        over()

    gone_ms = world.session_ms * 5 // 4 + world.lease_ms
    faults._for(gone_ms, gone_ms + 1_000, wake)


def unheard_and_kill(faults: Faults) -> None:
    """No answer of a broker reaches the clients for a while, and then it is killed: they send again what it has."""
    node, world = faults._node(), faults.world
    if node is None or not node.ready:
        return
    process = node.process
    links = [(node.host.name, host.name) for host in world.client_hosts]
    faults._record("unheard", node=node.node_id)
    heal = faults._block(links)

    def kill() -> None:
        if node.process is process and node.running and not world.quiet:
            for link in links:
                world.network.reset(*link)
            faults._kill_one(node)
        heal()

    faults._for(1_000, 2_500, kill)


def failed_write_and_crash(faults: Faults) -> None:
    """Syncs fail for a moment, and some time later the power goes."""
    node, world = faults._node(), faults.world
    if node is None or not node.ready:
        return
    machine = node.machine
    faults._record("disk_errors", host=machine.name)
    machine.disk.sync_error_chance = 0.3
    over = faults._trouble(machine.nodes, "disk")

    def end() -> None:
        machine.disk.sync_error_chance = 0.0
        over()

    def crash() -> None:
        if node.running and not world.quiet:
            faults._record("crash", host=machine.name)
            node.crash()
            faults._for(300, 2_000, node.boot)

    faults._for(100, 600, end)
    world.scheduler.call_later_ns(faults.rng.randint(700, 2_000) * MS, crash)


def _newest_state(faults: Faults) -> ClusterState | None:
    """Of the brokers that serve."""
    states = [node.broker.controller.state for node in faults.world.nodes if node.ready and node.broker is not None]
    return max(states, key=lambda state: state.position, default=None)


def _comes_back_with(faults: Faults, machine: Machine, image: Image | None) -> None:
    """The power goes, and the machine comes back with another volume: an older copy, or an empty one (None)."""
    state = _newest_state(faults)
    if not machine.up or state is None:
        return
    faults._record("other_volume", host=machine.name, older=image is not None)
    machine.crash()
    machine.disk.restore(image)
    held = set(machine.disk.folder("/wal").entries if image is not None else ())
    here = {node.node_id for node in machine.nodes}
    for wal in state.wals.values():
        if wal.node_id in here and wal.kind == "volume" and not wal.closed:
            (faults.rotten if wal.wal_id.hex() in held else faults.lost).add(wal.wal_id)
    faults._for(300, 2_000, lambda: machine.nodes[0].boot())


def lost_volume(faults: Faults) -> None:
    """A machine's disk is replaced by an empty one."""
    node = faults._node()
    if node is not None and node.ready and node.machine.shared is None and not faults.world.quiet:
        _comes_back_with(faults, node.machine, None)


def older_copy(faults: Faults) -> None:
    """A machine's disk is replaced by a copy that lacks groups of which the controller has heard."""
    node, world = faults._node(), faults.world
    if node is None or not node.ready or node.machine.shared is not None:
        return
    machine, began_ns = node.machine, world.scheduler.now_ns
    wals = [one.broker.wals.volume for one in machine.nodes if one.broker is not None]
    groups = {wal.wal_id: wal.groups for wal in wals if wal is not None}
    image = machine.disk.snapshot()

    def watch() -> None:
        if world.quiet or not machine.up or not groups or world.scheduler.now_ns > began_ns + 10 * S:
            return
        state = _newest_state(faults)
        known = {} if state is None else {wal_id: state.wals.get(wal_id) for wal_id in groups}
        if any(wal is not None and wal.closed for wal in known.values()):
            return
        if all(wal is not None and wal.validated_group > groups[wal_id] + 1 for wal_id, wal in known.items()):
            _comes_back_with(faults, machine, image)
        else:
            world.scheduler.call_later_ns(50 * MS, watch)

    watch()


def late_batches(faults: Faults) -> None:
    """What clients send to a broker arrives when they have long given it up; the other brokers hear them."""
    node, world = faults._node(), faults.world
    if node is None or not node.ready:
        return
    faults._record("late_batches", node=node.node_id)
    heal = faults._block([(host.name, node.host.name) for host in world.client_hosts])
    faults._for(3_000, 5_000, heal)


def stall_at_end(faults: Faults) -> None:
    """When somebody wants to commit a transaction, nothing gets durable any more on some machine, which then loses
    power."""
    world, began_ns = faults.world, faults.world.scheduler.now_ns
    known = len(world.history)

    def watch() -> None:
        if world.quiet or world.scheduler.now_ns > began_ns + 3 * S:
            return
        if not any(
            event.kind == "bank.end.invoke" and event.fields["commit"] for event in world.history.events[known:]
        ):
            world.scheduler.call_later_ns(MS // 4, watch)
            return
        node = faults._node()
        if node is not None and node.ready:
            faults._record("hang", host=node.machine.name)
            node.machine.disk.stalled_until_ns = world.scheduler.now_ns + S
            world.scheduler.call_later_ns(faults.rng.randint(50, 200) * MS, crash, node)

    def crash(node: Node) -> None:
        if node.machine.up and not world.quiet:
            faults._record("crash", host=node.machine.name)
            node.crash()
            node.machine.disk.stalled_until_ns = 0
            faults._for(200, 1_000, node.boot)

    watch()


def cut_off_and_kill(faults: Faults) -> None:
    """A broker loses the others for a moment, though not its clients, and is killed before they find each other."""
    node, world = faults._node(), faults.world
    if node is None or not node.ready:
        return
    process = node.process
    faults._record("island", nodes=[node.node_id], bucket="", both_ways=True)
    heal = faults._cut_off([node], both_ways=True, bucket="")

    def kill() -> None:
        if node.process is process and node.running and not world.quiet:
            faults._kill_one(node)
        heal()

    faults._for(200, 600, kill)


def late_markers(faults: Faults) -> None:
    """A coordinator of transactions decides one while nothing of its reaches the other brokers, and is killed; what it
    sent arrives when its successor has long done the same."""
    world, began_ns = faults.world, faults.world.scheduler.now_ns
    node = faults._node()
    if world.quiet or node is None or not node.ready or node.broker is None or len(world.nodes) < 2:
        return
    if not any(log.topic == "__transaction_state" for log in node.broker.logs.logs):
        world.scheduler.call_later_ns(500 * MS, partial(late_markers, faults))
        return
    process, known = node.process, len(world.history)
    others = [other for other in world.nodes if other is not node]
    faults._record("late_markers", node=node.node_id)
    heal = faults._block([(node.host.name, other.host.name) for other in others])
    over = faults._trouble(world.nodes, "network")

    def end() -> None:
        faults._record("late_markers_over", node=node.node_id)
        heal()
        over()

    def watch() -> None:
        if world.quiet or node.process is not process or world.scheduler.now_ns > began_ns + 500 * MS:
            end()
        elif not any(event.kind == "bank.end.invoke" for event in world.history.events[known:]):
            world.scheduler.call_later_ns(5 * MS, watch)
        else:
            world.scheduler.call_later_ns(faults.rng.randint(100, 300) * MS, kill)

    def kill() -> None:
        if world.quiet:
            end()
            return
        if node.process is process and node.running:
            faults._kill_one(node)
        faults._for(1_500, 4_000, end)

    watch()


def there_and_back(faults: Faults) -> None:
    """While nothing gets durable a log is to move, and then to come back at once; no client reaches the broker where it
    is meanwhile. Soon after the first one is killed."""
    node, world = faults._node(), faults.world
    others = [one for one in world.nodes if one.running and one.ready and one is not node]
    if node is None or not node.ready or node.broker is None or not others:
        return
    other, broker, process = faults.rng.choice(others), node.broker, node.process
    led = [log for log in broker.logs.logs if not log.topic.startswith("__") and log.wal.kind == "volume"]
    if not led or other.machine is node.machine:
        return
    log_id, began_ns = faults.rng.choice(led).log_id, world.scheduler.now_ns
    faults._record("there_and_back", node=node.node_id, other=other.node_id, log=log_id)
    heal = faults._block([(host.name, other.host.name) for host in world.client_hosts])
    over = faults._trouble([node, other], "slow")
    node.machine.disk.stalled_until_ns = began_ns + 2 * S

    def goes_on() -> bool:
        return not world.quiet and node.process is process and world.scheduler.now_ns < began_ns + 4 * S

    def leader() -> int:
        return broker.controller.state.logs[log_id].leader_node

    def end() -> None:
        node.machine.disk.stalled_until_ns = 0
        heal()
        over()

    def away() -> None:
        if goes_on():
            wish(node, log_id, other.node_id)
            there()
        else:
            end()

    def there() -> None:
        if goes_on() and leader() != other.node_id:
            world.scheduler.call_later_ns(5 * MS, there)
            return
        node.machine.disk.stalled_until_ns = 0
        if goes_on():
            wish(node, log_id, node.node_id)
        back()

    def back() -> None:
        if goes_on() and leader() != node.node_id:
            world.scheduler.call_later_ns(5 * MS, back)
            return
        end()
        if goes_on():
            world.scheduler.call_later_ns(faults.rng.randint(300, 1_000) * MS, kill)

    def kill() -> None:
        if node.process is process and node.running and not world.quiet:
            faults._kill_one(node)

    world.scheduler.call_later_ns(faults.rng.randint(50, 400) * MS, away)


def wish(node: Node, log_id: int, target: int) -> None:
    """An operator asks a broker that another one leads a log; nothing happens if that fails."""
    broker, process = node.broker, node.process
    assert broker is not None and process is not None
    command = RequestMoves(process.token(16), (MoveTarget(log_id, target),), explicit=True)

    async def ask() -> None:
        try:
            await broker.controller.ask(command)
        except KafkaError:
            return

    def begin() -> None:
        asking = ask()
        try:
            broker.services.tasks.spawn(asking, name="move a log")
        except RuntimeError:  # the broker is just ending
            asking.close()

    process.call(begin)


STAGED: dict[str, Callable[[Faults], None]] = {
    "forgotten": forgotten,
    "usurped": usurped,
    "usurped_late": usurped_late,
    "stopped_appending": stopped_appending,
    "lost_snapshot": lost_snapshot,
    "stopped_writing": stopped_writing,
    "failed_write_and_crash": failed_write_and_crash,
    "lost_volume": lost_volume,
    "older_copy": older_copy,
    "late_batches": late_batches,
    "stall_at_end": stall_at_end,
    "cut_off_and_kill": cut_off_and_kill,
    "unheard_and_kill": unheard_and_kill,
    "late_grants": late_grants,
    "there_and_back": there_and_back,
    "late_markers": late_markers,
    "long_sleep": long_sleep,
}
"""By kind."""
