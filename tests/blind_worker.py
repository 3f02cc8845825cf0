"""Run by test_scale.py: two ranks whose working directories,
and so whose relative run directories, differ."""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    place, port, *settings = sys.argv[1:]
    ranks = []
    for rank in range(2):
        home = Path(place) / f"node{rank}"
        home.mkdir()
        env = os.environ | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2",
                            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                            "PYTHONPATH": str(ROOT)}
        ranks.append(subprocess.Popen(
            [sys.executable, str(ROOT / "selfplay.py"), "--run_dir", "run", *settings],
            cwd=home, env=env))
    sys.exit(max(rank.wait() for rank in ranks))


if __name__ == "__main__":
    main()
