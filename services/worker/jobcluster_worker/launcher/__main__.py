"""Run as a directory by ``python -I -S``: this process becomes the launcher. Stdlib only."""

import os
import signal
import sys

# Until the launcher can act on them. As the first process of a container it would else never see a SIGTERM that
# comes this early: there the default action is not taken (pid_namespaces(7)).
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

# The directory itself comes off the path, lest a module here be taken for one of the standard library; the package's
# parent goes to the very end, so that the standard library always wins.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]
sys.path.append(os.path.dirname(os.path.dirname(_HERE)))

from jobcluster_worker.launcher.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
