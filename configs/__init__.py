"""Configurations (ml_collections) with score_sde's names; each file begins with its command and published result."""
