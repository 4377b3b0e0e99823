"""One module a verb of the command line: `run(cfg, folder)`, called by `dforce.cli.main`."""
