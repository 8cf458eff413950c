"A class: what is handed out, what the marks of made-up students are, and what their code can't do."
import ast
import csv
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from lesson6.book.classroom import class_copy, main, parts_of, write_course
from lesson6.book.confined import unprotected
from lesson6.book.running import sections
from lesson6.exercises import check, exercises, hint, judge, progress, solution
from lesson6.exercises.record import progress_file
import contextlib
import io
import time
from test_exercises import experiments

with_nbgrader = pytest.mark.skipif(not find_spec('nbgrader'), reason='this takes the extra `class`')

tools = Path(sys.executable).parent
APPS = '''
import json, sys
from nbgrader import apps
for name,*words in json.loads(sys.argv[1]):
    app = getattr(apps, f'{name}App')()
    app.initialize([*words, '--log-level=ERROR'])
    app.start()
'''


def call(course, *words):
    env = os.environ | {'PATH': f'{tools}{os.pathsep}{os.environ["PATH"]}'}
    done = subprocess.run(words, cwd=course, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# such as ('Autograde', 'pets'): nbgrader's own, in one process, because the import takes seconds
def nbgrader(course, *commands):
    call(course, sys.executable, '-W', 'ignore', '-c', APPS, json.dumps(commands))


@pytest.fixture(scope='module')
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp('class')
    write_course(folder)
    nbgrader(folder, *(('GenerateAssignment', section) for section in sections.values()))
    return folder


def solved(id): # the solution, as an answer's cell
    _, body, answer = parts_of(exercises[id].solution)
    return f'{body}\n{id.replace("-", "_")} = {answer}'


def hand_in(course, student, section, answer):
    """Fills in a copy as a student would: `answer` takes an exercise and gives code that ends up
    below the three dots"""
    nb = nbformat.read(course/'release'/section/f'{section}.ipynb', as_version=4)
    for cell in nb.cells:
        id = cell.metadata.get('nbgrader', {}).get('grade_id', '').removesuffix('-answer')
        if id in exercises and cell.metadata.nbgrader.solution: cell.source += f'\n{answer(id)}'
    path = course/'downloaded'/section/'archive'/f'{student}-{section}.ipynb'
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)


def verdict(course, student, id): # the points, and what `check` printed
    nb = nbformat.read(next(course.glob(f'autograded/{student}/*/{section_of(id)}.ipynb')),
                       as_version=4)
    cell = next(c for c in nb.cells if c.metadata.get('nbgrader', {}).get('grade_id') == id)
    return ''.join(o.get('text', '') for o in cell.outputs)


def section_of(id): return exercises[id].check.__module__.rpartition('.')[2]


# What is handed out

@pytest.mark.ci
def test_no_solution_is_in_the_students_copies(course):
    "Neither the text of one, nor a statement of one, nor its answer."
    text = ''.join(p.read_text(encoding='utf-8') for p in (course/'release').rglob('*')
                   if p.is_file())
    cells = [c for p in (course/'release').rglob('*.ipynb')
             for c in nbformat.read(p, as_version=4).cells if c.cell_type == 'code']
    handed = {ast.unparse(n) for c in cells for n in ast.walk(ast.parse(c.source))
              if isinstance(n, ast.stmt)}
    tests = [c for c in cells if c.metadata.nbgrader.grade]
    found = []
    for id in exercises:
        _, body, answer = parts_of(exercises[id].solution)
        held = {ast.unparse(n) for n in ast.parse(body).body} & handed
        if held or f'{id.replace("-", "_")} = {answer}' in text: found.append(id)
    assert (found == [] and len(tests) == 37 and 'SOLUTION' not in text
            and not list((course/'release').rglob('*.db')))


@with_nbgrader
def test_a_course_keeps_what_a_teacher_has_changed(tmp_path, capsys):
    main(str(tmp_path))
    assert len(capsys.readouterr().out.splitlines()) == 6
    (tmp_path/'nbgrader_config.py').write_text('# mine')
    (tmp_path/'source'/'pets'/'pets.ipynb').unlink()
    assert ([p.name for p in write_course(tmp_path)] == ['pets.ipynb']
            and (tmp_path/'nbgrader_config.py').read_text() == '# mine')


