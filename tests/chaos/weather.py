"""Runs a plan on a scene while writers write, and judges what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.chaos import log as logs
from tests.chaos.faults import Begin, Begun
from tests.chaos.judge import Finding, judge, unknown
from tests.chaos.scene import Scene
from tests.chaos.storm import Moment, Planned, moments
from tests.chaos.writers import Writers
from tests.cluster.site import PATIENCE
from worker.fleet import wait_until

# How long what was kept may take to be found, or sent, after everything is healthy again.
QUIET = 120.0
# So many writes are acknowledged after the last fault before the writers stop.
CALM = 50
Tell = Callable[[str], None]


class Weather:
    """One storm; ``tell`` gets a line for each fault with the seconds since its begin."""

    def __init__(self, scene: Scene, begins: Mapping[str, Begin], tell: Tell) -> None:
        self._scene = scene
        self._begins = begins
        self._tell = tell
        self._started = time.monotonic()
        self._begun: dict[int, Begun] = {}

    def run(
        self, plan: Sequence[Planned], seed: int, *, threads: int, patience: float = QUIET
    ) -> list[Finding]:
        """Every broken promise, after all faults came and went."""
        scene = self._scene
        writers = Writers(scene.site, scene.log, seed, threads=threads)
        writers.start()
        self._started = time.monotonic()
        try:
            for moment in moments(plan):
                self._wait(moment.at)
                self._pass(moment)
            self._calm()
        except BaseException:
            scene.let_go()  # or calls would hang as long as what they wait for is paused
            raise
        finally:
            writers.stop()
        self._say("the storm is over")
        scene.heal()
        self._say("healed")
        calls = logs.read(scene.log.path.read_text().splitlines())
        left = scene.wait_quiet(calls, patience)
        self._say("quiet")
        evidence = scene.evidence(unknown(calls))
        self._say(_summary(calls))
        return judge(calls, evidence) + ([Finding("never quiet", left)] if left else [])

    def _wait(self, at: float) -> None:
        # The processes' supervisor meanwhile.
        def reached() -> bool:
            self._scene.supervise()
            return time.monotonic() - self._started >= at

        wait_until(reached, at + 60.0, interval=0.1)

    def _pass(self, moment: Moment) -> None:
        fault = moment.fault
        if moment.begins:
            begun = self._begins[fault.kind](self._scene, fault.pick)
            self._begun[fault.number] = begun
            self._say(f"{fault.number:3} {fault.kind} {begun.whom}")
        else:
            begun = self._begun.pop(fault.number)
            begun.end()
            self._scene.supervise()
            if fault.ends > fault.begins:
                self._say(f"{fault.number:3} {fault.kind} {begun.whom} ends")

    def _calm(self) -> None:
        """After the last fault writes must go through again, with nobody's help."""
        log = self._scene.log
        goal = log.acknowledged + CALM

        def reached() -> bool:
            self._scene.supervise()
            return log.acknowledged >= goal

        wait_until(reached, PATIENCE, self._scene.site.tails, 0.1)

    def _say(self, what: str) -> None:
        self._scene.log.happened(what)
        self._tell(f"{time.monotonic() - self._started:6.1f} s {what}")


def _summary(calls: Mapping[str, logs.Call]) -> str:
    acknowledged = sum(call.acknowledged for call in calls.values())
    refused = sum(call.refused for call in calls.values())
    return (
        f"{len(calls)} writes: {acknowledged} acknowledged, {refused} refused, "
        f"{len(unknown(calls))} unknown"
    )


def told(findings: Sequence[Finding], plan: Sequence[Planned], path: Path, replay: str) -> str:
    """What a failed storm says: the promises it broke, its plan, its log, and how to replay it."""
    kinds = ", ".join(sorted({finding.kind for finding in findings}))
    lines = [
        f"{len(findings)} broken promises ({kinds})" if findings else "the storm could not go on",
        *(f"  {finding}" for finding in findings[:20]),
        "the plan:", *(f"  {fault}" for fault in plan),
        f"the log: {path}", f"replay it: {replay}",
    ]
    return "\n".join(lines)
