"""The table of public weights agrees with the board's reported rows, and with what is on this machine."""

from __future__ import annotations

import pytest

from leaderboard.content import reported as board
from ltm import registry
from ltm.published import known
from tasks import model_list
from tests.support.published import write

ROWS = {
    "mdlm:kuleshov-group/mdlm-owt": "MDLM (Sahoo et al., 2024)",
    "ar:ar.ckpt": "AR (Sahoo et al., 2024)",
    "sedd:sedd.ckpt": "SEDD (Sahoo et al., 2024)",
    "sedd:louaaron/sedd-medium": "SEDD (Lou et al., 2024)",
}


@pytest.mark.parametrize("name", ROWS)
def test_reported_numbers_are_those_of_the_board(name):
    row = next(row for row in board.perplexities() if row.model == ROWS[name])
    for task, value in row.values.items():
        found = [perplexity for perplexity, source in known.reported(name, task) if "2502.01567" in source]
        assert found == ([value.removeprefix("≤ ")] if value else [])


def test_an_independent_run_stands_beside_the_paper():
    (paper, _), (other, source) = known.reported("mdlm:kuleshov-group/mdlm-owt", "ltm_ptb")
    assert (paper, other) == ("95.26", "83.8") and "issue 29" in source
    assert known.reported("mdlm:someone/else", "ltm_ptb") == []


def test_every_entry_has_a_family_that_opens_it():
    for each in known.known():
        assert hasattr(registry.model_family(each.family), "of_published") and each.positions == 1024
    assert len({each.name for each in known.known()}) == len(known.known())


def test_the_list_shows_what_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    write(tmp_path / "models--louaaron--sedd-small" / "snapshots" / ("0" * 40), "sedd")
    model_list.show()
    shown = capsys.readouterr().out
    assert all(len(line) <= 100 for line in shown.splitlines())
    here = {line.split()[0]: line.split()[-1] for line in shown.splitlines() if line.rstrip().endswith((" yes", " no"))}
    assert (here["sedd:louaaron/sedd-small"], here["sedd:louaaron/sedd-medium"]) == ("yes", "no")
    assert "95.26" in shown and "105.8" in shown
    assert "ltm-tiny ltm-mini ltm-small" in shown
