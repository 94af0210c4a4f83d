"""Scripts with flags: words that are not options raise an error."""

import pytest
from absl import app
from load_script import load


@pytest.mark.parametrize(
    "name", ["quickstart", "benchmark", "benchmark_precisions", "ffhq_memory", "kernels", "soak", "survive"]
)
def test_stray_words_are_refused_by_name(name):
    with pytest.raises(app.UsageError, match="unexpected words .*'photos'.*; every option starts with --"):
        load(name).main([name, "photos"])
