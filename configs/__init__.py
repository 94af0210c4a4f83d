"""Configurations (ml_collections) under score_sde's names; the command and the published figure head each file."""
