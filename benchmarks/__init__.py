"""What Taba costs, beside a floor and peers measured in the same run: `python -m benchmarks`. docs/benchmarks.md has the method."""
