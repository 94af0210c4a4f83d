"""Sample quality: FID, KID, Inception Score, precision and recall, density and coverage, for any feature function."""

from pds_jax.metrics.frechet import FeatureMoments, frechet_distance, frechet_distance_from_features

__all__ = ["FeatureMoments", "frechet_distance", "frechet_distance_from_features"]
