"The machinery of the claims; the statements themselves are tested beside their sections, in test_claims_*.py."
import ast
import json
import re
from pathlib import Path

import pytest

from lesson6 import claims


@pytest.fixture
def half(environment, monkeypatch):
    monkeypatch.setattr(claims, 'statements', {})
    monkeypatch.setattr(claims, 'verdicts', {})
    @claims.statement('example-half', 'Half of four is two', lesson='2')
    def _(half): return half == 2, f'{half}'


def test_a_claim_that_holds_is_said_and_kept(half, capsys):
    assert claims.claim('example-half', 2)
    assert capsys.readouterr().out == 'holds: Half of four is two. Measured: 2 (lesson: 2)\n'
    verdict = claims.verdicts['example-half']
    assert verdict.holds and verdict.data == 'mini' and verdict.device and 'fast.ai' in verdict.source


def test_a_failing_claim_stops_on_the_twins(half):
    with pytest.raises(AssertionError, match='example-half: FAILS: Half of four is two'): claims.claim('example-half', 3)


def test_a_failing_claim_is_shown_on_other_data(half, environment, tmp_path, capsys):
    environment.setenv('LESSON6_DATA', str(tmp_path))
    assert not claims.claim('example-half', 3)
    assert capsys.readouterr().out.startswith('FAILS: Half of four is two. Measured: 3')
    assert 'NO' in claims.claims_table().to_html()


def test_claims_are_written_for_the_runner(half, environment, tmp_path):
    log = tmp_path/'claims.jsonl'
    environment.setenv('LESSON6_CLAIMS', str(log))
    claims.claim('example-half', 2)
    environment.setenv('LESSON6_DATA', str(tmp_path))
    claims.claim('example-half', 3)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r['holds'] for r in rows] == [True, False] and rows[1]['measured'] == '3'


def test_unknown_and_double_names_are_refused(half):
    with pytest.raises(ValueError, match="no statement named 'half'.*example-half"): claims.claim('half', 2)
    with pytest.raises(ValueError, match='two statements'): claims.statement('example-half', 'Again')(lambda: None)


def denied(tree):
    "The statements of which a test asserts `not holds(id, ...)`, `not check(id, ...)`, or either `== right`"
    for node in ast.walk(tree):
        call = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) else node.left if isinstance(node, ast.Compare) else None
        if isinstance(call, ast.Call) and getattr(call.func, 'id', '') in ('holds', 'check') and isinstance(call.args[0], ast.Constant): yield call.args[0].value


def test_every_statement_has_a_test_that_makes_it_fail():
    "Something broken is handed to each, and the test asserts that it does not hold."
    files = sorted(Path(__file__).parent.glob('test_claims_*.py'))
    broken = {id for p in files for id in denied(ast.parse(p.read_text(encoding='utf-8')))}
    assert len(claims.statements) >= 25
    assert sorted(set(claims.statements) - broken) == []
    assert sorted(broken - set(claims.statements)) == []


def test_that_test_can_fail():
    said = "def test():\n    assert check('a', 1) and holds('b', 1)\n    assert not check('c', 1)\n    assert holds('d', 1) == right"
    assert set(denied(ast.parse(said))) == {'c', 'd'}


def test_every_statement_is_claimed_in_a_notebook():
    "And each notebook claims only what there is."
    text = ''.join(p.read_text(encoding='utf-8') for p in (Path(__file__).parent.parent/'nbs').glob('0*.ipynb'))
    claimed = re.findall(r"\b(?:claim|claim_on|compare)\((?:'\w+', )?'([a-z0-9]+-[a-z0-9-]+)'", text) # the last two are a section's own, and call `claim`
    assert set(claimed) == set(claims.statements)
