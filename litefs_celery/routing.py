"""The bootstep that makes the consumed queues match the term."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.worker.control import control_command, inspect_command

from . import handover, rivals
from .tasks import primary_queue, read_queue

if TYPE_CHECKING:
    from .database import LiteFSCelery


class PrimaryStep(bootsteps.StartStopStep):
    """
    Runs beside the worker's consumer: its read queue, its detectors, its consumers of writes.

    Reconnects of the worker stop and start it; what it runs goes on through them.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **options: Any) -> None:
        super().__init__(c, **options)
        for db in databases(c.app):
            c.app.amqp.queues.deselect(db.queue)
            if not db.standalone:
                c.app.amqp.queues.select_add(read_queue(db.settings.read_queue))

    def start(self, c: Any) -> None:
        """Start what is not running yet; called again at each reconnect."""
        for db in databases(c.app):
            db.start_node(c.hostname, lambda: _sends_task_events(c.event_dispatcher))

    def stop(self, c: Any) -> None:
        """Stop for good when the worker closes, not when it reconnects."""
        if c.blueprint.state == bootsteps.CLOSE:
            for group in handover.by_litefs(databases(c.app)):
                handover.leave(group)
        if c.blueprint.state in (bootsteps.CLOSE, bootsteps.TERMINATE):
            self.shutdown(c)

    terminate = stop

    def shutdown(self, c: Any) -> None:
        """Stop every database's detector and consumer."""
        for db in databases(c.app):
            with contextlib.suppress(Exception):
                db.stop_node()

    def info(self, c: Any) -> dict[str, Any]:
        """What ``inspect stats`` and Flower's worker page show."""
        return {"litefs": {db.name: db.node_status() for db in databases(c.app)}}


def _sends_task_events(dispatcher: Any) -> bool:
    # Enabled without -E too, for the worker's own heartbeats: then with that group alone.
    if dispatcher is None or not dispatcher.enabled:
        return False
    return not dispatcher.groups or "task" in dispatcher.groups


def databases(app: Any) -> list[LiteFSCelery]:
    """The databases that were attached to ``app``."""
    found: list[LiteFSCelery] = getattr(app, "litefs_databases", [])
    return found


@inspect_command(name="litefs")
def litefs_status(state: Any) -> dict[str, Any]:
    """Each database's role, epoch and position on this node."""
    return {db.name: db.node_status() for db in databases(state.app)}


@control_command(name=handover.HAND_OVER, args=[("node", str), ("timeout", float)])
def hand_over(state: Any, node: str, timeout: float) -> dict[str, Any]:
    """Give the role of primary, where this node has it, to ``node``."""
    for group in handover.by_litefs(databases(state.app)):
        if any(db.term is not None for db in group):
            give = handover.Handover(group).give
            handover.in_background(functools.partial(give, node, timeout), "litefs-hand-over")
            return {"ok": f"handing over to {node}"}
    return {"ok": "not primary"}


@control_command(name=handover.TAKE_OVER)
def take_over(
    state: Any, node: str, positions: dict[str, str], timeout: float
) -> dict[str, Any]:
    """Take the role of primary, where this is ``node``, once it has what the primary has."""
    for group in handover.by_litefs(databases(state.app)):
        if group[0].settings.node == node and positions.keys() >= {db.name for db in group}:
            take = functools.partial(handover.take_over, group, positions, timeout)
            handover.in_background(take, "litefs-take-over")
            return {"ok": "taking over"}
    return {"ok": "another node"}


@control_command(
    name=rivals.TERM_HELD,
    args=[("queue", str), ("node", str), ("epoch", int), ("since", float)],
)
def hear_term(state: Any, queue: str, node: str, epoch: int, since: float) -> dict[str, Any]:
    """Hear that ``node`` holds a term since that Unix time and consumes ``queue``."""
    for db in databases(state.app):
        if db.queue == queue and not db.standalone:
            db.parts.hear_term(node, epoch, since)
    return {"ok": "heard"}


@inspect_command(name="active_queues")
def active_queues(state: Any) -> list[dict[str, Any]]:
    """The queues this worker consumes, Celery's own and the queue of writes: for Flower."""
    consumer = state.consumer.task_consumer
    queues = list(consumer.queues) if consumer else []
    queues += [primary_queue(db.queue) for db in databases(state.app) if db.consuming]
    return [dict(queue.as_dict(recurse=True)) for queue in queues]
