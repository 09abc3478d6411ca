"""
The ``nprint`` encoder: one ternary value a header bit, as nPrint writes them, plus direction and time.
"""
