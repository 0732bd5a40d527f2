"""``python -m jobcluster_controller``."""

from .app import main

raise SystemExit(main())
