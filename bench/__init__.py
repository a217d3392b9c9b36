"""Measurements: the layers (`shapes`), the comparison that `python -m nbconv bench` runs (`compare`), and start-up (`startup`).

Installed as `nbconv.bench`.
"""
