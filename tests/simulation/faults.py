"""What goes wrong in a world. Each is done from outside of all processes, at an instant between two of their steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.files import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.processes import Process
    from tests.simulation.settings import Fault
    from tests.simulation.world import World

RECOVERY_S = 3.0
"""So long after a fault the server may not answer at once."""
LONGEST_S = 4.0
LONGEST_SUSPEND_S = 500.0
LONGEST_STEP_S = 4000.0
CHECKSUM_BYTES = 4


class Faults:
    """Does the faults of a history."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._kinds: dict[str, Callable[[Fault], bool]] = {
            "kill worker": self._kill_worker,
            "kill server": self._kill_server,
            "stop worker": self._stop_worker,
            "stop server": self._stop_server,
            "cut": self._cut,
            "descriptors": self._descriptors,
            "disk full": self._disk_full,
            "journal fails": self._journal_fails,
            "tear journal": self._tear_journal,
            "logins fail": self._logins_fail,
            "logins hang": self._logins_hang,
            "backend gone": self._backend_gone,
            "leave": self._leave,
            "shutdown": self._shutdown,
            "reset": self._reset,
            "resize": self._resize,
            "fork": self._fork,
            "exec": self._exec,
            "visitor": self._visitor,
            "redeploy": self._redeploy,
            "freeze": self._freeze,
            "suspend": self._suspend,
            "issuer fails": self._issuer_fails,
            "issuer hangs": self._issuer_hangs,
            "tokens revoked": self._tokens_revoked,
            "hooks fail": self._hooks_fail,
            "clock steps": self._clock_steps,
            "ask": self._ask,
            "drain": self._drain,
            "close": self._close,
        }

    def plan(self, history: list[Fault]) -> None:
        began = self.world.scheduler.now
        for fault in history:
            self.world.scheduler.call_at(began + fault.at, lambda fault=fault: self.strike(fault))

    def strike(self, fault: Fault) -> None:
        if not self.world.is_healing and self._kinds[fault.kind](fault):
            self.world.outcome.faults[fault.kind] += 1

    def _ill_for(self, seconds: float) -> None:
        world = self.world
        world.ill_until = max(world.ill_until, world.scheduler.now + seconds + RECOVERY_S)

    def _for_a_while(self, seconds: float, end: Callable[[], None]) -> None:
        self.world.scheduler.call_at(self.world.scheduler.now + seconds, end)

    def _worker(self, fault: Fault) -> Any:
        workers = list(self.world.workers.values())
        return workers[int(fault.a * len(workers))] if workers else None

    # --- processes -----------------------------------------------------------------------------------------

    def _kill_worker(self, fault: Fault) -> bool:
        return self._kill(self._worker(fault), fault)

    def _kill_server(self, fault: Fault) -> bool:
        self._ill_for(1.0)
        return self._kill(self.world.server, fault)

    def _kill(self, process: Process | None, fault: Fault) -> bool:
        if process is None:
            return False
        if fault.b < 0.4:
            process.kill()
        else:
            process.doomed = True
        return True

    def _stop_worker(self, fault: Fault) -> bool:
        return self._stop(self._worker(fault), fault.b**2 * LONGEST_S)

    def _stop_server(self, fault: Fault) -> bool:
        seconds = fault.b**2 * LONGEST_S
        self._ill_for(seconds)
        return self._stop(self.world.server, seconds)

    def _stop(self, process: Process | None, seconds: float) -> bool:
        if process is None or process.is_stopped:
            return False
        process.stop()
        self._for_a_while(seconds, process.go_on)
        return True

    def _freeze(self, fault: Fault) -> bool:
        """The whole machine stands still, but for its clock."""
        seconds = fault.b**2 * LONGEST_S
        self._ill_for(seconds)
        for process in list(self.world.kernel.processes.values()):
            self._stop(process, seconds)
        return True

    def _suspend(self, fault: Fault) -> bool:
        """The machine sleeps. Its monotonic clock does too, but not the one that tokens end by."""
        self.world.scheduler.suspended += fault.b**2 * LONGEST_SUSPEND_S
        return True

    def _clock_steps(self, fault: Fault) -> bool:
        """The machine's wall clock is put right, or wrong; the monotonic one is not."""
        self.world.scheduler.stepped = (2 * fault.b - 1) ** 3 * LONGEST_STEP_S
        return True

    def _leave(self, fault: Fault) -> bool:
        process = self._worker(fault)
        if process is None or process.told is None:
            return False
        process.told.leaves = True
        return True

    def _fork(self, fault: Fault) -> bool:
        """A child that closes nothing, as C code makes it; or one that works, and has none of its parent's resources."""
        process = self._worker(fault)
        settings = self.world.settings
        if process is None or len(self.world.workers) > settings.processes + 2:
            return False
        hooks = fault.b < 0.5
        self.world.fork(process, fault.b / 10 if hooks else fault.b * LONGEST_S, hooks=hooks)
        return True

    def _exec(self, fault: Fault) -> bool:
        process = self._worker(fault)
        if process is None:
            return False
        self.world.exec(process)
        return True

    def _visitor(self, fault: Fault) -> bool:
        if any(one.name == "visitor" for one in self.world.kernel.processes.values()):
            return False
        self._ill_for(8.0)
        self.world.visit()
        return True

    def _redeploy(self, fault: Fault) -> bool:
        """Workers that start from now on have newer code: other bounds, or another database under the same name."""
        world = self.world
        options = world.settings.options
        least = [options.get(name, 1) for name in ("min_size", "max_per_process", "max_opening")]
        size = max(*least, int(fault.a * 7))
        world.database.most = max(world.database.most, size)
        world.largest = max(world.largest, size)
        world.release.options = {**world.release.options, "max_size": size}
        if "max_idle" in options:
            world.release.options["max_idle"] = 0.5 + fault.b
        world.release.number += fault.b < 0.5
        return True

    # --- connections, descriptors, the disk ----------------------------------------------------------------

    def _cut(self, fault: Fault) -> bool:
        """A connection breaks: at once, or at the next word that the process says on it, which may arrive."""
        streams = [
            stream
            for stream in self.world.kernel.streams
            if stream.owner.name == "worker"
            and stream.peer is not None
            and stream.peer.owner.name == "server"
        ]
        if not streams:
            return False
        self._ill_for(0.0)
        stream = streams[int(fault.a * len(streams))]
        if stream.sleepers or fault.b < 0.4:
            stream.cut()
        else:
            stream.breaks = "before" if fault.b < 0.7 else "after"
        return True

    def _descriptors(self, fault: Fault) -> bool:
        process = self.world.server if fault.b < 0.3 else self._worker(fault)
        if process is None:
            return False
        seconds = fault.b * LONGEST_S / 2
        self._ill_for(seconds)
        process.most_descriptors = len(process.descriptors) + int(fault.a * 3)

        def end() -> None:
            process.most_descriptors = 1024

        self._for_a_while(seconds, end)
        return True

    def _disk_full(self, fault: Fault) -> bool:
        files, seconds = self.world.kernel.files, fault.b * LONGEST_S
        self._ill_for(seconds)
        files.is_full = True

        def end() -> None:
            files.is_full = False

        self._for_a_while(seconds, end)
        return True

    def _journal_fails(self, fault: Fault) -> bool:
        files, seconds = self.world.kernel.files, fault.b * LONGEST_S
        self._ill_for(seconds)
        files.failing = fault.a

        def end() -> None:
            files.failing = 0.0

        self._for_a_while(seconds, end)
        return True

    def _tear_journal(self, fault: Fault) -> bool:
        """The server dies, and of its last record only a part has reached the disk.

        Something of it has: a record that is gone altogether is one that was never told to anybody.
        """
        server, node = self.world.server, self.world.journal()
        if server is None or node is None or node.written_at <= 0:
            return False
        self._ill_for(1.0)
        server.kill()
        at = node.written_at
        if fault.b < 0.7:
            kept = max(CHECKSUM_BYTES, int(fault.a * BLOCK))
            node.data[at + kept : at + BLOCK] = bytes(
                max(0, min(BLOCK, len(node.data) - at) - kept)
            )
        else:
            del node.data[at + int(fault.a * BLOCK) :]
        return True

    # --- the database --------------------------------------------------------------------------------------

    def _logins_fail(self, fault: Fault) -> bool:
        database = self.world.database
        database.fails = 0.3 + 0.7 * fault.a

        def end() -> None:
            database.fails = 0.0

        self._for_a_while(fault.b * LONGEST_S, end)
        return True

    def _logins_hang(self, fault: Fault) -> bool:
        database = self.world.database
        database.hangs = fault.a

        def end() -> None:
            database.hangs = 0.0

        self._for_a_while(fault.b * LONGEST_S, end)
        return True

    def _hooks_fail(self, fault: Fault) -> bool:
        """Whatever a hook other than `open` does raises."""
        database = self.world.database
        database.hooks_fail = fault.a

        def end() -> None:
            database.hooks_fail = 0.0

        self._for_a_while(fault.b * LONGEST_S, end)
        return True

    def _issuer_fails(self, fault: Fault) -> bool:
        issuer = self.world.issuer
        issuer.fails = 0.3 + 0.7 * fault.a

        def end() -> None:
            issuer.fails = 0.0

        self._for_a_while(fault.b * LONGEST_S, end)
        return True

    def _issuer_hangs(self, fault: Fault) -> bool:
        issuer = self.world.issuer
        issuer.hangs = fault.a

        def end() -> None:
            issuer.hangs = 0.0

        self._for_a_while(fault.b * LONGEST_S, end)
        return True

    def _tokens_revoked(self, fault: Fault) -> bool:
        self.world.issuer.revoke()
        return True

    def _backend_gone(self, fault: Fault) -> bool:
        self.world.database.backend_gone()
        return True

    # --- commands ------------------------------------------------------------------------------------------

    def _command(self, fault: Fault, function: Callable[[Any], object]) -> bool:
        process = self._worker(fault)
        if process is None or process.told is None:
            return False
        worker = process.told

        def run() -> None:
            try:
                function(worker)
            except worker.errors.PoolError as error:
                self.world.outcome.done[f"{fault.kind} in vain: {type(error).__name__}"] += 1
            finally:
                worker.busy -= 1

        worker.busy += 1
        process.start_thread(run, fault.kind)
        return True

    def _shutdown(self, fault: Fault) -> bool:
        self._ill_for(1.0)
        return self._command(fault, lambda worker: worker.manager.shutdown())

    def _reset(self, fault: Fault) -> bool:
        over = 0.0 if fault.b < 0.5 else fault.b
        return self._command(fault, lambda worker: worker.reset(over))

    def _resize(self, fault: Fault) -> bool:
        world = self.world
        size = 1 + int(fault.b * 6)
        if size < world.settings.options.get("min_size", 0):
            return False
        world.database.most = max(world.database.most, size)
        world.largest = max(world.largest, size)
        return self._command(fault, lambda worker: worker.resize(size))

    def _ask(self, fault: Fault) -> bool:
        """Somebody wants to know how it goes."""
        return self._command(fault, lambda worker: worker.ask(fault.b))

    def _drain(self, fault: Fault) -> bool:
        return self._command(fault, lambda worker: worker.drain(fault.b * LONGEST_S))

    def _close(self, fault: Fault) -> bool:
        """In one process, or in all, and declared again after a moment."""
        return self._command(fault, lambda worker: worker.close(everywhere=fault.b < 0.3))
