"""How fast is it? Every subject runs ours and the others in turns on one machine and reports ratios.

    python -m benchmarks [step|views|masks|peak|muon|host|variants|ranks ...] [--quick]

The other libraries live in an environment of their own, made by

    python3 -m venv benchmarks/.venv
    benchmarks/.venv/bin/pip install -c constraints.txt -e . -r benchmarks/requirements.txt
    benchmarks/.venv/bin/python -m benchmarks

Without them the same command compares with the plain twin only and says what is missing.
"""
