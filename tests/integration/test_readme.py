"""What the README shows with curl does what it says."""

from __future__ import annotations

import os
import re
import subprocess

from jobcluster_controller.schemas.spec import NOT_YET

from tests.integration.cluster import REPOSITORY, Cluster

README = (REPOSITORY / "README.md").read_text()


def blocks(title: str) -> list[str]:
    """The bash blocks of the section with this title."""
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_the_curl_examples_run_in_one_shell_and_show_what_they_promise(cluster: Cluster) -> None:
    source, *examples = blocks("With curl")
    assert source == "source build/env\n"
    environment = {
        **os.environ,
        "JOBCLUSTER_URL": f"https://127.0.0.1:{cluster.https}",
        "JOBCLUSTER_CA_FILE": str(cluster.certs / "ca.crt"),
        "JOBCLUSTER_TOKEN": cluster.token("admin"),
    }
    script = "set -euo pipefail\n" + "\n".join(examples)
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Hello world, from bash." in done.stdout
    assert '"state":"succeeded"' in done.stdout.replace(" ", "")
    assert "\n0\n1\n2\n" in done.stdout or "}0\n1\n2\n" in done.stdout
    assert "step 3 of 3" in done.stdout
    assert '"reason":"stopped"' in done.stdout.replace(" ", "")


def test_every_field_that_is_refused_as_not_there_yet_is_named() -> None:
    section = README.split("\n## Not there yet\n")[1]
    assert set(re.findall(r"`(\w+)`", section)) == NOT_YET


def test_every_make_target_the_readme_names_is_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    named = set(re.findall(r"`make ([a-z][a-z0-9-]*)", README))
    assert named <= set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
