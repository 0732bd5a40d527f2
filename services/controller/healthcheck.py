"""Exit 0 when the controller answers GET /readyz on its own HTTPS port; standard library only."""

from __future__ import annotations

import ssl
import sys
import urllib.request
from pathlib import Path

CA_FILE = Path("/var/lib/jobcluster-certs/ca.crt")
URL = "https://127.0.0.1:8443/readyz"


def main() -> int:
    context = ssl.create_default_context(cafile=str(CA_FILE))
    try:
        with urllib.request.urlopen(URL, timeout=4, context=context) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:  # URLError and ssl.SSLError are OSErrors
        sys.stderr.write(f"{URL}: {error}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
