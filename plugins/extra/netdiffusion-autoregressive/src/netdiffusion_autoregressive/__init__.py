"""
The backend ``autoregressive``: a small causal transformer over packet fields.
"""
