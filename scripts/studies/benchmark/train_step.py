"""Times the training step: python scripts/studies/benchmark/train_step.py [quick=true] [rounds=5] [out=FOLDER]

The same as `dforce benchmark speed parts=[train_step]`; what is measured, and how, is in dforce/bench/train_step.py.
"""

import sys

from dforce.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", "speed", "parts=[train_step]", *sys.argv[1:]]))
