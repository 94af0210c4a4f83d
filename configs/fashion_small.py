"""`fashion` with score_sde's own parametrisation and a smaller network; the included model `fashion_small`.

pds_jax --mode=train --config=configs/fashion_small.py --workdir=runs/fashion_small
The score is the network's output divided by σ (`scale_by_sigma`): a control for results on `fashion`, whose
parametrisation is `edm`. See checkpoints/fashion_small/README.md for how it was trained.
"""

import ml_collections

from configs import fashion
from configs.common import finish


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = fashion.get_config()
    config.training.update(n_iters=3200)
    del config.model.parametrisation, config.model.data_mean, config.model.sigma_data
    config.model.update(scale_by_sigma=True, nf=24, ch_mult=(1, 2, 2))
    config.optim.update(cosine_steps=800)
    return finish(config, arg)
