"""Figures that inspect a trained model (section 4.5, appendices D.4, D.7 and D.8).

Each module computes the numbers of one figure from arrays, and plots these numbers with a function
that returns a matplotlib Figure. Letters for shapes are those of models/vit.py, and L layers; a
patch grid has r rows and c columns; images are B H W 3 in [0, 1].
"""
