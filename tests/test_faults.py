"""Faults: killed at random moments, eight at once, a full disk, a cache that can't be written, a
strange home.

Each fault is tried LESSON6_ROUNDS times (see promises.py).
"""
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PROGRAM, notebook, python, root
from promises import kept, rounds
from test_data import Server, pack_folder, send, sentence

from lesson6.book import train
from lesson6.book.options import run_command
from lesson6.data import check_dataset, folders

posix = pytest.mark.skipif(os.name != 'posix', reason='needs fork and SIGKILL')


def kills(code, rounds, env):
    r = subprocess.run([sys.executable, root/'tests'/'kill.py', str(rounds), '42',
                        textwrap.dedent(code)], env={**os.environ, **env},
                       capture_output=True, text=True, timeout=1800)
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]
    return json.loads(r.stdout.splitlines()[-1])


def tell(seen, what, ended='byte for byte as an undisturbed one'):
    return (f"{seen['killed']} kills fell into the work ({seen['took']:.1f} s), "
            f"{seen['left_parts']} of them left parts beside; never {what} under the right name; "
            f"each time the next start ended {ended}, with no part left; where the killed run had "
            f"already finished ({seen['already_whole']}), nothing was done again")


# Interrupted

@pytest.mark.ci
@posix
def test_drawing_is_killed(environment, tmp_path):
    seen = kills('''
        import shutil
        from lesson6.data import cache_path, draw_twin
        from lesson6.mini import movielens
        path = cache_path()/'mini'/f'v{movielens.VERSION}'/'ml-100k'
        def work(): draw_twin('movielens')
        def look(): return digest(path)
        def clear(): shutil.rmtree(path)
        def left(): return list(cache_path().rglob('*.part'))
        ''', rounds, {'LESSON6_CACHE': str(tmp_path/'cache')})
    assert seen['killed'] >= rounds/2
    kept('Interrupted', 'Drawing a twin', 'SIGKILL at a random moment of `draw_twin("movielens")`, '
                                          'then started again', rounds, tell(seen, 'half a twin'))


full = '''
    import shutil
    from pathlib import Path
    from fastai.data.external import URLs, fastai_cfg
    from lesson6.data import check_dataset, download_real, full_counts
    URLs.PASCAL_2007 = {url!r}
    full_counts['pascal'] = check_dataset('pascal', {twin!r})
    home = Path(fastai_cfg().config_path)
    path = home/'data'/'pascal_2007'
    def work(): download_real('pascal')
    def look(): return digest(path)
    def left(): return list(home.rglob('*.part'))
    def clear(): shutil.rmtree(path)
'''

@pytest.mark.ci
@posix
def test_unpacking_is_killed(environment, twins, tmp_path):
    (tmp_path/'archive').mkdir()
    (tmp_path/'archive'/'pascal_2007.tgz').write_bytes(pack_folder(twins['pascal'], 'tgz'))
    url = 'http://127.0.0.1:9/pascal_2007.tgz' # nobody is there: the archive that is whole must do
    seen = kills(full.format(url=url, twin=str(twins['pascal'])), rounds,
                 {'FASTAI_HOME': str(tmp_path)})
    assert seen['killed'] >= rounds/2
    kept('Interrupted', 'Unpacking a real set',
         'SIGKILL at a random moment of `download_real("pascal")` with the archive already there '
         'and no server, then started again', rounds, tell(seen, 'half a set'))


@pytest.mark.ci
@posix
def test_downloading_is_killed(environment, twins, tmp_path):
    server, body = Server(), pack_folder(twins['pascal'], 'tgz')
    def slowly(h):
        h.send_response(200); h.send_header('Content-Length', str(len(body))); h.end_headers()
        for i in range(0, len(body), 2**17): h.wfile.write(body[i:i+2**17]); time.sleep(.02)
    server.answer = slowly
    code = full.format(url=server.url('pascal_2007.tgz'), twin=str(twins['pascal'])) + '''
    def clear(): shutil.rmtree(path); (home/'archive'/'pascal_2007.tgz').unlink()
    '''
    seen = kills(code, rounds, {'FASTAI_HOME': str(tmp_path)})
    server.stop()
    assert seen['killed'] >= rounds/2
    kept('Interrupted', 'Downloading a real set',
         'SIGKILL at a random moment of `download_real("pascal")` from a local server, then '
         'started again', rounds, tell(seen, 'half a set'))


