"""``python -m jobcluster_worker`` is the command jobcluster-worker."""

import sys

from jobcluster_worker.app import main

if __name__ == "__main__":
    sys.exit(main())
