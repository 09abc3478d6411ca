"""
Six ways to judge synthetic traffic against real traffic: fidelity, utility, detectability, compliance, timing, novelty.
"""