twelve_cells = '''
    import os, shutil, sys, time
    from pathlib import Path
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    from lesson6.book import command as run, running, site
    here = Path({here!r})
    nbs, pids = here/'nbs', here/'pids'
    nbs.mkdir(exist_ok=True); pids.mkdir(exist_ok=True)
    cells = ['import os, time; from pathlib import Path',
             f"Path({{str(pids)!r}}, str(os.getpid())).touch()",
             *['time.sleep(.05); print(6*7)']*10]
    spec = dict(name='python3', display_name='python3', language='python')
    nb = nbformat.v4.new_notebook(
        cells=[new_code_cell(c, id=f'cell{{i}}') for i,c in enumerate(cells)],
        metadata=dict(kernelspec=spec))
    source = nbformat.writes(nb)
    (nbs/'01_small.ipynb').write_text(source)
    run.notebooks_path = running.notebooks_path = site.notebooks_path = lambda: nbs
'''

@pytest.mark.ci
@posix
def test_a_run_is_killed(environment, tmp_path):
    n = max(2, rounds//2) if rounds < 50 else rounds
    seen = kills(twelve_cells.format(here=str(tmp_path)) + '''
    def work(): os.chdir(here); run.run('small', save=True)
    def look():
        saved = nbformat.read(nbs/'01_small.ipynb', as_version=4) # a valid notebook at any moment
        assert [c.source for c in saved.cells] == [c.source for c in nb.cells]
        page = here/'_run'/'01_small.html'
        if not page.exists(): return None
        assert page.read_text().rstrip().endswith('</html>'), 'half a page'
        return 'whole'
    def left(): return [*here.rglob('*.part')]
    def clear(): shutil.rmtree(here/'_run'); (nbs/'01_small.ipynb').write_text(source)
    def alive(pid):
        try: return Path(f'/proc/{pid}/stat').read_text().split()[2] not in 'ZX'
        except OSError: return False
    def after():
        until = time.monotonic() + 15
        while any(alive(p.name) for p in pids.iterdir()):
            assert time.monotonic() < until, 'a kernel goes on without its run'
            time.sleep(.1)
    ''', n, {})
    assert seen['killed'] >= n/2
    kept('Interrupted', 'Running a notebook',
         'SIGKILL at a random moment of `lesson6 run --save` on a notebook of twelve cells, then '
         'started again', n,
         tell(seen, 'half a page or half a notebook', 'with the whole page') + '; no kernel went '
         'on without its run')


@pytest.mark.ci
@posix
def test_training_is_killed(environment, tmp_path):
    """Training with a checkpoint after every epoch: whatever the moment, it goes on from the last
    one and ends with the same weights."""
    seen = kills('''
        import json, os, shutil, torch
        from pathlib import Path
        from lesson6.data import lesson_path
        from lesson6.train import train_section
        import lesson6.collab
        lesson_path('movielens')
        here, epochs = Path(HERE), 12
        folder, told, done = here/'collab', here/'told', []
        def work():
            told.mkdir(parents=True, exist_ok=True)
            with open(told/str(os.getpid()), 'w', buffering=1) as f:
                os.dup2(f.fileno(), 1)
                train_section('collab', epochs=epochs, bs=1024, out=here)
        def look():
            if (folder/'checkpoint.pt').exists(): # whole at any moment
                kept = torch.load(folder/'checkpoint.pt', weights_only=True)
                assert 1 <= len(kept['history']) <= epochs
            if not (folder/'learner.pkl').exists(): return None
            assert len(kept['history']) == epochs
            # without the training loss, a running average
            return json.dumps([[row[1:] for row in kept['history']], digest_of(kept['model'])])
        def after():
            kept = folder/'checkpoint.pt'
            done.append(len(torch.load(kept, weights_only=True)['history']) if kept.exists() else 0)
        def again(pid): # what was done is not done again
            said = (told/str(pid)).read_text(errors='replace')
            went_on = f'{done[-1]} epochs were done before' in said
            assert went_on == (done[-1] > 0), (done[-1], said)
        def digest_of(state):
            every = [v.double() for v in state.values()]
            return [float(v.sum()) for v in every] + [float(v.square().sum()) for v in every]
        def left(): return list(folder.rglob('*.part'))
        def clear(): shutil.rmtree(here)
        def more(): return dict(epochs=done)
        '''.replace('HERE', repr(str(tmp_path/'runs'))), rounds, {'OMP_NUM_THREADS': '1'})
    assert seen['killed'] >= rounds/2 and len(set(seen['epochs'])) > 1
    kept('Interrupted', 'Training with checkpoints',
         'SIGKILL at a random moment of `train_section("collab", epochs=12)`, what `python -m '
         'lesson6.train` calls, then started again', rounds,
         f"{seen['killed']} kills fell into the training ({seen['took']:.1f} s), after "
         f"{min(seen['epochs'])} to {max(seen['epochs'])} epochs, {seen['left_parts']} of them "
         "while a file was written; the checkpoint was whole at every one; each time the next "
         "start went on after the last whole epoch and ended with the same validation losses and "
         "weights, to the last digit, as an undisturbed one (the training loss that is shown is a "
         "running average, and starts anew)")


# At once

@pytest.mark.ci
def test_eight_ask_for_the_same_twin(environment, tmp_path):
    code = '''
        import hashlib, sys, time
        from pathlib import Path
        from lesson6.data import lesson_path
        from lesson6.mini import movielens
        draw, log = movielens.draw, Path(sys.argv[1])
        def counted(path, **kw):
            with open(log, 'a') as f: f.write('drawn\\n')
            return draw(path, **kw)
        movielens.draw = counted
        while time.time() < float(sys.argv[2]): time.sleep(.005)
        path = lesson_path('movielens')
        files = b''.join(p.name.encode() + p.read_bytes() for p in sorted(path.iterdir()))
        print(hashlib.sha256(files).hexdigest())
    '''
    drawn, same, n = 0, set(), max(1, rounds//5)
    for i in range(n):
        log, cache = tmp_path/f'log{i}', tmp_path/f'cache{i}'
        eight = [subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), log,
                                   str(time.time()+4)],
                                  env={**os.environ, 'LESSON6_CACHE': str(cache)},
                                  stdout=subprocess.PIPE, text=True) for _ in range(8)]
        same |= {p.communicate(timeout=300)[0] for p in eight}
        assert [p.returncode for p in eight] == [0]*8 and len(same) == 1 and '' not in same
        drawn += len(log.read_text().splitlines())
        assert drawn == i + 1 and not list(cache.rglob('*.part'))
    kept('At once', 'Eight processes ask for the same twin', 'eight processes call '
         '`lesson_path("movielens")` at the same moment, with an empty cache', n,
         f'{drawn} drawings for {8*n} processes; all got the same bytes')


