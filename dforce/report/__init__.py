"""Pictures, tables and the page of a run. Reads plain arrays and files, knows nothing of models.

`results` and `html` need the standard library alone; `maze_plots` and `curves` import matplotlib.
"""
