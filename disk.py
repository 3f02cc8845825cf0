"""A run on disk: its directory, its logs, and what of it is finished.

    config.json, state.json                    settings; what is finished (written last, atomically)
    metrics.jsonl, samples.jsonl, timings.jsonl    logs, cut back to state.json when a run resumes
    resume/<iteration>-<phase>-<step>/rank<n>.safetensors    the one resumable step
    slices/<iteration>-<purpose>.jsonl         what there is of an unfinished pool
    iter<i>/...                                checkpoints, pool, curriculum, answers
    lock                                       held by rank 0 while the run lives
    stop                                       there from a stop of the run to its next start
    failure-rank<n>.json                       samples whose numbers are not finite

Each rank writes its states, `stop` and failures, rank 0 all else, and all ranks read: the directory
must be on a file system that all machines share.
Nothing here knows about models.
"""
import errno
import fcntl
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cli import Refused

LOGS = ("metrics.jsonl", "samples.jsonl", "timings.jsonl")
MEND = ": put back a copy, or give another --run_dir"


@contextmanager
def replacing(path):
    """The path of a part to write. Once it is on the disk, it takes the file's place: a reader, or
    a crash, sees the old one or the new one, never a part."""
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    yield part
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def replace_file(path, text):
    """Write a text file, replacing it as a whole."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path, value):
    replace_file(path, json.dumps(value, indent=2) + "\n")


def write_tensors(path, tensors, metadata=None):
    """Write a safetensors file, replacing it as a whole. OSError if the disk does not take it."""
    try:
        with replacing(path) as part:
            save_file(tensors, part, metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None


def read_text(path):
    """Text of a file, without a byte order mark. Refused if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"{path} cannot be read: {reason}") from None


def read_json(path, hint=""):
    """Content of a JSON file. Refused if it cannot be read, with a hint of what to do."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not JSON ({error}){hint}") from None


def read_json_as(path, read):
    """read(content of a JSON file). Refused, with the file's name, where that is a ValueError."""
    value = read_json(path)
    try:
        return read(value)
    except ValueError as problem:
        raise Refused(f"{path}: {problem}") from None


def read_lines(path, hint=""):
    """Rows of a .jsonl file; [] if it is not there. Refused, with the number of the line, if one
    is damaged."""
    return parse_lines(path, read_text(path), hint) if Path(path).exists() else []


def read_log(path):
    """As `read_lines`, of a log that a run may be adding to: a last line without its end, which may
    be within a character, is left out."""
    whole = Path(path).read_bytes().rpartition(b"\n")[0] if Path(path).exists() else b""
    return parse_lines(path, whole.decode(errors="replace"))


def parse_lines(path, text, hint=""):
    """Rows in the text of a .jsonl file."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError:
            raise Refused(f"{path} is damaged in line {number}{hint}") from None
    return rows


def to_lines(rows):
    """Text of a .jsonl file that people can read in any script. Half a surrogate pair, which UTF-8
    cannot hold, is escaped."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(errors="backslashreplace").decode()


