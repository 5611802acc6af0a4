"""Runs the latency proxy as a process of its own and reads its counters."""

import subprocess
from pathlib import Path

from benchmarks import processes
from benchmarks.latency_proxy import Traffic, read_traffic


class ProxyProcess:
    """A running proxy in front of one port on loopback.

    *delay_ms* is one way; *rate* is in bytes per second for each connection and direction.
    """

    def __init__(self, server_port: int, statistics: Path, delay_ms: float, rate: float) -> None:
        self.statistics = statistics
        arguments = [
            f"--target=127.0.0.1:{server_port}",
            f"--delay-ms={delay_ms}",
            f"--rate={rate}",
            f"--statistics={statistics}",
        ]
        self._process = processes.start_module(
            "benchmarks.latency_proxy", arguments, log=subprocess.DEVNULL
        )
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("the latency proxy did not start")
        self.port = int(line)

    def traffic(self) -> Traffic:
        """What has gone through so far."""
        return read_traffic(self.statistics)

    def cpu_seconds(self) -> float:
        """CPU time that the proxy has used."""
        return processes.cpu_seconds(self._process.pid)

    def stop(self) -> None:
        """End it, and with it all connections."""
        processes.end(self._process)
