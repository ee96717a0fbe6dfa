"""A TCP proxy, in a process of its own, that adds latency and counts round trips.

``with LatencyProxy(port, [0, 0.05]) as proxy:`` has a port for each latency in ``proxy.ports``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter


class LatencyProxy:
    """*round_trips* are seconds, of which each direction takes one half."""

    def __init__(self, port: int, round_trips: list[float]):
        self._target = port
        self._round_trips = round_trips

    def __enter__(self) -> LatencyProxy:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.latency", str(self._target)]
            + [str(seconds) for seconds in self._round_trips],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ports = json.loads(self._process.stdout.readline())
        self.ports = dict(zip(self._round_trips, ports, strict=True))
        return self

    def __exit__(self, *exc) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)

    def counts(self) -> dict[str, int]:
        """``connections`` and ``round_trips`` since the last time."""
        self._process.stdin.write("counts\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class _Connection:
    def __init__(self, counts: Counter[str], delay: float):
        self.counts = counts
        self.delay = delay
        self.asked = False

    async def run(self, client: asyncio.StreamReader, to_client, port: int) -> None:
        self.counts["connections"] += 1
        server, to_server = await asyncio.open_connection("127.0.0.1", port)
        # The handshake of TCP has happened without the latency: made up for by a later greeting.
        await asyncio.sleep(2 * self.delay)
        await asyncio.gather(
            self.forward(client, to_server, asked=True),
            self.forward(server, to_client, asked=False),
        )

    async def forward(self, source, target, *, asked: bool) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        writing = asyncio.create_task(self.write_late(queue, target))
        clock = asyncio.get_running_loop().time
        try:
            while data := await source.read(1 << 20):
                if self.asked and not asked:
                    self.counts["round_trips"] += 1
                self.asked = asked
                queue.put_nowait((clock() + self.delay, data))
        except OSError:
            pass
        queue.put_nowait((clock() + self.delay, b""))
        await writing

    async def write_late(self, queue, target) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while True:
                due, data = await queue.get()
                if (pause := due - clock()) > 0:
                    await asyncio.sleep(pause)
                if not data:
                    target.close()
                    return
                target.write(data)
                await target.drain()
        except OSError:
            target.close()


async def main(port: int, round_trips: list[float]) -> None:
    counts: Counter[str] = Counter()
    loop = asyncio.get_running_loop()

    def listen(seconds):
        def accept(client, to_client):
            return _Connection(counts, seconds / 2).run(client, to_client, port)

        return asyncio.start_server(accept, "127.0.0.1", 0)

    servers = [await listen(seconds) for seconds in round_trips]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        answer = {name: counts[name] for name in ("connections", "round_trips")}
        counts.clear()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), [float(seconds) for seconds in sys.argv[2:]]))