@pytest.mark.ci
def test_versions_live_side_by_side(environment, tmp_path):
    code = '''
        import sys
        from lesson6.data import lesson_path
        from lesson6.mini import movielens
        movielens.VERSION = int(sys.argv[1])
        print(lesson_path('movielens'))
    '''
    two = [subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), v],
                            stdout=subprocess.PIPE, text=True) for v in ('901', '902')]
    paths = [p.communicate(timeout=300)[0].strip() for p in two]
    assert paths[0] != paths[1] and all(check_dataset('movielens', p) for p in paths)
    before = [os.stat(p).st_mtime_ns for p in paths]
    assert ([python(code, v).stdout.strip() for v in ('901', '902')] == paths
            and [os.stat(p).st_mtime_ns for p in paths] == before)
    kept('At once', 'Two versions of a recipe share one cache',
         'two processes with different versions draw into one cache at the same time, then again',
         2, 'each found its own; none was drawn again')


@pytest.mark.ci
@posix
def test_eight_download_at_once(environment, twins, tmp_path):
    server = Server()
    server.answer = send(pack_folder(twins['pascal'], 'tgz'))
    code = full.format(url=server.url('pascal_2007.tgz'), twin=str(twins['pascal']))
    code = textwrap.dedent(code) + textwrap.dedent('''
        import os, sys
        sys.path.insert(0, sys.argv[1])
        from kill import digest, start
        eight = [start(work) for _ in range(8)]
        print([os.waitpid(p, 0)[1] for p in eight], look() == digest(sys.argv[2]))
        ''')
    r = python(code, root/'tests', twins['pascal'], env={'FASTAI_HOME': str(tmp_path)})
    server.stop()
    assert r.stdout.strip() == f'{[0]*8} True', r.stdout + r.stderr
    assert server.asked == 1 and not list(tmp_path.rglob('*.part'))
    kept('At once', 'Eight processes download the same set',
         'eight processes call `download_real("pascal")` at the same moment', 1,
         'the server was asked once; all eight got the whole set')


