"""Policies side by side: at every load on the same arrivals, judged by the same curves and the bound."""
