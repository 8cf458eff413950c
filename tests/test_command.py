"""The command line: what a person sees who runs `lesson6` or `make`, also when something goes
wrong.

The notebooks that run here are made up, and small.
"""
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from importlib import metadata
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import nbformat
import pytest
from conftest import PROGRAM, alive, checkout, notebook, root, wait_until
from nbformat.v4 import new_code_cell, new_notebook, new_output

from lesson6.book import command, running, site
from lesson6.book.options import CliError
from lesson6.book.running import to_store


@pytest.fixture
def nbs(tmp_path, environment):
    """A folder of notebooks of our own, in place of the project's, and plain pages in place of the
    site."""
    folder = tmp_path/'nbs'
    folder.mkdir()
    environment.chdir(tmp_path)
    for module in command, running: environment.setattr(module, 'notebooks_path', lambda: folder)
    environment.setattr(command, 'can_build', lambda: False)
    environment.setenv('NBS', str(folder))
    return folder


def lesson6(monkeypatch, *words):
    "What the shell's `lesson6 WORDS` gives: its exit code."
    monkeypatch.setattr(sys, 'argv', ['lesson6', *map(str, words)])
    try: return command.main() or 0
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else (print(e.code, file=sys.stderr) or 1)


# Help

@pytest.mark.parametrize('name', command.commands)
def test_help(name, environment, capsys):
    assert lesson6(environment, name, '--help') == 0
    out = capsys.readouterr().out
    assert (out.startswith(f'usage: lesson6 {name}')
            and command.commands[name].__doc__ in ' '.join(out.split()))


@pytest.mark.parametrize('words, code', [((), 2), (('--help',), 0), (('-h',), 0), (('dance',), 2)])
def test_usage(words, code, environment, capsys):
    assert lesson6(environment, *words) == code
    out = capsys.readouterr().out
    assert all(f'  {name} ' in out for name in command.commands)


# lesson6 run

@pytest.mark.ci
def test_run_makes_pages(nbs, environment, capsys):
    notebook(nbs/'00_one.ipynb', '20 + 1', title='One')
    notebook(nbs/'mini'/'two.ipynb', 'print("tw" + "o")', title='Two')
    assert lesson6(environment, 'run') == 0
    out = capsys.readouterr().out
    assert (re.search(r'^1/2 00_one +1 cells, \d+ s$', out, re.M)
            and re.search(r'^2/2 mini/two +1 cells, \d+ s$', out, re.M)), out
    assert out.rstrip().endswith('Open _site/index.html in a browser.')
    assert ('21' in Path('_site/00_one.html').read_text()
            and 'two' in Path('_site/mini/two.html').read_text())
    front = Path('_site/index.html').read_text()
    assert 'href="00_one.html"' in front and 'href="mini/two.html"' in front
    assert not any(c.outputs for c in nbformat.read(nbs/'00_one.ipynb', 4).cells
                   if c.cell_type == 'code')


def test_run_some(nbs, environment, capsys):
    for name in '00_one', '01_two': notebook(nbs/f'{name}.ipynb', '1')
    assert lesson6(environment, 'run', 'two') == 0
    out = capsys.readouterr().out
    assert '1/1 01_two' in out and out.rstrip().endswith('Open _run/01_two.html in a browser.')
    assert [p.name for p in sorted(Path().rglob('*.html'))] == ['01_two.html']


def test_save(nbs, environment):
    notebook(nbs/'00_one.ipynb', '20 + 1')
    assert lesson6(environment, 'run', '--save') == 0
    assert nbformat.read(nbs/'00_one.ipynb', 4).cells[1].outputs[0].data['text/plain'] == '21'


def test_saved_outputs_name_no_folder_of_this_machine(nbs, environment):
    source = f'# {nbs}/c\nfrom pathlib import Path\nprint(Path.cwd()/"a", Path.home()/"b")'
    notebook(nbs/'00_one.ipynb', source)
    assert lesson6(environment, 'run', '--save') == 0
    cell = nbformat.read(nbs/'00_one.ipynb', 4).cells[1]
    assert cell.outputs[0].text == './nbs/a ~/b\n' and cell.source == source


