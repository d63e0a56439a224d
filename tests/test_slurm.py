"""docs/slurm.sh with stand-ins for SLURM, Ray and the search: what it starts and submits."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "slurm.sh"

STAND_INS = {
    "scontrol": 'if [ "$2" = hostnames ]; then printf "n1\\nn2\\nn3\\n"; '
    'else echo "   Command=/home/me/slurm.sh  "; fi',
    "srun": 'echo "srun $*" >> calls; [[ "$*" == *hostname* ]] && echo 10.0.0.1 || true',
    "ray": "true",
    "sbatch": 'echo "sbatch $*" >> calls',
    "autopeft": 'echo "autopeft $RAY_ADDRESS $*" >> calls; trap "exit 143" TERM; '
    'if [ -e hang ]; then touch hangs; sleep 30 > /dev/null 2>&1 & wait; fi; exit "$(cat code)"',
}

pytestmark = pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    (tmp_path / "code").write_text("0")
    return tmp_path


def start(job: Path) -> "subprocess.Popen[str]":
    environment = {
        "PATH": f"{job / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_ID": "4217",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_END_TIME": str(int(time.time()) + 7200),
        "JOIN_S": "0",
    }
    return subprocess.Popen(
        ["/bin/bash", str(SCRIPT), "study.yaml", "--trials", "9"],
        cwd=job, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ran(job: Path, code: int) -> list[str]:
    (job / "code").write_text(str(code))
    process = start(job)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if code == 75 else code), out
    return (job / "calls").read_text().splitlines()


def test_head_and_workers_are_started_and_the_search_stops_in_time(job: Path) -> None:
    calls = ran(job, 0)
    head = next(call for call in calls if "--head" in call)
    assert "--nodelist=n1 " in head
    assert "--port=24217" in head
    workers = next(call for call in calls if "--nodes=2" in call)
    assert "--ntasks=2" in workers
    assert "--exclude=n1" in workers
    assert "--address=10.0.0.1:24217" in workers
    assert all("--num-cpus=8 --num-gpus=4" in call for call in (head, workers))
    search = next(call for call in calls if call.startswith("autopeft")).split()
    assert search[1:4] == ["10.0.0.1:24217", "search", "study.yaml"]
    assert search[search.index("--executor") + 1] == "ray"
    left = int(search[search.index("--stop-after") + 1].removesuffix("s"))
    assert 7200 - 300 - 60 < left <= 7200 - 300
    assert not any(call.startswith("sbatch") for call in calls), "it had ended"


def test_a_search_that_was_stopped_is_submitted_again(job: Path) -> None:
    again = "sbatch --dependency=afterany:4217 /home/me/slurm.sh study.yaml --trials 9"
    assert again in ran(job, 75)


@pytest.mark.parametrize("code", [1, 2, 4])
def test_a_search_that_failed_is_not_submitted_again(job: Path, code: int) -> None:
    assert not any(call.startswith("sbatch") for call in ran(job, code))


def test_slurms_signal_reaches_the_search(job: Path) -> None:
    (job / "hang").touch()
    process = start(job)
    for _ in range(600):
        if (job / "hangs").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0, out
    assert "sbatch" in (job / "calls").read_text()
