"""
Trivial generators that every report compares a model with: ``bernoulli`` and ``bootstrap``.
"""