@pytest.mark.ci
def test_failing_cell(nbs, environment, capsys):
    notebook(nbs/'00_one.ipynb', '1')
    notebook(nbs/'01_bad.ipynb', 'a = 20', 'a/0', 'a')
    bad = nbformat.read(nbs/'01_bad.ipynb', 4)
    bad.cells[-1].outputs = [nbformat.v4.new_output('stream', text='of an earlier run')]
    nbformat.write(bad, nbs/'01_bad.ipynb')
    notebook(nbs/'02_after.ipynb', '1')
    assert lesson6(environment, 'run', '--at-once', '1') == 1
    out, err = capsys.readouterr()
    assert ('01_bad.ipynb, code cell 2 of 3 failed with ZeroDivisionError: division by '
            'zero\n\na/0' in out)
    assert err.strip().endswith('01_bad.ipynb, code cell 2 of 3 failed with ZeroDivisionError: '
                                'division by zero')
    assert '02_after' not in out and 'Traceback' not in err
    page = Path('_site/01_bad.html').read_text()
    assert 'ZeroDivisionError' in page and 'of an earlier run' not in page


SLOW = ('from pathlib import Path; import os, time; '
        'Path(f"{name}.part").write_text(str(os.getpid())); Path(f"{name}.part").rename(name); '
        'time.sleep(600)')


def wait_for(*files):
    "The numbers of the kernels that have written these files"
    wait_until(lambda: all(f.exists() for f in files))
    return [int(f.read_text()) for f in files]


