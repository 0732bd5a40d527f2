"""The command jobcluster-worker, which is ``python -m jobcluster_worker``."""

import signal
import sys

# Before anything else is imported, and through exec: until the launcher can act on them. As the first process of a
# container it would else never see a SIGTERM that comes this early: there the default action is not taken
# (pid_namespaces(7)).
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

from jobcluster_worker.app import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
