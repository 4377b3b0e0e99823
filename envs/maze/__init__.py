"""Mazes: grids as data, a MuJoCo environment, a batched numpy stepper, a scripted driver, a generator."""
