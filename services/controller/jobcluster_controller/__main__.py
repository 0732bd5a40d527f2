"""The command jobcluster-controller, which is ``python -m jobcluster_controller``."""

import signal
import sys

# Before anything else is imported: until the loop can act on them. As the first process of a container it would else
# never see a SIGTERM that comes this early: there the default action is not taken (pid_namespaces(7)).
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

from .app import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
