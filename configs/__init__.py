"""Hydra configurations, shipped as `dforce.configs`: one `<verb>.yaml` a verb, one folder a config group."""