@pytest.mark.ci
def test_at_once(nbs, environment, capsys):
    "Each waits for what the other writes, so one after the other they would never end"
    for name, other in ('one', 'two'), ('two', 'one'):
        notebook(nbs/f'00_{name}.ipynb',
                 f'from pathlib import Path; import time; Path("{name}").touch()',
                 f'while not Path("{other}").exists(): time.sleep(.05)',
                 'import os; os.environ["OMP_NUM_THREADS"]')
    environment.delenv('OMP_NUM_THREADS', raising=False)
    assert lesson6(environment, 'run', '--at-once', '2', '--timeout', '60', '--save') == 0
    assert capsys.readouterr().out.count('3 cells') == 2
    each = str(max(1, os.cpu_count()//2))
    assert all(nbformat.read(nbs/f'00_{n}.ipynb', 4).cells[3].outputs[0].data['text/plain']
               == repr(each) for n in ('one', 'two')), 'they share the cores'


@pytest.mark.ci
def test_a_failing_notebook_stops_those_beside_it(nbs, environment, capsys):
    notebook(nbs/'00_slow.ipynb', 'name = "slow"', SLOW)
    notebook(nbs/'01_bad.ipynb', 'from pathlib import Path; import time\nwhile not '
                                 'Path("slow").exists(): time.sleep(.05)', '1/0')
    notebook(nbs/'02_after.ipynb', '1')
    assert lesson6(environment, 'run', '--at-once', '2') == 1
    out, err = capsys.readouterr()
    assert err.strip().endswith('01_bad.ipynb, code cell 2 of 2 failed with ZeroDivisionError: '
                                'division by zero') and 'Traceback' not in err
    assert re.search('00_slow +stopped', out) and '02_after' not in out and '1 notebook,' in out
    assert not alive(*wait_for(nbs/'slow'))


@pytest.mark.ci
def test_dead_kernel(nbs, environment, capsys):
    notebook(nbs/'00_dies.ipynb', '1', 'import os; os._exit(9)')
    assert lesson6(environment, 'run') == 1
    assert ('00_dies.ipynb, code cell 2 of 2 failed with an end of the '
            'kernel' in capsys.readouterr().err)


@pytest.mark.ci
def test_timeout(nbs, environment, capsys):
    notebook(nbs/'00_slow.ipynb', 'import time; time.sleep(60)')
    assert lesson6(environment, 'run', '--timeout', '1') == 1
    assert '00_slow.ipynb, code cell 1 of 1 failed with' in capsys.readouterr().err


def test_data_reaches_the_kernel(nbs, environment, tmp_path):
    (tmp_path/'my data').mkdir()
    notebook(nbs/'00_one.ipynb', 'import os; assert os.environ["LESSON6_DATA"].endswith("my data") '
                                 'and os.environ["MPLBACKEND"] != "agg"')
    environment.setenv('MPLBACKEND', 'agg')
    environment.setenv('LESSON6_DATA', 'mini')
    assert lesson6(environment, 'run', '--data', 'my data') == 0


CLAIMS = '''
from lesson6.claims import claim, statement
for name in 'a', 'b':
    @statement(f'made-up-{name}', 'Half of four is two', lesson='2')
    def _(half): return half == 2, f'{half}'
claim('made-up-a', 2)
claim('made-up-b', 3)'''


@pytest.mark.ci
def test_claims_close_the_run(nbs, environment, capsys):
    "Those that hold and those that don't; on the twins one that doesn't is an error."
    notebook(nbs/'00_one.ipynb', CLAIMS)
    assert lesson6(environment, 'run') == 1
    out, err = capsys.readouterr()
    assert ('  holds: Half of four is two. Here: 2; the lesson: 2\n  does not hold: Half of four '
            'is two. Here: 3; the lesson: 2\n1 of 2 claims hold; 1 does not hold.\n' in out)
    assert '00_one.ipynb, code cell 1 of 1 failed with AssertionError' in err


def test_a_run_is_kept_without_the_name_of_its_folder(nbs, environment, tmp_path):
    "One seed after the other, and what is measured anew takes the place of what was there."
    (tmp_path/'my data').mkdir()
    for seed, half in (42, 1), (1, 3), (42, 2):
        notebook(nbs/'00_one.ipynb', f'seed = {seed}',
                 CLAIMS.replace("claim('made-up-a', 2)\nclaim('made-up-b', 3)",
                                f"claim('made-up-a', {half})"))
        assert lesson6(environment, 'run', '--data', 'my data', '--keep', 'runs/real.json') == 0
    kept = json.loads(Path('runs/real.json').read_text())
    found = [(o['seed'], o['verdict'], o['measured']) for o in kept]
    assert found == [(1, 'does not hold', '3'), (42, 'holds', '2')]
    assert (set(kept[0]) == {'id', 'seed', 'verdict', 'measured', 'numbers', 'device', 'on'}
            and 'my data' not in str(kept))


def test_kernel_is_this_python(nbs, environment, tmp_path):
    "Even where Jupyter knows another one under the name python3."
    spec = tmp_path/'jupyter'/'kernels'/'python3'
    spec.mkdir(parents=True)
    (spec/'kernel.json').write_text(json.dumps({'argv': ['/bin/false'], 'display_name': 'Python 3',
                                                'language': 'python'}))
    environment.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    environment.setenv('JUPYTER_DATA_DIR', str(tmp_path/'jupyter'))
    notebook(nbs/'00_one.ipynb', f'import sys; assert sys.executable == {sys.executable!r}, '
                                 'sys.executable')
    assert lesson6(environment, 'run') == 0


@pytest.mark.ci
def test_bars_on_a_terminal(nbs, tmp_path):
    notebook(nbs/'00_one.ipynb', '1', '2', '3')
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
    program = subprocess.Popen([sys.executable, '-c', PROGRAM, 'run'], cwd=tmp_path,
                               stdout=follower, stderr=follower, close_fds=True)
    os.close(follower)
    seen = b''
    try:
        while chunk := os.read(leader, 4096): seen += chunk
    except OSError: pass  # on Linux, the end of a terminal
    assert program.wait() == 0
    text = seen.decode()
    assert ('1/1 00_one' in text and '/3 cells' in text and '█' in text
            and re.search(r'3 cells, \d+ s\r?\n', text))


@pytest.mark.ci
@pytest.mark.parametrize('how', ['SIGINT', 'SIGTERM'])
@pytest.mark.parametrize('at_once', [1, 2])
def test_stopped(nbs, tmp_path, how, at_once):
    """By Ctrl-C, or by a scheduler: ends at once, says where, shows no traceback, and leaves no
    kernel behind."""
    for name in ('one', 'two'): notebook(nbs/f'00_{name}.ipynb', f'name = "{name}"', SLOW)
    program = subprocess.Popen([sys.executable, '-c', PROGRAM, 'run', '--at-once', str(at_once)],
                               cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    kernels = wait_for(*[nbs/n for n in ('one', 'two')[:at_once]])
    time.sleep(.3)
    program.send_signal(getattr(signal, how))
    out, err = program.communicate(timeout=20)
    assert program.returncode == 130, err
    assert err.strip() == ' '.join(f'Stopped in 00_{n}.ipynb, code cell 2 of 2.'
                                   for n in ('one', 'two')[:at_once])
    assert out.count('stopped') == at_once
    assert wait_until(lambda: not any(map(alive, kernels)), 1)


# What the pages take from a run

def test_a_run_counts_only_while_the_cells_are_the_same(nbs, environment, tmp_path):
    notebook(nbs/'00_one.ipynb', 'a = 1')
    shutil.copytree(nbs, tmp_path/'_run')
    environment.setattr(site, 'notebooks_path', lambda: nbs)
    ran = nbformat.read(tmp_path/'_run'/'00_one.ipynb', 4)
    ran.cells[1].execution_count = 7
    nbformat.write(ran, tmp_path/'_run'/'00_one.ipynb')
    assert site.last_run(nbs/'00_one.ipynb', tmp_path/'_run').cells[1].execution_count == 7
    notebook(nbs/'00_one.ipynb', 'a = 2')
    assert site.last_run(nbs/'00_one.ipynb', tmp_path/'_run').cells[1].source == 'a = 2'


# lesson6 notebooks, data, doctor

def test_notebooks(tmp_path, environment, capsys):
    environment.chdir(tmp_path)
    assert lesson6(environment, 'notebooks', 'mine') == 0
    here = {p.relative_to('mine') for p in Path('mine').rglob('*.ipynb')}
    assert here == {p.relative_to(command.notebooks_path()) for p in command.find_notebooks()}
    assert lesson6(environment, 'notebooks', 'mine') == 0
    Path('mine/claims.ipynb').write_text('mine')
    assert lesson6(environment, 'notebooks', 'mine') == 1
    assert (capsys.readouterr().err.strip() == 'mine/claims.ipynb is there and differs: nothing '
                                               'was copied; name another folder, or add '
                                               '--overwrite to replace it.')
    assert lesson6(environment, 'notebooks', 'mine', '--overwrite') == 0
    assert (Path('mine/claims.ipynb').read_bytes()
            == (command.notebooks_path()/'claims.ipynb').read_bytes())


def test_data_looks_draws_and_finds_what_is_missing(environment, capsys, tmp_path):
    assert lesson6(environment, 'data', 'movielens', '--look') == 1
    assert ('movielens  not there' in capsys.readouterr().out
            and not list((tmp_path/'cache').rglob('u.data')))
    assert lesson6(environment, 'data', 'movielens') == 0
    assert re.search(r'^movielens  whole: [\d,]+ ratings, [\d,]+ films, in ',
                     capsys.readouterr().out, re.M)
    ratings = next((tmp_path/'cache').rglob('u.data'))
    ratings.write_bytes(ratings.read_bytes()[:1000])
    assert lesson6(environment, 'data', 'movielens') == 1
    out, err = capsys.readouterr()
    assert 'is not whole' in out and err.strip() == 'Not all of it is there.'


def test_data_of_a_folder(environment, capsys, tmp_path):
    (tmp_path/'school').mkdir()
    assert lesson6(environment, 'data', '--data', str(tmp_path/'school'), '--look') == 1
    out = capsys.readouterr().out
    assert out.count('not there, it would be') == 4 and 'your own folder' in out


def test_doctor(environment, capsys):
    environment.setenv('MPLBACKEND', 'agg')
    assert lesson6(environment, 'doctor') == 0
    out = capsys.readouterr().out
    for word in ('lesson6 ', 'Python ', 'fastai ', 'torch ', 'cores', 'memory', 'movielens',
                 'MPLBACKEND=agg may hide the figures'):
        assert word in out, word


def test_doctor_names_what_is_too_old(environment):
    version = metadata.version
    environment.setattr(metadata, 'version', lambda name: '2.7.0' if name == 'fastai'
                        else version(name))
    assert [s for s in command.requirements_missing()
            if s.startswith('fastai is 2.7.0, and lesson6 needs >=')]
    environment.undo()
    assert command.requirements_missing() == []


def test_site_needs_what_builds_it(environment, capsys):
    environment.setattr(command, 'can_build', lambda: False)
    assert lesson6(environment, 'site') == 1
    assert 'the extra `book`' in capsys.readouterr().err


def test_a_home_that_is_the_root_names_no_folder(monkeypatch):
    "As in containers; and a picture's letters are never a folder"
    def stored(home):
        monkeypatch.setattr(Path, 'home', lambda: Path(home))
        cell = new_code_cell(outputs=[new_output('stream', text='https://docs.fast.ai '
                                                 '/home/me/data'),
                                      new_output('error', ename='E', evalue='',
                                                 traceback=['in \x1b[32m/home/me/x.py']),
                                      new_output('display_data',
                                                 {'image/png': 'iVBORw0//home/me/AAA',
                                                  'text/html': '<p>/home/me/data</p>'})])
        text, error, shown = to_store(new_notebook(cells=[cell])).cells[0].outputs
        return text.text, error.traceback[0], shown.data['image/png'], shown.data['text/html']
    assert stored('/') == ('https://docs.fast.ai /home/me/data', 'in \x1b[32m/home/me/x.py',
                           'iVBORw0//home/me/AAA', '<p>/home/me/data</p>')
    assert stored('/home/me') == ('https://docs.fast.ai ~/data', 'in \x1b[32m~/x.py',
                                  'iVBORw0//home/me/AAA', '<p>~/data</p>')
    assert stored('/me') == stored('/'), '/me in the middle of a path is no home'


# make

def test_second_make_does_not_install(tmp_path):
    "A Python that only writes down what it is asked stands in for the real one."
    for name in ('Makefile', 'pyproject.toml', 'settings.ini', 'setup.py', 'constraints.txt'):
        shutil.copy2(root/name, tmp_path)
    fake = tmp_path/'python'
    fake.write_text(f'''#!/bin/sh
echo "$@" >> {tmp_path}/asked
case "$*" in
  "-m venv .venv")
    mkdir -p .venv/bin
    cp {tmp_path}/python .venv/bin/python; cp {tmp_path}/python .venv/bin/lesson6 ;;
esac
''')
    fake.chmod(0o755)
    def make(*words):
        (tmp_path/'asked').write_text('')
        done = subprocess.run(['make', f'PYTHON={fake}', *words], cwd=tmp_path, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr
        return (tmp_path/'asked').read_text().splitlines()
    first = make('run')
    assert any('pip install' in l for l in first) and first[-1] == 'run'
    assert make('run', 'NB=04_collab') == ['run 04_collab']
    assert make('run', 'NB=04_collab', 'DATA=/my data') == ['run 04_collab --data /my data']
    os.utime(tmp_path/'settings.ini', (time.time()+2, time.time()+2))
    assert make('run') == ['run'], 'a file that is written again is not another one'
    (tmp_path/'settings.ini').write_text((root/'settings.ini').read_text() + '\n')
    os.utime(tmp_path/'settings.ini', (time.time()+4, time.time()+4))
    assert any('pip install' in l for l in make('run'))


def test_make_test_leaves_out_what_takes_long_and_nothing_else():
    "What it leaves out is marked, and `make test-all` runs it"
    def made(target):
        return (subprocess.run(['make', '--dry-run', target], cwd=root, capture_output=True,
                               text=True, check=True).stdout.splitlines())
    quick, all_of_it = made('test'), made('test-all')
    assert ('lesson6.book.testing' in quick[-2] and quick[-1] == all_of_it[-1] + ' -m "not ci and '
            'not slow"' and quick[:-1] == all_of_it[:-1])


@pytest.mark.ci
def test_make_lab(tmp_path):
    "JupyterLab starts on the notebooks, and opens one."
    (checkout(tmp_path)/'nbs').symlink_to(root/'nbs')
    (tmp_path/'config').mkdir()
    (tmp_path/'config'/'jupyter_server_config.json').write_text(
        json.dumps({'ServerApp': {'open_browser': False, 'port': 0, 'ip': '127.0.0.1',
                                  'allow_root': True}, 'IdentityProvider': {'token': 'letmein'}}))
    env = {**os.environ,
           **{f'JUPYTER_{k}_DIR': str(tmp_path/'config') for k in ('CONFIG', 'DATA', 'RUNTIME')}}
    lab = subprocess.Popen(['make', 'lab'], cwd=tmp_path, env=env, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        url = next(m[0] for line in lab.stdout
                   if (m := re.search(r'http://127\.0\.0\.1:\d+', line)))
        until = time.time() + 30
        while True:  # the line stands there a moment before the door is open
            try:
                held = json.loads(urlopen(f'{url}/api/contents/index.ipynb?token=letmein',
                                          timeout=20).read())
            except URLError:
                if time.time() > until: raise
                time.sleep(.2)
            else: break
        assert held['content']['cells'][0]['source'].startswith('# lesson6')
        assert b'JupyterLab' in urlopen(f'{url}/lab/tree/index.ipynb?token=letmein',
                                        timeout=20).read()
        urlopen(Request(f'{url}/api/shutdown?token=letmein', method='POST',
                        headers={'Authorization': 'token letmein'}), timeout=20).close()
        lab.communicate(timeout=20)
    finally:
        if lab.poll() is None: os.killpg(lab.pid, signal.SIGKILL)


def test_make_refuses_an_old_python(tmp_path):
    for name in ('Makefile', 'pyproject.toml', 'settings.ini', 'setup.py', 'constraints.txt'):
        shutil.copy2(root/name, tmp_path)
    old = tmp_path/'python'
    old.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = '
                   '(3, 9); $@"\n')
    old.chmod(0o755)
    done = subprocess.run(['make', 'run', f'PYTHON={old}'], cwd=tmp_path, capture_output=True,
                          text=True)
    assert (done.returncode != 0 and 'lesson6 needs Python 3.11 or newer' in done.stderr
            and not (tmp_path/'.venv').exists())


def test_commands_can_be_called_from_python(nbs):
    notebook(nbs/'00_one.ipynb', '1/0')
    with pytest.raises(CliError): command.run('00_one')