def test_solutions_are_not_shown_in_a_class_copy(capsys, monkeypatch):
    for id,e in list(exercises.items()): monkeypatch.setitem(exercises, id, e)
    kept = [e.solution for e in exercises.values()]
    class_copy()
    for id in exercises: solution(id)
    said = capsys.readouterr().out
    assert said.count('This copy is for a class') == 37 and not any(s in said for s in kept)
    hint('pets-1')
    assert exercises['pets-1'].hint in capsys.readouterr().out and judge('reg-2', 693)


@with_nbgrader
def test_what_cannot_be_marked_is_said(tmp_path):
    from lesson6.book.options import CliError
    with pytest.raises(CliError, match='is no course: write one'): main(str(tmp_path), grade=True)
    write_course(tmp_path)
    with pytest.raises(CliError, match='Nothing to mark: there is no .*submitted'):
        main(str(tmp_path), grade=True)
    with pytest.raises(CliError, match='gradebook.db is missing: mark a section first'):
        main(str(tmp_path), report=True)


# Marks

bad = { # what code that isn't to be trusted may try; the exercise, and what is said of it
    'reg-1': ('while True: pass', 'ran longer than 3 seconds'),
    'reg-2': ('import os; os._exit(1)', 'ended the process'),
    'reg-3': ('import numpy; reg_3 = numpy.ones(10*2**27)', 'MemoryError'),
    'reg-4': ('import os; os.fork()', 'PermissionError'),
    'reg-5': ("open('{course}/gradebook.db', 'a')", 'PermissionError'),
    'reg-6': ("reg_6 = open('{course}/source/regularisation/regularisation.ipynb').read()",
              'PermissionError'),
    'reg-7': (solved('reg-7') + "\nprint('x'*10**7)", 'is right'),
}


@pytest.mark.ci
@pytest.mark.skipif(bool(unprotected()), reason='this system confines nothing')
def test_a_submission_harms_itself_only(course):
    """Each exercise does harm of another kind; what comes after it is marked all the same, and so
    is the next student."""
    (course.parent/'another way').symlink_to(course)
    config = course/'nbgrader_config.py'
    kept = config.read_text()
    config.write_text(kept + 'c.Confined.seconds = 3\n')
    hand_in(course, 'anna', 'regularisation', lambda id: bad[id][0].replace('{course}', str(course))
            if id in bad else 'reg_8 = ...')
    hand_in(course, 'bert', 'regularisation', lambda id: solved(id) if id != 'reg-8'
            else 'reg_8 = 1')
    before = (course/'source'/'regularisation'/'regularisation.ipynb').read_bytes()
    nbgrader(course, ('ZipCollect', 'regularisation'), ('Autograde', 'regularisation'), ('Export',),
             ('GenerateFeedback', 'regularisation'))
    main(str(course), report=True)
    config.write_text(kept)
    rows = {r['student']: r for r in csv.DictReader((course/'grades.csv').open())}
    assert ([rows['anna'][f'reg-{i}'].removesuffix('.0') for i in range(1, 9)] == ['0']*6
            + ['1', '0'])
    assert float(rows['bert']['sum']) == 7
    page = (course/'report.html').read_text()
    for id,(_,said) in bad.items():
        row = next(l for l in page.splitlines() if f'<td>{id}<' in l)
        assert re.search(said, row + verdict(course, 'anna', id)), id
    assert ('learners in brackets'
            in (course/'feedback'/'bert'/'regularisation'/'regularisation.html').read_text())
    assert (course/'source'/'regularisation'/'regularisation.ipynb').read_bytes() == before
    assert (course/'autograded'/'anna'/'regularisation'/'regularisation.ipynb').stat().st_size < 3e6


