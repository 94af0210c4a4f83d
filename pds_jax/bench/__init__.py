"""Measuring samplers: exact problems, judges, figures, timing."""