class Directory:
    """The directory of a run as one rank sees it.

    `state` is what state.json holds: the finished [iteration, phase] pairs; the resumable step of
    the unfinished one, or None; the sizes of logs and curricula at the beginning of that phase; and
    the seconds that the run has taken so far.
    """

    def __init__(self, path, rank=0, world=1):
        self.path, self.rank, self.world = Path(path), rank, world
        self.stop_file = self.path / "stop"      # there while the run is being stopped
        self.since = time.time()
        self.state = {"finished": [], "step": None, "phase_sizes": {}, "wall_seconds": 0.0}

    # Opening -----------------------------------------------------------------------------------

    def claim(self):
        """Rank 0, before anything else: take the lock, which dies with its holder."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.held = open(self.path / "lock", "a+")
        for _ in range(20):      # ranks of a killed launcher need a moment to notice
            try:
                fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.5)
        else:
            self.held.seek(0)
            raise Refused(f"{self.path} is in use by process {self.held.read().strip()}: "
                          "wait for it, or give another --run_dir")
        self.held.truncate(0)
        self.held.write(f"{os.getpid()}\n")
        self.held.flush()

    def see_room(self, needed):
        """Refused where the disk has no room for the bytes that the run will have written."""
        free = shutil.disk_usage(self.path).free
        needed -= sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        if free < needed:
            raise Refused(f"{self.path} needs {needed / 2**30:.1f} GiB more and its disk has "
                          f"{free / 2**30:.1f} GiB free: make room, or give another --run_dir")

    def rewind(self):
        """Rank 0, once it has the lock: read state.json, and bring logs and left-overs back to what
        it says. Returns the state."""
        file = self.path / "state.json"
        if not file.exists() and any((self.path / name).exists() for name in LOGS):
            raise Refused(f"{file} is missing{MEND}")
        before = read_json(file, MEND) if file.exists() else self.state
        kinds = {"finished": list, "step": dict | None, "phase_sizes": dict, "wall_seconds": float}
        if not isinstance(before, dict) or before.keys() != kinds.keys() or not all(
                isinstance(before[key], kind) for key, kind in kinds.items()):
            raise Refused(f"{file} is not what this version writes: give another --run_dir")
        self.state = before
        step = self.state["step"]
        if step and step["world"] != self.world:
            print(f"iteration {step['iteration']}: the {step['phase']} phase starts again, since "
                  f"it ran on {step['world']} ranks and now there are {self.world}")
            self.state["step"] = step = None
        sizes = step["sizes"] if step else self.state["phase_sizes"]
        for name, size in sizes.items():
            self._check_rows(self.path / name, size)
        self.commit()      # before what it no longer needs goes
        for name in LOGS:
            if (self.path / name).exists():
                os.truncate(self.path / name, sizes.get(name, 0))
        self.stop_file.unlink(missing_ok=True)
        for file in self.path.glob("failure-rank*.json"):
            file.unlink()
        for folder in self.path.glob("resume/*"):
            if not step or folder != self._folder(step):
                shutil.rmtree(folder)
        return self.state

    def _check_rows(self, file, size):
        """Refused unless the first `size` bytes of a file are there, and are whole rows."""
        there = file.read_bytes()[:size] if file.exists() else b""
        if len(there) < size:
            raise Refused(f"{file} has lost lines ({len(there)} of {size} bytes are left){MEND}")
        parse_lines(file, there.decode(errors="replace"), MEND)

    # What is finished --------------------------------------------------------------------------

    def finish(self, i, phase):
        """A phase is done: all of its files are there."""
        self.state["finished"].append([i, phase])
        self.state["step"] = None
        self.state["phase_sizes"] = self._sizes()
        self.commit()
        if self.rank == 0:
            for folder in ("resume", "slices"):
                shutil.rmtree(self.path / folder, ignore_errors=True)

    def done_steps(self, i, phase):
        """Finished training steps of a phase that was interrupted, as saved."""
        step = self.state["step"]
        return step["done"] if step and (step["iteration"], step["phase"]) == (i, phase) else 0

    def load_step(self):
        """This rank's tensors of the resumable step."""
        file = self._shard(self.state["step"], self.rank)
        try:
            return load_file(file)
        except SafetensorError as error:
            raise Refused(f"{file} is damaged ({error}){MEND}") from None

    def save_step(self, i, phase, done, tensors, patience):
        """Make a finished training step the one that the run resumes from.

        Each rank writes its tensors; rank 0 waits for all files, and then lets state.json point to
        them. Nothing is collective, so that a rank can save while another one is stuck.

        Args:
            done: finished steps of the phase.
            tensors: of this rank, {name: CPU tensor}.
            patience: seconds to wait for the other ranks.

        Returns:
            False if a rank's file did not come.
        """
        step = {"iteration": i, "phase": phase, "done": done, "world": self.world}
        write_tensors(self._shard(step, self.rank), tensors)
        if self.rank == 0:
            step["sizes"] = self._sizes()
            deadline = time.time() + patience
            while not all(self._shard(step, r).exists() for r in range(self.world)):
                if time.time() > deadline:
                    return False
                time.sleep(0.01)
            before, self.state["step"] = self.state["step"], step
            self.commit()
            if before:
                shutil.rmtree(self._folder(before))
        return True

    def _folder(self, step):
        return self.path / "resume" / f"{step['iteration']}-{step['phase']}-{step['done']}"

    def _shard(self, step, rank):
        return self._folder(step) / f"rank{rank}.safetensors"

    def _sizes(self):
        """{name: bytes} of the logs, and of the curricula that a later phase reads."""
        files = [*(self.path / name for name in LOGS), *self.path.glob("iter*/curriculum.jsonl")]
        return {str(file.relative_to(self.path)): file.stat().st_size
                for file in files if file.exists()}

    def commit(self):
        """Write down what is finished, and how long it took."""
        now = time.time()
        self.state["wall_seconds"] += now - self.since
        self.since = now
        if self.rank == 0:
            write_json(self.path / "state.json", self.state)

    # Files -------------------------------------------------------------------------------------

    def append(self, name, *rows):
        """Add rows to a .jsonl file."""
        if self.rank == 0:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(to_lines(rows))

    def write_rows(self, name, rows):
        """Write a .jsonl file, replacing it as a whole."""
        if self.rank == 0:
            replace_file(self.path / name, to_lines(rows))

    def read_rows(self, name):
        """Rows of a .jsonl file; [] if it is not there."""
        return read_lines(self.path / name, MEND)

    def kept_rows(self, name, size, total):
        """What an interrupted phase has written of a .jsonl file of `total` rows, cut to whole
        slices of `size` rows."""
        rows = read_log(self.path / name)
        whole = rows if len(rows) == total else rows[:len(rows) - len(rows) % size]
        self.write_rows(name, whole)
        return whole
