"""Runs of two ranks: under the launcher, on two machines, and after some of it was killed."""
import json
import shutil
import sys

import pytest

import engine
from cli import Refused
from conftest import (ROOT, SMALL, call, call_ranks, free_port, is_free, kill_group, same, start,
                      start_ranks, steps_logged, wait_for)

RUN = ("selfplay.py", *SMALL, "--run_dir")


def launcher():
    return "deepspeed", "--num_gpus", 2, "--master_port", free_port(), *RUN


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The directory of a small complete run of two ranks."""
    path = tmp_path_factory.mktemp("ranks") / "run"
    call(*launcher(), path)
    return path


def test_two_ranks_under_the_launcher(two_ranks):
    summary = json.loads((two_ranks / "summary.json").read_text())
    assert summary["world_size"] == 2 and len(summary["heldout_accuracy"]) == 2


def test_two_nodes_give_what_one_node_with_two_ranks_gives(two_ranks, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    port = free_port()
    nodes = [start("deepspeed", "--hostfile", tmp_path / "hosts", "--no_ssh", "--node_rank", rank,
                   "--master_addr", "127.0.0.1", "--master_port", port, *RUN, tmp_path / "run")
             for rank in (0, 1)]
    output = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], output[0][-3000:]
    assert same(tmp_path / "run", two_ranks) == []


def test_two_ranks_resume_after_a_rank_and_then_the_launcher_were_killed(two_ranks, tmp_path):
    """A dead rank ends the run with a line. Without their launcher, ranks save and end. With
    another number of ranks the phase starts again."""
    path = tmp_path / "run"
    ranks = start_ranks(2, sys.executable, *RUN, path)
    wait_for(lambda: steps_logged(path) >= 2)
    ranks[1].kill()
    output = ranks[0].communicate(timeout=60)[0]
    assert ranks[0].returncode == 1 and "Traceback" not in output
    assert "rank 0 lost another rank" in output

    process = start(*launcher(), path)
    wait_for(lambda: steps_logged(path) >= 3)
    process.kill()
    wait_for(lambda: is_free(path), 25)
    assert json.loads((path / "state.json").read_text())["step"]["world"] == 2
    kill_group(process)

    shutil.copytree(path, tmp_path / "other")
    call_ranks(2, sys.executable, *RUN, path)
    assert same(path, two_ranks) == []
    output = call(sys.executable, *RUN, tmp_path / "other")
    assert "starts again, since it ran on 2 ranks and now there are 1" in output


def test_ranks_end_when_torchrun_is_killed(tmp_path):
    path = tmp_path / "run"
    process = start(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2,
                    "--master_port", free_port(), *RUN, path)
    wait_for(lambda: steps_logged(path) >= 1)
    process.kill()
    wait_for(lambda: is_free(path), 25)
    assert not (path / "summary.json").exists(), "before the run was over"
    kill_group(process)


def test_a_directory_that_one_node_does_not_see_is_refused(tmp_path):
    """The second rank is started where the relative run directory is another one."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    ranks = start_ranks(2, sys.executable, ROOT / "selfplay.py", *SMALL, "--run_dir", "run",
                        folders=folders)
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "is not on a file system that all ranks share" in outputs[0]
    assert "Traceback" not in "".join(outputs)


def test_a_rank_without_the_rest_of_a_launcher_is_refused(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(Refused, match="RANK is set .* but not MASTER_ADDR, MASTER_PORT: "):
        engine.init_distributed()
