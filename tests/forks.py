"""Running the project's scripts without the imports at their heads, which take five seconds: each
script runs as under a Python of its own, in a fork of a process that has made them once.

Not for what a script reads before torch is loaded, and not on a GPU, which no fork may share.
"""
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["selfplay", "eval", "matplotlib.figure"])


def run_script(command, env, cwd, output):
    """What a fork does. Its process group is its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv[:] = command
    runpy.run_path(command[0], run_name="__main__")


class Script:
    """A script in a fork, with what the tests use of subprocess.Popen."""

    def __init__(self, command, env, cwd):
        self.output = tempfile.NamedTemporaryFile("r")
        self.process = FORKS.Process(
            target=run_script, args=(command, env, cwd, self.output.name), daemon=True)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self):
        """As a shell would give it, or minus the signal; None while it runs."""
        return self.process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("the script", timeout)

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.output.read(), None

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.process.kill()
