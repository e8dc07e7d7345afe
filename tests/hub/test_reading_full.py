"""A repository of 160 shards and 180,000 tensors: how often it is asked, and how much is held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtpfix import scan
from mtpfix.model import Severity, Verdict
from tests.checkpoints import VARIANTS, build
from tests.families import FAMILIES
from tests.hub import Hub
from tests.hub.conftest import Client

ROOT = Path(__file__).resolve().parents[2]
NAME = "org/model"

SCAN = """
import json, re, sys
from pathlib import Path
from mtpfix import scan
report = scan(sys.argv[1], engines=["vllm==0.32.0"], scope=sys.argv[2])
print(json.dumps({"code": report.exit_code(), "tensors": report.checkpoint.tensor_count, "notes": list(report.notes),
    "findings": [finding.rule for finding in report.findings], "left_out": len(report.checkpoint.left_out),
    "megabytes": int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000}))
"""


def scanned(hub: Hub, home: Path, ref: str, scope: str = "all") -> dict[str, Any]:
    """Scan in a process of its own; its peak is that since it began: `getrusage` counts what forked it, too."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
    command = [sys.executable, "-c", SCAN, ref, scope]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_one_redirect_and_one_range_for_each_shard(tmp_path: Path) -> None:
    build(tmp_path / "model", "deepseek_v3", "excluded-glob", "full", shards=160)
    with Hub() as hub:
        hub.add(NAME, tmp_path / "model")
        first = scanned(hub, tmp_path / "home", NAME)
        assert first["tensors"] > 179_000
        shards = [one for one in hub.asked("hub") if one.endswith(".safetensors")]
        assert len(shards) == len(set(shards)) == 160
        assert len(hub.asked()) - 2 * 160 <= 6
        assert first["megabytes"] <= 400
        assert not first["notes"]
        hub.forget()
        second = scanned(hub, tmp_path / "home", NAME)
        assert len(hub.asked()) <= 6
        local = scanned(hub, tmp_path / "home", str(tmp_path / "model"))
        for other in (second, local):
            assert {**other, "megabytes": 0} == {**first, "megabytes": 0}
        hub.forget()
        branch = scanned(hub, tmp_path / "other", NAME, "mtp")
        assert branch["left_out"] > 140
        assert len(hub.asked()) <= 6 + 2 * (160 - branch["left_out"])  # shards of equal bytes are asked for once


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["published", "excluded-exact", "packed-head", "conflict", "missing"])
def test_the_branch_alone_is_never_called_fine_where_it_is_not(tmp_path: Path, client: Client, variant: str) -> None:
    releases = ["vllm==0.32.0"]
    judged = 0
    with Hub() as hub:
        client(hub)
        for family in (name for name in FAMILIES if name in VARIANTS[variant].families):
            folder = tmp_path / family
            build(folder, family, variant, "tiny", shards=5)
            hub.add(f"org/{family}", folder)
            whole, report = scan(folder, engines=releases), scan(f"org/{family}", engines=releases, scope="mtp")
            one, other = (each.engines[0].prediction.draft.verdict for each in (whole, report))
            assert other is one or other is not Verdict.LOADS, family
            if any(finding.role == "draft" and finding.severity is Severity.ERROR for finding in whole.findings):
                assert report.exit_code() != 0, family
            judged += other is not Verdict.UNKNOWN
    assert judged > 5