# Disk full, cache not to be written

@contextmanager
def small_disk(path, size='300k', mode='rw'):
    "A file system of this size; skips the test where it may not be mounted."
    path.mkdir(exist_ok=True)
    if (sys.platform != 'linux'
        or subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size},{mode}', 'tmpfs', path],
                          capture_output=True).returncode):
        pytest.skip('a small file system may be mounted by root on Linux only')
    try: yield path
    finally: subprocess.run(['umount', '-l', path], check=True)


def files(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob('*') if p.is_file()
                  and p.suffix != '.lock')


@pytest.mark.ci
def test_the_disk_is_full_while_drawing(environment, tmp_path):
    code = '''
        import sys
        from lesson6.data import lesson_path
        for name in sys.argv[1:]:
            try: lesson_path(name)
            except OSError as e: print(e)
    '''
    with small_disk(tmp_path/'disk') as disk:
        said = python(code, *folders, env={'LESSON6_CACHE': str(disk)}).stdout.splitlines()
        assert len(said) == 4 and all('No space left on device; make room there, or set '
                                      'LESSON6_CACHE' in s for s in said), said
        assert (files(disk) == [] and not list(disk.rglob('*.part'))
                and shutil.disk_usage(disk).used < 50_000)
    kept('Interrupted', 'The disk is full while drawing',
         'each of the four twins drawn on a file system of 300 kB', 4,
         f'no file is left; the sentence: "{said[-1].replace(str(tmp_path), "...")}"')


def test_files_may_not_grow(environment, tmp_path):
    "As a full disk, without the right to mount one: a limit on the size of a file."
    pytest.importorskip('resource')
    r = python('''
        import resource, signal
        from lesson6.data import lesson_path
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try: lesson_path('movielens')
        except OSError as e: print(e)
        ''')
    assert 'could not be written' in r.stdout and 'set LESSON6_CACHE' in r.stdout, (
        r.stdout + r.stderr)
    assert files(Path(os.environ['LESSON6_CACHE'])) == []


@pytest.mark.ci
def test_the_disk_is_full_while_downloading(environment, twins, tmp_path):
    server, body = Server(), pack_folder(twins['pascal'], 'tgz')
    server.answer = send(body)
    code = full.format(url=server.url('pascal_2007.tgz'), twin=str(twins['pascal'])) + '''
    try: work()
    except OSError as e: print(e)
    '''
    said = []
    for size in len(body)//2, len(body) + len(body)//2: # full while fetching; full while unpacking
        with small_disk(tmp_path/'disk', size) as disk:
            said.append(python(code, env={'FASTAI_HOME': str(disk)}).stdout.splitlines()[-1])
            assert 'No space left on device; make room there, set FASTAI_HOME' in said[-1]
            assert (files(disk) == ([] if size < len(body) else ['archive/pascal_2007.tgz'])
                    + ['config.ini'] and not list(disk.rglob('*.part'))
                    and not (disk/'data'/'pascal_2007').exists())
    server.stop()
    sentence = said[-1].replace(str(tmp_path), '...').replace(str(server.http.server_port), 'PORT')
    kept('Interrupted', 'The disk is full while downloading or unpacking', 'a real set downloaded '
         'to a file system that holds half the archive, or the archive but not the set', 2,
         f'nothing is left but a whole archive; the sentence: "{sentence}"')


