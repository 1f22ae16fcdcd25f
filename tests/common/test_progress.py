"""The progress bar counts what is done and shows the loss."""

import math

from ptmq.common.progress import Bar


def test_a_bar_ends_at_its_total_and_shows_the_last_loss(capsys):
    with Bar("toy", 30) as bar:
        bar.advance("stem", 10, math.nan)
        before = bar.bar.postfix
        bar.advance("head", 20, 0.125)
        assert (bar.bar.n, bar.bar.total) == (30, 30)
        assert before == "stem" and bar.bar.postfix == "head loss 0.125"
    assert "toy: 100%" in capsys.readouterr().err


def test_nothing_to_do_shows_nothing(capsys):
    with Bar("toy", 0):
        pass
    assert not capsys.readouterr().err
