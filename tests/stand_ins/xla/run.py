"""`neuron-sum` with the stand-ins: python tests/stand_ins/xla/run.py train RECIPE …"""

import sys

import stand_ins

if __name__ == "__main__":
    stand_ins.install()
    from neuron_sum.cli import main

    sys.exit(main())
