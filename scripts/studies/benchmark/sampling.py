"""Times sampling an unguided plan: python scripts/studies/benchmark/sampling.py [quick=true] [rounds=5] [out=FOLDER]

The same as `dforce benchmark speed parts=[sampling]`; what is measured, and how, is in dforce/bench/sampling.py.
"""

import sys

from dforce.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", "speed", "parts=[sampling]", *sys.argv[1:]]))
