import shutil

import pytest
from latent_cases import make_pipeline


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Kind -> (folder, pipeline in PyTorch), made once a session; the folders are not to be changed."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder, make_pipeline(folder, kind)
        return made[kind]

    return get


@pytest.fixture
def folder(pipelines, tmp_path):
    """A copy of the folder of Stable Diffusion 1's layout, to be changed."""
    return shutil.copytree(pipelines("sd1")[0], tmp_path / "model")
