"""The examples of docs/workers.md, run as they stand: only the database's address and what is searched are replaced."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import yaml
from optuna.trial import TrialState

from lr_dist.errors import StorageError
from lr_dist.search.engine.slots import SLOT, settled
from lr_dist.search.engine.storage import open_storage

PAGE = (Path(__file__).parents[2] / "docs" / "workers.md").read_text(encoding="utf-8")
STUDY, TRIALS = "sst2-qqp", 4


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


@pytest.fixture
def place(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the search.yaml that all examples read: a search of seconds; `lr-dist` is on the path."""
    search = {
        "model": tiny_model,
        "tasks": ["demo-sentiment", "demo-acceptability"],
        "space": "flat",
        "objective": "sum",
        "trials": TRIALS,
        "limit": 24,
        "epochs": 1,
        "batch_size": 12,
        "max_length": 16,
        "precision": "32-true",
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture(scope="module")
def guarded(postgres: Any) -> str:
    """A database whose user needs a password; its URL, which does not hold it."""
    postgres.database("guarded")
    with psycopg.connect(f"{postgres.url}/guarded", autocommit=True) as admin:
        admin.execute("CREATE ROLE lr_dist LOGIN PASSWORD 'open sesame'")
        admin.execute("ALTER DATABASE guarded OWNER TO lr_dist")
        admin.execute("GRANT ALL ON SCHEMA public TO lr_dist")
    rules = postgres.folder / "data" / "pg_hba.conf"
    rules.write_text(f"host guarded lr_dist 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    with psycopg.connect(f"{postgres.url}/postgres", autocommit=True) as admin:
        admin.execute("SELECT pg_reload_conf()")
    return f"postgresql://lr_dist@127.0.0.1:{postgres.port}/guarded"


def test_the_slurm_script_is_correct_bash_and_two_tasks_of_its_array_share_a_study(
    place: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.database("slurm")
    script = place / "job.sh"
    script.write_text(with_address(block("bash"), "postgresql://lr_dist@db.example.org/lr_dist", url))
    subprocess.run(["bash", "-n", str(script)], check=True)
    directives = re.findall(r"^#SBATCH (--\S+)$", script.read_text(), flags=re.MULTILINE)
    assert len(directives) == script.read_text().count("#SBATCH")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(place))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    tasks = [
        subprocess.Popen(
            ["bash", str(script)],
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)},
        )
        for task in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in tasks]
    assert [process.returncode for process in tasks] == [0, 0], said
    assert [f"worker {task} of job 4711 on " in text for task, text in enumerate(said)] == [True, True]
    assert_complete(url)


def test_the_kubernetes_job_is_whole_and_its_command_with_the_password_of_its_secret_searches(
    place: Path, guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = yaml.safe_load(block("yaml"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    # With a fixed number of completions, workers that find the study complete would be counted against it.
    assert "completions" not in job["spec"]
    assert pod["restartPolicy"] == "OnFailure"
    (container,) = pod["containers"]
    (variable,) = container["env"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    # What kubectl is told to make is what the Job asks for.
    secret = variable["valueFrom"]["secretKeyRef"]
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in PAGE
    assert f"create configmap {pod['volumes'][0]['configMap']['name']} --from-file=search.yaml" in PAGE
    (mounted,) = [m["mountPath"] for m in container["volumeMounts"]]
    command = [
        part.replace(mounted, str(place)).replace("postgresql://lr_dist@postgres/lr_dist", guarded)
        for part in container["command"] + container["args"]
    ]
    assert guarded in command
    monkeypatch.setenv(variable["name"], "open sesame")
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "open sesame" not in done.stdout + done.stderr
    assert_complete(guarded)


def test_the_password_may_stand_in_a_file(guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    (tmp_path / "pgpass").write_text("127.0.0.1:*:guarded:lr_dist:wrong\n")
    (tmp_path / "pgpass").chmod(0o600)
    with pytest.raises(StorageError, match="password authentication failed"):
        open_storage(guarded)
    (tmp_path / "pgpass").write_text("127.0.0.1:*:guarded:lr_dist:open sesame\n")
    assert optuna.get_all_study_names(open_storage(guarded)) is not None


def test_sslmode_in_the_url_is_heard(postgres: Any) -> None:
    url = postgres.database("plain")
    with pytest.raises(StorageError, match="SSL"):
        open_storage(f"{url}?sslmode=require")
    open_storage(f"{url}?sslmode=prefer")


def test_the_worker_of_the_ray_script_searches(place: Path, postgres: Any) -> None:
    url = postgres.database("ray_worker")
    assert ray_script(url)["worker"]() == 0
    assert_complete(url)


def test_the_ray_script_searches_in_tasks(place: Path, postgres: Any) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed; its script's worker is tested without it")
    url = postgres.database("ray_tasks")
    try:
        # Eight tasks of one core each; this machine need not have four for each.
        assert ray_script(url, ("num_cpus=4", "num_cpus=1"))["main"]() == 0
    finally:
        ray.shutdown()
    assert_complete(url)


def ray_script(url: str, *changes: tuple[str, str]) -> dict[str, Any]:
    text = with_address(block("python"), "postgresql://lr_dist@db.example.org/lr_dist", url)
    for before, after in changes:
        text = with_address(text, before, after)
    names: dict[str, Any] = {"__name__": "ray_search"}
    exec(compile(text, "ray_search.py", "exec"), names)
    return names


def with_address(text: str, address: str, url: str) -> str:
    assert address in text
    return text.replace(address, url)


def assert_complete(url: str) -> None:
    study = optuna.load_study(study_name=STUDY, storage=open_storage(url))
    trials = study.get_trials()
    assert sorted(t.user_attrs[SLOT] for t in trials if settled(t)) == list(range(TRIALS))
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
