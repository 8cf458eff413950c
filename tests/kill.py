"""Starts a piece of work again and again, and kills it with SIGKILL at a random moment each time.

`python tests/kill.py ROUNDS SEED 'CODE'`, where CODE defines
`work()`   the piece of work, done in a forked child; or the words of a command, where the work uses
           threads, which a fork breaks;
`look()`   what lies under the right name: None for nothing, else something that is the same for all
           whole results;
`clear()`  removes what a finished piece of work left under the right name;
`after()`  looks, or waits, right after a kill; `again(pid)` after the start that follows it, done
           by the process `pid`;
`left()`   parts that a killed piece of work may leave beside, and a finished one may not;
`more()`   what else was seen, as a dict;
`loading`  the share of the time that goes into imports, in which no kill is wanted (0 without it).

After each kill nothing half-made may lie under the right name; the work is then started once more,
over whatever the killed one left, and must end as an undisturbed one does. Prints what it saw, as
JSON.
"""
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path


def digest(path):
    "One number for all names and bytes under a folder; None if it isn't there."
    path = Path(path)
    if not path.is_dir(): return None
    h = hashlib.sha256()
    for p in sorted(path.rglob('*')):
        h.update(f'{p.relative_to(path).as_posix()} '
                 f'{p.stat().st_size if p.is_file() else -1}\n'.encode())
        if p.is_file(): h.update(p.read_bytes())
    return h.hexdigest()


def start(work):
    if not callable(work): return subprocess.Popen(work, stdout=subprocess.DEVNULL).pid
    pid = os.fork()
    if pid: return pid
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        work()
        os._exit(0)
    except BaseException as e:
        os.write(2, f'{type(e).__name__}: {e}\n'.encode())
        os._exit(1)


def kill_at_random(rounds, seed, work, look, clear, after=lambda: None, again=lambda pid: None,
                   left=lambda: False,
                   more=dict, loading=0):
    rng = random.Random(seed)
    began = time.monotonic()
    assert os.waitpid(start(work), 0)[1] == 0, 'undisturbed, it fails'
    took, right = time.monotonic() - began, look()
    assert right is not None
    clear()
    seen = dict(rounds=rounds, took=took, killed=0, left_parts=0, already_whole=0)
    for _ in range(rounds):
        pid = start(work)
        time.sleep(rng.uniform(loading*took, took))
        seen['killed'] += os.waitpid(pid, os.WNOHANG)[0] == 0
        try: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError): pass
        after()
        found = look()
        assert found in (None, right), 'something half-made lies under the right name'
        seen['already_whole'] += found == right
        seen['left_parts'] += bool(left())
        pid = start(work)
        assert os.waitpid(pid, 0)[1] == 0, 'started again, it fails'
        again(pid)
        assert look() == right, 'started again, it ends with something else'
        assert not left(), 'started again, it leaves parts behind'
        clear()
    return seen | more()


if __name__ == '__main__':
    names = dict(digest=digest)
    exec(sys.argv[3], names)
    seen = kill_at_random(int(sys.argv[1]), int(sys.argv[2]),
                          **{k: names[k] for k in ('work', 'look', 'clear', 'after', 'again',
                                                   'left', 'more', 'loading') if k in names})
    print(json.dumps(seen))
