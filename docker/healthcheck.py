"""Exit with 0 if this container's Ray node is well, head or worker: its own agent sees its raylet. Needs no token."""

import os
import sys
from urllib.error import URLError
from urllib.request import urlopen

_TIMEOUT_S = 4.0
"""Below the image's HEALTHCHECK timeout, so that the reason is still printed."""


def main() -> int:
    """Ask the agent; print what it says."""
    port = os.environ.get("EVA_DIST_AGENT_PORT", "52365")
    try:
        with urlopen(f"http://127.0.0.1:{port}/api/local_raylet_healthz", timeout=_TIMEOUT_S) as answer:
            print(answer.read().decode())
            return 0
    except (URLError, OSError) as error:
        print(f"no healthy Ray node behind port {port}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
