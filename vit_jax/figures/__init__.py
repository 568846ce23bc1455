"""The figures that look inside (section 4.5, appendices D.4, D.7 and D.8).

Each file has the figure's numbers as a function of arrays, and its drawing as a function of these
numbers, which returns a matplotlib Figure. The alphabet of shapes is that of models/vit.py, with
L layers and images B H W 3 in [0, 1].
"""
