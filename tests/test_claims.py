"The machinery of the claims; the statements themselves are tested beside their sections, in test_claims_*.py."
import json

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


def test_every_statement_has_a_test_that_makes_it_fail():
    "Each statement's name stands in a test of its section, which hands it something broken."
    from pathlib import Path
    tests = ''.join(p.read_text(encoding='utf-8') for p in Path(__file__).parent.glob('test_claims_*.py'))
    assert [id for id in claims.statements if f"'{id}'" not in tests] == []