@pytest.mark.ci
def test_the_disk_is_full_while_a_notebook_runs(environment, tmp_path):
    env, said = {'NBS': str(notebook(tmp_path/'nbs'/'01_small.ipynb', 'print(6*7)').parent)}, []
    # no room for anything; room for the executed notebook, not for its page
    for size in '4k', '100k':
        with small_disk(tmp_path/'disk', size) as disk:
            r = python(PROGRAM, 'run', env=env, check=False, cwd=disk)
            said.append(r.stderr.strip().replace(str(tmp_path), '...'))
            assert r.returncode == 1 and re.fullmatch(r'.*: No space left on device; make room '
                                                      r'there, or choose another folder\.',
                                                      said[-1]), r.stdout + r.stderr
            assert not list(disk.rglob('*.part')) and not list(disk.rglob('*.html'))
    kept('Interrupted', 'The disk is full while a notebook runs', '`lesson6 run` in a folder of 4 '
         'kB and of 100 kB', 2, f'no part of a page is left; the sentence: "{said[-1]}"')


@pytest.mark.ci
def test_the_disk_is_full_while_training(environment, tmp_path, capsys):
    def ended(*words):
        environment.setattr(sys, 'argv', ['train', 'collab', *map(str, words)])
        with pytest.raises(SystemExit) as e: run_command(train.main)
        return str(e.value).replace(str(tmp_path), '...')
    with small_disk(tmp_path/'disk') as disk:
        said = ended('--epochs', 1, '--bs', 1024, '--out', disk/'runs')
        assert ('checkpoint.pt could not be written: ' in said
                and 'make room there, or choose another folder.' in said), said
        assert files(disk) == [] and 'epoch' in capsys.readouterr().out
    with read_only(tmp_path/'closed') as closed:
        assert re.fullmatch(r'--out .*; choose another folder\.', ended('--out', closed))
        assert 'epoch' not in capsys.readouterr().out
    kept('Interrupted', 'The disk is full, or read-only, while training',
         '`python -m lesson6.train` into a file system of 300 kB, and into a folder that cannot be '
         'written', 2,
         f'nothing is left; the sentence: "{said}"; a folder that cannot be written is refused '
         'before the training')


@contextmanager
def read_only(path):
    "A folder in which nobody can write, root included."
    path.mkdir(exist_ok=True)
    if os.name == 'posix' and os.geteuid() == 0:
        if subprocess.run(['mount', '--bind', path, path], capture_output=True).returncode:
            pytest.skip('root may not mount here, and may write everywhere')
        subprocess.run(['mount', '-o', 'remount,bind,ro', path], check=True)
        try: yield path
        finally: subprocess.run(['umount', '-l', path], check=True)
    else:
        for p in [path, *path.rglob('*')]: p.chmod(p.stat().st_mode & ~0o222)
        try: yield path
        finally:
            for p in [path, *path.rglob('*')]: p.chmod(p.stat().st_mode | 0o200)


def test_the_cache_is_read_only(environment, twins, tmp_path):
    from lesson6.data import cache_path, draw_twin, lesson_path
    with read_only(tmp_path/'empty') as cache:
        environment.setenv('LESSON6_CACHE', str(cache))
        with pytest.raises(OSError) as e: lesson_path('movielens')
        assert ('make room there, or set LESSON6_CACHE to a folder that can be '
                'written' in sentence(e))
        said = str(e.value)
    assert files(tmp_path/'empty') == []
    environment.setenv('LESSON6_CACHE', str(tmp_path/'drawn'))
    draw_twin('movielens')
    # a school's share: the teacher has drawn, the students only read
    with read_only(tmp_path/'drawn'):
        assert lesson_path('movielens').is_relative_to(cache_path())
    environment.setenv('FASTAI_HOME', str(tmp_path/'empty'))
    from fastai.data.external import fastai_cfg
    from lesson6.data import download_real
    fastai_cfg.cache_clear()
    try:
        with read_only(tmp_path/'empty'):
            with pytest.raises(OSError) as e: download_real('movielens')
            assert 'set FASTAI_HOME to another folder' in sentence(e)
        assert files(tmp_path/'empty') == []
    finally: fastai_cfg.cache_clear()
    kept('Interrupted', 'The cache is read-only',
         '`lesson_path` on an empty and on a filled cache that cannot be written, `full` with such '
         'a home', 3,
         'a filled one is used; an empty one gets one sentence: '
         f'"{said.replace(str(tmp_path), "...")}"; nothing is left')
