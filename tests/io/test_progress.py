"""A bar that appears with the first step."""

from pds_jax.io.progress import Bar


def test_nothing_is_shown_before_a_step_and_then_the_rate_since_the_start(capsys):
    seen = []
    with Bar("drawing", "step", lambda done, total: seen.append((done, total))) as bar:
        bar.start(4)
        assert capsys.readouterr().err == ""
        bar._started -= 120  # so that the first step took two minutes
        bar.reach(1)
        shown = capsys.readouterr().err
        bar.reach(1)
        bar.advance(3)
    assert "drawing" in shown and "1/4" in shown and "06:" in shown  # three more in six minutes
    assert seen == [(1, 4), (4, 4)]


def test_a_silent_bar_counts_and_a_resumed_one_goes_on(capsys):
    bar = Bar("training", "step", silent=True)
    bar.start(10, 6)
    bar.advance(2)
    bar.note(loss="1")
    bar.close()
    assert bar.done == 8 and capsys.readouterr().err == ""