def students():
    """Thirty: twelve right in three ways, nine wrong, three empty, two that loop, two that crash,
    two that are greedy; {name: (exercise -> code)}"""
    known = (f'import sys; sys.path.append({str(Path(__file__).parent)!r}); from test_exercises '
             'import right, wrong\n')
    def name(id): return id.replace('-', '_')
    def other(k):
        return (lambda id: solved(id) if id in experiments or k%3 == 0
                else f"{known}{name(id)} = right['{id}']()[{k} % len(right['{id}']())]")
    def wrongly(k):
        def answer(id):
            if id not in experiments:
                return f"{known}{name(id)} = wrong['{id}']()[{k} % len(wrong['{id}']())][0]"
            return f'{name(id)} = {k}'
        return answer
    # in one exercise of each section; the experiment is left out, the rest is right
    def bad_once(code, k):
        return (lambda id: code.replace('NAME', name(id)) if id.endswith(f'-{k}')
                else f'{name(id)} = ...' if id in experiments else solved(id))
    return {**{f'right{k:02}': other(k) for k in range(12)},
            **{f'wrong{k}': wrongly(k) for k in range(9)},
            **{f'empty{k}': lambda id: '' for k in range(3)},
            'loop0': bad_once('while True: pass', 3),
            'loop1': bad_once('def NAME(*args):\n    while True:\n        try:\n            while '
                              'True: pass\n        except BaseException: pass', 2),
            'crash0': bad_once('import os; os._exit(1)', 2), 'crash1': bad_once('1/0', 4),
            'greedy0': bad_once('import numpy; NAME = numpy.ones(10*2**27)', 3),
            'greedy1': bad_once('import os\nwhile True: os.fork()', 4)}


def alone(id, code):
    "What `check` itself says of an answer, without nbgrader; None: the code must not be run here"
    if any(o in code for o in ('while True', '_exit', '10*2**27', '1/0')): return None
    name = id.replace('-', '_')
    scope = {name: ...}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(parts_of(exercises[id].solution)[0] + '\n' + code, scope)
    return judge(id, scope[name])


@pytest.mark.slow
@pytest.mark.skipif(bool(unprotected()), reason='this system confines nothing')
def test_thirty_students(course, capsys):
    "All sections within ten minutes on two cores, and the marks are those that `check` gives."
    people = students()
    assert len(people) == 30
    for name,code in people.items():
        for section in sections.values(): hand_in(course, name, section, code)
    nbgrader(course, *(('ZipCollect', section) for section in sections.values()))
    began = time.time()
    call(course, tools/'lesson6', 'class', '.', '--grade')
    took = time.time() - began
    with capsys.disabled(): print(f'\n30 students, five sections: {took:.0f} s')
    nbgrader(course, ('Export',))
    rows = {r['student']: r for r in csv.DictReader((course/'grades.csv').open())}
    assert set(rows) >= set(people) and len(next(iter(rows.values()))) == 39
    differ, compared, known = [], 0, {}
    for name,code in people.items():
        for id in exercises:
            text = code(id)
            if (id, text) not in known: known[id, text] = alone(id, text)
            said, here = known[id, text], verdict(course, name, id)
            points = float(rows[name][id])
            if said is None: fine = points == 0
            else: fine = points == said.solved and (id in experiments or str(said) in here)
            compared += 1
            if not fine: differ.append((name, id, points, here, str(said)))
    with capsys.disabled():
        print(f'{compared - len(differ)} of {compared} marks agree with check')
    assert differ == [] and compared == 30*37


# Progress

@pytest.fixture
def own_record(tmp_path, monkeypatch):
    monkeypatch.setenv('LESSON6_PROGRESS', '')
    monkeypatch.setattr('lesson6.exercises.record.progress_file',
                        lambda: tmp_path/'data'/'progress.json')
    return tmp_path/'data'


def test_progress_survives_a_broken_file_and_a_full_disk(own_record, capsys, monkeypatch):
    own_record.mkdir()
    (own_record/'progress.json').write_text('[1, 2')
    assert check('reg-2', 693) and progress().loc['reg-2', 'tried'] == 1
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'replace', full)
    assert check('reg-2', 693) and progress().loc['reg-2', 'tried'] == 1


def test_no_record_where_none_is_wanted(own_record, monkeypatch):
    monkeypatch.setenv('LESSON6_PROGRESS', 'off')
    check('reg-2', 693)
    assert not own_record.exists() and progress_file().name == 'progress.json'
