"""Measurements: the layers (`shapes`), the comparison that `python -m nbconv bench` runs (`compare`), the single properties that
`python -m nbconv profile` looks at (`profile`), and start-up (`startup`).

Installed as `nbconv.bench`.
"""
