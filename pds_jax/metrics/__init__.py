"""Sample quality for any feature function.

frechet (FID), kid, inception_score, precision_recall (and density, coverage), the Inception network that the published
figures use, other extractors, reference files, and the resumable pass over images. Import from the modules.
"""

from pds_jax.metrics.frechet import FeatureMoments, frechet_distance, frechet_distance_from_features

__all__ = ["FeatureMoments", "frechet_distance", "frechet_distance_from_features"]
