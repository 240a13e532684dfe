"""The explorer: pages that show what the tested functions of `manifold` and `index` compute, and compute nothing."""
