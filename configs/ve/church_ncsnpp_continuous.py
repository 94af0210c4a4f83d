"""NCSN++ cont. on LSUN church (outdoor) 256x256, VE SDE.

pds_jax --mode=train --config=configs/ve/church_ncsnpp_continuous.py --workdir=runs/ve_church_ncsnpp_continuous
Published: samples only, no FID.
The PDS release's file of this name differs only in the sizes of its authors' runs (see default_lsun_configs).
"""

import ml_collections

from configs import default_lsun_configs
from configs.common import finish, ncsnpp_256, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_lsun_configs.get_default_configs()
    ve(config)
    config.data.category = "church_outdoor"
    ncsnpp_256(config.model, sigma_max=380.0)
    return finish(config, arg)
