"""``python -I -m jobcluster_worker.server``: what the launcher executes."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from jobcluster_common import logs
from jobcluster_common.settings import SettingsError, fail_with_one_line, load

from jobcluster_worker.server.app import Run, Server
from jobcluster_worker.settings import ELSEWHERE, WorkerSettings


@fail_with_one_line
def main() -> int:
    parser = argparse.ArgumentParser(
        prog="jobcluster-worker-server", description="Started by the launcher only."
    )
    parser.add_argument("--config", type=Path)
    parser.add_argument("--run-directory", type=Path, required=True)
    parser.add_argument("--incarnation", required=True)
    parser.add_argument("--launcher-pid", type=int, required=True)
    given = parser.parse_args()
    settings = load(WorkerSettings, given.config, os.environ, ELSEWHERE)
    run = Run(given.run_directory, given.incarnation, given.launcher_pid)

    async def serve() -> int:
        logs.tell_of_faults(asyncio.get_running_loop())
        server = Server(settings, run)
        server.watch_signals()
        return await server.main()

    try:
        # The launcher has put stderr where the settings want the log.
        with logs.process(settings.log, process="server"):
            return asyncio.run(serve())
    except* SettingsError as group:
        raise group.exceptions[0] from None


if __name__ == "__main__":
    sys.exit(main())
